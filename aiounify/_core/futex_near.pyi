from typing_extensions import disjoint_base

from aiounify._core.epoll import EpollReactor, Sleeper
from aiounify._core.futex_threads import ThreadWaits

@disjoint_base
class NearWords(Sleeper):
    def __new__(cls, threads: ThreadWaits, reactor: EpollReactor, always: bool) -> NearWords: ...
