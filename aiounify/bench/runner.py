"""Interleaving: the workers of all loops of a row live at once and take turns.

    round 1:  asyncio  uvloop  aiounify-uring  aiounify-epoll
    round 2:  aiounify-epoll  aiounify-uring  uvloop  asyncio
    ...

Only one worker runs at a time; the others are stopped by a signal, because some loops spin while
they have nothing to do, and would take half of the CPU from the one that is measured.  Reversing
the order each round cancels a speed that drifts in one direction.  A loop that fails leaves the
row, not the run.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from aiounify.bench import callgrind, tools
from aiounify.bench.channel import Command, Measurement, Reply
from aiounify.bench.child import Child, ChildError
from aiounify.bench.counters import Sample
from aiounify.bench.rows import IdleRow, Row, ServerRow, ServingRow, ToolRow

__all__ = ["Options", "RowResult", "order", "probe", "run_row"]

_START = 30.0
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is made; the same for all of its rows."""

    rounds: int
    #: Seconds.
    window: float
    server_cpu: int
    client_cpu: int
    #: Also count the user's instructions, under valgrind.
    callgrind: bool = False


@dataclass(slots=True)
class RowResult:
    """What a row gave: the windows of each loop in round order, or why there are none."""

    row: Row
    windows: dict[str, list[Measurement]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    #: Why callgrind gave no instructions, for the loops where it did not.
    uncounted: dict[str, str] = field(default_factory=dict)
    #: What the failed ones had printed.
    output: dict[str, str] = field(default_factory=dict)


def order(names: Sequence[str], turn: int) -> list[str]:
    """Who runs when in this round: forwards, backwards, and each time another one first."""
    shift = turn // 2 % max(len(names), 1)
    turned = [*names[shift:], *names[:shift]]
    return turned[::-1] if turn % 2 else turned


def probe(name: str, options: Options) -> Reply:
    """See whether a loop can be had, in a process of its own; raises ChildError with the reason."""
    with _worker(name, None, options) as child:
        return child.wait_ready(_START)


def _worker(loop: str, row: Row | None, options: Options, directory: str | None = None) -> Child:
    arguments = ["--cpu", str(options.server_cpu), "--loop", loop]
    if row is not None:
        arguments += ["--row", row.name]
    return Child("aiounify.bench.worker", *arguments, directory=directory)


def _column(name: str, row: Row, options: Options, directory: str) -> Child:
    """The process of a loop, or the one that has a program."""
    if isinstance(row, ToolRow) and name in {program.name for program in row.programs}:
        arguments = ["--cpu", str(options.server_cpu), "--row", row.name, "--program", name]
        return Child("aiounify.bench.program", *arguments, directory=directory)
    return _worker(name, row, options, directory)


class _LoopDriver:
    """One loop in a `LoopRow`."""

    def __init__(self, child: Child, options: Options) -> None:
        self._child = child
        self._options = options

    def warm(self) -> None:
        window = self._options.window
        self._child.ask(Command(cmd="warm", seconds=window), _PATIENCE + 20 * window)

    def window(self) -> Measurement:
        reply = self._child.ask(Command(cmd="window"), _PATIENCE + 20 * self._options.window)
        return reply["measurement"]


class _ServerDriver:
    """One loop in a `ServerRow`, with its connections in the load generator."""

    def __init__(
        self, name: str, child: Child, client: Child, reply: Reply, row: ServerRow, options: Options
    ) -> None:
        self._name = name
        self._child = child
        self._client = client
        self._options = options
        client.ask(
            Command(
                cmd="open",
                key=name,
                address=reply["address"],
                connections=row.connections,
                size=row.size,
                kind=row.kind,
            ),
            _PATIENCE,
        )

    def warm(self) -> None:
        self._load(self._options.window)

    def window(self) -> Measurement:
        self._child.ask(Command(cmd="collect"), _PATIENCE)
        before = self._sample()
        load = self._load(self._options.window)
        measured = self._sample().since(before, load["ops"])
        # The load generator's clock, which leaves out the time to ask for samples.
        measured.update(load)
        return measured

    def _load(self, seconds: float) -> Measurement:
        command = Command(cmd="run", key=self._name, seconds=seconds)
        return self._client.ask(command, _PATIENCE + seconds)["measurement"]

    def _sample(self) -> Sample:
        return Sample(**self._child.ask(Command(cmd="sample"), _PATIENCE)["sample"])


class _ToolDriver:
    """One loop or program in a `ToolRow`; the tool makes its connections for each window."""

    def __init__(
        self, child: Child, client: Child, reply: Reply, row: ToolRow, options: Options
    ) -> None:
        self._child = child
        self._client = client
        self._load = Command(
            cmd="tool",
            kind=row.tool,
            request=row.request,
            address=reply["address"],
            connections=row.connections,
            seconds=options.window,
        )
        self._patience = _PATIENCE + options.window

    def warm(self) -> None:
        self._client.ask(self._load, self._patience)

    def window(self) -> Measurement:
        self._child.ask(Command(cmd="collect"), _PATIENCE)
        before = self._sample()
        load = self._client.ask(self._load, self._patience)["measurement"]
        measured = self._sample().since(before, load["ops"])
        measured.update(load)
        return measured

    def _sample(self) -> Sample:
        return Sample(**self._child.ask(Command(cmd="sample"), _PATIENCE)["sample"])


class _IdleDriver:
    """One loop in an `IdleRow`: a new server for each window, with unused memory."""

    def __init__(self, name: str, client: Child, row: IdleRow, options: Options) -> None:
        self._name = name
        self._client = client
        self._row = row
        self._options = options

    def warm(self) -> None:
        """Nothing to warm up."""

    def window(self) -> Measurement:
        row = self._row
        with _worker(self._name, row, self._options) as child:
            address = child.wait_ready(_START)["address"]
            # One before the others, for what a loop allocates once.
            self._ask(Command(cmd="open", address=address, connections=1))
            self._echo(1)
            before = child.ask(Command(cmd="memory"), _PATIENCE)
            self._ask(Command(cmd="close"))
            self._ask(Command(cmd="open", address=address, connections=row.connections))
            self._echo(row.connections)
            after = child.ask(Command(cmd="memory"), _PATIENCE)
            self._ask(Command(cmd="close"))
        return {
            "ops": row.connections,
            "memory": after["memory"] - before["memory"],
            "resident": after["resident"] - before["resident"],
        }

    def _echo(self, count: int) -> None:
        self._ask(Command(cmd="count", count=count))

    def _ask(self, command: Command) -> None:
        self._client.ask(command | Command(key=self._name, size=64, kind="stream"), _PATIENCE)


_Driver = _LoopDriver | _ServerDriver | _ToolDriver | _IdleDriver


def _needs(row: Row) -> str | None:
    """What a row lacks on this machine."""
    if isinstance(row, ToolRow) and not tools.TOOLS[row.tool].available():
        return tools.TOOLS[row.tool].install
    return None


def run_row(
    row: Row,
    loops: Sequence[str],
    options: Options,
    progress: Callable[[str], None] = lambda text: None,
) -> RowResult:
    """Measure one row over all loops."""
    result = RowResult(row)
    with contextlib.ExitStack() as stack:
        lacking = _needs(row)
        if lacking is not None:
            result.failed.update(dict.fromkeys(loops, lacking))
            return result
        # Of sockets, also of loops that fail before they say where they listen.
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="aiounify-bench-"))
        drivers: dict[str, _Driver] = {}
        awake: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {}

        @contextlib.contextmanager
        def failing(name: str) -> Iterator[None]:
            try:
                yield
            except ChildError as exc:
                result.failed[name] = str(exc)
                result.output[name] = exc.output
                result.windows.pop(name, None)
                drivers.pop(name, None)

        client: Child | None = None
        if isinstance(row, ServingRow):
            client = stack.enter_context(
                Child("aiounify.bench.client", "--cpu", str(options.client_cpu))
            )
            try:
                client.wait_ready(_START)
            except ChildError as exc:
                result.failed.update(dict.fromkeys(loops, f"load generator: {exc}"))
                result.output.update(dict.fromkeys(loops, exc.output))
                return result
        for name in loops:
            progress(f"{row.name}: {name} starts")
            with failing(name):
                if isinstance(row, IdleRow) and client is not None:
                    drivers[name] = _IdleDriver(name, client, row, options)
                    awake[name] = contextlib.nullcontext
                    continue
                child = stack.enter_context(_column(name, row, options, directory))
                reply = child.wait_ready(_START)
                if isinstance(row, ServerRow) and client is not None:
                    drivers[name] = _ServerDriver(name, child, client, reply, row, options)
                elif isinstance(row, ToolRow) and client is not None:
                    drivers[name] = _ToolDriver(child, client, reply, row, options)
                else:
                    drivers[name] = _LoopDriver(child, options)
                awake[name] = child.awake
                child.rest()
        for name in list(drivers):
            progress(f"{row.name}: {name} warms up")
            with failing(name), awake[name]():
                drivers[name].warm()
        result.windows = {name: [] for name in loops if name in drivers}
        for turn in range(options.rounds):
            for name in order(list(drivers), turn):
                progress(f"{row.name}: round {turn + 1} of {options.rounds}, {name}")
                with failing(name), awake[name]():
                    result.windows[name].append(drivers[name].window())
    if options.callgrind:
        _count(result, options, progress)
    return result


def _count(result: RowResult, options: Options, progress: Callable[[str], None]) -> None:
    """Put callgrind's instructions into the windows, in place of the hardware's."""
    for name, windows in result.windows.items():
        progress(f"{result.row.name}: callgrind counts {name}")
        each: float | None = None
        try:
            each = callgrind.count(result.row, name, options.server_cpu, options.client_cpu)
        except ChildError as exc:
            result.uncounted[name] = str(exc)
            result.output[name] = exc.output
        for window in windows:
            window["instructions_user"] = None if each is None else round(each * window["ops"])
