"""Writing and syncing the log's file.

`Disk` is what the committer sees.  On aiounify's loop a write with its sync is one linked request
of the ring, or one job of a thread where there is no ring (aiounify.files.write_durable); on
another event loop it is a job of the loop's executor.  The meaning is the same: `append()`
returns when all is written (and on the disk if that was asked for), raises OSError when writing
failed and SyncError when it is not known what is on the disk.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING

import aiounify
from aiounify.files import SyncError, write_durable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Disk", "SyncError", "lock", "sync_directory"]


class Disk:
    """The way to the disk from the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._native = isinstance(self._loop, aiounify.EventLoop)

    async def append(self, fd: int, data: bytes, offset: int, *, durable: bool) -> None:
        """Write all of the data at an offset; with `durable`, have them on the disk."""
        if durable and self._native:
            await write_durable(fd, data, offset)
        else:
            await self._to_its_end(_append, fd, data, offset, durable)

    async def sync(self, fd: int) -> None:
        """Have what was written on the disk."""
        await self._to_its_end(_sync, fd)

    async def _to_its_end(self, function: Callable[..., None], *args: object) -> None:
        """In a thread; whoever is cancelled waits, for the descriptor may be closed afterwards."""
        call = self._loop.run_in_executor(None, function, *args)
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait([call])
            if not call.cancelled():
                call.exception()
            raise


def _append(fd: int, data: bytes, offset: int, durable: bool) -> None:
    view = memoryview(data)
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n
    if durable:
        _sync(fd)


def _sync(fd: int) -> None:
    try:
        os.fdatasync(fd)
    except OSError as exc:
        raise SyncError(exc.errno, exc.strerror) from None


def sync_directory(path: Path) -> None:
    """Have the names in a directory on the disk; blocks."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as exc:
        raise SyncError(exc.errno, exc.strerror, str(path)) from None
    finally:
        os.close(fd)


def lock(path: Path) -> int:
    """A descriptor that keeps other servers from a directory; BlockingIOError if one has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd
