"""Await the locks of `multiprocessing`, which are semaphores of the C library.

Why it exists: programs have such locks already, and the ways to wait for one in a coroutine are a
thread that is stuck in the call, and takes the lock for nobody once the coroutine is
cancelled, or asking again and again.

Where the layout of the C library's semaphores is known (`_semaphore_layout.py`) we count ourselves
as a waiter, sleep on the value, and take the semaphore by its own sem_trywait().  Elsewhere
the semaphore is asked again and again, after 1 to 20 ms: a cancelled wait takes nothing
there either.

A process killed while it waits stays counted, as one killed in sem_wait() does; that costs the
others a system call for each release.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiounify._core.futex import long_add_at
from aiounify._semaphore_layout import WAITER, value_word, why_not
from aiounify._waiting import UNTIL_CHANGED, sleep_on

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event, Lock, Semaphore

_LONGEST = 0.02


async def _take(semlock: Any) -> None:
    if semlock.acquire(False):
        return
    if why_not():
        pause = 0.001
        while not semlock.acquire(False):
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST)
        return
    word = value_word(semlock)
    long_add_at(semlock.handle, WAITER)
    try:
        while not semlock.acquire(False):
            await sleep_on(word, 0, UNTIL_CHANGED)
    finally:
        long_add_at(semlock.handle, -WAITER)


async def acquire(lock: Lock | Semaphore | Event) -> bool:
    """Await a Lock, RLock, Semaphore, BoundedSemaphore or Event of `multiprocessing`: True.

    Release a lock with its own release(), in the loop's thread.  For an Event this is wait();
    its set() blocks until all waiters have gone on, so never call that in the loop's thread while
    tasks of the same loop wait.  Cancelling it takes nothing.

    TypeError for anything else; RuntimeError under another event loop.
    aiounify.features()["multiprocessing_locks"] says by what means.
    """
    semlock = getattr(lock, "_semlock", None)
    if semlock is not None and hasattr(semlock, "handle"):
        await _take(semlock)
        return True
    condition, flag = getattr(lock, "_cond", None), getattr(lock, "_flag", None)
    if condition is None or flag is None or not hasattr(condition, "_sleeping_count"):
        raise TypeError(
            "acquire() takes a Lock, RLock, Semaphore or Event of multiprocessing, not "
            f"{type(lock).__name__}"
        )
    await _wait_event(condition, flag)
    return True


async def _wait_event(condition: Any, flag: Any) -> None:
    """multiprocessing's Event.wait() and, in it, Condition.wait(), step by step."""
    lock = condition._lock._semlock
    await _take(lock)
    try:
        if flag.acquire(False):
            flag.release()
            return
        condition._sleeping_count.release()
    finally:
        lock.release()
    try:
        await _take(condition._wait_semaphore._semlock)
    finally:
        condition._woken_count.release()
