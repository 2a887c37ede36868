from collections.abc import Callable
from typing import final

from typing_extensions import disjoint_base

from aiounify._core.changes import Changes

@final
class Node: ...

@disjoint_base
class Forest: ...

@disjoint_base
class Tree(Changes):
    @property
    def _directories(self) -> int: ...
    def _open(
        self,
        forest: Forest,
        path: str,
        mask: int,
        recursive: bool,
        wanted: Callable[[str, bool], bool] | None,
    ) -> None: ...
