"""How coroutines and threads sleep until a word in memory changes.

Why it exists: `aiounify.futex` and everything in `aiounify.sync` sleep in one of two ways, in
the loop or in a thread, and both have the same duty: whoever stops waiting, however that
comes about, passes on a wake that it had got.

A sleep of `aiounify.sync` may end for no reason, so each caller looks at its state again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time

from aiounify._core.futex import Word
from aiounify._core.futex_loop import LoopFutexes, configure, start_wait
from aiounify.loop import EventLoop

ANY = 0
UNTIL_CHANGED = 1
UNTIL_FREE = 2
ALL = 0xFFFFFFFF
# A thread looks at its word this often, as the loop's patrol does: see _core/futex_loop.pyx.
SLICE_NS = 250_000_000


def loop_futexes() -> LoopFutexes:
    """What the running loop waits for futexes with; RuntimeError under another event loop."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, EventLoop):
        raise RuntimeError(
            "awaiting a futex needs an aiounify event loop (aiounify.run, or "
            f"loop_factory=aiounify.new_event_loop); this is {type(loop).__name__}"
        )
    found: LoopFutexes | None = loop._attached.get("futexes")
    if found is None:
        from aiounify._kernel_probe import futex_waitv_offered

        found = LoopFutexes(
            loop,
            loop._futexes_in_ring,
            futex_waitv_offered().on,
            loop._futexes_near,
            loop._futexes_spin,
        )
        loop._attached["futexes"] = found
    return found


configure(loop_futexes)


async def sleep_on(word: Word, expected: int, patrol: int) -> bool:
    """Sleep while the word is `expected`; whether it was woken."""
    wait = start_wait(word, expected, ALL, patrol)
    if wait is None:
        return False
    try:
        await wait
    except BaseException:
        wait.give_up()
        raise
    return wait.found() >= 0


class Deadline:
    """What is left of a timeout in seconds; None is for ever."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic_ns() + int(timeout * 1e9)

    def left(self) -> int:
        """Nanoseconds left, at most SLICE_NS; 0 or less when it is over."""
        if self._end is None:
            return SLICE_NS
        return min(SLICE_NS, self._end - time.monotonic_ns())


def block_on(word: Word, expected: int, deadline: Deadline) -> bool:
    """Block this thread while the word is `expected`; False once the deadline has passed.

    Signal handlers run, and what they raise leaves this function.
    """
    left = deadline.left()
    if left <= 0:
        return False
    error = -word.sleep(expected, ALL, left)
    if error not in (0, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT):
        raise OSError(error, f"futex wait: {os.strerror(error)}")
    return True
