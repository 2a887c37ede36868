"""What is measured: one `Row` for each line of the comparison, one file for each group of rows.

A row says only what one operation is.  It never measures time, chooses how often it is repeated or
knows which loop runs it; `worker` and `runner` do.  To add one: write a function below `rows/`,
put it into that file's `ROWS`, describe it in docs/benchmarks.md.
"""

from aiounify.bench.rows import (
    base,
    callbacks,
    connect,
    datagrams,
    echo,
    files,
    futexes,
    http,
    idle,
    imports,
    kvstore,
    pipes,
    process,
    proxy,
    selecting,
    sendfile,
    stored,
    tasks,
    threads,
    timers,
    watch,
    webserver,
)
from aiounify.bench.rows.base import (
    HttpRow,
    IdleRow,
    LoopRow,
    Program,
    Row,
    ServerRow,
    ServingRow,
    ToolRow,
)

__all__ = [
    "ALL",
    "DEFAULT",
    "GROUPS",
    "PROGRAMS",
    "ROWS",
    "HttpRow",
    "IdleRow",
    "LoopRow",
    "Program",
    "Row",
    "ServerRow",
    "ServingRow",
    "ToolRow",
    "UnknownRowError",
    "programs",
    "select",
]

#: The group of all rows.
ALL = "all"

_ALL: tuple[Row, ...] = (
    *callbacks.ROWS,
    *tasks.ROWS,
    *timers.ROWS,
    *threads.ROWS,
    *process.ROWS,
    *selecting.ROWS,
    *timers.LATENESS_ROWS,
    *imports.ROWS,
    *pipes.ROWS,
    *sendfile.ROWS,
    *files.ROWS,
    *stored.ROWS,
    *watch.ROWS,
    *futexes.ROWS,
    *echo.ROWS,
    *connect.ROWS,
    *datagrams.ROWS,
    *idle.ROWS,
    *http.ROWS,
    *kvstore.ROWS,
    *proxy.ROWS,
    *webserver.ROWS,
)

# Of the many echo rows, those of which a change in the loop is seen first.
_ECHO = (
    "tcp-1k-x1",
    "tcp-1k-x100",
    "tcp-1k-x1000",
    "tcp-16k-x100",
    "tcp-64k-x10",
    "buffered-1k-x100",
    "buffered-64k-x10",
    "streams-1k-x100",
    "streams-64k-x10",
    "sock-1k-x100",
    "unix-1k-x100",
    "unix-streams-1k-x100",
)

# Of groups that compare libraries rather than loops, or need many processes or patience.
_OTHERS = (
    *("watch-burst", "futex-pingpong", "file-page-x64", "file-4k-x64", "file-direct-x64"),
    *("kvstore-set", "proxy-1m", "web-1k", "web-page"),
)

#: What is measured without a name.
DEFAULT: tuple[str, ...] = tuple(
    row.name
    for row in _ALL
    if {"echo", "files", "futex", "watch", "server"}.isdisjoint(row.groups)
    or row.name in (*_ECHO, *_OTHERS)
)

ROWS: dict[str, Row] = {row.name: row for row in _ALL}

#: The columns that are no loops, by name; each belongs to the rows that name it.
PROGRAMS: dict[str, Program] = {
    program.name: program for row in _ALL if isinstance(row, ToolRow) for program in row.programs
}


def programs(row: Row) -> tuple[str, ...]:
    """The names of a row's columns that are no loops."""
    return tuple(p.name for p in row.programs) if isinstance(row, ToolRow) else ()


def _groups() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {ALL: [row.name for row in _ALL]}
    for row in _ALL:
        for group in row.groups:
            groups.setdefault(group, []).append(row.name)
    return groups


#: Group name to the names of its rows, in the order of the table.
GROUPS: dict[str, list[str]] = _groups()


class UnknownRowError(ValueError):
    """A name that is neither a row nor a group."""

    def __init__(self, name: str) -> None:
        close = base.close_matches(name, [*ROWS, *GROUPS])
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        super().__init__(f"no row or group is called {name!r}{hint} ('list' shows all)")


def select(names: list[str]) -> list[Row]:
    """The rows that these names (rows or groups; none means DEFAULT) stand for, in table order."""
    chosen: set[str] = set() if names else set(DEFAULT)
    for name in names:
        if name in ROWS:
            chosen.add(name)
        elif name in GROUPS:
            chosen.update(GROUPS[name])
        else:
            raise UnknownRowError(name)
    return [row for row in _ALL if row.name in chosen]
