"""An asyncio.StreamReader as a source of select(): its bytes, without a task.

Why it exists: `reader.read()` is a coroutine, which a selection can only run as a task; what such a
task has read when it is cancelled is gone.  Here bytes stay in the reader until they are taken.

A reader has one waiter at a time, which its protocol calls when bytes, the end or an error
have come.  This source stands in that place while somebody waits, so that another `read()` of
the same reader is refused meanwhile, as asyncio does between two of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiounify.sources import EMPTY, Source, taking

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable
    from typing import Self

    from aiounify.sources import Nothing


class StreamData(Source[bytes]):
    """What `received(reader)` gives."""

    def __init__(self, reader: asyncio.StreamReader, size: int) -> None:
        if size <= 0:
            raise ValueError(f"size must be positive, not {size}")
        self._reader: Any = reader
        self._size = size
        self._ended = False

    def __repr__(self) -> str:
        # not the reader's own, which shows its waiter
        return f"<StreamData of {type(self._reader).__name__} at {id(self._reader):#x}>"

    def take(self) -> bytes | Nothing:
        """The bytes that are there; see aiounify.sources."""
        reader = self._reader
        if reader._exception is not None:
            raise reader._exception
        buffer = reader._buffer
        if buffer:
            data = bytes(buffer[: self._size])
            del buffer[: self._size]
            reader._maybe_resume_transport()
            return data
        if not reader._eof:
            return EMPTY
        if self._ended:
            raise StopAsyncIteration
        self._ended = True
        return b""

    def _begin(self) -> None:
        reader = self._reader
        if reader._waiter is not None:
            raise RuntimeError(f"another coroutine waits for data of {reader!r} already")
        if reader._paused:
            reader._paused = False
            reader._transport.resume_reading()
        reader._waiter = self

    def _withdraw(self) -> None:
        if self._reader._waiter is self:
            self._reader._waiter = None

    # What a reader asks of its waiter, which it has let go before.

    def cancelled(self) -> bool:
        """It is not."""
        return False

    def set_result(self, result: None) -> None:
        """There are bytes, or the end."""
        self._fire()

    def set_exception(self, exc: BaseException) -> None:
        """The connection has failed."""
        self._fire()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[bytes]:
        return taking(self)
