"""A lock that knows when its owner died.

Invariants: at most one thread has its id in the word; whoever sleeps has set the bit WAITERS in
it; whoever takes it after having slept sets the bit again.  The kernel ends an owner's claim when
the thread ends, in whatever way, and wakes a waiter (robust futex, get_robust_list(2)).

A lock belongs to the thread that took it, which for coroutines is their loop's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiounify._core.robust import DONE, LockWord
from aiounify._waiting import UNTIL_FREE, Deadline, block_on, sleep_on
from aiounify.sync.segment import HEADER, Shared

if TYPE_CHECKING:
    import mmap
    from collections.abc import Awaitable
    from types import TracebackType


class OwnerDied(Exception):  # noqa: N818 - as EOWNERDEAD, and less an error than news
    """The lock is yours, and whoever had it before died with it, as EOWNERDEAD says.

    What it guards may be half changed.  Repair it and call make_consistent(); without that the
    next one to take the lock is told as well.
    """


class LockCore:
    """A robust lock at a place in memory; other primitives have theirs inside."""

    __slots__ = ("word",)

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self.word = LockWord(memory, offset)

    async def take(self) -> bool:
        """Take it; False if an owner had died with it."""
        word = self.word
        got = word.try_lock()
        while not got:
            if seen := word.announce():
                await sleep_on(word, seen, UNTIL_FREE)
            got = word.try_lock(True)
        return got == 1

    def take_blocking(self, deadline: Deadline) -> bool | None:
        """take() in a thread; None when the deadline has passed."""
        word = self.word
        got = word.try_lock()
        while not got:
            if (seen := word.announce()) and not block_on(word, seen, deadline):
                return None
            got = word.try_lock(True)
        return got == 1


class Lock(Shared):
    """A robust mutual exclusion lock between processes, for coroutines and threads.

    `name` makes it known to processes that open the same name; without one it goes to others by
    fork or pickle.  Taking a free lock and releasing one that nobody waits for make no system
    call and do not suspend the task.  It is not recursive and not fair.

        async with lock: ...            # in coroutines
        with lock: ...                  # in blocking code
    """

    _KIND = 1

    def __init__(self, name: str | None = None) -> None:
        self._make(name, 64)

    def _map(self, memory: mmap.mmap) -> None:
        self._core = LockCore(memory, HEADER)
        self._words = (self._core.word,)
        self._try, self._unlock = self._core.word.try_lock, self._core.word.unlock

    async def acquire(self) -> bool:
        """Wait for the lock and take it: True.

        Raises OwnerDied, with the lock taken, if an owner died with it and nobody has called
        make_consistent() since.  Cancelling never takes the lock.
        """
        got = self._try()
        if got == 1 or (not got and await self._core.take()):
            return True
        raise OwnerDied("the lock is yours; its owner died with it")

    def acquire_blocking(self, timeout: float | None = None) -> bool:
        """acquire() for code without a loop; False if it took longer than `timeout` seconds.

        Blocks the thread, not the interpreter; signal handlers run.
        """
        got = self._core.take_blocking(Deadline(timeout))
        if got is None:
            return False
        if got:
            return True
        raise OwnerDied("the lock is yours; its owner died with it")

    def release(self) -> None:
        """Release the lock and wake one waiter.  RuntimeError in a thread that does not hold it."""
        if not self._unlock():
            raise RuntimeError("this thread does not hold the lock")

    def make_consistent(self) -> None:
        """What the lock guards is in order again; by its owner, after OwnerDied."""
        if not self._core.word.mine:
            raise RuntimeError("only the owner of the lock can say that all is in order")
        self._core.word.make_consistent()

    def locked(self) -> bool:
        """Whether somebody alive holds it."""
        return self._core.word.held

    def __aenter__(self) -> Awaitable[None]:
        """Like acquire(), but OwnerDied leaves the lock released, and the next one is told too."""
        got = self._try()
        return DONE if got == 1 else self._enter(got)

    async def _enter(self, got: int) -> None:
        if not got and await self._core.take():
            return
        self.release()
        raise OwnerDied("the lock's owner died with it: use acquire() to repair what it guards")

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> Awaitable[None]:
        self.release()
        return DONE

    def __enter__(self) -> None:
        try:
            self.acquire_blocking()
        except OwnerDied:
            self.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
