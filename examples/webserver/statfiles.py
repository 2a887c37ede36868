"""Static files on loops that cannot await file changes: each is looked at for every request.

For `--loop uvloop` and `--loop asyncio`, which are there to be compared with.  The interface is
that of `aiounify.cache.FileCache`.  stat() cannot see a change within the resolution of the file
system's clock, which is why a file that was changed a moment ago is not kept.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["StatFiles"]

_UNSTABLE = 20_000_000  # nanoseconds: two ticks of a clock with 100 Hz


def _signature(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


class StatFile:
    """An open file and what it was when it was opened."""

    watched = False

    def __init__(self, path: str, fd: int, small: int) -> None:
        found = os.fstat(fd)
        self._path = path
        self._signature = _signature(found)
        self._users = 1  # the table of open files is one
        self._stable = time.time_ns() - found.st_mtime_ns > _UNSTABLE
        self.fd = fd
        self.size = found.st_size
        self.mtime_ns = found.st_mtime_ns
        self.etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"'
        self.body = os.pread(fd, small, 0) if found.st_size <= small else None
        self.ready: dict[str, object] = {}

    @property
    def valid(self) -> bool:
        """Whether the name still leads to the same file, unchanged."""
        if self.fd < 0 or not self._stable:
            return False
        try:
            return _signature(os.stat(self._path)) == self._signature  # noqa: PTH116 - hot
        except OSError:
            return False

    def acquire(self) -> None:
        """Keep the descriptor open."""
        self._users += 1

    def release(self) -> None:
        """Let go of the descriptor."""
        self._users -= 1
        if not self._users:
            os.close(self.fd)
            self.fd = -1


class StatFiles:
    """Open files by name."""

    def __init__(self, root: Path, small: int = 64 * 1024, limit: int = 1024) -> None:
        self._root = os.fspath(root)
        self._small = small
        self._limit = limit
        self._files: dict[str, StatFile] = {}

    def hit(self, path: str) -> StatFile | None:
        """The file if it is open and unchanged."""
        file = self._files.get(path)
        if file is None or file.valid:
            return file
        del self._files[path]
        file.release()
        return None

    async def open(self, path: str) -> StatFile:
        """The file; OSError if there is none, or if it is not below the root."""
        file = self.hit(path)
        if file is not None:
            return file
        full = f"{self._root}/{path}"
        fd = os.open(full, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # where it really is, whatever links there are and were
            if not os.readlink(f"/proc/self/fd/{fd}").startswith(f"{self._root}/"):  # noqa: PTH115 - hot
                raise PermissionError(f"{full} leads out of {self._root}")
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(full)
            if not stat.S_ISREG(mode):
                raise PermissionError(f"{full} is not a regular file")
            file = StatFile(full, fd, self._small)
        except BaseException:
            os.close(fd)
            raise
        while len(self._files) >= self._limit:
            self._files.pop(next(iter(self._files))).release()
        self._files[path] = file
        return file

    def close(self) -> None:
        """Close all."""
        for file in self._files.values():
            file.release()
        self._files.clear()
