"""The programs that ask servers in a `ToolRow`: one run of each, and its report as numbers.

They are no packages: `install` says where each comes from.  All make their connections anew for
each window.
"""

from collections.abc import Callable
from dataclasses import dataclass

from aiounify.bench import redisbench, wrk
from aiounify.bench.channel import Measurement

__all__ = ["TOOLS", "Tool"]


@dataclass(frozen=True, slots=True)
class Tool:
    """How a load tool is run: `load(host, port, request, connections, seconds)`."""

    load: Callable[[str, int, str, int, float], Measurement]
    available: Callable[[], bool]
    install: str


TOOLS: dict[str, Tool] = {
    # looked up when called, so that a test can take them away
    "wrk": Tool(wrk.load, lambda: wrk.available(), wrk.INSTALL),
    "redis-benchmark": Tool(redisbench.load, lambda: redisbench.available(), redisbench.INSTALL),
}
