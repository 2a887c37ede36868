"""What the native scheduler calls when it leaves the fast path.

Exceptions of callbacks, a closed or forked loop, and debug mode.  Messages are
asyncio's own, so that log filters and tests written for it keep working.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import sys
import traceback
import warnings
from asyncio import format_helpers
from typing import TYPE_CHECKING, Any

from aiounify._core import scheduler, sock_calls

if TYPE_CHECKING:
    from aiounify.loop import EventLoop

# from 3.13 on asyncio shows arguments in debug mode only
_SOURCE_DEBUG = "debug" in inspect.signature(format_helpers._format_callback_source).parameters
# scheduler's STATE_ bits
_CLOSED, _DEBUG, _FORKED = 1, 2, 4


def report_exception(loop: EventLoop, handle: Any, exception: BaseException) -> None:
    """An exception left a callback: tell the loop's exception handler."""
    source = format_helpers._format_callback_source(
        handle._callback, handle._args, **({"debug": loop.get_debug()} if _SOURCE_DEBUG else {})
    )
    context = {
        "message": f"Exception in callback {source}",
        "exception": exception,
        "handle": handle,
    }
    if handle._source_traceback:
        context["source_traceback"] = handle._source_traceback
    loop.call_exception_handler(context)


def check(loop: EventLoop, state: int, callback: Any, method: str) -> Any:
    """Raise if nothing may be scheduled now; in debug mode return where it was."""
    if state & (_CLOSED | _FORKED):
        loop._check_closed()
    if not state & _DEBUG:
        return None
    if method != "call_soon_threadsafe":
        loop._check_thread()
    loop._check_callback(callback, method)
    return source_traceback()


def source_traceback() -> traceback.StackSummary:
    """The stack of the code that called into the native loop."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return format_helpers.extract_stack(frame)


def report_slow(handle: Any, seconds: float) -> None:
    """A callback or task step took longer than loop.slow_callback_duration."""
    base_events: Any = asyncio.base_events  # its type stubs have neither of the names
    base_events.logger.warning(
        "Executing %s took %.3f seconds", base_events._format_handle(handle), seconds
    )


def check_forked(loop: EventLoop) -> None:
    """Raise in a process that inherited the loop by fork."""
    raise RuntimeError(
        f"this event loop belongs to process {loop._pid} and cannot be used after a fork "
        f"(this is process {os.getpid()}); make a new one with aiounify.new_event_loop()"
    )


def call_origin() -> tuple[tuple[str, int, str], ...] | None:
    """Where a socket call is made, in the form of a coroutine's cr_origin."""
    depth = sys.get_coroutine_origin_tracking_depth()
    if not depth:
        return None
    stack = traceback.walk_stack(sys._getframe(1))
    frames = ((frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in stack)
    return tuple(itertools.islice(frames, depth))


def warn_unawaited(name: str, origin: tuple[tuple[str, int, str], ...] | None) -> None:
    """A socket call was dropped before it began; the words are the interpreter's."""
    message = f"coroutine 'EventLoop.{name}' was never awaited"
    if origin is not None:
        places = [traceback.FrameSummary(*place) for place in reversed(origin)]
        message += "\nCoroutine created at (most recent call last)\n"
        message += "".join(traceback.format_list(places)).rstrip("\n")
    warnings.warn(message, RuntimeWarning, stacklevel=2)


sock_calls.configure(call_origin, warn_unawaited)
scheduler.configure(
    asyncio.Handle,
    asyncio.TimerHandle,
    report_exception,
    check,
    report_slow,
    source_traceback,
)
