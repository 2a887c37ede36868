"""stdin, stdout and stderr awaited, with the names and methods that aiofiles gives them.

Why it exists: a read of the terminal or of a pipe in a thread cannot be cancelled, takes the next
line from whoever asks later, and keeps the process from ending.  Here the loop waits until there
is something to read or room to write, and then makes a call that does not block.

Rules:

* A read that is cancelled has taken nothing.  What was read and not asked for stays here,
  for the next read by `stdin` or `stdin_bytes`, in any loop; input() and sys.stdin do not see it,
  and this module does not see what they have read ahead.
* Writes go out at once and whole, one after the other, behind what print() has left in
  Python's buffer.  A write that is cancelled may have written a part.
* Standard streams that are files are read and written in a thread.  An object without a
  descriptor that somebody has put in place of sys.stdin and its kin is called in a thread too.
* The descriptors are never made non-blocking: other processes share them.
"""

from __future__ import annotations

import asyncio
import codecs
import errno
import io
import os
import stat
import sys
import weakref
from typing import TYPE_CHECKING, Any, AnyStr

from aiounify._core.splice import Readiness
from aiounify.files.fileobject import Lines, ManyLines
from aiounify.files.threads import in_thread, running_loop

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from aiounify._core.reactor import Op

__all__ = ["stderr", "stderr_bytes", "stdin", "stdin_bytes", "stdout", "stdout_bytes"]

_READABLE, _WRITABLE = 1, 4
# bytes asked for at once, and given to a descriptor that might block (PIPE_BUF)
_PIECE, _SMALL_PIECE = 65_536, 4096
_NOWAIT = getattr(os, "RWF_NOWAIT", 8)


async def _ready(fd: int, events: int) -> None:
    loop = running_loop()
    waiter = loop.create_future()

    def finished(_: Op) -> None:
        if not waiter.done():
            waiter.set_result(None)

    wait = Readiness(fd, events)
    loop._submit(wait, finished)
    try:
        await waiter
    finally:
        loop._cancel(wait)


def _on_disk(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _take(fd: int) -> bytes:
    """Read what is there, when it was said that something is.  BlockingIOError if not."""
    space = bytearray(_PIECE)
    try:
        n = os.preadv(fd, [space], -1, _NOWAIT)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        return os.read(fd, _PIECE)  # a terminal
    return bytes(space[:n])


def _give(fd: int, data: memoryview) -> int:
    """Write what there is room for, when it was said that there is some."""
    try:
        return os.pwritev(fd, [data[:_PIECE]], -1, _NOWAIT)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        return os.write(fd, data[:_SMALL_PIECE])


class _Standard:
    """What the six have in common: which object of sys they stand for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._locks: weakref.WeakKeyDictionary[Any, asyncio.Lock] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<aiounify.files.{self._name}{'' if self._is_text else '_bytes'}>"

    _is_text = False

    @property
    def _object(self) -> Any:
        found = getattr(sys, self._name)
        if found is None:
            raise ValueError(f"there is no sys.{self._name}")
        return found

    @property
    def _plain(self) -> Any:
        """Where this one's methods are: sys.stdin or its buffer."""
        found = self._object
        return found if self._is_text else found.buffer

    def _fd(self) -> int | None:
        """Its descriptor, or None if it has none."""
        found = self._object
        if found.closed:
            raise ValueError("I/O operation on closed file.")
        try:
            fd = found.fileno()
        except (AttributeError, OSError, ValueError):
            return None
        return fd if isinstance(fd, int) else None

    def _lock(self) -> asyncio.Lock:
        return self._locks.setdefault(running_loop(), asyncio.Lock())

    async def close(self) -> None:
        """Close it, as sys.stdin.close() does."""
        await in_thread(self._plain.close)

    async def isatty(self) -> bool:
        """True for a terminal."""
        return bool(self._object.isatty())

    async def readable(self) -> bool:
        """True if it can be read."""
        return bool(self._plain.readable())

    async def writable(self) -> bool:
        """True if it can be written to."""
        return bool(self._plain.writable())

    async def seekable(self) -> bool:
        """True if it is a file."""
        return bool(self._plain.seekable())

    async def tell(self) -> int:
        """The position, of a file."""
        position: int = await in_thread(self._plain.tell)
        return position

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, of a file."""
        position: int = await in_thread(self._plain.seek, offset, whence)
        return position

    async def truncate(self, size: int | None = None) -> int:
        """Cut a file off."""
        new: int = await in_thread(self._plain.truncate, size)
        return new

    def fileno(self) -> int:
        """Its descriptor."""
        fd: int = self._object.fileno()
        return fd

    @property
    def closed(self) -> bool:
        """True after close()."""
        return bool(self._object.closed)

    @property
    def name(self) -> Any:
        """As sys.stdin.name."""
        return self._plain.name

    @property
    def mode(self) -> Any:
        """As sys.stdin.mode."""
        return self._plain.mode

    @property
    def buffer(self) -> Any:
        """sys.stdin.buffer, which blocks."""
        return self._object.buffer

    @property
    def encoding(self) -> str:
        """As sys.stdin.encoding."""
        return str(self._object.encoding)

    @property
    def errors(self) -> str | None:
        """As sys.stdin.errors."""
        errors: str | None = self._object.errors
        return errors

    @property
    def newlines(self) -> Any:
        """As sys.stdin.newlines."""
        return self._object.newlines

    @property
    def line_buffering(self) -> bool:
        """As sys.stdin.line_buffering."""
        return bool(self._object.line_buffering)


# -- reading -----------------------------------------------------------------------------------


class _Input:
    """What was read from standard input and not asked for yet; one for text and bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.text = ""
        self.decoder: io.IncrementalNewlineDecoder | None = None

    async def more(self, fd: int) -> bool:
        """Read something; False at the end."""
        if _on_disk(fd):
            data = await in_thread(os.read, fd, _PIECE)
        else:
            while True:
                await _ready(fd, _READABLE)
                try:
                    data = _take(fd)
                except BlockingIOError:
                    continue  # somebody else was faster
                break
        self.data += data
        return bool(data)

    def decode(self, encoding: str, errors: str, final: bool) -> None:
        if self.decoder is None:
            decoder = codecs.getincrementaldecoder(encoding)(errors)
            self.decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        data = bytes(self.data)
        self.data.clear()
        self.text += self.decoder.decode(data, final)
        if final:
            self.decoder = None


_input = _Input()


class _Reader(_Standard, Lines[AnyStr], ManyLines[AnyStr]):
    """Reading from `_input`; bytes and text differ in what is looked at and handed out."""

    _newline: AnyStr

    if TYPE_CHECKING:

        def _there(self) -> Any:
            """What was read and not handed out."""

        async def _more(self, fd: int) -> bool:
            """Add to it; False at the end."""

        def _out(self, n: int) -> AnyStr:
            """Hand so much of it out."""

    async def read(self, size: int | None = -1) -> AnyStr:
        """`size` bytes or characters, fewer only at the end; without a size all up to the end."""
        fd = self._fd()
        if fd is None:
            found: AnyStr = await in_thread(self._plain.read, size)
            return found
        async with self._lock():
            wanted = -1 if size is None else size
            while (wanted < 0 or len(self._there()) < wanted) and await self._more(fd):
                pass
            return self._out(len(self._there()) if wanted < 0 else wanted)

    async def readline(self, size: int | None = -1) -> AnyStr:
        """A line with its end, at most `size` bytes or characters of it; empty at the end."""
        fd = self._fd()
        if fd is None:
            found: AnyStr = await in_thread(self._plain.readline, size)
            return found
        limit = -1 if size is None else size
        async with self._lock():
            looked = 0
            while True:
                end = self._there().find(self._newline, looked) + 1
                looked = len(self._there())
                if end and (limit < 0 or end <= limit):
                    return self._out(end)
                if 0 <= limit <= looked:
                    return self._out(limit)
                if not await self._more(fd):
                    return self._out(len(self._there()))


class StandardInputBytes(_Reader[bytes]):
    """Standard input as bytes."""

    _newline = b"\n"

    def _there(self) -> bytearray:
        return _input.data

    async def _more(self, fd: int) -> bool:
        return await _input.more(fd)

    def _out(self, n: int) -> bytes:
        data = bytes(memoryview(_input.data)[:n])
        del _input.data[:n]
        return data

    async def read1(self, size: int = -1) -> bytes:
        """What is there, `size` bytes at most; waits only if nothing is."""
        fd = self._fd()
        if fd is None:
            return bytes(await in_thread(self._plain.read1, size))
        async with self._lock():
            if size and not _input.data:
                await _input.more(fd)
            return self._out(len(_input.data) if size < 0 else size)

    async def readinto(self, buffer: Buffer) -> int:
        """Fill a buffer; returns the number of bytes, fewer only at the end."""
        view = memoryview(buffer).cast("B")
        data = await self.read(len(view))
        view[: len(data)] = data
        return len(data)


class StandardInput(_Reader[str]):
    """Standard input as text, with the encoding that sys.stdin has."""

    _is_text = True
    _newline = "\n"

    def _there(self) -> str:
        return _input.text

    async def _more(self, fd: int) -> bool:
        found = bool(_input.data) or await _input.more(fd)
        _input.decode(self.encoding, self.errors or "strict", final=not found)
        return found

    def _out(self, n: int) -> str:
        text, _input.text = _input.text[:n], _input.text[n:]
        return text


# -- writing -----------------------------------------------------------------------------------


class _Output(_Standard):
    async def flush(self) -> None:
        """Write what print() has left in Python's buffer; what was written here is out."""
        fd = self._fd()
        if fd is None or _on_disk(fd):
            await in_thread(self._object.flush)
            return
        async with self._lock():
            await _ready(fd, _WRITABLE)
            self._object.flush()

    async def _write(self, fd: int, data: Buffer) -> None:
        left = memoryview(data).cast("B")
        disk = _on_disk(fd)
        async with self._lock():
            if disk:
                await in_thread(self._object.flush)
            else:
                self._object.flush()
            while left:
                if disk:
                    left = left[await in_thread(os.write, fd, left) :]
                    continue
                await _ready(fd, _WRITABLE)
                try:
                    left = left[_give(fd, left) :]
                except BlockingIOError:
                    continue  # somebody else was faster


class StandardOutputBytes(_Output):
    """Standard output or standard error, for bytes."""

    async def write(self, data: Buffer) -> int:
        """Write all of it; returns the number of bytes."""
        fd = self._fd()
        if fd is None:
            n: int = await in_thread(self._plain.write, data)
            return n
        await self._write(fd, data)
        return memoryview(data).nbytes

    async def writelines(self, lines: list[Buffer]) -> None:
        """Write each of them; line ends are not added."""
        await self.write(b"".join(lines))


class StandardOutput(_Output):
    """Standard output or standard error, for text."""

    _is_text = True

    async def write(self, text: str) -> int:
        """Write all of it; returns the number of characters."""
        fd = self._fd()
        if fd is None:
            n: int = await in_thread(self._plain.write, text)
            return n
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        await self._write(fd, text.encode(self.encoding, self.errors or "strict"))
        return len(text)

    async def writelines(self, lines: list[str]) -> None:
        """Write each of them; line ends are not added."""
        await self.write("".join(lines))


stdin = StandardInput("stdin")
stdin_bytes = StandardInputBytes("stdin")
stdout = StandardOutput("stdout")
stdout_bytes = StandardOutputBytes("stdout")
stderr = StandardOutput("stderr")
stderr_bytes = StandardOutputBytes("stderr")

# both read from one place, and two that write to one wait for each other
stdin_bytes._locks = stdin._locks
stdout_bytes._locks = stdout._locks
stderr_bytes._locks = stderr._locks
