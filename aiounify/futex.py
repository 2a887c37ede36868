"""Futexes: await a 32-bit word in memory, shared with other processes or not.

    async with asyncio.timeout(1):
        while (seen := futex.load()) == 0:
            await futex.wait(seen)

Why it exists: the word is the cheapest thing processes can agree upon, and the kernel can wait
for it beside sockets and timers.  Whoever changes the word says so with `wake()`; programs in any
language can, with FUTEX_WAKE on shared memory.

Rules:

* A wait ends when somebody wakes the word, or at once if the word has another value.  It may
  also end for no reason: look at the word again, always.
* A wait that is cancelled after it was woken passes the wake on to the next waiter.
* A wait for a word that has changed already does not suspend.
* On a loop without io_uring's FUTEX_WAIT (epoll, or before Linux 6.7) threads of the loop wait,
  one for each 127 words (futex_waitv, Linux 5.16), or one for each word where `mask` is used.
  An epoll loop that sleeps for futexes mostly waits for the last few words itself.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from aiounify._core.futex import Word
from aiounify._core.futex_loop import start_wait
from aiounify._core.futex_wait import FirstOf
from aiounify._waiting import ALL, ANY, Deadline, loop_futexes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiounify._core.futex_wait import FutexWait

__all__ = ["Futex", "wait_any", "wait_any_blocking"]

_GROUP = 128
_TURN_NS = 5_000_000


class Futex(Word):
    """A 32-bit word in a writable buffer: mmap, shared_memory.buf, memfd mapping, bytearray.

    `offset` counts bytes and has to be a multiple of 4.  The buffer cannot be closed while the
    futex lives; release() gives it up.  BufferError for a read-only buffer, ValueError for a bad
    offset, a closed buffer or a released futex.

    load(), store(), add(), exchange() and compare_exchange() are atomic and sequentially
    consistent, wake() and requeue() are system calls that do not block (futex(2)).
    """

    __slots__ = ()

    async def wait(self, expected: int, *, mask: int = ALL, to: Word | None = None) -> bool:
        """Sleep until woken: True; False if the word was not `expected`.

        `mask` restricts who can wake it: wake(mask=...) needs a bit in common.  `to` is the word
        that requeue() may move this wait to.  Cancelling it ends the wait, and passes on a wake
        that had come, to both words.  RuntimeError under another event loop.
        """
        wait = start_wait(self, expected, mask, ANY, to)
        if wait is None:
            return False
        try:
            await wait
        except BaseException:
            wait.give_up()
            raise
        return wait.found() >= 0

    def wait_blocking(
        self, expected: int, timeout: float | None = None, *, mask: int = ALL
    ) -> bool:
        """wait() for code without a loop; TimeoutError after `timeout` seconds.

        The GIL is released.  Signal handlers run while it waits.
        """
        deadline = Deadline(timeout)
        while (left := deadline.left()) > 0:
            error = -self.sleep(expected, mask, left)
            if error == 0:
                return True
            if error == errno.EAGAIN:
                return False
            if error not in (errno.EINTR, errno.ETIMEDOUT):
                raise OSError(error, f"futex wait: {os.strerror(error)}")
        raise TimeoutError(errno.ETIMEDOUT, "the futex was not woken in time")

    def __repr__(self) -> str:
        if self.released:
            return "<Futex released>"
        return f"<Futex offset={self.offset} value={self.load()}>"


async def wait_any(waits: Iterable[tuple[Word, int]]) -> int:
    """Sleep until one of several words is woken or has another value than expected.

    `waits` is an iterable of (futex, expected).  Returns the index of a word that was woken, or
    of one whose value differs.  Up to 128 words are one FUTEX_WAITV; more are waited for in
    groups of 128.  Wakes that other words had got by the time this returns or is cancelled are
    passed on.  ValueError without any word.
    """
    pairs = list(waits)
    if not pairs:
        raise ValueError("wait_any() needs at least one futex to wait for")
    home = loop_futexes()
    while True:
        for index, (word, expected) in enumerate(pairs):
            if word.load() != expected:
                return index
        started: list[tuple[int, FutexWait]] = []
        try:
            for begin in range(0, len(pairs), _GROUP):
                group = pairs[begin : begin + _GROUP]
                wait = home.wait_any(tuple(w for w, _ in group), tuple(v for _, v in group))
                started.append((begin, wait))
            await FirstOf(tuple(wait for _, wait in started))
            for begin, wait in started:
                if wait.finished and (found := wait.found()) >= 0:
                    started.remove((begin, wait))
                    return begin + found
        finally:
            for _, wait in started:
                wait.give_up()


def _sleep_any(pairs: list[tuple[Word, int]], left: int) -> int:
    """Block in futex_waitv: the index of the word woken, or a negated errno."""
    from aiounify._kernel_futex import ffi, lib

    words = ffi.new("struct futex_waitv[]", len(pairs))
    for entry, (word, expected) in zip(words, pairs, strict=True):
        entry.val, entry.uaddr, entry.flags = expected, word.address, lib.FUTEX2_SIZE_U32
    found = lib.fx_waitv(words, len(pairs), time.monotonic_ns() + left)
    return found if found >= 0 else -ffi.errno


def wait_any_blocking(waits: Iterable[tuple[Word, int]], timeout: float | None = None) -> int:
    """wait_any() for code without a loop, up to 128 words; TimeoutError after `timeout` seconds.

    The GIL is released.  Signal handlers run while it waits.  Before Linux 5.16, without
    futex_waitv(2), it sleeps on one word after the other, 5 ms each, and may miss a wake without a
    change.  ValueError without any word or with more than 128.
    """
    pairs = list(waits)
    if not 0 < len(pairs) <= _GROUP:
        raise ValueError(f"a thread waits for 1 to {_GROUP} futexes, not {len(pairs)}")
    deadline, turn = Deadline(timeout), 0
    while True:
        for index, (word, expected) in enumerate(pairs):
            if word.load() != expected:
                return index
        if (left := deadline.left()) <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "none of the futexes was woken in time")
        found = _sleep_any(pairs, left)
        if found == -errno.ENOSYS:
            turn = (turn + 1) % len(pairs)
            word, expected = pairs[turn]
            if word.sleep(expected, ALL, min(left, _TURN_NS)) == 0:
                return turn
        elif found >= 0:
            return found
        elif -found not in (errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT):
            raise OSError(-found, f"futex_waitv: {os.strerror(-found)}")
