from collections.abc import Sequence

from typing_extensions import disjoint_base

from aiounify.bench.channel import Measurement

@disjoint_base
class Load:
    def __init__(
        self,
        address: Sequence[str | int],
        connections: int,
        size: int,
        kind: str = "stream",
    ) -> None: ...
    def run(self, seconds: float, requests: int = 0) -> Measurement: ...
    def close(self) -> None: ...
