"""How the C library lays out a semaphore, as far as waiting for one needs it.

A semaphore of glibc on 64-bit systems is one 64-bit word, the value in its lower half and the
number of waiters in its upper one.  sem_post() wakes the lower half as a futex when there are
waiters.  That is not documented, so it is tried once for a process: `why_not`.
"""

from __future__ import annotations

import functools
import os
import secrets
import sys
import threading
import time
from typing import Any

from aiounify._core.futex import Word, long_add_at, long_at, memory_at

WAITER = 1 << 32


def value_word(semlock: Any) -> Word:
    """The lower half of a semaphore; it is mapped as long as the semaphore lives."""
    return Word(memory_at(semlock.handle, 8))


@functools.cache
def why_not() -> str:
    """Why the layout of this C library's semaphores cannot be used; empty if it can."""
    if sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return "not a 64-bit little-endian system"
    try:
        from _multiprocessing import SemLock  # type: ignore[import-not-found]

        name = f"/aiounify-{os.getpid()}-{secrets.token_hex(4)}"
        semlock = SemLock(1, 3, 0x7FFFFFFF, name, True)
    except (ImportError, OSError) as exc:
        return f"no semaphores of the C library: {exc}"
    if long_at(semlock.handle) != 3:
        return "the value is not where glibc keeps it"
    for left in (2, 1, 0):
        semlock.acquire()
        if long_at(semlock.handle) != left:
            return "the value is not where glibc keeps it"
    word = value_word(semlock)
    woken = threading.Event()

    def sleeper() -> None:
        long_add_at(semlock.handle, WAITER)
        # two seconds: what is asked is whether the wake comes at all
        if word.sleep(0, 0xFFFFFFFF, 2_000_000_000) == 0 or word.load():
            woken.set()
        long_add_at(semlock.handle, -WAITER)

    thread = threading.Thread(target=sleeper)
    thread.start()
    while long_at(semlock.handle) < WAITER and thread.is_alive():
        time.sleep(0)
    semlock.release()
    thread.join()
    if not woken.is_set() or long_at(semlock.handle) != 1:
        return "a release does not wake the value as a futex"
    return ""
