"""Operations of one loop on files: started, awaited to their end, and turned into errors.

Why it exists: whatever reads, writes, opens or renames does the same three things, and must do them
right under cancellation.  A cancelled operation is asked to end and then awaited: only the kernel
knows whether it still happened.  `undo` is called with its result if it did.

On the ring everything the kernel knows is submitted.  On epoll, and for operations that an older
kernel's ring has not, a thread of a small pool makes the same system call.  What can be polled
(pipes, terminals) waits for readiness, and O_DIRECT goes through kernel AIO.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from aiounify._core.file_aio import AioContext
from aiounify._core.file_service import FileService
from aiounify.executor import submit
from aiounify.files.threads import running_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiounify._core.file_op import FileOp
    from aiounify.loop import EventLoop

# threads for what may wait for a disk; more of them only queue at the same disk
_THREADS = 8
# seconds for which a loop that closes waits for them, as it does for the ring
_CLOSING = 5.0


class _Pool:
    """What serves a loop beside the ring: kernel AIO for O_DIRECT, and threads.

    Each is begun when the first operation needs it.
    """

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._threads: ThreadPoolExecutor | None = None
        self._aio: AioContext | None = None
        self._no_aio = False

    def _by_aio(self, op: FileOp) -> bool:
        if self._aio is None and not self._no_aio:
            try:
                self._aio = AioContext(self._by_thread, self._loop.call_soon)
            except OSError:
                self._no_aio = True
            else:
                self._loop._add_reader(self._aio.fileno(), self._aio.reap)
        return self._aio is not None and self._aio.submit(op)

    def __call__(self, op: FileOp) -> None:
        if not (op.direct and self._by_aio(op)):
            self._by_thread(op)

    def _by_thread(self, op: FileOp) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="aiounify-files")
        if submit(self._loop, self._threads, self._work, (op,)) is None:
            self._threads.submit(self._work, op)

    def _work(self, op: FileOp) -> None:
        op.execute()
        try:
            self._loop.call_soon_threadsafe(op.deliver)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def close(self) -> None:
        # in a forked child the threads are the parent's, and so are their locks
        if self._threads is not None and not self._loop._forked:
            # A write that ran later would go to whatever has the descriptor's number then.
            self._threads.shutdown(wait=False)
            deadline = time.monotonic() + _CLOSING
            for thread in tuple(self._threads._threads):
                thread.join(max(0.0, deadline - time.monotonic()))
        if self._aio is not None:
            self._aio.close()


def service() -> FileService:
    """What the files of the running loop share.  RuntimeError if the loop is another kind."""
    loop = running_loop()
    found: FileService | None = loop._files
    if found is None:
        pool = _Pool(loop)
        found = loop._files = FileService(loop, pool)
        loop._close_with(pool.close)
    return found


def encoded(path: Any) -> bytes:
    """A path as the kernel takes it; ValueError, TypeError as of open()."""
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    return name


def failure(code: int, path: Any = None, other: Any = None) -> OSError:
    """The OSError of a (negated) errno, of the type that fits, naming the file."""
    code = abs(code)
    if other is not None:
        return OSError(code, os.strerror(code), path, None, other)
    if path is not None:
        return OSError(code, os.strerror(code), path)
    return OSError(code, os.strerror(code))


async def perform(
    files: FileService, op: FileOp, undo: Callable[[int], object] | None = None
) -> int:
    """Run an operation to its end: a count, or a negated errno.

    CancelledError is raised only when the operation has ended; undo(result) was called then if it
    had succeeded.
    """
    waiter = files.start(op)
    try:
        return await waiter
    except asyncio.CancelledError:
        await _end(files, op)
        if op.result >= 0 and undo is not None:
            undo(op.result)
        raise


async def _end(files: FileService, op: FileOp) -> None:
    files.cancel(op)
    await finished(files, op)


async def finished(files: FileService, op: FileOp) -> None:
    """Wait for the end of an operation that was asked to end, whatever comes."""
    while not op.finished:
        op.waiter = files.loop.create_future()
        try:
            await op.waiter
        except asyncio.CancelledError:
            continue


async def checked(
    files: FileService,
    op: FileOp,
    path: Any = None,
    other: Any = None,
    undo: Callable[[int], object] | None = None,
) -> int:
    """perform(), and OSError for a failure.  Interrupted system calls are made again."""
    result = await perform(files, op, undo)
    if result < 0:
        raise failure(result, path, other)
    return result


#: errors that mean "not now" of a descriptor that does not block
NOT_NOW = (-errno.EAGAIN, -errno.EINTR)
