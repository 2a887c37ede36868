"""Files that stay open: a static file is looked up, not opened, until it changes.

Rules:

* What a path leads through is written down before the file is opened, and the file is what the
  descriptor says: fstat(2) on it has to agree with what the path led to.
* Where a path ends may be anywhere below the root, and nowhere else, whatever links there are.
* A file that was dropped stays open for those who hold it (`acquire`), so that its number is not
  that of another file while it is being sent.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from typing import TYPE_CHECKING

from aiounify.cache.basis import Basis
from aiounify.cache.trace import signature
from aiounify.files.handle import open as open_file

if TYPE_CHECKING:
    from pathlib import Path

    from aiounify.cache.changes import Changes
    from aiounify.cache.trace import Trace

__all__ = ["FileCache", "StaticFile", "open_traced"]

_TRIES = 5


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)


def open_traced(basis: Basis, path: str) -> tuple[int, os.stat_result, Trace]:
    """Open a file that a basis depends on from now on: its descriptor, state and trace.

    OSError with errno and filename.  What is not a regular file is not opened.
    """
    for _ in range(_TRIES):
        found = basis.add("file", path)
        if found.state is None:
            raise _error(errno.ENOENT, path)
        # O_NONBLOCK: a FIFO would wait for a writer
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        try:
            fd = os.open(found.real, flags)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                continue  # since it was followed
            if exc.errno == errno.ENXIO:  # a socket, or a device
                raise PermissionError(errno.EACCES, "not a regular file", path) from None
            raise _error(exc.errno or errno.EIO, path) from None
        now = os.fstat(fd)
        if stat.S_ISDIR(now.st_mode):
            os.close(fd)
            raise _error(errno.EISDIR, path)
        if not stat.S_ISREG(now.st_mode):
            os.close(fd)
            raise PermissionError(errno.EACCES, "not a regular file", path)
        if signature(now) == found.state:
            return fd, now, found
        os.close(fd)
    raise OSError(errno.EBUSY, "the file changes faster than it is opened", path)


async def read_whole(fd: int, size: int) -> bytes:
    """What is in an open file, from its begin; from memory without suspending the task."""
    file = await open_file(fd, "rb", buffering=0, closefd=False)
    try:
        # one more than there should be, which shows that it grew
        data: bytes = await file.pread(size + 1, 0)
        return data
    finally:
        await file.close()


class StaticFile:
    """An open file.  `valid` says whether its path still leads to it, unchanged."""

    __slots__ = ("_basis", "_users", "body", "etag", "fd", "mtime_ns", "path", "ready", "size")

    def __init__(self, path: str, fd: int, found: os.stat_result, basis: Basis) -> None:
        self._basis = basis
        self._users = 1  # the cache is one
        self.path = path
        self.fd = fd
        self.size = found.st_size
        self.mtime_ns = found.st_mtime_ns
        self.etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"'
        #: the content of a small file, None of others
        self.body: bytes | None = None
        #: for what others make from it; it lasts as long as the file does
        self.ready: dict[str, object] = {}

    def __repr__(self) -> str:
        return f"<StaticFile {self.path!r} {self.etag}>"

    @property
    def valid(self) -> bool:
        """Whether it is as it was, as far as is known since the last drain()."""
        return self.fd >= 0 and self._basis.holds()

    @property
    def watched(self) -> bool:
        """Whether it is valid for as long as the generation is the same."""
        return self._basis.steady

    def acquire(self) -> None:
        """Keep the descriptor open."""
        self._users += 1

    def release(self) -> None:
        """Let go of the descriptor; the last one closes it."""
        self._users -= 1
        if not self._users:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)


class FileCache:
    """Open files below a directory, by path.

    `small` is the size in bytes up to which the content is kept as well, `limit` the number of
    open files.
    """

    def __init__(
        self, changes: Changes, root: str | Path, *, small: int = 64 * 1024, limit: int = 1024
    ) -> None:
        self.root = os.path.realpath(root)
        self._changes = changes
        self._small = small
        self._limit = limit
        self._files: OrderedDict[str, StaticFile] = OrderedDict()
        changes.on_close(self.close)

    def __len__(self) -> int:
        return len(self._files)

    def hit(self, path: str) -> StaticFile | None:
        """The file if it is open and unchanged.  Never waits."""
        file = self._files.get(path)
        if file is None or file.valid:
            return file
        self._drop(path)
        return None

    async def open(self, path: str) -> StaticFile:
        """The file at a path, which is relative to the root.

        FileNotFoundError, IsADirectoryError; PermissionError for a path that leads out of the
        root, and for what is no regular file.  Cancelling leaves nothing open.
        """
        file = self.hit(path)
        if file is not None:
            return file
        full = f"{self.root}/{path}"
        for _ in range(_TRIES):
            self._changes.drain()
            basis = Basis(self._changes)
            fd, found, where = open_traced(basis, full)
            file = StaticFile(path, fd, found, basis)
            if not where.real.startswith(f"{self.root}/"):
                raise PermissionError(errno.EACCES, f"leads out of {self.root}", full)
            if found.st_size > self._small:
                break
            body = await read_whole(fd, found.st_size)
            if len(body) == found.st_size:
                file.body = body
                break
        else:
            raise OSError(errno.EBUSY, "the file changes faster than it is read", full)
        self._drop(path)
        while len(self._files) >= self._limit:
            self._files.popitem(last=False)[1].release()
        self._files[path] = file
        return file

    def _drop(self, path: str) -> None:
        file = self._files.pop(path, None)
        if file is not None:
            file.release()

    def close(self) -> None:
        """Close all files that nobody holds."""
        while self._files:
            self._files.popitem()[1].release()
