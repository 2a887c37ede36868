"""splice(): bytes from one descriptor to another through the kernel, awaited.

Why it exists: asyncio has nothing for it, and splice(2) by hand needs a pipe, two kinds of
waiting and a thread for files.  What moves the bytes and what may block is told in
`_core/splice.pyx`; here is the waiting, once per wait and not per byte.  Between two sockets, where
waits are many and pieces may be small, `_core/relay.pyx` waits natively.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Protocol

from aiounify._core.relay import Relay
from aiounify._core.sendfile import BLOCKED, COLD, DONE
from aiounify._core.splice import WRITE, Move, Pipe, Readiness, Splice
from aiounify._core.uring import probe
from aiounify.loop import EventLoop
from aiounify.sendfile import warm

if TYPE_CHECKING:
    from aiounify._core.reactor import Op

__all__ = ["Pipe", "splice"]


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


def _running() -> EventLoop:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, EventLoop):
        raise RuntimeError(
            "aiounify.files.splice() needs aiounify's event loop: start with aiounify.run()"
        )
    return loop


def _descriptor(end: int | _HasFileno, which: str) -> int:
    if isinstance(end, int):
        return end
    fileno = getattr(end, "fileno", None)
    if fileno is None:
        raise TypeError(
            f"the {which} must be a file descriptor or have fileno(), not {type(end).__name__!r}"
        )
    fd: int = fileno()
    return fd


def _check(count: int | None, offset: int | None, target_offset: int | None) -> None:
    if count is not None and count < 0:
        raise ValueError(f"count must not be negative, and is {count}")
    for name, value in (("offset", offset), ("target_offset", target_offset)):
        if value is not None and value < 0:
            raise ValueError(f"{name} must not be negative, and is {value}")


def _wake(waiter: asyncio.Future[None]) -> Any:
    def finished(_: Op) -> None:
        if not waiter.done():
            waiter.set_result(None)

    return finished


async def _ready(loop: EventLoop, job: Splice) -> None:
    waiter = loop.create_future()
    wait = Readiness(job.waits_for, job.waits_events)
    loop._submit(wait, _wake(waiter))
    try:
        await waiter
    finally:
        # also when it is over: then there is nothing to cancel
        loop._cancel(wait)


async def _write(loop: EventLoop, job: Splice) -> None:
    """A piece that is written to a file.  Cancelling it waits for this piece."""
    move: Move = job.write()
    if loop.backend == "uring" and move.opcode in probe().ops:
        waiter = loop.create_future()
        loop._submit(move, _wake(waiter))
    else:
        waiter = loop.run_in_executor(None, move.run)
    cancelled = None
    while not waiter.done():
        try:
            await asyncio.shield(waiter)
        except asyncio.CancelledError as exc:
            cancelled = exc
            loop._cancel(move)
    job.wrote(move)
    if cancelled is not None:
        raise cancelled


async def splice(
    source: int | _HasFileno,
    target: int | _HasFileno,
    count: int | None = None,
    *,
    offset: int | None = None,
    target_offset: int | None = None,
    through: Pipe | None = None,
) -> int:
    """Move `count` bytes, or all up to the end of the source, without bringing them to Python.

    Both ends are file descriptors or have fileno(): pipes, files, block devices,
    non-blocking sockets and whatever else splice(2) takes.  `offset` and `target_offset`
    are bytes from the beginning of a file; left out, the file's own position is used and
    moved.  Returns the number of bytes that reached the target, which is less than
    `count` only at the end of the source.

    Between two sockets pieces of up to 64 KiB are copied natively, larger ones spliced.

    If neither end is a pipe one is put between them: a private one if the source is a
    file, else the one passed as `through`.  What was taken from the source and did not
    reach the target when the call ends early stays in it (`through.pending`) and goes
    first in the next call.

    OSError with the kernel's errno (EINVAL where a file or device has no splice);
    ValueError for ends that would block the loop.  Cancelling it ends it between two
    system calls and loses nothing; a write to a file that has begun is awaited.  Neither
    end may be used by a transport or by another call meanwhile; splice(2), Linux 2.6.17.
    """
    loop = _running()
    _check(count, offset, target_offset)
    job = Splice(
        _descriptor(source, "source"),
        offset,
        _descriptor(target, "target"),
        target_offset,
        count,
        through,
    )
    relay = Relay(loop, job) if job.is_relay else None
    try:
        state = job.step()
        while state != DONE:
            if state == BLOCKED and relay is not None:
                state = await relay
                continue
            if state == BLOCKED:
                await _ready(loop, job)
            elif state == COLD:
                await warm(loop, job)
            elif state == WRITE:
                await _write(loop, job)
            else:
                await asyncio.sleep(0)
            state = job.step()
    finally:
        if relay is not None:
            relay.close()
        job.close()
    if job.error:
        raise OSError(job.error, os.strerror(job.error))
    return job.moved
