"""Reading from a binary handle where it has to wait, at its offset, in the order of the calls.

`BinaryBase` (native) answers from its buffer and from the page cache; here is the rest.

Rules:

* What was written is handed to the kernel before anything is read.
* A read that is cancelled loses nothing: the offset has not moved, and what came from a pipe all
  the same is in the buffer.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
from typing import TYPE_CHECKING

from aiounify._core.file_op import poll_op, read_op, readinto_op
from aiounify.files.operation import perform
from aiounify.files.writing import WriteBehind

if TYPE_CHECKING:
    from typing_extensions import Buffer

# a read of "all that is left" begins with this where the size is not known
_UNKNOWN = 65536
_PIECE = 1 << 30


class Sequential(WriteBehind):
    """Reading and writing at the handle's offset."""

    async def _fetch(self, size: int) -> bytes:
        """Bytes at the offset, which moves on.  What a cancelled read got goes to the buffer."""
        if self._fifo_unmet:
            # Until there was a writer a read would say that the file has ended.
            result = await self._run(poll_op(self.fd, select.POLLIN | select.POLLHUP))
            if result < 0:
                raise self._failure(result)
            self._fifo_unmet = False
        while True:
            op = read_op(self.fd, size, self._at(), not self.regular)
            try:
                result = await self._run(op)
            except asyncio.CancelledError:
                if not self.regular and op.result > 0:
                    self._append(op.take())
                raise
            if result >= 0:
                break
            if result == -errno.EAGAIN and not self.regular:
                await self._run(poll_op(self.fd, select.POLLIN))
            elif result != -errno.EINTR:
                raise self._failure(result)
        if self.regular:
            self.position += result
        return op.take()

    async def _more(self, size: int) -> int:
        """Fill the buffer by up to `size` bytes; 0 at the end."""
        got = self._try_fill()
        if got >= 0:
            return got
        data = await self._fetch(size)
        if data:
            if self.regular:
                self.position -= len(data)  # _append() counts them
            self._append(data)
            if self.regular and len(data) == self.chunk < 262144:
                self.chunk *= 2
        return len(data)

    async def _begin_read(self) -> None:
        self._check_read()
        await self._enter()
        if self.dirty:
            try:
                await self._drain()
            except BaseException:
                self._let_go()
                raise

    async def _slow_read(self, size: int | None) -> bytes:
        if size is not None and size < -1:
            raise ValueError("read length must be non-negative or -1")
        await self._begin_read()
        try:
            if size is None or size < 0:
                return await self._read_all()
            if self.raw:
                return await self._fetch(size) if size else b""
            if size >= self.chunk * 2 and not self._have():
                return await self._read_large(size)
            while self._have() < size and await self._more(max(self.chunk, 1)):
                pass
            return self._give(size)
        finally:
            self._let_go()

    async def _read_large(self, size: int) -> bytes:
        """More than the buffer is made for: into memory of its own."""
        if not self.regular:
            while self._have() < size and await self._more(self.chunk):
                pass
            return self._give(size)
        start = self.position
        parts = []
        left = size
        try:
            while left:
                part = await self._fetch(min(left, _PIECE))
                if not part:
                    break
                parts.append(part)
                left -= len(part)
        except BaseException:
            self.position = start
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_all(self) -> bytes:
        if not self.regular:
            while await self._more(_UNKNOWN):
                pass
            return self._give(self._have())
        have = self._have()
        start = self.position
        parts = [self._peek()]
        try:
            # One byte more than there should be shows the end; /proc says 0 of everything.
            left = max(os.fstat(self.fd).st_size - start, 0)
            while True:
                part = await self._fetch(min(left + 1 if left else _UNKNOWN, _PIECE))
                parts.append(part)
                if not part or (0 < len(part) == left):
                    break
                left = max(left - len(part), 0)
        except BaseException:
            self.position = start
            raise
        self._skip(have)
        if len(parts) == 2 and not have:
            return parts[1]
        return b"".join(parts)

    async def _slow_readline(self, size: int | None) -> bytes:
        await self._begin_read()
        try:
            return await self._line(-1 if size is None else size)
        finally:
            self._let_go()

    async def _line(self, limit: int) -> bytes:
        searched = 0
        while True:
            n = self._find_newline(searched)
            searched = self._have()
            if n or 0 <= limit <= searched:
                break
            n = searched
            more = 1 if self.raw and not self.regular else self.chunk
            if not await self._more(more):
                break
        line = self._give(n if limit < 0 or 0 < n < limit else limit)
        if self.raw:
            self._drop()
        return line

    async def _slow_next(self) -> bytes:
        line = await self._slow_readline(-1)
        if not line:
            raise StopAsyncIteration
        return line

    async def readall(self) -> bytes:
        """All that is left, as read(-1)."""
        return await self.read(-1)

    async def read1(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes with at most one read(2); what is in the buffer comes first."""
        await self._begin_read()
        try:
            if not self._have() and size:
                await self._more(self.chunk)
            return self._give(self._have() if size < 0 else size)
        finally:
            self._let_go()

    async def peek(self, size: int = 0, /) -> bytes:
        """Bytes from the buffer without moving on, with at most one read(2) to fill it."""
        await self._begin_read()
        try:
            if not self._have():
                await self._more(self.chunk)
            return self._peek()
        finally:
            self._let_go()

    async def readinto(self, buffer: Buffer, /) -> int:
        """Read into a writable buffer: the number of bytes, less than its size only at the end.

        The kernel writes into the buffer itself.  A cancelled call returns when the kernel has done
        with it; the offset has not moved then.
        """
        return await self._into(buffer, whole=not self.raw)

    async def readinto1(self, buffer: Buffer, /) -> int:
        """readinto() with at most one read(2)."""
        return await self._into(buffer, whole=False)

    async def _into(self, buffer: Buffer, *, whole: bool) -> int:
        await self._begin_read()
        view = memoryview(buffer).cast("B")
        start = self.position - self._have()
        done = 0
        try:
            if view.readonly:
                raise TypeError("a read-write bytes-like object is required")
            have = self._give(len(view))
            view[: len(have)] = have
            done = len(have)
            if not self.regular:
                if done < len(view) and not (done and not whole):
                    part = await self._fetch(len(view) - done)
                    view[done : done + len(part)] = part
                    done += len(part)
                return done
            while done < len(view) and not (done and not whole):
                op = readinto_op(self.fd, view[done:], self.position)
                result = await perform(self.service, op)
                if result < 0:
                    raise self._failure(result)
                self.position += result
                done += result
                if not result:
                    break
            return done
        except BaseException:
            if self.regular:
                self._drop()
                self.position = start
            raise
        finally:
            view.release()
            self._let_go()
