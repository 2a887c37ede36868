from typing_extensions import disjoint_base

from aiounify._core.reactor import Reactor

@disjoint_base
class Probe:
    @property
    def error(self) -> int: ...
    @property
    def step(self) -> str: ...
    @property
    def ops(self) -> frozenset[int]: ...
    @property
    def no_iowait(self) -> bool: ...
    @property
    def defer_taskrun(self) -> bool: ...

def probe() -> Probe: ...

@disjoint_base
class UringReactor(Reactor):
    def __init__(
        self,
        backlog: object,
        entries: int = 256,
        cq_entries: int = 4096,
        epoll_wait_op: bool = True,
        buffer_count: int = 512,
    ) -> None: ...
    @property
    def ring_size(self) -> tuple[int, int]: ...
    @property
    def uses_epoll_wait(self) -> bool: ...
