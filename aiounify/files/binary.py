"""Binary handles: where they are, and their end.

A handle is one class in layers, each of which uses those before it: what is answered at once
(BinaryBase, native), the state (state.py), writing (writing.py), reading (reading.py) and what
names its place (positional.py).

Rules:

* close() waits for what is in flight, or, where that may take for ever (pipes), cancels it.  The
  descriptor is closed only then, so no operation ever meets a number that was used again.
* A descriptor that stays open (closefd=False, detach) is given the handle's offset.
"""

from __future__ import annotations

import asyncio
import errno
import os
import warnings

from aiounify._core.file_calls import iterated_in_c
from aiounify._core.file_op import FileOp
from aiounify.files.operation import checked, failure, perform
from aiounify.files.positional import Positional
from aiounify.files.threads import in_thread

_CLOSE, _FTRUNCATE = 19, 55


@iterated_in_c
class BinaryFile(Positional):
    """A file opened in binary mode, with a buffer unless `raw`; made by open()."""

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
            if self.service.loop.is_closed():  # the task was given up with its loop
                fd, self.fd, self.shut = self.fd, -1, True
                _finish_unclosed(fd, self)
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

    def __del__(self) -> None:
        if self.fd < 0 or self.shut:
            return
        fd, self.fd, self.shut = self.fd, -1, True
        try:
            if self._closefd:
                warnings.warn(f"unclosed file {self!r}", ResourceWarning, source=self, stacklevel=2)
        finally:
            _finish_unclosed(fd, self)


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
