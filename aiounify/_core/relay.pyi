from collections.abc import Generator
from typing import Any, final

from typing_extensions import disjoint_base

from aiounify._core.endpoint import Endpoint
from aiounify._core.splice import Splice
from aiounify.loop import EventLoop

@disjoint_base
class Relay:
    def __new__(cls, loop: EventLoop, job: Splice) -> Relay: ...
    def __await__(self) -> Generator[Any, None, int]: ...
    def close(self) -> None: ...

# One of the two descriptors of a relay, in the reactor's table.
@final
class End(Endpoint): ...
