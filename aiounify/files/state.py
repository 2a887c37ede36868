"""What all operations of a binary handle share: its state, who holds it, and what may be asked.

Rules:

* Whoever waits for the kernel holds the handle (_enter, _let_go); others queue.  Positional reads
  and writes hold nothing and run beside each other; close() waits for them (_beside).
* What may wait for ever, on pipes and terminals, is known here, so that close() can end it.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
from typing import TYPE_CHECKING, Any

from aiounify._core.file_binary import BinaryBase
from aiounify.files.fileobject import Closing, InTurn, ManyLines
from aiounify.files.locks import FileLocks
from aiounify.files.operation import failure, perform

if TYPE_CHECKING:
    from aiounify._core.file_op import FileOp
    from aiounify._core.file_service import FileService

# the builtin's messages, of handles with a buffer and without
_NOT_READABLE = ("not readable", "File not open for reading")
_NOT_WRITABLE = ("not writable", "File not open for writing")


class HandleState(BinaryBase, FileLocks, InTurn, ManyLines[bytes], Closing):
    """See the module's docstring; open() makes the whole of it, a BinaryFile."""

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

    async def _beside(self, op: FileOp) -> int:
        """An operation that holds nothing; close() waits for it."""
        self._check_open()
        self.busy += 1
        try:
            result = await perform(self.service, op)
        finally:
            self._beside_ended()
        if result < 0:
            raise self._failure(result)
        return result

    def _beside_ended(self) -> None:
        self.busy -= 1
        if not self.busy and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
