"""What the file objects here do in the same way: `async with`, lines, waiting for one's turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

_Line = TypeVar("_Line")


class Closing:
    """`async with` gives the object and closes it at the end."""

    __slots__ = ()

    if TYPE_CHECKING:

        def close(self) -> Any: ...

    async def _leave(self) -> None:
        await self.close()

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave()


class Lines(Generic[_Line]):
    """`async for` over what readline() returns, until that is empty."""

    __slots__ = ()

    if TYPE_CHECKING:

        async def readline(self) -> _Line: ...

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Line:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line


class ManyLines(Generic[_Line]):
    """readlines() and writelines(), for objects that have the lines one by one."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __aiter__(self) -> Any: ...

        async def write(self, line: Any, /) -> int: ...

    async def readlines(self, hint: int | None = -1) -> list[_Line]:
        """All lines that are left; with a positive hint no more than take up so many bytes, or
        characters."""
        lines: list[_Line] = []
        total = 0
        async for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    async def writelines(self, lines: Iterable[Any], /) -> None:
        """Write each of the lines; line ends are not added."""
        for line in lines:
            await self.write(line)


class InTurn:
    """Handles of which one user at a time may wait; the rest of it is native (Guarded)."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def closed(self) -> bool: ...

        def _hold(self) -> bool: ...

        def _let_go(self) -> None: ...

        def _wait(self) -> asyncio.Future[None]: ...

    async def _enter(self) -> None:
        """Hold the handle.  ValueError if it is closed."""
        if not self._hold():
            waiter = self._wait()
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._let_go()
                raise
        if self.closed:
            self._let_go()
            raise ValueError("I/O operation on closed file.")
