"""The shapes a row can have, and what they share.

`LoopRow`: the loop itself is the work.  `prepare(loop)` sets the scene once and returns `run(n)`,
which does n operations and returns when they are done.
`ServingRow`: the loop serves, and another process asks.  Three kinds: `ServerRow` is loaded by the
compiled load generator, a `ToolRow` by a program that is installed for it (an `HttpRow` by wrk),
and of an `IdleRow` only the memory is of interest.

A `ToolRow` can also name servers that are no event loops of Python's, as `Program`s: each is a
column of that row, measured in turn with the loops.
"""

import asyncio
import difflib
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from aiounify.bench.channel import Measurement

__all__ = [
    "Address",
    "HttpRow",
    "IdleRow",
    "Launch",
    "LoopRow",
    "Program",
    "Row",
    "Run",
    "ServerRow",
    "ServingRow",
    "ToolRow",
    "close_matches",
    "noop",
]

#: What a server listens on: (host, port), or (path,) for a unix socket.
Address = tuple[str | int, ...]

#: Does n operations; may return values that replace what the worker measured around it.
Run = Callable[[int], Measurement | None]


@dataclass(frozen=True, slots=True)
class Launch:
    """How a program is started, and where it listens then."""

    argv: tuple[str, ...]
    address: Address
    #: True if argv[0] is to be started as it is, because it was just built.
    built: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A server in its own executable, which is a column of the rows that name it."""

    #: Of the column.
    name: str
    #: Looked for in PATH, /usr/sbin and /usr/local/sbin.
    executable: str
    #: What to say if it is not there.
    install: str
    #: What it is asked for its version.
    version: tuple[str, ...]
    #: Writes what it needs into a directory that is removed afterwards.  The program must stay in
    #: the foreground and in its process group; argv[0] is replaced by the executable's path,
    #: unless that was needed only to build it.
    launch: Callable[[Path], Launch]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison."""

    name: str
    #: One sentence for `bench list` and the table's heading.
    summary: str
    groups: tuple[str, ...]
    #: What one operation is, for the heading.
    unit: str
    #: What its ratios are relative to, if that is another column than the run's base.
    base: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class LoopRow(Row):
    """A row in which the worker drives its own loop."""

    prepare: Callable[[asyncio.AbstractEventLoop], Run]
    #: n is always a multiple of this.
    batch: int = 1
    #: True for rows whose result is how late a timer is, not how many operations were done.
    lateness: bool = False
    #: Of a lateness row, what is done beside the timers as fast as it can be: its rate is shown.
    beside: str = ""
    #: How many operations callgrind counts, in whole batches; 0: none, the work is not the loop's.
    counted: int = 3000


@dataclass(frozen=True, slots=True)
class ServingRow(Row):
    """A row in which the worker's loop serves; `serve` returns where."""

    serve: Callable[[], Coroutine[object, object, Address]]
    connections: int


@dataclass(frozen=True, slots=True)
class ServerRow(ServingRow):
    """A row in which a load generator sends requests to the worker's loop."""

    size: int
    #: Which of the load generator's conversations to hold; see `_loadgen`.
    kind: str = "stream"
    #: How many requests callgrind counts.
    counted: int = 3000


@dataclass(frozen=True, slots=True)
class ToolRow(ServingRow):
    """A row that is asked by a program made for it; see `tools`."""

    tool: str = field(kw_only=True)
    #: What the tool asks for: a path (wrk) or a command (redis-benchmark).
    request: str = field(kw_only=True)
    programs: tuple[Program, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class HttpRow(ToolRow):
    """A row in which wrk asks for a path."""

    tool: str = field(default="wrk", kw_only=True)
    request: str = field(default="/", kw_only=True)


@dataclass(frozen=True, slots=True)
class IdleRow(ServingRow):
    """A row whose result is the memory of connections on which nothing happens any more."""


def noop() -> None:
    """The callback with nothing in it."""


def close_matches(name: str, known: Iterable[str]) -> list[str]:
    """Up to three names that the user may have meant: containing it first, then similar ones."""
    known = list(known)
    inside = [other for other in known if len(name) > 2 and name in other]
    similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return list(dict.fromkeys([*inside, *similar]))[:3]
