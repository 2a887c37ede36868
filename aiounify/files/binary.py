"""Binary handles: what they do when they have to wait.

`BinaryBase` (native) answers from its buffer and from the page cache; here is the rest, one
operation at a time in the order of the calls.

Rules:

* Whoever waits for the kernel holds the handle; others queue.  Positional reads and writes (pread,
  pwrite and the like) hold nothing and run beside each other.
* Data to be written is taken at once and written behind: one writev(2) in flight, which takes all
  that has gathered since the one before, so order is kept and append mode stays atomic per call.
  write() waits only while more than a limit is unwritten.  An error is raised by the next write(),
  flush() or close(), with the data kept for another try.
* close() waits for what is in flight, or, where that may take for ever (pipes), cancels it.  The
  descriptor is closed only then, so no operation ever meets a number that was used again.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import select
import warnings
from typing import TYPE_CHECKING, Any, Self

from aiounify._core.file_binary import BinaryBase
from aiounify._core.file_op import (
    FileOp,
    fallocate_op,
    poll_op,
    read_op,
    readinto_op,
    readv_op,
    writev_op,
)
from aiounify.files.locks import FileLocks
from aiounify.files.operation import NOT_NOW, checked, failure, perform
from aiounify.files.status import Statx, statx_of
from aiounify.files.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence
    from types import TracebackType

    from typing_extensions import Buffer

# bytes that may be unwritten before write() waits
_BEHIND = 1 << 20
# a read of "all that is left" begins with this where the size is not known
_UNKNOWN = 65536
_PIECE = 1 << 30
# the builtin's messages, of handles with a buffer and without
_NOT_READABLE = ("not readable", "File not open for reading")
_NOT_WRITABLE = ("not writable", "File not open for writing")
_FSYNC, _CLOSE, _FTRUNCATE = 3, 19, 55


class BinaryFile(BinaryBase, FileLocks):
    """A file opened in binary mode, with a buffer unless `raw`; made by open()."""

    def __init__(
        self,
        files: FileService,
        fd: int,
        name: Any,
        mode: str,
        *,
        readable: bool,
        writable: bool,
        appends: bool,
        regular: bool,
        buffer_size: int,
        closefd: bool,
        fifo: bool = False,
    ) -> None:
        self.service = files
        self.fd = fd
        self.name = name
        self.mode = mode
        self.can_read = readable
        self.can_write = writable
        self.regular = regular
        self.raw = buffer_size == 0
        self.chunk = buffer_size or 8192
        self._first_chunk = self.chunk
        self._limit = buffer_size or 1
        self._appends = appends
        self._closefd = closefd
        self._fifo_unmet = fifo and readable and not writable
        self._gathered: list[bytes] = []
        self._gathered_size = 0
        self._flight: FileOp | None = None
        self._flight_data: list[bytes] = []
        self._written: asyncio.Future[None] | None = None
        self._error: OSError | None = None
        self._endless: set[FileOp] = set()
        self._idle: asyncio.Future[None] | None = None
        self._closer: asyncio.Task[None] | None = None

    # -- what is known without the kernel -----------------------------------------

    @property
    def closed(self) -> bool:
        """True once close() was called."""
        return self.shut

    def fileno(self) -> int:
        """The descriptor.  ValueError if the file is closed."""
        self._check_open()
        return self.fd

    async def readable(self) -> bool:
        self._check_open()
        return self.can_read

    async def writable(self) -> bool:
        self._check_open()
        return self.can_write

    async def seekable(self) -> bool:
        self._check_open()
        return self.regular

    async def isatty(self) -> bool:
        self._check_open()
        return os.isatty(self.fd)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r} mode={self.mode!r}>"

    def _check_open(self) -> None:
        if self.shut:
            raise ValueError("I/O operation on closed file.")

    def _check_read(self) -> None:
        self._check_open()
        if not self.can_read:
            raise io.UnsupportedOperation(_NOT_READABLE[self.raw])

    def _check_write(self) -> None:
        self._check_open()
        if not self.can_write:
            raise io.UnsupportedOperation(_NOT_WRITABLE[self.raw])

    def _check_seek(self) -> None:
        self._check_open()
        if not self.regular:
            raise io.UnsupportedOperation("underlying stream is not seekable")

    def _failure(self, result: int) -> Exception:
        if self.shut and result == -errno.ECANCELED:
            return ValueError("I/O operation on closed file.")
        return failure(result, self.name if not isinstance(self.name, int) else None)

    async def _enter(self) -> None:
        """Hold the handle."""
        if not self._hold():
            waiter = self._wait()
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._let_go()
                raise
        if self.shut:
            self._let_go()
            raise ValueError("I/O operation on closed file.")

    # -- reading ------------------------------------------------------------------

    def _at(self) -> int:
        return self.position if self.regular else -1

    async def _run(self, op: FileOp) -> int:
        """A sequential operation; what may wait for ever is given up when the file is closed."""
        if not op.polled:
            return await perform(self.service, op)
        self._endless.add(op)
        try:
            return await perform(self.service, op)
        finally:
            self._endless.discard(op)

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

    async def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        """All lines that are left; with a positive hint no more than take up so many bytes."""
        lines = []
        total = 0
        async for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

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

    # -- writing ------------------------------------------------------------------

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

    async def writelines(self, lines: Iterable[Buffer], /) -> None:
        """Write each of the lines."""
        for line in lines:
            await self.write(line)

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

    # -- where ------------------------------------------------------------------------

    async def tell(self) -> int:
        """The offset of the next byte that is read or written."""
        self._check_seek()
        await self._enter()
        try:
            if self.dirty:
                await self._drain()
            return self.position - self._have()
        finally:
            self._let_go()

    async def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to an offset, from the start, from here (1), from the end (2), or to data or a hole
        (SEEK_DATA, SEEK_HOLE): the new offset."""
        self._check_seek()
        await self._enter()
        try:
            if self.dirty:
                await self._drain()
            here = self.position - self._have()
            if whence == os.SEEK_SET:
                target = offset
            elif whence == os.SEEK_CUR:
                target = here + offset
            elif whence == os.SEEK_END:
                target = os.fstat(self.fd).st_size + offset
            elif whence in (os.SEEK_DATA, os.SEEK_HOLE):
                target = await in_thread(self._seek_hole, offset, whence)
            else:
                raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
            if target < 0:
                raise failure(errno.EINVAL, self.name if not isinstance(self.name, int) else None)
            ahead = target - here
            if 0 <= ahead <= self._have():
                self._skip(ahead)
            else:
                self._drop()
                self.position = target
                self.chunk = self._first_chunk
            return target
        finally:
            self._let_go()

    def _seek_hole(self, offset: int, whence: int) -> int:
        # On a description of its own: the descriptor's offset may be shared.
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.lseek(fd, offset, whence)
        finally:
            os.close(fd)

    async def truncate(self, size: int | None = None, /) -> int:
        """Make the file `size` bytes long, by default as long as the offset says: the new size."""
        self._check_write()
        await self._enter()
        try:
            await self._drain()
            if size is None:
                size = self.position - self._have()
            self._drop()
            op = FileOp(_FTRUNCATE, self.fd, 0, size)
            result = await perform(self.service, op)
            if result < 0:
                raise self._failure(result)
            return size
        finally:
            self._let_go()

    # -- beside everything else ---------------------------------------------------------

    async def _beside(self, op: FileOp) -> int:
        """An operation that holds nothing; close() waits for it."""
        self._check_open()
        self.busy += 1
        try:
            result = await perform(self.service, op)
        finally:
            self.busy -= 1
            if not self.busy and self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
        if result < 0:
            raise self._failure(result)
        return result

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
        self, target: BinaryFile, count: int, offset: int = 0, target_offset: int = 0
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
                for file in (self, target):
                    file.busy -= 1
                    if not file.busy and file._idle is not None and not file._idle.done():
                        file._idle.set_result(None)
            if not n:
                break
            done += n
        return done

    # -- the end -------------------------------------------------------------------------

    async def close(self) -> None:
        """Write what is left and close.  Closing twice is allowed.

        Waits for what is in flight; reads of pipes are given up with ValueError.  If a write
        fails, the file is closed all the same and OSError raised.  A cancelled close goes on in the
        background.
        """
        if self._closer is None:
            if self.shut:
                return
            if not (self.held or self.busy or self.dirty or self.can_write or self._error):
                self.shut = True
                self._close_now()
                return
            self.shut = True
            self._closer = self.service.loop.create_task(self._close())
        await asyncio.shield(self._closer)

    def _close_now(self) -> None:
        fd, self.fd = self.fd, -1
        self._hand_back(fd)
        if self._closefd:
            os.close(fd)

    def _hand_back(self, fd: int) -> None:
        """A descriptor that stays open gets the offset at which the handle was."""
        if not self._closefd and self.regular:
            os.lseek(fd, self.position - self._have(), os.SEEK_SET)

    async def _close(self) -> None:
        for op in self._endless:
            self.service.cancel(op)
        try:
            if not self._hold():
                await self._wait()
            await self._drain()
            self._raise_error()
        finally:
            self._let_go()
            while self.busy:
                self._idle = self.service.loop.create_future()
                await self._idle
            fd, self.fd = self.fd, -1
            self._gathered.clear()
            self._hand_back(fd)
            if self._closefd:
                await checked(self.service, FileOp(_CLOSE, fd, 0, 0), self.name)

    def detach(self) -> int:
        """Give the descriptor up: the caller has to close it.  ValueError if data is unwritten."""
        self._check_open()
        if self.dirty or self.held or self.busy:
            raise ValueError("operations are in flight: flush() first")
        self.shut = True
        fd, self.fd = self.fd, -1
        self._closefd = False
        self._hand_back(fd)
        return fd

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if self.fd < 0 or self.shut:
            return
        fd, self.fd, self.shut = self.fd, -1, True
        try:
            if self._closefd:
                warnings.warn(f"unclosed file {self!r}", ResourceWarning, source=self, stacklevel=2)
        finally:
            _finish_unclosed(fd, self)


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


def _finish_unclosed(fd: int, file: BinaryFile) -> None:
    """Nobody closed it: as with Python's own files, what was written is not lost."""
    try:
        data = b"".join(file._gathered)
        while data and file.regular:
            n = os.write(fd, data) if file._appends else os.pwrite(fd, data, file.position)
            file.position += n
            data = data[n:]
    except OSError:
        pass  # a destructor has nobody to tell
    finally:
        if file._closefd:
            os.close(fd)
