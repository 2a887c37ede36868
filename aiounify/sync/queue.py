"""A bounded queue of byte messages.

Invariants (the algorithm is in _core/robust.h): what is between head and tail is whole messages in
the order they were put.  One store of tail puts a message, one store of head takes it, both with
the queue's robust lock held.  So a process that dies while it puts or gets leaves the queue as it
was before or as it is after, and the lock free.  A message that a process had taken when it died is
gone with it.  Nothing is awaited after a message was taken, so a cancelled get() loses none.
"""

from __future__ import annotations

from asyncio import QueueEmpty, QueueFull
from typing import TYPE_CHECKING

from aiounify._core.futex import Word
from aiounify._core.robust import LockWord, QueueMemory, _Busy
from aiounify._waiting import UNTIL_CHANGED, UNTIL_FREE, Deadline, block_on, sleep_on
from aiounify.sync.segment import HEADER, Shared

if TYPE_CHECKING:
    import mmap

    from typing_extensions import Buffer

_FOREVER = Deadline(None)


class Queue(Shared):
    """A queue of bytes between processes: any number put and get, coroutines and threads.

    `maxsize` limits the number of messages (0: only memory does, at most 2**24 - 1), `capacity` the
    memory in bytes, rounded up to a power of two; a message takes four bytes more than its length,
    rounded up to eight.  A named one that exists keeps its sizes.  ValueError for a
    message that can never fit.
    """

    _KIND = 8

    def __init__(
        self, maxsize: int = 0, name: str | None = None, *, capacity: int = 1 << 16
    ) -> None:
        if not 0 <= maxsize < 1 << 24:
            raise ValueError(f"maxsize is 0 to {(1 << 24) - 1}, not {maxsize}")
        if not 0 < capacity <= 1 << 27:
            raise ValueError(f"capacity is 1 to {1 << 27} bytes, not {capacity}")
        capacity = max(64, 1 << (capacity - 1).bit_length())

        def init(memory: mmap.mmap) -> None:
            made = QueueMemory(memory, HEADER)
            made.create(capacity, maxsize)
            made.release()

        self._make(name, 256 + capacity, init)

    def _map(self, memory: mmap.mmap) -> None:
        self._queue = QueueMemory(memory, HEADER)
        if not self._queue.check():
            raise ValueError("the queue's sizes do not fit its memory")
        self._lock = LockWord(memory, HEADER)
        self._filled, self._emptied = Word(memory, HEADER + 72), Word(memory, HEADER + 136)
        self._words = (self._lock, self._filled, self._emptied, self._queue)
        self._put, self._get = self._queue.put, self._queue.get

    @property
    def maxsize(self) -> int:
        """The most messages it holds, 0 if only memory limits them."""
        return self._queue.maxsize

    @property
    def capacity(self) -> int:
        """Its memory in bytes."""
        return self._queue.capacity

    def qsize(self) -> int:
        """The number of messages at this moment."""
        return self._queue.size

    def empty(self) -> bool:
        """True if there is no message."""
        return self._queue.size == 0

    def full(self) -> bool:
        """True if `maxsize` messages are there; put() may have to wait for memory before that."""
        return 0 < self.maxsize <= self._queue.size

    def _check_fits(self, data: Buffer) -> None:
        size = memoryview(data).nbytes
        if not self._queue.fits(size):
            raise ValueError(f"a message of {size} bytes never fits into {self.capacity} bytes")

    async def put(self, data: Buffer) -> None:
        """Put a message (any bytes-like object), waiting for room.  Cancelled: it was not put."""
        self._check_fits(data)
        answer = self._put(data, False, False)
        waited, counted = False, False
        while answer is not None:
            if isinstance(answer, _Busy):
                waited = await self._until_free()
            elif counted:
                try:
                    await sleep_on(self._emptied, answer, UNTIL_CHANGED)
                finally:
                    self._queue.not_waiting_put()
            # from now on a full queue counts this as waiting, before it is unlocked
            counted = True
            answer = self._put(data, True, waited)

    async def get(self) -> bytes:
        """Take the oldest message, waiting for one."""
        answer = self._get(False, False)
        waited, counted = False, False
        while not isinstance(answer, bytes):
            if isinstance(answer, _Busy):
                waited = await self._until_free()
            elif counted:
                try:
                    await sleep_on(self._filled, answer, UNTIL_CHANGED)
                finally:
                    self._queue.not_waiting_get()
            counted = True
            answer = self._get(True, waited)
        return answer

    async def _until_free(self) -> bool:
        if seen := self._lock.announce():
            await sleep_on(self._lock, seen, UNTIL_FREE)
        return True

    def put_blocking(self, data: Buffer, timeout: float | None = None) -> None:
        """put() for code without a loop; TimeoutError after `timeout` seconds."""
        self._check_fits(data)
        deadline = Deadline(timeout)
        waited = False
        while (answer := self._put(data, True, waited)) is not None:
            if isinstance(answer, _Busy):
                waited = self._block_until_free()
                continue
            try:
                if not block_on(self._emptied, answer, deadline):
                    raise TimeoutError("the queue stayed full")
            finally:
                self._queue.not_waiting_put()

    def get_blocking(self, timeout: float | None = None) -> bytes:
        """get() for code without a loop; TimeoutError after `timeout` seconds."""
        deadline = Deadline(timeout)
        waited = False
        while not isinstance(answer := self._get(True, waited), bytes):
            if isinstance(answer, _Busy):
                waited = self._block_until_free()
                continue
            try:
                if not block_on(self._filled, answer, deadline):
                    raise TimeoutError("the queue stayed empty")
            finally:
                self._queue.not_waiting_get()
        return answer

    def _block_until_free(self) -> bool:
        if seen := self._lock.announce():
            block_on(self._lock, seen, _FOREVER)
        return True

    def put_nowait(self, data: Buffer) -> None:
        """Put a message, or raise QueueFull (of `asyncio`)."""
        self._check_fits(data)
        waited = False
        while (answer := self._put(data, False, waited)) is not None:
            if not isinstance(answer, _Busy):
                raise QueueFull
            waited = self._block_until_free()

    def get_nowait(self) -> bytes:
        """Take the oldest message, or raise QueueEmpty (of `asyncio`)."""
        waited = False
        while not isinstance(answer := self._get(False, waited), bytes):
            if not isinstance(answer, _Busy):
                raise QueueEmpty
            waited = self._block_until_free()
        return answer
