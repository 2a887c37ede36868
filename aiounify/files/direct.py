"""O_DIRECT: reads and writes past the page cache, with the alignment handled.

The kernel wants memory, offset and length aligned to the device's logical block, 512 bytes to 4 KiB
(statx() tells, Linux 6.1; elsewhere 4 KiB is assumed).  Any read is served: what is not aligned is
read with its surroundings into aligned memory, from which the bytes asked for are taken.  Writes
have to be aligned in offset and length, since writing the surroundings could undo another's write;
their memory need not be.

A large write is cut into pieces, several of which are in flight: on the ring, or in kernel AIO on
epoll.  What kernel AIO cannot do without waiting (a write that makes the file longer, on ext4) is a
thread's.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
from collections import deque
from typing import TYPE_CHECKING, Any

from aiounify._core.file_op import readinto_op, writev_op
from aiounify.files.binary import BinaryFile
from aiounify.files.status import statx_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from typing_extensions import Buffer

    from aiounify._core.file_op import FileOp

# a large write goes in pieces of so many bytes, of which so many are in flight
_PIECE, _IN_FLIGHT = 1 << 20, 8
_KEPT = 64  # aligned buffers that are used again, of one size


def aligned_buffer(size: int) -> mmap.mmap:
    """Memory aligned to a page, for preadinto() and pwrite() of direct files."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class DirectFile(BinaryFile):
    """A file opened with direct=True."""

    _align = 0
    _spare: list[mmap.mmap]
    _spare_size = 0

    async def _alignment(self) -> int:
        if not self._align:
            self._spare = []
            found = await statx_of(self.service, self.fd)
            self._align = max(found.direct_offset_align or 4096, found.direct_memory_align or 512)
            self.nowait = 0  # the page cache has nothing of it
        return self._align

    def _memory(self, size: int) -> mmap.mmap:
        if size == self._spare_size and self._spare:
            return self._spare.pop()
        return aligned_buffer(size)

    def _give_back(self, memory: mmap.mmap) -> None:
        if len(memory) != self._spare_size:
            self._spare_size = len(memory)
            self._spare.clear()
        if len(self._spare) < _KEPT:
            self._spare.append(memory)

    def read(self, size: int | None = -1, /) -> Coroutine[Any, Any, bytes]:
        """As of other files without a buffer."""
        return self._slow_read(size)

    def pread(self, size: int, offset: int, /) -> Coroutine[Any, Any, bytes]:
        """Read up to `size` bytes at any offset."""
        return self._slow_pread(size, offset)

    async def _slow_pread(self, size: int, offset: int) -> bytes:
        self._check_read()
        self._check_offset(offset)
        align = self._align or await self._alignment()
        if size <= 0:
            if size < 0:
                raise ValueError(f"size must not be negative, not {size}")
            return b""
        start = offset - offset % align
        end = -(-(offset + size) // align) * align
        memory = self._memory(end - start)
        filled = 0
        while filled < end - start:
            rest = memoryview(memory)[filled:] if filled else memory
            op = readinto_op(self.fd, rest, start + filled)
            op.direct = True
            n = await self._beside(op)
            filled += n
            if n % align or not n:
                break
        if filled == size == end - start:  # nothing around it was read
            found = memory[:]
        else:
            skip = offset - start
            found = memory[skip : max(min(skip + size, filled), skip)]
        self._give_back(memory)
        return found

    async def _fetch(self, size: int) -> bytes:
        data = await self._slow_pread(size, self.position)
        self.position += len(data)
        return data

    async def preadinto(self, buffer: Buffer, offset: int, /) -> int:
        """One read into aligned memory (aligned_buffer()) at an aligned offset."""
        await self._alignment()
        return await super().preadinto(buffer, offset)

    async def _into(self, buffer: Buffer, *, whole: bool) -> int:
        view = memoryview(buffer).cast("B")
        await self._begin_read()
        try:
            data = await self._fetch(len(view))
        finally:
            self._let_go()
        view[: len(data)] = data
        return len(data)

    def _check_aligned(self, offset: int, size: int) -> None:
        if offset % self._align or size % self._align:
            raise ValueError(
                f"writes with direct=True have to be a multiple of {self._align} bytes, in offset "
                f"and size, not {size} bytes at {offset}; statx().direct_offset_align tells"
            )

    async def pwritev(self, buffers: Sequence[Buffer], offset: int, /) -> int:
        """Write buffers at an aligned offset; their sizes together have to be aligned."""
        self._check_write()
        self._check_offset(offset)
        await self._alignment()
        total = sum(len(memoryview(b).cast("B")) for b in buffers)
        self._check_aligned(offset, total)
        memory = self._memory(max(total, 1))
        try:
            done = 0
            for b in buffers:
                view = memoryview(b).cast("B")
                memory[done : done + len(view)] = view.tobytes()
                done += len(view)
            self.busy += 1
            try:
                done, error = await self._put(memory, total, offset)
            finally:
                self._beside_ended()
            if error is not None:
                raise error
            return done
        finally:
            self._give_back(memory)

    async def _put(
        self, memory: mmap.mmap, total: int, offset: int
    ) -> tuple[int, BaseException | None]:
        """Write in pieces, several of which are in flight: how many bytes from the start are there,
        and what is to be raised.

        Each has its place, so the order in which they end does not matter; what stands behind one
        that failed does not count.  Cancelling waits for those in flight.
        """
        piece = max(total, 1) if self._appends else _PIECE
        flight: deque[tuple[FileOp, int]] = deque()
        sent = done = 0
        error: BaseException | None = None
        going = True
        gap = False
        with memoryview(memory) as view:
            while True:
                while going and sent < total and len(flight) < _IN_FLIGHT:
                    size = min(piece, total - sent)
                    op = writev_op(self.fd, [view[sent : sent + size]], offset + sent)
                    op.direct = True
                    self.service.start(op)
                    flight.append((op, size))
                    sent += size
                if not flight:
                    return done, error
                op, size = flight[0]
                try:
                    if not op.finished:
                        op.waiter = waiter = self.service.loop.create_future()
                        await waiter
                except asyncio.CancelledError as exc:
                    error, going = exc, False
                    continue
                del flight[0]
                if not gap:
                    done += max(op.result, 0)
                    if op.result != size:
                        gap, going = True, False
                        if error is None and not done:
                            error = self._failure(op.result or -errno.EIO)

    async def _write_raw(self, data: bytes) -> int:
        await self._alignment()
        await self._enter()
        try:
            memory = self._memory(max(len(data), 1))
            self._check_aligned(self.position, len(data))
            memory[: len(data)] = data
            done, error = await self._put(memory, len(data), self.position)
            self._moved(done)
            self._give_back(memory)
            if error is not None:
                raise error
            return done
        finally:
            self._let_go()
