from types import TracebackType
from typing import Self

from typing_extensions import disjoint_base

from aiounify._core.reactor import Op
from aiounify._core.sendfile import Source

WRITE: int

@disjoint_base
class Readiness(Op):
    def __new__(cls, fd: int, events: int) -> Readiness: ...

@disjoint_base
class Pipe:
    def __new__(cls, size: int = ...) -> Self: ...
    @property
    def pending(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> None: ...

@disjoint_base
class Splice(Source):
    def __new__(
        cls,
        fd: int,
        offset: int | None,
        out: int,
        out_offset: int | None,
        count: int | None,
        through: Pipe | None,
    ) -> Splice: ...
    @property
    def moved(self) -> int: ...
    @property
    def error(self) -> int: ...
    @property
    def waits_for(self) -> int: ...
    @property
    def waits_events(self) -> int: ...
    def step(self) -> int: ...
    def write(self) -> Move: ...
    def wrote(self, move: Move) -> None: ...

@disjoint_base
class Move(Op):
    def __new__(cls, splice: Splice, fd: int, out: int, offset: int, size: int) -> Move: ...
    def run(self) -> None: ...
