"""Writing to a binary handle.

Rules:

* Data to be written is taken at once and written behind: one writev(2) in flight, which takes all
  that has gathered since the one before, so order is kept and append mode stays atomic per call.
  write() waits only while more than a limit is unwritten.
* An error is raised by the next write(), flush() or close(), with the data kept for another try.
* What is no file (pipes, terminals) is written when flush() or close() is called, or the limit
  reached, and waits for room.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
from typing import TYPE_CHECKING

from aiounify._core.file_op import FileOp, poll_op, writev_op
from aiounify.files.operation import NOT_NOW, perform
from aiounify.files.state import HandleState

if TYPE_CHECKING:
    from typing_extensions import Buffer

# bytes that may be unwritten before write() waits
_BEHIND = 1 << 20
_FSYNC = 3


class WriteBehind(HandleState):
    """The writing half of a handle."""

    async def write(self, data: Buffer, /) -> int:
        """Take data to be written; its length is returned.

        Waits while more than 1 MiB is unwritten.  The call that is cancelled there has been
        accepted all the same.  Without a buffer: one write(2), and what it took.  OSError of this
        write or of an earlier one.
        """
        self._check_write()
        if isinstance(data, str):
            raise TypeError("a bytes-like object is required, not 'str'")
        taken = data if type(data) is bytes else bytes(memoryview(data))
        if self.raw:
            return await self._write_raw(taken)
        if self.held:
            await self._enter()
            self._let_go()
        self._raise_error()
        if self._have():
            self._drop()
        self._gather(taken)
        if not self.regular and self._gathered_size >= self._limit:
            await self.flush()
        while self._gathered_size > _BEHIND and self._flight is not None:
            await self._landed()
            self._raise_error()
        return len(taken)

    async def _write_raw(self, data: bytes) -> int:
        await self._enter()
        try:
            if not self.regular:
                return await self._write_endless([data])
            op = writev_op(self.fd, [data], -1 if self._appends else self.position)
            try:
                result = await perform(self.service, op)
            except asyncio.CancelledError:
                if op.result > 0:
                    self._moved(op.result)
                raise
            if result < 0:
                raise self._failure(result)
            self._moved(result)
            return result
        finally:
            self._let_go()

    async def _write_endless(self, chunks: list[bytes], skip: int = 0) -> int:
        """One write to what can be polled."""
        while True:
            result = await self._run(writev_op(self.fd, chunks, -1, skip, polled=True))
            if result >= 0:
                return result
            if result not in NOT_NOW:
                raise self._failure(result)
            await self._run(poll_op(self.fd, select.POLLOUT))

    def _moved(self, n: int) -> None:
        self.position = os.fstat(self.fd).st_size if self._appends else self.position + n

    def _gather(self, data: bytes) -> None:
        if data:
            self.dirty = True
            self._gathered.append(data)
            self._gathered_size += len(data)
            if self._gathered_size >= self._limit and self._flight is None and self.regular:
                self._send()

    def _send(self) -> None:
        """Write all that has gathered, behind the caller's back."""
        if len(self._gathered) > 512:
            self._gathered = [b"".join(self._gathered)]
        chunks, self._gathered, self._gathered_size = self._gathered, [], 0
        self._submit(chunks, 0)

    def _submit(self, chunks: list[bytes], skip: int) -> None:
        op = writev_op(self.fd, chunks, -1 if self._appends else self.position, skip)
        self._flight, self._flight_data = op, chunks
        waiter = self.service.start(op)
        waiter.add_done_callback(lambda done: self._sent(done.result(), chunks, skip))

    def _sent(self, result: int, chunks: list[bytes], skip: int) -> None:
        self._flight = None
        self._flight_data = []
        total = sum(map(len, chunks))
        if result > 0:
            self._moved(result)
            skip += result
        if result == -errno.EINTR or (result > 0 and skip < total):
            self._submit(chunks, skip)
            return
        if result <= 0:
            left = b"".join(chunks)[skip:]
            self._gathered.insert(0, left)
            self._gathered_size += len(left)
            error = self._failure(result if result else -errno.EIO)
            assert isinstance(error, OSError)
            self._error = error
        elif self._gathered_size >= self._limit and not self.shut:
            self._send()
        self.dirty = self._flight is not None or bool(self._gathered)
        written, self._written = self._written, None
        if written is not None and not written.done():
            written.set_result(None)

    async def _landed(self) -> None:
        """Wait until the write in flight has ended."""
        if self._flight is not None:
            if self._written is None or self._written.done():
                self._written = self.service.loop.create_future()
            await asyncio.shield(self._written)

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    async def _drain(self) -> None:
        """Everything taken is written; the handle is held."""
        if not self.regular:
            await self._drain_endless()
            return
        while self._flight is not None or self._gathered:
            if self._flight is None:
                self._raise_error()
                self._send()
            await self._landed()
            self._raise_error()
        self.dirty = False

    async def _drain_endless(self) -> None:
        while self._gathered:
            data = b"".join(self._gathered)
            self._gathered = [data]
            n = await self._write_endless([data])
            self._gathered[0] = data[n:]  # what came meanwhile stands behind it
            if not self._gathered[0]:
                del self._gathered[0]
            self._gathered_size = sum(map(len, self._gathered))
        self.dirty = False

    async def flush(self) -> None:
        """Hand everything that was written to the kernel; OSError if a write failed."""
        self._check_open()
        if not self.dirty and self._error is None and not self.held:
            return
        await self._enter()
        try:
            await self._drain()
            self._raise_error()
        finally:
            self._let_go()

    async def fsync(self) -> None:
        """flush(), then have data and metadata on the disk; fsync(2)."""
        await self._sync(0)

    async def fdatasync(self) -> None:
        """flush(), then have the data on the disk, and of the metadata what finding it needs."""
        await self._sync(1)

    async def _sync(self, flags: int) -> None:
        await self.flush()
        await self._beside(FileOp(_FSYNC, self.fd, 0, 0, flags))
