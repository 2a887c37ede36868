"""write_durable(): data that is on the disk when the call returns.

Why it exists: a log, a journal or a database acknowledges what it has written, and may do so only
after fdatasync(2).  On the ring both are one submission, the sync linked to the write; on epoll, or
where the ring lacks one of them, one job in a thread.

Rules:

* A write that was cut short goes on with the rest, as write(2) programs do.
* A sync that failed is never tried again.  The kernel reports an error of writing back once, marks
  the pages clean and forgets it: a second fsync that succeeds says nothing about them (Linux 4.13
  and later; on some file systems the pages are dropped).  Hence an error of its own.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Protocol

from aiounify._core.file_durable import DurableWrite, start_durable
from aiounify.files.operation import failure, service

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from aiounify._core.file_service import FileService

__all__ = ["SyncError", "write_durable"]


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


class SyncError(OSError):
    """The data were written, and fdatasync failed: what is on the disk is not known.

    Trying again proves nothing.  What was to be durable has to be read back after the file was
    opened anew, or written to another file.
    """


async def write_durable(file: int | _HasDescriptor, data: Buffer, offset: int) -> int:
    """Write all of `data` at `offset` (bytes) of a file, then have it on the disk.

    `file` is a descriptor open for writing, or an object with fileno(); a handle's buffer and
    position are not touched.  Returns the number of bytes.  The data must not change until then.

    OSError if writing failed: some of the data may be in the file, ENOSPC and EDQUOT among the
    reasons.  SyncError, which is one, if the sync did.  Cancelling waits until the request under
    way has ended, for only then is the file's state known; what was left of a short write is not
    written then.  pwritev(2), fdatasync(2); linked in io_uring (Linux 5.6).
    RuntimeError under another event loop.
    """
    files = service()
    fd = file if isinstance(file, int) else file.fileno()
    if offset < 0:
        raise ValueError(f"offset must be 0 or more, not {offset}")
    view = memoryview(data).cast("B")
    done = 0
    while True:
        op = DurableWrite(fd, (view,), offset + done, done)
        result = await _ended(files, op)
        if op.written < 0:
            if op.written == -errno.EINTR:
                continue
            raise failure(op.written)
        done += op.written
        if done < len(view):
            if op.written == 0:
                raise failure(errno.EIO)
            continue
        if result < 0:
            raise SyncError(-result, failure(result).strerror)
        return done


async def _ended(files: FileService, op: DurableWrite) -> int:
    cancelled: asyncio.CancelledError | None = None
    waiter = start_durable(files, op)
    while True:
        try:
            await waiter
        except asyncio.CancelledError as exc:
            cancelled = exc
            if not op.ended:
                op.waiter = waiter = files.loop.create_future()
                continue
        if cancelled is not None:
            raise cancelled
        return op.result
