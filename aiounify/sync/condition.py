"""A condition variable with its own robust lock.

Invariants: the word counts notifications and changes with the lock held; a waiter reads it
with the lock held, and is over when it has changed.

A notification wakes at least as many as were asked for.  It may wake more (a waiter that was
about to sleep, one that takes over from a cancelled or killed one), as condition variables of
threads do: wait in a loop, or use wait_for().
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from aiounify._core.futex import Word
from aiounify._waiting import UNTIL_CHANGED, Deadline, block_on, sleep_on
from aiounify.sync.lock import Lock, OwnerDied
from aiounify.sync.segment import HEADER

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

_T = TypeVar("_T")
_EVERYBODY = 0x7FFFFFFF


class Condition(Lock):
    """A condition variable between processes, for coroutines and threads.

    Its own lock has the methods of Lock, with OwnerDied where an owner died.
    """

    _KIND = 5

    def __init__(self, name: str | None = None) -> None:
        self._make(name, 128)

    def _map(self, memory: mmap.mmap) -> None:
        super()._map(memory)
        self._news = Word(memory, HEADER + 64)
        self._words = (self._core.word, self._news)

    def _check_owned(self, what: str) -> None:
        if not self._core.word.mine:
            raise RuntimeError(f"cannot {what} without holding the lock")

    async def wait(self) -> bool:
        """Release the lock, wait to be notified, take the lock again: True.

        It may return without a notification.  When cancelled it takes the lock first, then raises.
        OwnerDied as from acquire(), with the lock taken.
        """
        self._check_owned("wait")
        seen = self._news.load()
        self.release()
        try:
            if self._news.load() == seen:
                await sleep_on(self._news, seen, UNTIL_CHANGED)
        finally:
            await self._take_again()
        return True

    async def _take_again(self) -> None:
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                await self.acquire()
                break
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            raise cancelled

    def wait_blocking(self, timeout: float | None = None) -> bool:
        """wait() for code without a loop; False if it took longer than `timeout` seconds.

        The lock is taken again in any case, however long that takes.
        """
        self._check_owned("wait")
        seen, deadline, woken = self._news.load(), Deadline(timeout), True
        self.release()
        try:
            while woken and self._news.load() == seen:
                woken = block_on(self._news, seen, deadline)
        finally:
            self.acquire_blocking()
        return woken

    async def wait_for(self, predicate: Callable[[], _T]) -> _T:
        """wait() until predicate() is true, and return its value."""
        while not (found := predicate()):
            await self.wait()
        return found

    def wait_for_blocking(self, predicate: Callable[[], _T], timeout: float | None = None) -> _T:
        """wait_for() for code without a loop; the last value of predicate() at the timeout."""
        deadline = Deadline(timeout)
        while not (found := predicate()) and (left := deadline.left()) > 0:
            self.wait_blocking(left / 1e9)
        return found

    def notify(self, n: int = 1) -> None:
        """Wake at least n waiters, if there are so many; with the lock held."""
        self._check_owned("notify")
        self._news.add(1)
        self._news.wake(n)

    def notify_all(self) -> None:
        """Wake all waiters; with the lock held."""
        self.notify(_EVERYBODY)


__all__ = ["Condition", "OwnerDied"]
