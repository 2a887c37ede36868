"""run_in_executor() for thread pools: one object and one wake-up a call.

asyncio submits to the pool, which makes a concurrent Future with a condition
variable, and chains an asyncio Future to it with a callback in each direction;
that is most of the price of a thread call.  Here a `ThreadCall` stands in the pool's
own queue in place of the pool's work item.  The worker thread runs it and hands the
result straight to the asyncio Future.

It leans on private parts of concurrent.futures.thread (its work queue and locks),
listed and tested with the other private names; a pool of another class, or a
Python without these names, is served by asyncio's own way.

Rules: a call that was cancelled before a thread took it never runs; one that runs
goes to its end and its result is dropped.  Exceptions arrive as they were raised,
StopIteration, which a Future cannot hold, as RuntimeError.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from concurrent.futures import ThreadPoolExecutor, thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiounify.loop import EventLoop

_NAMES = ("_work_queue", "_shutdown_lock", "_broken", "_shutdown", "_adjust_thread_count")


def _offered() -> bool:
    pool = ThreadPoolExecutor(1)
    try:
        return all(hasattr(pool, name) for name in _NAMES) and all(
            hasattr(thread, name) for name in ("_global_shutdown_lock", "_shutdown")
        )
    finally:
        pool.shutdown()


_FAST = _offered()


def _deliver(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        replaced = RuntimeError(
            "StopIteration interacts badly with generators and cannot be raised into a Future"
        )
        replaced.__cause__ = error
        future.set_exception(replaced)
    elif isinstance(error, concurrent.futures.CancelledError):
        future.set_exception(asyncio.CancelledError(*error.args))
    else:
        future.set_exception(error)


class ThreadCall:
    """A function, its arguments and the asyncio Future that waits; a pool's work item."""

    __slots__ = ("args", "function", "loop", "waiter")

    def __init__(
        self,
        loop: EventLoop,
        waiter: asyncio.Future[Any],
        function: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self.loop = loop
        self.waiter = waiter
        self.function = function
        self.args = args

    def run(self, *_: Any) -> None:
        """In a worker thread.  (Python 3.14 passes the worker's context along.)"""
        waiter = self.waiter
        if waiter.cancelled():
            return
        try:
            result, error = self.function(*self.args), None
        except BaseException as exc:
            result, error = None, exc
        self._hand_over(result, error)
        error = None  # the exception's traceback refers to this frame

    def _hand_over(self, result: Any, error: BaseException | None) -> None:
        try:
            self.loop.call_soon_threadsafe(_deliver, self.waiter, result, error)
        except RuntimeError:
            if not self.loop.is_closed():
                raise

    # What a pool asks of the future of its work items, when it is shut down with
    # cancel_futures=True or when its initializer fails.

    @property
    def future(self) -> ThreadCall:
        return self

    def cancel(self) -> bool:
        try:
            self.loop.call_soon_threadsafe(self.waiter.cancel)
        except RuntimeError:
            return False
        return True

    def set_exception(self, error: BaseException) -> None:
        self._hand_over(None, error)


def submit(
    loop: EventLoop,
    executor: ThreadPoolExecutor,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> asyncio.Future[Any] | None:
    """Queue a call; None if this pool has to be used through its own submit()."""
    if not _FAST or type(executor).submit is not ThreadPoolExecutor.submit:
        return None
    with executor._shutdown_lock, thread._global_shutdown_lock:
        if executor._broken or executor._shutdown or thread._shutdown:
            return None  # its own submit() raises what fits
        waiter: asyncio.Future[Any] = loop.create_future()
        executor._work_queue.put(ThreadCall(loop, waiter, function, args))  # type: ignore[arg-type]
        executor._adjust_thread_count()
    return waiter
