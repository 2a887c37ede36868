from collections.abc import Callable
from typing import Any

from typing_extensions import disjoint_base

from aiounify._core.futex import Word
from aiounify._core.futex_wait import FutexWait, Home

PATROL_SECONDS: float

@disjoint_base
class LoopFutexes(Home):
    def __init__(
        self, loop: Any, ring: bool, waitv: bool, near: bool | None = None, spins: int = 1
    ) -> None: ...
    @property
    def in_loop(self) -> bool: ...
    @property
    def in_ring(self) -> bool: ...
    @property
    def threads_used(self) -> int: ...
    def wait_any(self, words: tuple[Word, ...], values: tuple[int, ...]) -> FutexWait: ...
    def look_around(self) -> None: ...
    def close(self) -> None: ...

def configure(make: Callable[[], LoopFutexes]) -> None: ...
def start_wait(
    word: Word,
    expected: int,
    mask: int = 0xFFFFFFFF,
    patrol: int = 0,
    moved: Word | None = None,
) -> FutexWait | None: ...
