"""Locks on files, awaited: flock(2) and the locks of an open file description.

The kernel has no awaited form of either, and a thread that blocks in one cannot be called back
without danger: it might take the lock after its caller is gone.  So a lock that is taken is asked
for again, after 1 ms at first and after 25 ms in the end, and a cancelled wait has never taken it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiounify._kernel_files import ffi, lib
from aiounify.files.operation import failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_FIRST, _LONGEST = 0.001, 0.025
_TAKEN = (errno.EAGAIN, errno.EACCES)


async def _taken(attempt: Callable[[], bool]) -> None:
    pause = _FIRST
    while not attempt():
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST)


class FileLocks:
    """The locks of a handle."""

    __slots__ = ()

    if TYPE_CHECKING:

        def fileno(self) -> int: ...

    @asynccontextmanager
    async def flock(self, *, shared: bool = False) -> AsyncIterator[None]:
        """`async with file.flock():` holds the whole file against other descriptions.

        Waits until it is free; cancelling the wait takes nothing.  OSError of flock(2).
        """
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX

        def attempt() -> bool:
            try:
                fcntl.flock(self.fileno(), kind | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        await _taken(attempt)
        try:
            yield
        finally:
            fcntl.flock(self.fileno(), fcntl.LOCK_UN)

    @asynccontextmanager
    async def lock(
        self, start: int = 0, length: int = 0, *, shared: bool = False
    ) -> AsyncIterator[None]:
        """`async with file.lock(start, length):` holds a range; length 0: to the end of the file.

        A lock of the open file description (F_OFD_SETLK, Linux 3.15): it holds against other
        descriptions in this process as well as in others, and closing another descriptor of the
        same file does not drop it.
        """
        kind = lib.OFD_READ if shared else lib.OFD_WRITE

        def attempt() -> bool:
            if lib.aio_ofd_lock(self.fileno(), kind, start, length) == 0:
                return True
            if ffi.errno in _TAKEN:
                return False
            raise failure(ffi.errno)

        await _taken(attempt)
        try:
            yield
        finally:
            lib.aio_ofd_lock(self.fileno(), lib.OFD_NONE, start, length)
