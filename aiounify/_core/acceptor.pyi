import asyncio
import socket
from collections.abc import Callable
from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class Acceptor:
    def __init__(
        self,
        loop: Any,
        factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        server: Any,
        backlog: int,
        restart: Callable[[Acceptor, OSError, bool], object],
    ) -> None: ...
    # takes none; the signature is that of every compiled class with __call__
    def __call__(self, *args: Any, **kwargs: Any) -> None: ...
