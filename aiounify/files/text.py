"""Text handles: decoding and encoding around a binary handle, as io.TextIOWrapper does it.

Rules:

* `chars` are decoded characters, `used` of them were handed out.  For each chunk of bytes that
  stands in `chars` there is a mark: where it began in the file, with which state of the decoder,
  and at which character.  tell() is computed from the last mark before the reader.
* A cookie of tell() is what io.TextIOWrapper would give: a byte offset where that is enough, else
  offset (64 bits), decoder state, bytes to feed and characters to skip (32 bits each).
* Text that is written is encoded and handed to the binary handle at once.
"""

from __future__ import annotations

import codecs
import io
import os
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from aiounify._core.file_calls import iterated_in_c
from aiounify._core.file_text import TextBase
from aiounify.files.fileobject import Closing, InTurn, ManyLines

if TYPE_CHECKING:
    from aiounify.files.binary import BinaryFile

_ENDS = ("", "\n", "\r", "\r\n")
_CHUNK = 65536


class _Mark(NamedTuple):
    """A chunk of bytes of which decoded characters are there."""

    first: int  # its first character in `chars`
    offset: int  # where the chunk began in the file
    pending: bytes  # what the decoder held before it
    flags: int
    data: bytes


@iterated_in_c
class _Detached:
    """What a text handle works on once its binary handle was taken away."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ValueError("underlying buffer has been detached")


_DETACHED = _Detached()


class TextFile(TextBase, InTurn, ManyLines[str], Closing):
    """A file opened in text mode; made by open()."""

    def __init__(
        self,
        buffer: BinaryFile,
        encoding: str,
        errors: str | None,
        newline: str | None,
        *,
        line_buffering: bool,
        write_through: bool = False,
    ) -> None:
        if newline is not None and newline not in _ENDS:
            raise ValueError(f"illegal newline value: {newline!r}")
        info = codecs.lookup(encoding)
        if not getattr(info, "_is_text_encoding", True):
            raise LookupError(
                f"{encoding!r} is not a text encoding; use codecs.open() to handle arbitrary codecs"
            )
        codecs.lookup_error(errors or "strict")
        self.source = buffer
        self.service = buffer.service
        self.buffer = buffer
        self.encoding = encoding
        self.errors = errors or "strict"
        self.line_buffering = line_buffering
        self.write_through = write_through
        self.mode = buffer.mode
        self._newline = newline
        self._translates = newline is None
        self._universal = not newline
        self._written_end = newline if newline in ("\r", "\r\n") else None
        self._info = info
        self._decoder: Any = None
        self._encoder: Any = None
        self._marks: list[_Mark] = []
        self._ended = False
        self.plain = newline in (None, "\n")
        if buffer.can_read:
            self._decoder = self._make_decoder()
            self.ready = True

    def _make_decoder(self) -> Any:
        decoder: Any = self._info.incrementaldecoder(self.errors)
        if self._universal:
            decoder = io.IncrementalNewlineDecoder(decoder, self._translates)
        return decoder

    # -- what is known without the kernel -----------------------------------------------

    @property
    def name(self) -> Any:
        return self.buffer.name

    @property
    def closed(self) -> bool:
        """True once close() was called."""
        return self.buffer.shut

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The line ends that were seen, as of io.TextIOWrapper."""
        found: str | tuple[str, ...] | None = getattr(self._decoder, "newlines", None)
        return found

    def fileno(self) -> int:
        return self.buffer.fileno()

    async def readable(self) -> bool:
        return await self.buffer.readable()

    async def writable(self) -> bool:
        return await self.buffer.writable()

    async def seekable(self) -> bool:
        return await self.buffer.seekable()

    async def isatty(self) -> bool:
        return await self.buffer.isatty()

    def __repr__(self) -> str:
        return f"<TextFile name={self.name!r} mode={self.mode!r} encoding={self.encoding!r}>"

    # -- decoding -------------------------------------------------------------------------

    def _feed(self, data: bytes) -> bool:
        """Decode a chunk that was taken from the buffer; False at the end of the file."""
        pending, flags = self._decoder.getstate()
        text = self._decoder.decode(data, not data)
        if data:
            rest = self.chars[self.used :]
            marks = [m._replace(first=m.first - self.used) for m in self._marks]
            while len(marks) > 1 and marks[1].first <= 0:
                del marks[0]
            if not rest:
                marks = []
            here = self.buffer.position - self.buffer._have() - len(data)
            marks.append(_Mark(len(rest), here, pending, flags, data))
            self._marks = marks
            self.chars = rest + text
            self.used = 0
            return True
        self.chars += text
        return False

    def _forget(self) -> None:
        self.chars = ""
        self.used = 0
        self._marks = []

    async def _more(self) -> bool:
        """Decode another chunk; False at the end of the file."""
        if self.buffer.dirty:
            await self.buffer.flush()
        data = self.buffer._try_chunk()
        if data is None:
            data = await self.buffer.read1(_CHUNK)
        return self._feed(data)

    def _check_read(self) -> None:
        self.buffer._check_open()
        if self._decoder is None:
            raise io.UnsupportedOperation("not readable")

    async def read(self, size: int | None = -1, /) -> str:
        """Read up to `size` characters, less only at the end of the file; all for -1."""
        self._check_read()
        await self._enter()
        try:
            if size is None or size < 0:
                if self.buffer.dirty:
                    await self.buffer.flush()
                data = await self.buffer.read(-1)
                text: str = self.chars[self.used :] + self._decoder.decode(data, True)
                self._forget()
                return text
            while len(self.chars) - self.used < size and await self._more():
                pass
            return self._take(size)
        finally:
            self._let_go()

    async def _slow_readline(self, size: int | None) -> str:
        self._check_read()
        limit = -1 if size is None else size
        await self._enter()
        try:
            searched = self.used
            while True:
                end = self._line_end(searched)
                if end >= 0 or 0 <= limit <= len(self.chars) - self.used:
                    break
                searched = max(len(self.chars) - 1 - self.used, 0)  # a \r may be half an end
                if not await self._more():
                    end = len(self.chars)
                    last = self._line_end(self.used)
                    end = last if last >= 0 else end
                    break
                searched += self.used
            n = end - self.used if end >= 0 else limit
            return self._take(n if limit < 0 else min(n, limit))
        finally:
            self._let_go()

    def _line_end(self, start: int) -> int:
        """Behind the first line end at or after `start`; -1 if none is there."""
        chars = self.chars
        if self.plain:
            return chars.find("\n", start) + 1 or -1
        if self._newline:
            found = chars.find(self._newline, start)
            return found + len(self._newline) if found >= 0 else -1
        newline, carriage = chars.find("\n", start), chars.find("\r", start)
        if carriage < 0 or 0 <= newline < carriage:
            return newline + 1 or -1
        # The decoder never ends its output with the \r of a \r\n.
        return carriage + 2 if newline == carriage + 1 else carriage + 1

    async def _slow_next(self) -> str:
        line = await self._slow_readline(-1)
        if not line:
            raise StopAsyncIteration
        return line

    # -- encoding -------------------------------------------------------------------------

    def _encode(self, text: str) -> bytes:
        if self._encoder is None:
            self._encoder = self._info.incrementalencoder(self.errors)
            behind = self.buffer.position - self.buffer._have()
            if self.buffer.regular and (behind or self.buffer._gathered or self.buffer._flight):
                self._encoder.setstate(0)  # no byte order mark in the middle
        encoded: bytes = self._encoder.encode(text)
        return encoded

    async def write(self, text: str, /) -> int:
        """Take text to be written: the number of characters.  See BinaryFile.write()."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.buffer._check_write()
        if self.held:
            await self._enter()
            self._let_go()
        if self.chars:
            self._forget()
            self._decoder.reset()
        ends = "\n" in text
        out = text.replace("\n", self._written_end) if ends and self._written_end else text
        await self.buffer.write(self._encode(out))
        if self.write_through or (self.line_buffering and (ends or "\r" in text)):
            await self.buffer.flush()
        return len(text)

    async def flush(self) -> None:
        """Hand everything that was written to the kernel."""
        await self.buffer.flush()

    async def fsync(self) -> None:
        """flush(), then have data and metadata on the disk; fsync(2)."""
        await self.buffer.fsync()

    async def fdatasync(self) -> None:
        """flush(), then have the data on the disk; fdatasync(2)."""
        await self.buffer.fdatasync()

    # -- where ----------------------------------------------------------------------------

    async def tell(self) -> int:
        """A cookie for seek(): opaque, but a byte offset wherever that says enough."""
        self.buffer._check_seek()
        await self._enter()
        try:
            position = await self.buffer.tell()
            if not self._marks:
                return position
            if self.used == len(self.chars):
                pending, flags = self._decoder.getstate()
                if not pending and not (self._universal and flags & 1):
                    return position | int(flags) << 64
            return self._cookie(position)
        finally:
            self._let_go()

    def _cookie(self, position: int) -> int:
        mark = None
        for candidate in self._marks:
            if candidate.first <= self.used:
                mark = candidate
        if mark is None:
            return position
        skip = self.used - mark.first
        decoder = self._make_decoder()

        def decoded(n: int) -> int:
            decoder.setstate((mark.pending, mark.flags))
            return len(decoder.decode(mark.data[:n]))

        low, high = 0, len(mark.data)
        while low < high:  # the fewest bytes that give so many characters
            middle = (low + high) // 2
            if decoded(middle) >= skip:
                high = middle
            else:
                low = middle + 1
        count = decoded(low)
        pending, flags = decoder.getstate()
        if count == skip and not pending:
            return mark.offset + low | int(flags) << 64
        start = mark.offset - len(mark.pending)
        feed = low + len(mark.pending)
        return start | mark.flags << 64 | feed << 96 | skip << 128

    async def seek(self, cookie: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a place that tell() gave, to the start (0), or to the end (0, SEEK_END)."""
        self.buffer._check_seek()
        if whence == os.SEEK_CUR:
            if cookie:
                raise io.UnsupportedOperation("can't do nonzero cur-relative seeks")
            cookie = await self.tell()
        elif whence == os.SEEK_END:
            if cookie:
                raise io.UnsupportedOperation("can't do nonzero end-relative seeks")
        elif whence != os.SEEK_SET:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        elif cookie < 0:
            raise ValueError(f"negative seek position {cookie!r}")
        await self._enter()
        try:
            return await self._seek(cookie, whence)
        finally:
            self._let_go()

    async def _seek(self, cookie: int, whence: int) -> int:
        mask = (1 << 32) - 1
        start, flags = cookie & (1 << 64) - 1, cookie >> 64 & mask
        feed, skip = cookie >> 96 & mask, cookie >> 128 & mask
        if whence == os.SEEK_END:
            cookie = start = await self.buffer.seek(0, os.SEEK_END)
        else:
            await self.buffer.seek(start)
        self._forget()
        if self._decoder is not None:
            if start or flags:
                self._decoder.setstate((b"", flags))
            else:
                self._decoder.reset()
        if skip:
            data = await self.buffer.read(feed)
            self._feed(data)
            if len(self.chars) < skip:
                raise OSError("can't restore logical file position")
            self.used = skip
        if self._encoder is not None:
            if start:
                self._encoder.setstate(0)
            else:
                self._encoder.reset()
        return cookie

    async def truncate(self, size: int | None = None, /) -> int:
        """Make the file `size` bytes long, by default as long as tell() says."""
        if size is None:
            size = await self.tell()
        return await self.buffer.truncate(size)

    # -- the end --------------------------------------------------------------------------

    async def close(self) -> None:
        """Write what is left and close; see BinaryFile.close()."""
        await self.buffer.close()

    def detach(self) -> BinaryFile:
        """The binary handle, which the caller has to close; this one can do nothing any more.

        As with io, `async with` over a detached handle ends in ValueError, for it cannot close.
        """
        buffer = self.buffer
        buffer._check_open()
        self.ready = False
        self.buffer = cast("BinaryFile", _DETACHED)
        return buffer
