"""Sources: what can be awaited, alone or in a `select()`, and how to make something one.

A source is an object with three methods, called in the loop's thread only:

    take()         What is there now, without waiting.  EMPTY if there is nothing.
                   StopAsyncIteration if nothing will ever come any more; any other
                   exception is the source's failure.
    arm(ready)     Called after take() said EMPTY, with nothing in between.  The source calls
                   ready(), without arguments, once, when take() may have something, has
                   failed or has ended; also at once, from within arm().  From then on
                   `ready` is not armed any more.  Several waiters may be armed; all are
                   called, in the order of arming, and the first takes.
    disarm(ready)  `ready` is not called any more.  Nothing if it is not armed.

and, if it has one value only (a deadline, a child's status), the class attribute
`once = True`: take() then gives that value as often as it is asked, and a selection leaves
the source after it.

What follows from this, and has to be kept:

* **Only take() takes.**  Arming and the call of ready() consume nothing, so a waiter may be
  cancelled, or may lose a selection, at any moment: what has happened is still there for
  whoever asks next, in the order in which it happened.  ready() is a hint; a waiter that finds
  EMPTY behind it arms again.
* What the kernel hands out as soon as it is asked (the bytes of a read, the result of an
  operation in the ring) is kept in the source until take() fetches it.  disarm() may leave
  such an operation in flight, or cancel it; its completion says what happened.
* A source that keeps something for its waiter alone, such as a lock it was given, gives it
  back when the last waiter is disarmed.
* No task, no thread for a waiter: arming is a submission, a readiness watch or an entry in a
  list.

`Source` is a base class with the list of waiters in it.  Subclass it, in Python or Cython
(`from aiounify._core.sources cimport Source`), and write

    take()         as above;
    _begin()       somebody waits: start the operation or watch the descriptor, unless that
                   is still under way from the last time;
    _withdraw()    nobody waits any more: cancel, or leave it in flight;

and call `self._fire()` in the loop's thread when there may be something.  By readiness:

    class Chunks(Source):                         # of a non-blocking descriptor
        def take(self):
            try:
                data = os.read(self.fd, 4096)
            except BlockingIOError:
                return EMPTY
            if not data:
                raise StopAsyncIteration
            return data
        def _begin(self):
            self._loop._add_reader(self.fd, self._readable)
        def _withdraw(self):
            self._loop._remove_reader(self.fd)
        def _readable(self):
            self._withdraw()
            self._fire()

By an operation whose result is kept:

        def take(self):
            if self.result is None:
                return EMPTY
            result, self.result = self.result, None
            return result
        def _begin(self):
            if self.op is None:
                self.op = self._loop._submit(MyOp(...), self._done)
        def _done(self, op):                      # also for a cancelled one that won
            self.op = None
            self.result = ...
            self._fire()

By a queue: `Arrivals` is a source already; `put(value)` and `end(reason)` fill it.

Everything else that can be awaited goes into a selection by `as_source()`: a future or task
as it is, with a done-callback; any other awaitable as a task, which the selection owns.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, TypeVar

from aiounify._core import sources as _native
from aiounify._core.sources import Arrivals, Source, current_loop, taking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = [
    "EMPTY",
    "Arrivals",
    "Empty",
    "FutureSource",
    "Source",
    "SourceLike",
    "as_source",
    "current_loop",
    "taking",
]

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Empty(enum.Enum):
    """The type of EMPTY."""

    EMPTY = "nothing there"


#: What take() answers when there is nothing.
EMPTY: Final = Empty.EMPTY
Nothing: TypeAlias = Literal[Empty.EMPTY]

_native.configure(EMPTY)


class SourceLike(Protocol[_T_co]):
    """What select() accepts as a source; the promises stand in this module's docstring."""

    def take(self) -> _T_co | Nothing:
        """What is there now, or EMPTY."""

    def arm(self, ready: Callable[[], object], /) -> None:
        """Call ready() once when take() may have something."""

    def disarm(self, ready: Callable[[], object], /) -> None:
        """Do not call it any more."""


class FutureSource(Source[_T]):
    """A future or task as a source: its result, or what it raises.

    Withdrawing does not cancel it.
    """

    once = True

    def __init__(self, future: asyncio.Future[_T]) -> None:
        self.future = future

    def take(self) -> _T | Nothing:
        """The future's result; raises its exception, CancelledError if it was cancelled."""
        return self.future.result() if self.future.done() else EMPTY

    def _begin(self) -> None:
        self.future.add_done_callback(self._done)

    def _withdraw(self) -> None:
        self.future.remove_done_callback(self._done)

    def _done(self, future: asyncio.Future[_T]) -> None:
        self._fire()


def as_source(
    awaitable: SourceLike[_T] | Awaitable[_T] | concurrent.futures.Future[_T],
) -> tuple[SourceLike[_T], asyncio.Future[_T] | None]:
    """A source for anything that can be awaited, and the task that was made for it, if any.

    Whoever gets a task owns it.  TypeError for what cannot be awaited.
    """
    if isinstance(awaitable, Source):
        return awaitable, None
    if asyncio.isfuture(awaitable):
        return FutureSource(awaitable), None
    found: Any = awaitable
    if all(callable(getattr(found, name, None)) for name in ("take", "arm", "disarm")):
        return found, None
    if isinstance(found, concurrent.futures.Future):
        return FutureSource(asyncio.wrap_future(found)), None
    if asyncio.iscoroutine(found) or hasattr(found, "__await__"):
        task = asyncio.ensure_future(found)
        return FutureSource(task), task
    raise TypeError(
        f"select() takes sources, futures, tasks and other awaitables, not {found!r}: for a "
        "descriptor or socket use aiounify.events.readable() and its kin"
    )
