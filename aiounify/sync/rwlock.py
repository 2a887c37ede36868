"""A lock for many readers or one writer.

Invariants: a writer holds a robust lock, the gate, from before it waits for the readers until it
is done; a reader passes through the gate to be counted.  So a writer that waits keeps new
readers out, and none of the two starves.  Readers are counted by process (presence.py); a
writer that waits looks four times a second whether one has died, and counts it out.  `writing` is 1
while a writer is at work, and stays so when it dies: only then is anything half changed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from aiounify._core.futex import Word
from aiounify._waiting import UNTIL_CHANGED, Deadline, block_on, sleep_on
from aiounify.sync.lock import LockCore, OwnerDied
from aiounify.sync.presence import SIZE, Presence
from aiounify.sync.segment import HEADER, Shared

if TYPE_CHECKING:
    import mmap
    from types import TracebackType

_LOOK_SECONDS = 0.25


class _Side:
    """What both sides of the lock have in common: acquire, release, `with` and `async with`."""

    def __init__(self, lock: RWLock) -> None:
        self._lock = lock

    async def acquire(self) -> bool:
        raise NotImplementedError

    def acquire_blocking(self, timeout: float | None = None) -> bool:
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> None:
        await self.acquire()

    def __enter__(self) -> None:
        self.acquire_blocking()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class ReadSide(_Side):
    """RWLock.read: held by any number of tasks, threads and processes together."""

    async def acquire(self) -> bool:
        """Wait until no writer holds or waits for the lock, and read: True.

        OwnerDied, with nothing held, if a writer died at work and nobody has repaired it.
        """
        self._enter(await self._lock._gate.take())
        return True

    def acquire_blocking(self, timeout: float | None = None) -> bool:
        """acquire() for code without a loop; False if it took longer than `timeout` seconds."""
        got = self._lock._gate.take_blocking(Deadline(timeout))
        if got is None:
            return False
        self._enter(got)
        return True

    def _enter(self, sound: bool) -> None:
        lock = self._lock
        try:
            if not sound:
                lock._after_death()
            lock._readers.own().add(1)
        finally:
            lock._gate.word.unlock()

    def release(self) -> None:
        """Stop reading.  RuntimeError if this process does not read."""
        lock = self._lock
        if not lock._readers.own().take():
            raise RuntimeError("this process does not hold the lock for reading")
        lock._gone.add(1)
        if lock._wanted.load():
            lock._gone.wake(1)


class WriteSide(_Side):
    """RWLock.write: held by one thread, and by no reader; it must release it itself."""

    async def acquire(self) -> bool:
        """Keep new readers out, wait for those there are, and write: True.

        OwnerDied, with the lock taken, if a writer died at work: see make_consistent().
        """
        lock = self._lock
        sound = await lock._gate.take()
        try:
            lock._wanted.store(1)
            while True:
                seen = lock._gone.load()
                if not lock._readers.total():
                    break
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await sleep_on(lock._gone, seen, UNTIL_CHANGED)
                        continue
                lock._readers.bury()
        except BaseException:
            self._back_out()
            raise
        self._begin(sound)
        return True

    def acquire_blocking(self, timeout: float | None = None) -> bool:
        """acquire() for code without a loop; False if it took longer than `timeout` seconds."""
        lock, deadline = self._lock, Deadline(timeout)
        sound = lock._gate.take_blocking(deadline)
        if sound is None:
            return False
        try:
            lock._wanted.store(1)
            while True:
                seen = lock._gone.load()
                if not lock._readers.total():
                    break
                if not block_on(lock._gone, seen, deadline):
                    self._back_out()
                    return False
                if lock._gone.load() == seen:
                    lock._readers.bury()
        except BaseException:
            if lock._gate.word.mine:
                self._back_out()
            raise
        self._begin(sound)
        return True

    def _back_out(self) -> None:
        self._lock._wanted.store(0)
        self._lock._gate.word.unlock()

    def _begin(self, sound: bool) -> None:
        lock = self._lock
        lock._wanted.store(0)
        if not sound:
            lock._after_death()
        lock._writing.store(1)

    def release(self) -> None:
        """Stop writing.  RuntimeError in a thread that does not write."""
        lock = self._lock
        if not lock._gate.word.mine:
            raise RuntimeError("this thread does not hold the lock for writing")
        if not lock._gate.word.inconsistent:
            lock._writing.store(0)
        lock._gate.word.unlock()

    async def __aenter__(self) -> None:
        try:
            await self.acquire()
        except OwnerDied:
            self.release()
            raise

    def __enter__(self) -> None:
        try:
            self.acquire_blocking()
        except OwnerDied:
            self.release()
            raise


class RWLock(Shared):
    """A readers-writer lock between processes, for coroutines and threads.

        async with lock.read: ...
        async with lock.write: ...      # or `with`, in blocking code

    Without contention nothing makes a system call.  At most 128 processes may read.  A reader
    that dies is noticed by a waiting writer within half a second, a writer at once (OwnerDied).
    """

    _KIND = 6

    def __init__(self, name: str | None = None) -> None:
        self._make(name, 128 + SIZE)

    def _map(self, memory: mmap.mmap) -> None:
        self._gate = LockCore(memory, HEADER)
        self._gone, self._wanted, self._writing = (
            Word(memory, HEADER + 64 + 4 * i) for i in range(3)
        )
        self._readers = Presence(memory, HEADER + 128)
        self._words = (
            self._gate.word,
            self._gone,
            self._wanted,
            self._writing,
            *self._readers.words,
        )

    @property
    def read(self) -> ReadSide:
        """The lock as readers see it."""
        return ReadSide(self)

    @property
    def write(self) -> WriteSide:
        """The lock as writers see it."""
        return WriteSide(self)

    def make_consistent(self) -> None:
        """What the lock guards is in order again; by the writer that got OwnerDied."""
        if not self._gate.word.mine:
            raise RuntimeError("only the writer can say that all is in order")
        self._gate.word.make_consistent()

    def _after_death(self) -> None:
        """With the gate held: somebody died in it."""
        if self._writing.load():
            raise OwnerDied("a writer died at work")
        self._gate.word.make_consistent()
