from collections.abc import Coroutine
from typing import Any

from typing_extensions import disjoint_base

from aiounify._core.file_binary import BinaryBase
from aiounify._core.file_calls import Guarded

@disjoint_base
class TextBase(Guarded):
    chars: str
    used: int
    plain: bool
    ready: bool
    source: BinaryBase
    def _take(self, n: int) -> str: ...
    def _try_line(self) -> str | None: ...
    def readline(self, size: int | None = -1, /) -> Coroutine[Any, Any, str]: ...
    def __aiter__(self) -> Any: ...
    def __anext__(self) -> Coroutine[Any, Any, str]: ...
