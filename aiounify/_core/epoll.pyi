from typing_extensions import disjoint_base

from aiounify._core.reactor import Reactor

@disjoint_base
class Sleeper: ...

@disjoint_base
class EpollReactor(Reactor): ...
