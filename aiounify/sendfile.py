"""loop.sendfile() and loop.sock_sendfile(): asyncio's contract on native steps.

Why it exists: asyncio makes one system call for as much as is left, which holds the loop up
for as long as the reader keeps up or the disk takes, and leaves the file's descriptor number
to whoever gets it next.  What sends is `_core/sendfile.pyx`; here is what happens once per
call or per wait: what can be sent, what errors mean, and where the file stands afterwards.

Rules:

* Each step is tried before anything is arranged for waiting.  A small file in memory is
  sent without pausing the transport, without a second descriptor and without a turn of the loop.
* The file's position is set once, at the end, however it ends, and only if something was sent.
* An error before the first byte means that sendfile(2) is not for this pair, as in asyncio,
  which then reads and writes by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import io
import os
from asyncio import exceptions
from typing import TYPE_CHECKING, Any

from aiounify._core.sendfile import COLD, DONE, TURN, ReadAhead, Source, Transfer, is_sendable

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from aiounify.loop import EventLoop

_unix_events: Any = asyncio.unix_events  # its type stubs lack the name


def _is_handle(file: Any) -> bool:
    """Whether it is a handle of aiounify.files, whose methods are coroutines."""
    return inspect.iscoroutinefunction(getattr(file, "seek", None))


async def _begin(file: Any, offset: int, count: int | None) -> Transfer:
    try:
        fd = file.fileno()
        if inspect.iscoroutine(fd):  # of a spooled file
            fd = await fd
        sendable = is_sendable(fd)
    except (AttributeError, io.UnsupportedOperation, OSError) as exc:
        raise exceptions.SendfileNotAvailableError("not a regular file") from exc
    if not sendable:
        raise exceptions.SendfileNotAvailableError("not a regular file")
    if _is_handle(file):
        await file.flush()
    return Transfer(fd, offset, count)


async def warm(loop: EventLoop, source: Source) -> None:
    """Bring the next bytes of a file into memory, without holding the loop up.

    Cancelling it ends the wait; the kernel or the thread may go on reading.
    """
    reading = source.read_ahead()
    if loop.backend == "uring":
        waiter = loop.create_future()

        def finished(_: ReadAhead) -> None:
            if not waiter.done():
                waiter.set_result(None)

        loop._submit(reading, finished)
        try:
            await waiter
        except asyncio.CancelledError:
            loop._cancel(reading)
            raise
    else:
        await loop.run_in_executor(None, reading.run)
    source.warmed(reading)


async def _go_on(loop: EventLoop, sock: socket.socket, transfer: Transfer, state: int) -> None:
    while state != DONE:
        if state == COLD:
            await warm(loop, transfer)
        elif state == TURN:
            await asyncio.sleep(0)
        state = await loop._sendfile(sock, transfer)


async def _settle(file: Any, transfer: Transfer) -> None:
    """Leave the file behind what was sent."""
    transfer.close()
    if not transfer.sent:
        return
    # it may have been closed meanwhile
    with contextlib.suppress(ValueError, OSError):
        if isinstance(file, io.IOBase):
            file.seek(transfer.offset)
        elif _is_handle(file):
            await file.seek(transfer.offset)
        else:
            os.lseek(file.fileno(), transfer.offset, os.SEEK_SET)


def _outcome(file: Any, transfer: Transfer) -> int:
    code = transfer.error
    if not code:
        return transfer.sent
    error = OSError(code, os.strerror(code))
    if code in (errno.EIO, errno.ESTALE):
        error.filename = getattr(file, "name", None)
    if not transfer.sent:
        raise exceptions.SendfileNotAvailableError("sendfile() failed") from error
    if code == errno.ENOTCONN:
        # asyncio: the connection was closed in the middle
        raise ConnectionError(code, "socket is not connected") from error
    raise error


async def send_to_socket(
    loop: EventLoop, sock: socket.socket, file: Any, offset: int, count: int | None
) -> int:
    """Send a file to a socket in the program's hands; the number of bytes sent.

    SendfileNotAvailableError where the kernel cannot do it.  Cancelling it ends it between
    two system calls; the file's position tells how far it came.
    """
    # asked where asyncio asks, of an interpreter that may have been built without it
    if not hasattr(_unix_events.os, "sendfile"):
        raise exceptions.SendfileNotAvailableError("os.sendfile() is not available")
    if sock.gettimeout() is None:
        # sendfile(2) has no flag for it
        raise exceptions.SendfileNotAvailableError("the socket is a blocking one")
    transfer = await _begin(file, offset, count)
    try:
        await _go_on(loop, sock, transfer, await loop._sendfile(sock, transfer))
    finally:
        await _settle(file, transfer)
    return _outcome(file, transfer)


async def _lend(loop: EventLoop, transport: Any, transfer: Transfer, state: int) -> None:
    sock = transport._sock
    reading = transport.is_reading()
    transport.pause_reading()
    transport._lend()
    try:
        await _go_on(loop, sock, transfer, state)
    finally:
        transport._take_back()
        if reading:
            transport.resume_reading()


async def send_through_transport(
    loop: EventLoop, transport: Any, file: Any, offset: int, count: int | None
) -> int:
    """Send a file by a native stream transport, behind what was written before.

    As send_to_socket().  As long as it waits nothing is read, and nothing can be written.
    ConnectionError if the transport is closed or lost meanwhile.
    """
    transfer = await _begin(file, offset, count)
    try:
        waiter = transport._make_empty_waiter()
        try:
            if not waiter.done():
                transfer.keep()
                await waiter
            state = transfer.step(transport._sock.fileno())
            if state != DONE:
                await _lend(loop, transport, transfer, state)
        finally:
            transport._reset_empty_waiter()
    finally:
        await _settle(file, transfer)
    if transfer.error and transport.is_closing():
        raise ConnectionAbortedError(errno.ECONNABORTED, "the transport was closed meanwhile")
    return _outcome(file, transfer)


class _Copy(io.FileIO):
    """Another descriptor of a handle's file, for code that reads it in threads.

    Closed when the last of them has done with it, and so never under a thread's hands.
    """

    def __del__(self) -> None:
        self.close()


async def read_and_write(
    fallback: Callable[[Any, int, int | None], Awaitable[int]],
    file: Any,
    offset: int,
    count: int | None,
) -> int:
    """asyncio's fallback, also for the handles of aiounify.files."""
    if not _is_handle(file):
        return await fallback(file, offset, count)
    fd = file.fileno()
    if inspect.iscoroutine(fd):
        fd = await fd
    await file.flush()
    copy = _Copy(os.dup(fd))
    copy.seek(offset)
    try:
        return await fallback(copy, offset, count)
    finally:
        if (position := copy.tell()) != offset:
            await file.seek(position)
