"""Descriptors as events: counters, readiness, exceptional conditions, received data, descriptors.

    async with EventFD() as done: ...           # eventfd(2): a counter, or a semaphore
    await readable(fd); await writable(fd)      # poll(2), as an awaitable
    await priority(fd)                          # POLLPRI: PSI triggers, sysfs, cgroups, OOB
    byte = await recv_oob(sock)                 # TCP's urgent byte
    await error_queue(sock)                     # POLLERR: MSG_ERRQUEUE has something
    async for data in received(sock): ...       # what arrives, as a source for select()
    await send_fds(sock, [b"x"], [fd]); message = await recv_fds(sock, 1, 4)

Why it exists: `loop.add_reader()` takes a callback, one for each descriptor, and knows neither
exceptional conditions nor values.  These are awaited like anything else, several may wait at
one descriptor, and all go into select().

* What is here is tried first and waits only if there is nothing.  Nothing is read from a
  descriptor before the task that asked runs, so a cancelled wait has consumed nothing.
* Whoever gave a descriptor keeps it.  End the waits before you close it: until then the file
  stays open in the kernel, and a wait for a socket object that was closed raises ValueError.
"""

from __future__ import annotations

import asyncio
import select as _select
import socket
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, overload

from aiounify._core.descriptors import EventCounter, Readiness, Received
from aiounify.sources import current_loop

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aiounify._stream_source import StreamData

__all__ = [
    "EventFD",
    "Message",
    "Readiness",
    "Received",
    "error_queue",
    "priority",
    "readable",
    "received",
    "recv_fds",
    "recv_oob",
    "send_fds",
    "writable",
]


class HasFileno(Protocol):
    """What has a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


class EventFD(EventCounter):
    """A counter in the kernel that can be awaited, by this process or another: eventfd(2).

    `await counter` waits until the count is not zero, gives it and makes it zero; of a
    semaphore it gives 1 and takes 1 away.  `add(n)` adds, from any thread or process, and wakes
    who waits; BlockingIOError if the count would pass 2**64 - 2.  Iterating gives one value after
    the other, and in a select() it is a source.  A cancelled wait has taken nothing.

    `fd` adopts a descriptor that exists, such as an inherited one: it is set not to block,
    which holds for all who share it, and is closed with the object, unless detach() gives it
    away first.  The descriptor is not inherited through exec() unless pass_fds or
    os.set_inheritable() say so.  A context manager, both ways; close() wakes who waits with
    ValueError.  Linux 2.6.30.
    """

    def __init__(
        self, initial: int = 0, *, semaphore: bool = False, fd: int | HasFileno | None = None
    ) -> None:
        super().__init__(initial, semaphore=semaphore, fd=fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = "semaphore" if self.semaphore else "counter"
        return f"<EventFD {kind} {'closed' if self.closed else f'fd={self.fileno()}'}>"


def readable(fd: int | HasFileno) -> Readiness:
    """Wait until reading from `fd` would not block: data, its end, an error or a connection.

    Awaiting gives what poll(2) says, such as select.POLLIN | select.POLLHUP.  Level-triggered:
    as long as nobody reads, it is given at once again.  Regular files are always ready.
    OSError (EBADF) for a descriptor that is not open, ValueError for a closed object.
    """
    return Readiness(fd, _select.POLLIN)


def writable(fd: int | HasFileno) -> Readiness:
    """Wait until writing to `fd` would not block, or fail: a full buffer has room, a connection
    is made.  Awaiting gives what poll(2) says, such as select.POLLOUT; otherwise as readable().
    """
    return Readiness(fd, _select.POLLOUT)


def priority(fd: int | HasFileno) -> Readiness:
    """Wait for an exceptional condition, POLLPRI: out-of-band data on a TCP socket, a pressure
    trigger (PSI), a changed attribute of sysfs or a cgroup, a packet-mode terminal's state.

    Awaiting gives what poll(2) says: select.POLLPRI, with POLLERR for sysfs files, where it
    belongs to the condition.  Read the attribute once before you wait, and again after.  A
    pressure trigger tells each event once; what was seen for a wait that was cancelled is
    kept for the next one of the same object.
    """
    return Readiness(fd, _select.POLLPRI)


def error_queue(sock: int | HasFileno) -> Readiness:
    """Wait until the socket has an error, or something in its error queue: POLLERR.

    That is where IP_RECVERR, SO_TIMESTAMPING and MSG_ZEROCOPY report; read it with
    `sock.recvmsg(size, ancillary_size, socket.MSG_ERRQUEUE)`, which does not block.  A hang-up
    is told too (select.POLLHUP).
    """
    return Readiness(sock, 0)


@overload
def received(sock: socket.socket, size: int = 65536) -> Received: ...
@overload
def received(sock: asyncio.StreamReader, size: int = 65536) -> StreamData: ...
def received(
    sock: socket.socket | asyncio.StreamReader, size: int = 65536
) -> Received | StreamData:
    """What arrives at a socket or stream, as a source: bytes, at most `size` each time.

    `await received(sock)` is one receive; iterating goes on to the end of the stream, which
    is given as b"" first.  Errors of the socket are OSErrors.  Nothing is received before
    a task takes it, so a loser of a select() leaves the bytes in the socket, or in the
    asyncio.StreamReader.  RuntimeError if another coroutine waits for the same reader.
    """
    if isinstance(sock, asyncio.StreamReader):
        from aiounify._stream_source import StreamData

        return StreamData(sock, size)
    return Received(sock, size)


def recv_oob(sock: socket.socket) -> Received:
    """The next urgent byte of a TCP connection, or b"" once the peer has ended it.

    Out-of-band data travels beside the stream: it is given as soon as the kernel knows it,
    before what was sent ahead of it, and is missing from what recv() gives.  There is one at
    a time: a second byte replaces one that was not read (tcp(7)).  SO_OOBINLINE must be off.
    An awaitable, and a source for select().
    """
    return Received(sock, 1, urgent=True)


# -- descriptors through unix sockets ------------------------------------------------


class Message(NamedTuple):
    """What recv_fds() received."""

    data: bytes
    fds: list[int]  #: the receiver's now, not inherited through exec()
    flags: int  #: as recvmsg(2) says
    address: Any  #: of the sender; None of a connected socket

    @property
    def truncated(self) -> bool:
        """There were more descriptors than asked for, and the kernel has closed them."""
        return bool(self.flags & socket.MSG_CTRUNC)


async def send_fds(
    sock: socket.socket, buffers: Iterable[bytes], fds: Sequence[int], flags: int = 0
) -> int:
    """Send bytes and descriptors through a unix socket; waits until there is room.

    As socket.send_fds(), which see: at least one byte has to go along, the descriptors go
    with the first, and on a stream the number of bytes that were sent is returned, which may
    be less.  The descriptors stay open here.  A cancelled call has sent nothing.
    """
    # socket.send_fds() and recv_fds() drop their flags (CPython 3.13), so would block
    current_loop("aiounify.events.send_fds()")
    data = list(buffers)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
    if not any(len(each) for each in data) and sock.type == socket.SOCK_STREAM:
        raise ValueError("at least one byte has to be sent along with descriptors")
    while True:
        try:
            return sock.sendmsg(data, ancillary, flags | socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            await writable(sock)


async def recv_fds(sock: socket.socket, size: int, maxfds: int, flags: int = 0) -> Message:
    """Receive up to `size` bytes and `maxfds` descriptors from a unix socket.

    As socket.recv_fds(), but the descriptors are close-on-exec from the start.  Empty data is
    the end of a stream.  Look at `truncated`: descriptors for which there was no room, or of
    which this process may not have more (EMFILE), are closed by the kernel.  A cancelled call
    has received nothing.
    """
    current_loop("aiounify.events.recv_fds()")
    if size <= 0 or maxfds < 0:
        raise ValueError("size must be positive, and maxfds not negative")
    flags |= socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    fds = array("i")
    room = socket.CMSG_SPACE(maxfds * fds.itemsize)
    while True:
        try:
            data, ancillary, seen, address = sock.recvmsg(size, room, flags)
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
            return Message(data, list(fds), seen & ~socket.MSG_CMSG_CLOEXEC, address or None)
        except (BlockingIOError, InterruptedError):
            await readable(sock)
