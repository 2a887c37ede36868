"""select(): the first of any mixture of events, once or again and again.

    async with select(sigterm, readable(sock), every(60.0), child, watch) as events:
        async for source, value in events:
            ...

    source, value = await select(queue_task, sleep_until(deadline))

Why it exists: `asyncio.wait()` needs a task for everything that is awaited, starts them anew
in each round, and what a cancelled loser had received is its own business.  Here sources stay
armed from one event to the next, without tasks, and nothing is taken from a source but what is
handed out.

Rules:

* What is ready is given in the order in which it became so.  A source that has given something
  goes behind the others, so none can keep the rest away.
* However many sources become ready at once, the waiting task is woken once.
* A source that ends (StopAsyncIteration) leaves the selection, one with a single value after
  giving it, one that fails after the failure.
* The selection owns the tasks it had to make for awaitables that are neither sources nor
  futures, and cancels them when it is closed.  Futures and tasks it was given are left alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, TypeVar

from aiounify._core import sources as _native
from aiounify.sources import as_source

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiounify.sources import SourceLike

__all__ = ["Selection", "select"]

_T = TypeVar("_T")


class Selection(_native.Selection[_T]):
    """Many sources awaited together: what select() makes.

    `await selection` gives the next (source, value), and leaves the others armed.  EOFError
    if there is none left to wait for.  One task at a time may await it, another one may
    add() and remove().  A cancelled await has taken nothing.
    """

    @property
    def sources(self) -> list[Any]:
        """What is in the selection and has not ended, in the order of adding."""
        return self._given()

    def add(self, source: SourceLike[_T] | Awaitable[_T]) -> None:
        """Take in another source.

        TypeError for what cannot be awaited, ValueError for what is in here already.
        """
        found, task = as_source(source)
        try:
            self._put(source, found)
        except BaseException:
            if task is not None:
                task.cancel()
            raise
        if task is not None:
            self._own(source, task)

    def remove(self, source: SourceLike[_T] | Awaitable[_T]) -> None:
        """Withdraw a source; what it has stays in it.  KeyError if it is not here."""
        self._pop(source)
        if self._tasks and (task := self._tasks.pop(id(source), None)) is not None:
            task.cancel()

    def close(self) -> None:
        """Withdraw all sources, and cancel the tasks that were made for them."""
        self._clear()
        for task in list((self._tasks or {}).values()):
            task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks = list((self._tasks or {}).values())
        self.close()
        if tasks:
            await asyncio.wait(tasks)

    def __repr__(self) -> str:
        return f"<Selection of {len(self)} sources>"


def select(
    *sources: SourceLike[_T] | Awaitable[_T], return_exceptions: bool = False
) -> Selection[_T]:
    """Wait for the first of many events of any kind.

    The arguments are sources (of aiounify.timers, events, process, signals, watch, sync),
    futures, tasks or any other awaitable.  `await select(...)` gives (source, value) of the
    first, source being the argument itself; `async for source, value in select(...)` goes on
    until all have ended.  `async with select(...) as events` withdraws the rest at the end of
    the block; so does forgetting the selection.

    Losers lose nothing: what happens at them stays there for whoever awaits them next.  Only a
    bare coroutine belongs to the selection, and what it returns after the selection is gone is
    dropped; give a task where that matters.

    What a source raises is raised here, and the source is left out from then on; with
    `return_exceptions` it is given as the value.  RuntimeError under another event loop.
    """
    return Selection(sources, return_exceptions=return_exceptions)
