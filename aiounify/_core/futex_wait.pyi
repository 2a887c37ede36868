import asyncio
from typing import Any

from typing_extensions import disjoint_base

from aiounify._core.reactor import Op

@disjoint_base
class FutexWait(Op):
    @property
    def future(self) -> asyncio.Future[int]: ...
    def give_up(self) -> None: ...

@disjoint_base
class Home:
    def __new__(cls, *args: Any, **kwargs: Any) -> Home: ...
