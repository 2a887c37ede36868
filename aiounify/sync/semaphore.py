"""Counting semaphores.

Invariants: the word is the number of free places, and changes by one compare-and-exchange; who
sleeps is counted among the waiters before it looks at the word for the last time, and a release
looks at that number after it has added.  A process killed while it waits stays counted, which
costs later releases a system call and nothing else.  A place taken by a process that dies is
lost, as with sem_overview(7): use a Lock where the owner's death has to be noticed.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from aiounify._core.futex import Word
from aiounify._core.robust import DONE
from aiounify._waiting import UNTIL_CHANGED, Deadline, block_on, sleep_on
from aiounify.sync.segment import HEADER, Shared

if TYPE_CHECKING:
    import mmap
    from collections.abc import Awaitable
    from types import TracebackType

_MAX = 0x7FFFFFFF


class Semaphore(Shared):
    """A semaphore between processes, for coroutines and threads; `value` places at first.

    A named one that exists keeps the value it has.  Without contention acquire() and release()
    make no system call and do not suspend the task.  ValueError for a value below 0 or above
    2**31 - 1.
    """

    _KIND = 2
    _bounded = False

    def __init__(self, value: int = 1, name: str | None = None) -> None:
        if not 0 <= value <= _MAX:
            raise ValueError(f"a semaphore's value is 0 to {_MAX}, not {value}")
        bound = value if self._bounded else _MAX
        self._make(name, 192, lambda m: _init(m, value, bound))

    def _map(self, memory: mmap.mmap) -> None:
        self._value, self._waiters = Word(memory, HEADER), Word(memory, HEADER + 64)
        self._words = (self._value, self._waiters)
        self._bound = struct.unpack_from("<I", memory, HEADER + 128)[0]
        self._take = self._value.take

    async def acquire(self) -> bool:
        """Wait for a place and take it: True.  Cancelling takes none."""
        while not self._take():
            self._waiters.add(1)
            try:
                await sleep_on(self._value, 0, UNTIL_CHANGED)
            finally:
                self._waiters.add(-1)
        return True

    def acquire_blocking(self, timeout: float | None = None) -> bool:
        """acquire() for code without a loop; False if it took longer than `timeout` seconds."""
        deadline = Deadline(timeout)
        while not self._take():
            self._waiters.add(1)
            try:
                if not block_on(self._value, 0, deadline):
                    return False
            finally:
                self._waiters.add(-1)
        return True

    def release(self) -> None:
        """Give a place back and wake one waiter.

        ValueError if a BoundedSemaphore would have more places than at first.
        """
        word = self._value
        while True:
            value = word.load()
            if value >= self._bound:
                raise ValueError("the semaphore was released more often than acquired")
            if word.compare_exchange(value, value + 1):
                break
        if self._waiters.load():
            word.wake(1)

    def get_value(self) -> int:
        """The number of free places at this moment."""
        return self._value.load()

    def locked(self) -> bool:
        """True if acquire() would have to wait."""
        return self._value.load() == 0

    def __aenter__(self) -> Awaitable[object]:
        return DONE if self._take() else self.acquire()

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> Awaitable[None]:
        self.release()
        return DONE

    def __enter__(self) -> None:
        self.acquire_blocking()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _init(memory: mmap.mmap, value: int, bound: int) -> None:
    struct.pack_into("<I", memory, HEADER, value)
    struct.pack_into("<I", memory, HEADER + 128, bound)


class BoundedSemaphore(Semaphore):
    """A semaphore that refuses, with ValueError, to be released more often than acquired."""

    _KIND = 3
    _bounded = True
