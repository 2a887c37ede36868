from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

from typing_extensions import disjoint_base

from aiounify._core.sources import Source
from aiounify.timers import Tick

_T = TypeVar("_T")

def configure(
    clock_of: Callable[[Any, int], Any],
    tick: type[Tick],
    clock_set: Callable[[int, str], BaseException],
) -> None: ...

@disjoint_base
class Deadline(Source[_T]):
    def _rang(self) -> None: ...
    def _clock_was_set(self) -> None: ...
    @property
    def clock(self) -> int: ...
    @property
    def deadline_ns(self) -> int: ...

@disjoint_base
class Alarm(Deadline[int]):
    def __init__(self, deadline_ns: int, clock: int, raises: bool = False) -> None: ...
    @property
    def clock_set(self) -> bool: ...

@disjoint_base
class Ticks(Deadline[Tick]):
    def __init__(self, first_ns: int, interval_ns: int, clock: int) -> None: ...
    @property
    def interval_ns(self) -> int: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[Tick]: ...
