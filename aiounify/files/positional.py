"""What names its place in the file, and what concerns the file as a whole.

Rules:

* Nothing here holds the handle or moves its offset: it runs beside everything else, and close()
  waits for it.
* What was written through the handle is handed to the kernel first.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from aiounify._core.file_op import fallocate_op, read_op, readinto_op, readv_op, writev_op
from aiounify.files.reading import Sequential
from aiounify.files.status import Statx, statx_of
from aiounify.files.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from typing_extensions import Buffer

_PIECE = 1 << 30


class Positional(Sequential):
    """Reading and writing at offsets that are given, and space."""

    async def _slow_pread(self, size: int, offset: int) -> bytes:
        self._check_read()
        self._check_offset(offset)
        if size < 0:
            raise ValueError(f"size must not be negative, not {size}")
        if self.dirty:
            await self.flush()
        parts = []
        while size:
            op = read_op(self.fd, min(size, _PIECE), offset)
            got = await self._beside(op)
            if not got:
                break
            parts.append(op.take())
            offset += got
            size -= got
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_offset(self, offset: int) -> None:
        self._check_seek()
        if offset < 0:
            raise ValueError(f"offset must not be negative, not {offset}")

    async def pwrite(self, data: Buffer, offset: int, /) -> int:
        """Write all of the data at an offset; the handle's own offset does not move.

        In append mode Linux appends whatever the offset; pwrite(2).  A cancelled call may have
        written a part from the start of the data.
        """
        self._check_write()
        self._check_offset(offset)
        return await self.pwritev([data], offset)

    async def preadinto(self, buffer: Buffer, offset: int, /) -> int:
        """One read at an offset into a writable buffer: how many bytes came.  pread(2).

        With O_DIRECT the buffer has to be aligned: see aligned_buffer().
        """
        self._check_read()
        self._check_offset(offset)
        return await self._beside(readinto_op(self.fd, buffer, offset))

    async def preadv(self, buffers: Sequence[Buffer], offset: int, /) -> int:
        """One read at an offset into several buffers: how many bytes came.  preadv(2)."""
        self._check_read()
        self._check_offset(offset)
        return await self._beside(readv_op(self.fd, buffers, offset))

    async def pwritev(self, buffers: Sequence[Buffer], offset: int, /) -> int:
        """Write all of several buffers at an offset, one behind the other.  pwritev(2)."""
        self._check_write()
        self._check_offset(offset)
        views = [memoryview(b).cast("B") for b in buffers]
        total = sum(map(len, views))
        if self.dirty:
            await self.flush()
        if self._have():
            self._drop()  # it may be what changes
        done = 0
        while done < total:
            n = await self._beside(writev_op(self.fd, views, offset + done, done))
            if not n:
                raise self._failure(-errno.EIO)
            done += n
        return total

    async def readv(self, buffers: Sequence[Buffer], /) -> int:
        """Read into several buffers, one behind the other: how many bytes came."""
        done = 0
        for buffer in buffers:
            n = await self.readinto(buffer)
            done += n
            if n < len(memoryview(buffer).cast("B")):
                break
        return done

    async def writev(self, buffers: Sequence[Buffer], /) -> int:
        """Write several buffers, one behind the other: how many bytes were taken."""
        return await self.write(b"".join(bytes(memoryview(b)) for b in buffers))

    async def fallocate(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        """Have blocks for a range, so that writing there cannot fail for want of space."""
        self._check_write()
        await self._beside(fallocate_op(self.fd, 1 if keep_size else 0, offset, length))

    async def punch_hole(self, offset: int, length: int) -> None:
        """Give the blocks of a range back: it reads as zeros, and the size stays.

        fallocate(2) with FALLOC_FL_PUNCH_HOLE; OSError (EOPNOTSUPP) where the file system cannot.
        """
        self._check_write()
        await self.flush()
        if self._have():
            self._drop()
        await self._beside(fallocate_op(self.fd, 3, offset, length))

    async def statx(self) -> Statx:
        """What statx(2) says of the open file."""
        self._check_open()
        return await statx_of(self.service, self.fd)

    async def copy_range(
        self, target: Positional, count: int, offset: int = 0, target_offset: int = 0
    ) -> int:
        """Copy bytes to another file inside the kernel: how many, less only at the end.

        copy_file_range(2): file systems that can share the blocks.  A thread makes it in pieces
        of 16 MiB; a cancelled call ends behind a piece.
        """
        self._check_read()
        target._check_write()
        await self.flush()
        await target.flush()
        done = 0
        while done < count:
            self._check_open()
            target._check_open()
            piece = min(count - done, 1 << 24)
            self.busy += 1
            target.busy += 1
            try:
                n = await _finished(
                    in_thread(
                        os.copy_file_range,
                        self.fd,
                        target.fd,
                        piece,
                        offset + done,
                        target_offset + done,
                    )
                )
            finally:
                self._beside_ended()
                target._beside_ended()
            if not n:
                break
            done += n
        return done


async def _finished(work: Awaitable[int]) -> int:
    """Await a thread's call to its end, also when cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        raise
