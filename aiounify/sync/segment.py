"""Memory that processes share, and how they find and leave it.

Anonymous memory is a memfd: it goes to other processes by fork, or inside a pickle made
while `multiprocessing` starts a process or sends over its connections, and the kernel frees it
with the last descriptor, however the last user ends.

Named memory is a file /dev/shm/aiounify.NAME.  Each user holds a shared flock on it, so whoever
closes it and can get an exclusive one is the last user and removes the file.  If the last user
was killed, whoever opens the name next finds no lock held, and starts anew.

Layout: a header of 64 bytes, and what the primitive keeps from there on.  A header is complete
before any other process can see it: the file gets its name last.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import struct
import weakref
from contextlib import suppress
from multiprocessing import reduction, util
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiounify._core.futex import Word

_HEADER = struct.Struct("<8sIIQ")
_MAGIC = b"aiounify"
_VERSION = 1
HEADER = 64
FOLDER = "/dev/shm"

_S = TypeVar("_S", bound="Shared")


def _path(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", name):
        raise ValueError(
            f"the name of shared memory is 1 to 200 letters, digits, '_', '.' and '-', not {name!r}"
        )
    return f"{FOLDER}/aiounify.{name}"


def _is(fd: int, path: str) -> bool:
    """Whether the path still names this file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))  # noqa: PTH116 - two stats are compared
    except FileNotFoundError:
        return False


def _lock(fd: int) -> int:
    """A descriptor of its own with a shared lock: one that was dup()ed shares its locks."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(own, fcntl.LOCK_SH)
    return own


class Segment:
    """One mapping.  `fd` stays open, for other processes."""

    def __init__(self, fd: int, name: str | None, lock: int = -1) -> None:
        self.fd = fd
        self.name = name
        self.lock = lock
        self.memory = mmap.mmap(fd, 0)
        if name is not None:
            # Also runs at the end of multiprocessing's children, where atexit does not.
            self._finish = util.Finalize(self, _leave, (fd, name, [lock]), exitpriority=0)
            _named.add(self)

    @classmethod
    def make(
        cls, kind: int, size: int, init: Callable[[mmap.mmap], None], reserve: int | None = None
    ) -> Segment:
        fd = os.memfd_create("aiounify", os.MFD_CLOEXEC)
        try:
            _fill(fd, kind, size, init, reserve)
            return cls(fd, None)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open(
        cls,
        name: str,
        kind: int,
        size: int,
        init: Callable[[mmap.mmap], None],
        reserve: int | None = None,
    ) -> Segment:
        """The named one, made if nobody uses it."""
        path = _path(name)
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                fd = os.open(FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
                try:
                    _fill(fd, kind, size, init, reserve)
                    lock = _lock(fd)
                except BaseException:
                    os.close(fd)
                    raise
                try:
                    # With a directory named Python calls linkat, which can follow the link.
                    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
                except FileExistsError:
                    os.close(lock)
                    os.close(fd)
                    continue
                return cls(fd, name, lock)
            lock = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if _is(fd, path):
                    try:
                        check(fd, kind, path)
                        return cls(fd, name, lock)
                    except BaseException:
                        os.close(lock)
                        os.close(fd)
                        raise
            else:
                try:
                    check(fd, None, path)  # a file of somebody else's is not ours to remove
                    if _is(fd, path):
                        os.unlink(path)  # noqa: PTH108 - its last user was killed
                except BaseException:
                    os.close(lock)
                    os.close(fd)
                    raise
            os.close(lock)
            os.close(fd)

    def close(self) -> None:
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        if self.name is not None:
            self._finish.cancel()
            _named.discard(self)
            _leave(fd, self.name, [self.lock])
        else:
            os.close(fd)
        with suppress(BufferError):  # a wait goes on; the mapping goes with it
            self.memory.close()

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0 and self.name is None:
            os.close(self.fd)
            self.fd = -1


_named: weakref.WeakSet[Segment] = weakref.WeakSet()


def _leave(fd: int, name: str, lock: list[int]) -> None:
    path = _path(name)
    with suppress(OSError):
        fcntl.flock(lock[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is(fd, path):
            os.unlink(path)  # noqa: PTH108
    os.close(lock[0])
    os.close(fd)


def _after_fork() -> None:
    # The child is a user of its own.  The number stays, the lock is a new one.
    for segment in _named:
        own = _lock(segment.fd)
        os.dup2(own, segment.lock, inheritable=False)
        os.close(own)


os.register_at_fork(after_in_child=_after_fork)


def _fill(
    fd: int, kind: int, size: int, init: Callable[[mmap.mmap], None], reserve: int | None
) -> None:
    os.ftruncate(fd, size)
    # Where there is no memory left a store to the mapping is a SIGBUS; this says ENOSPC.
    os.posix_fallocate(fd, 0, size if reserve is None else reserve)
    with mmap.mmap(fd, size) as memory:
        _HEADER.pack_into(memory, 0, _MAGIC, _VERSION, kind, size)
        init(memory)


def check(fd: int, kind: int | None, what: str) -> None:
    """ValueError if this is not memory of ours, of this version and kind."""
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size or header[:8] != _MAGIC:
        raise ValueError(f"{what} is not shared memory of aiounify")
    _, version, found, size = _HEADER.unpack(header)
    if version != _VERSION:
        raise ValueError(
            f"{what} was made by another version of aiounify (layout {version}, not {_VERSION})"
        )
    if kind is not None and found != kind:
        raise ValueError(f"{what} is another kind of primitive ({found}, not {kind})")
    if os.fstat(fd).st_size != size:
        raise ValueError(f"{what} is {os.fstat(fd).st_size} bytes long and says {size}")


class Shared:
    """Base of the primitives: makes, maps, pickles and closes their memory.

    Subclasses say what they keep: `_KIND`, the size, how it is at first, and `_map()`, which
    makes their words in `self._segment.memory` and lists them in `self._words`.
    """

    _KIND: ClassVar[int] = 0
    _segment: Segment
    _words: tuple[Word, ...]

    def _make(
        self,
        name: str | None,
        size: int,
        init: Callable[[mmap.mmap], None] = lambda _: None,
        reserve: int | None = None,
    ) -> None:
        total = HEADER + size
        if name is None:
            self._segment = Segment.make(self._KIND, total, init, reserve)
        else:
            self._segment = Segment.open(name, self._KIND, total, init, reserve)
        self._map(self._segment.memory)

    def _map(self, memory: mmap.mmap) -> None:
        raise NotImplementedError

    @property
    def name(self) -> str | None:
        """The name other processes can open it by, None for anonymous memory."""
        return self._segment.name

    def close(self) -> None:
        """Give the memory up; the last user's close removes it.  Closing twice is allowed."""
        for word in self._words:
            word.release()
        self._segment.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._segment.fd < 0:
            raise ValueError(f"this {type(self).__name__} was closed")
        return _rebuild, (type(self), reduction.DupFd(self._segment.fd), self.name)


def _rebuild(cls: type[_S], handle: Any, name: str | None) -> _S:
    inherited = handle.detach()
    # DupFd hands out inheritable ones
    fd = os.open(f"/proc/self/fd/{inherited}", os.O_RDWR | os.O_CLOEXEC)
    os.close(inherited)
    lock = -1
    try:
        check(fd, cls._KIND, "what was received")
        lock = _lock(fd) if name is not None else -1
        found = cls.__new__(cls)
        found._segment = Segment(fd, name, lock)
    except BaseException:
        os.close(fd)
        if lock >= 0:
            os.close(lock)
        raise
    found._map(found._segment.memory)
    return found
