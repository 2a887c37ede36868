"""Await the locks of `multiprocessing`, which are semaphores of the C library.

Why it exists: programs have such locks already, and the ways to wait for one in a coroutine are a
thread that is stuck in the call, and takes the lock for nobody once the coroutine is
cancelled, or asking again and again.

A semaphore of glibc on 64-bit systems is one 64-bit word, the value in its lower half and the
number of waiters in its upper one.  sem_post() wakes the lower half as a futex when there
are waiters.  So we count ourselves as a waiter, sleep on the value, and take the semaphore by its own
sem_trywait().  That it is so is not documented, so it is tried once for a process (`why_not`).
Where it is not so, the semaphore is asked again and again, after 1 to 20 ms: a cancelled
wait takes nothing there either.

A process killed while it waits stays counted, as one killed in sem_wait() does; that costs the
others a system call for each release.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import multiprocessing as mp
import sys
import threading
from typing import TYPE_CHECKING, Any

from aiounify._core.futex import Word, long_add_at, long_at
from aiounify._waiting import UNTIL_CHANGED, sleep_on

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event, Lock, Semaphore

_WAITER = 1 << 32
_LONGEST = 0.02


def _value_word(semlock: Any) -> Word:
    """The lower half of a semaphore; it is mapped as long as the semaphore lives."""
    return Word((ctypes.c_char * 8).from_address(semlock.handle), 0)


@functools.cache
def why_not() -> str:
    """Why the layout of this C library's semaphores cannot be used; empty if it can."""
    if sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return "not a 64-bit little-endian system"
    try:
        semaphore = mp.get_context("fork").Semaphore(3)
    except (ImportError, OSError) as exc:
        return f"no semaphores of the C library: {exc}"
    semlock = semaphore._semlock  # type: ignore[attr-defined]
    if long_at(semlock.handle) != 3:
        return "the value is not where glibc keeps it"
    for left in (2, 1, 0):
        semaphore.acquire()
        if long_at(semlock.handle) != left:
            return "the value is not where glibc keeps it"
    word = _value_word(semlock)
    woken = threading.Event()

    def sleeper() -> None:
        long_add_at(semlock.handle, _WAITER)
        # two seconds: what is asked is whether the wake comes at all
        if word.sleep(0, 0xFFFFFFFF, 2_000_000_000) == 0 or word.load():
            woken.set()
        long_add_at(semlock.handle, -_WAITER)

    thread = threading.Thread(target=sleeper)
    thread.start()
    while long_at(semlock.handle) < _WAITER and thread.is_alive():
        pass
    semaphore.release()
    thread.join()
    if not woken.is_set() or long_at(semlock.handle) != 1:
        return "a release does not wake the value as a futex"
    return ""


async def _take(semlock: Any) -> None:
    if semlock.acquire(False):
        return
    if why_not():
        pause = 0.001
        while not semlock.acquire(False):
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST)
        return
    word = _value_word(semlock)
    long_add_at(semlock.handle, _WAITER)
    try:
        while not semlock.acquire(False):
            await sleep_on(word, 0, UNTIL_CHANGED)
    finally:
        long_add_at(semlock.handle, -_WAITER)


async def acquire(lock: Lock | Semaphore | Event) -> bool:
    """Await a Lock, RLock, Semaphore, BoundedSemaphore or Event of `multiprocessing`: True.

    Release a lock with its own release(), in the loop's thread.  For an Event this is wait().  Cancelling
    it takes nothing.  TypeError for anything else; RuntimeError under another event
    loop.  aiounify.features()["multiprocessing_locks"] says by what means.
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
