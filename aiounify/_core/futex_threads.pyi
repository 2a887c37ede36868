from typing_extensions import disjoint_base

from aiounify._core.futex_wait import Home
from aiounify._core.reactor import Reactor, Watched

@disjoint_base
class ThreadWaits(Watched):
    def __new__(cls, home: Home, reactor: Reactor, has_waitv: bool) -> ThreadWaits: ...
