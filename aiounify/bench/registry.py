"""The columns: every event loop that can be compared, by name.

A loop is a module, the name of its factory and keyword arguments.  Nothing is imported before
`Loop.new()`, which only worker processes call: a peer that crashes on import must not end the run.
"""

import asyncio
import importlib
import importlib.metadata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

__all__ = ["BASE", "DEFAULT", "LOOPS", "PEERS", "Loop", "serves", "version"]


@dataclass(frozen=True, slots=True)
class Loop:
    """One column of the table."""

    name: str
    module: str
    factory: str = "new_event_loop"
    options: Mapping[str, str] = field(default_factory=dict)
    #: The only group of rows it is for, or "": all.
    group: str = ""
    #: What the package index calls it, if not as the module.
    distribution: str = ""

    def new(self) -> asyncio.AbstractEventLoop:
        """Import the module and make a loop; raises whatever goes wrong."""
        factory = getattr(importlib.import_module(self.module), self.factory)
        loop: asyncio.AbstractEventLoop = factory(**self.options)
        return loop


_ALL = (
    Loop("asyncio", "asyncio", "SelectorEventLoop"),
    Loop("uvloop", "uvloop"),
    Loop("aiounify-uring", "aiounify", options={"backend": "uring"}),
    Loop("aiounify-epoll", "aiounify", options={"backend": "epoll"}),
    Loop("rloop", "rloop"),
    Loop("blazio", "blazio"),
    Loop("zloop", "zloop"),
    Loop("zuvloop", "zuvloop"),
    Loop("talyn", "talyn", "Loop"),
    Loop("veloxloop", "veloxloop"),
    Loop("uringcore", "uringcore", "UringEventLoop"),
    *(
        Loop(
            f"files-{name}",
            "aiounify.bench.filelibs",
            "new_loop",
            {"library": name},
            group,
            package,
        )
        for name, group, package in (
            ("turbofile", "files", "turbofile"),
            ("urio", "files", "urio"),
            ("aiofile", "files", "aiofile"),
            ("asyncfiles", "files", "py-asyncfiles"),
            ("c", "files-c", ""),
            ("c-uring", "direct", ""),
            ("c-aio", "direct", ""),
        )
    ),
)

LOOPS: dict[str, Loop] = {loop.name: loop for loop in _ALL}
DEFAULT: tuple[str, ...] = ("asyncio", "uvloop", "aiounify-uring", "aiounify-epoll")
PEERS: tuple[str, ...] = tuple(name for name in LOOPS if name not in DEFAULT)
#: What the ratios are relative to.
BASE = "uvloop"


def serves(name: str, groups: Collection[str]) -> bool:
    """Whether rows of these groups can be measured with a loop."""
    group = LOOPS[name].group
    return not group or group in groups


def version(loop: Loop) -> str:
    """The installed version of the loop's distribution, or "" where it has none."""
    try:
        return importlib.metadata.version(loop.distribution or loop.module)
    except importlib.metadata.PackageNotFoundError:
        return ""
