"""A flag that processes wait for.

Invariants: bit 0 of the word is the flag, the rest counts how often it was set, so that a waiter
that slept through set() and clear() still sees that it was set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiounify._core.futex import Word
from aiounify._waiting import UNTIL_CHANGED, Deadline, block_on, sleep_on
from aiounify.sync.segment import HEADER, Shared

if TYPE_CHECKING:
    import mmap

_EVERYBODY = 0x7FFFFFFF


class Event(Shared):
    """An event between processes, for coroutines and threads; not set at first."""

    _KIND = 4

    def __init__(self, name: str | None = None) -> None:
        self._make(name, 64)

    def _map(self, memory: mmap.mmap) -> None:
        self._word = Word(memory, HEADER)
        self._words = (self._word,)

    def is_set(self) -> bool:
        """Whether the flag is set."""
        return self._word.load() & 1 == 1

    def set(self) -> None:
        """Set the flag and wake all who wait, also if it is cleared before they run."""
        while not (value := self._word.load()) & 1:
            if self._word.compare_exchange(value, ((value + 2) & 0xFFFFFFFE) | 1):
                self._word.wake(_EVERYBODY)
                return

    def clear(self) -> None:
        """Clear the flag."""
        while (value := self._word.load()) & 1:
            if self._word.compare_exchange(value, value - 1):
                return

    async def wait(self) -> bool:
        """Wait until the flag is set: True."""
        seen = self._word.load()
        # set() counts too, so a clear() after it is told from nothing having happened
        while not seen & 1 and self._word.load() == seen:
            await sleep_on(self._word, seen, UNTIL_CHANGED)
        return True

    def wait_blocking(self, timeout: float | None = None) -> bool:
        """wait() for code without a loop; False if it took longer than `timeout` seconds."""
        seen, deadline = self._word.load(), Deadline(timeout)
        while not seen & 1 and self._word.load() == seen:
            if not block_on(self._word, seen, deadline):
                return False
        return True
