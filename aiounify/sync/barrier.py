"""A place where a number of tasks and threads meet.

Invariants: all is changed with the robust lock held.  `round` changes when a round ends, well or
badly; `broken` is the round that ended badly last, so that each waiter knows how its own ended.
Who waits is counted by process (presence.py).  Waiters look four times a second, and whoever
completes a round looks as well, whether one of those who wait has died: then the barrier is
broken, as by a timeout.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from threading import BrokenBarrierError
from typing import TYPE_CHECKING

from aiounify._core.futex import Word
from aiounify._waiting import UNTIL_CHANGED, Deadline, block_on, sleep_on
from aiounify.sync.lock import LockCore
from aiounify.sync.presence import SIZE, Presence
from aiounify.sync.segment import HEADER, Shared

if TYPE_CHECKING:
    import mmap

__all__ = ["Barrier", "BrokenBarrierError"]

_EVERYBODY = 0x7FFFFFFF
_NO_ROUND = 0xFFFFFFFF
_LOOK_SECONDS = 0.25


class Barrier(Shared):
    """A barrier between processes, for coroutines and threads; `parties` meet at it.

    A named one that exists keeps its number of parties.  ValueError for less than one party.
    """

    _KIND = 7

    def __init__(self, parties: int, name: str | None = None) -> None:
        if not 1 <= parties < _NO_ROUND:
            raise ValueError(f"a barrier has at least one party, not {parties}")
        fields = (0, parties, _NO_ROUND, 0)
        self._make(name, 128 + SIZE, lambda m: struct.pack_into("<IIII", m, HEADER + 64, *fields))

    def _map(self, memory: mmap.mmap) -> None:
        self._lock = LockCore(memory, HEADER)
        self._round, self._parties, self._bad, self._aborted = (
            Word(memory, HEADER + 64 + 4 * i) for i in range(4)
        )
        self._here = Presence(memory, HEADER + 128)
        self._words = (
            self._lock.word,
            self._round,
            self._parties,
            self._bad,
            self._aborted,
            *self._here.words,
        )

    @property
    def parties(self) -> int:
        """How many have to come."""
        return self._parties.load()

    @property
    def n_waiting(self) -> int:
        """How many wait at this moment."""
        return self._here.total()

    @property
    def broken(self) -> bool:
        """True after abort(), a timeout or the death of a waiter, until reset()."""
        return self._aborted.load() == 1

    async def _take(self) -> None:
        if not await self._lock.take():
            self._lock.word.make_consistent()  # each change is one store, and means what it says

    async def _take_surely(self) -> None:
        """Take the lock also if that is cancelled: whoever called this is about to raise."""
        while True:
            try:
                await self._take()
                return
            except asyncio.CancelledError:
                continue

    def _take_blocking(self) -> None:
        if not self._lock.take_blocking(Deadline(None)):
            self._lock.word.make_consistent()

    def _arrive(self) -> tuple[int, int | None]:
        """With the lock held: one's index, and the round to wait for, None if it is complete."""
        if self.broken:
            raise BrokenBarrierError
        index, seen = self._here.total(), self._round.load()
        if index + 1 < self.parties:
            self._here.own().add(1)
            return index, seen
        if index and self._here.bury():
            self._break()
            raise BrokenBarrierError
        self._here.clear()
        self._next_round()
        return index, None

    def _next_round(self) -> None:
        self._round.store((self._round.load() + 1) % _NO_ROUND)
        self._round.wake(_EVERYBODY)

    def _break(self, forever: bool = True) -> None:
        self._aborted.store(int(forever))
        self._bad.store(self._round.load())
        self._here.clear()
        self._next_round()

    def _how(self, seen: int) -> None:
        if self._bad.load() == seen:
            raise BrokenBarrierError

    def _leave(self, seen: int) -> bool:
        """With the lock held: wait no more; False if the round has ended."""
        if self._round.load() != seen:
            return False
        self._here.own().take()
        return True

    def _look(self) -> None:
        """With the lock held: break it if a waiter has died."""
        if self._here.bury():
            self._break()

    async def wait(self) -> int:
        """Wait until all parties are here; 0 to parties - 1, another number for each.

        BrokenBarrierError (of `threading`) if the barrier is broken.  One that is cancelled leaves,
        and does not break it.
        """
        await self._take()
        try:
            index, seen = self._arrive()
        finally:
            self._lock.word.unlock()
        if seen is None:
            return index
        try:
            while self._round.load() == seen:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await sleep_on(self._round, seen, UNTIL_CHANGED)
                        continue
                await self._take()
                self._look()
                self._lock.word.unlock()
        except BaseException:
            await self._take_surely()
            self._leave(seen)
            self._lock.word.unlock()
            raise
        self._how(seen)
        return index

    def wait_blocking(self, timeout: float | None = None) -> int:
        """wait() for code without a loop; a timeout, in seconds, breaks the barrier for all."""
        deadline = Deadline(timeout)
        self._take_blocking()
        try:
            index, seen = self._arrive()
        finally:
            self._lock.word.unlock()
        if seen is None:
            return index
        try:
            while self._round.load() == seen:
                late = not block_on(self._round, seen, deadline)
                if self._round.load() != seen:
                    break
                self._take_blocking()
                if not late:
                    self._look()
                elif self._leave(seen):
                    self._break()
                self._lock.word.unlock()
        except BaseException:
            self._take_blocking()
            self._leave(seen)
            self._lock.word.unlock()
            raise
        self._how(seen)
        return index

    def abort(self) -> None:
        """Break the barrier: all who wait, and all who come, get BrokenBarrierError."""
        self._take_blocking()
        self._break()
        self._lock.word.unlock()

    def reset(self) -> None:
        """Make it as it was at first; all who wait get BrokenBarrierError."""
        self._take_blocking()
        self._break(forever=False)
        self._lock.word.unlock()
