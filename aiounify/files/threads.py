"""Calls that the kernel has no awaited form for, made in a thread.

Directory listings, names of users, patterns: what is here is not worth a mechanism of its own, and
what is has one.  The threads are those of the loop's default executor.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from aiounify.loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")


def running_loop() -> EventLoop:
    """The running loop.  RuntimeError if it is not aiounify's."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, EventLoop):
        raise RuntimeError(
            "aiounify.files needs aiounify's event loop: start the program with aiounify.run()"
        )
    return loop


async def in_thread(function: Callable[[*_Args], _T], *args: *_Args) -> _T:
    """Call it in a thread.  Cancelling the wait leaves the call to finish."""
    result: _T = await running_loop().run_in_executor(None, function, *args)
    return result


async def finished_in_thread(
    function: Callable[[*_Args], _T], *args: *_Args, undo: Callable[[_T], object]
) -> _T:
    """in_thread() for what makes something: cancelling waits for the call, then undoes it."""
    call: asyncio.Future[_T] = running_loop().run_in_executor(None, function, *args)
    cancelled: asyncio.CancelledError | None = None
    while not call.done():
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError as exc:
            cancelled = exc
        except BaseException:  # its own, which result() raises
            break
    if cancelled is None:
        return call.result()
    if not call.exception():
        undo(call.result())
    raise cancelled
