"""The command line of `python -m aiounify bench`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from aiounify.bench import callgrind, document, machine, program, registry, report, rows
from aiounify.bench.child import ChildError
from aiounify.bench.runner import Options, RowResult, probe, run_row

__all__ = ["parse", "run"]

_ROUNDS, _WINDOW = 5, 0.25
_QUICK_ROUNDS, _QUICK_WINDOW = 2, 0.05


def _positive(kind: type[int] | type[float], text: str) -> int | float:
    value = kind(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _rounds(text: str) -> int:
    return int(_positive(int, text))


def _seconds(text: str) -> float:
    return float(_positive(float, text))


def _loop_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in registry.LOOPS and name not in rows.PROGRAMS:
            every = [*registry.LOOPS, *rows.PROGRAMS]
            close = rows.base.close_matches(name, every)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            known = ", ".join(every)
            raise argparse.ArgumentTypeError(f"no loop is called {name!r}{hint} (known: {known})")
    return list(dict.fromkeys(names))


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments; exits with status 2 on a wrong one, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="python -m aiounify bench",
        description="Compare event loops: interleaved windows, pinned processes, medians.",
        epilog="Without ROWS a selection is measured, 'all' means every row. 'list' alone lists "
        "rows and groups; 'report RUN.json' writes a document's tables.",
    )
    parser.add_argument("rows", nargs="*", metavar="ROWS", help="rows or groups of rows")
    parser.add_argument(
        "--loops",
        type=_loop_names,
        metavar="A,B,...",
        help=f"which loops (default: {','.join(registry.DEFAULT)})",
    )
    parser.add_argument("--peers", action="store_true", help="also every other loop installed")
    parser.add_argument(
        "--base",
        default=registry.BASE,
        choices=[*registry.LOOPS, *rows.PROGRAMS],
        metavar="LOOP",
        help="what ratios are relative to (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=_rounds, metavar="N", help=f"windows of each loop (default: {_ROUNDS})"
    )
    parser.add_argument(
        "--window", type=_seconds, metavar="S", help=f"seconds a window (default: {_WINDOW})"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smoke test: few short windows; the numbers are not worth quoting",
    )
    parser.add_argument(
        "--callgrind",
        action="store_true",
        help="count the user's instructions under valgrind, which takes longer",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="with a failure, show what the process printed"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="also write everything to FILE ('-': stdout)"
    )
    return parser.parse_args(argv)


def _list() -> None:
    width = max(len(name) for name in [*rows.ROWS, *rows.GROUPS])
    print("rows (* is measured without a name):")
    for row in rows.ROWS.values():
        print(f"{'*' if row.name in rows.DEFAULT else ' '} {row.name:<{width}}  {row.summary}")
    print("groups:")
    for group, names in rows.GROUPS.items():
        some = ", ".join(names[:4])
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        print(f"  {group:<{width}}  {some}{more}")
    print("loops:")
    print(f"  {', '.join(registry.LOOPS)}")
    if rows.PROGRAMS:
        print("programs, in the rows that name them:")
        print(f"  {', '.join(rows.PROGRAMS)}")


class _Progress:
    """One line on the terminal that says what is being done; nothing where stderr is a file."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self._shown:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        self("")


def _available(
    names: Sequence[str], options: Options, progress: _Progress
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Versions of the loops that can be had, reasons for the others, and missing counters."""
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    counters: dict[str, str] = {}
    for name in names:
        progress(f"looking for {name}")
        try:
            if name in rows.PROGRAMS:
                versions[name] = program.version(rows.PROGRAMS[name])
                continue
            reply = probe(name, options)
        except ChildError as exc:
            left_out[name] = str(exc)
        else:
            versions[name] = reply["version"]
            counters = reply["counters"]
    if options.callgrind:
        counters.pop("instructions_user", None)
    return versions, left_out, counters


def run(argv: list[str]) -> int:
    """The whole command."""
    if argv[:1] == ["report"]:
        return document.run(argv[1:])
    arguments = parse(argv)
    if arguments.rows == ["list"]:
        _list()
        return 0
    try:
        chosen = rows.select(arguments.rows)
    except rows.UnknownRowError as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 2

    if arguments.callgrind and not callgrind.available():
        print(f"bench: {callgrind.INSTALL}", file=sys.stderr)
        return 2
    names = list(arguments.loops or registry.DEFAULT)
    if arguments.peers:
        names += [name for name in registry.PEERS if name not in names]
    named = {name for row in chosen for name in rows.programs(row)}
    if arguments.loops:
        names = [name for name in names if name in registry.LOOPS or name in named]
    else:
        names += [name for name in rows.PROGRAMS if name in named]
    server_cpu, client_cpu = machine.choose_cpus()
    options = Options(
        rounds=arguments.rounds or (_QUICK_ROUNDS if arguments.quick else _ROUNDS),
        window=arguments.window or (_QUICK_WINDOW if arguments.quick else _WINDOW),
        server_cpu=server_cpu,
        client_cpu=client_cpu,
        callgrind=arguments.callgrind,
    )
    progress = _Progress()
    # With the table out of the way where JSON goes to stdout.
    out = sys.stderr if arguments.json == "-" else sys.stdout
    allowed = os.sched_getaffinity(0)
    # This process must not wake up on the loops' CPU either.
    os.sched_setaffinity(0, {client_cpu})
    try:
        versions, left_out, counters = _available(names, options, progress)
        os.sched_setaffinity(0, allowed)
        where = machine.describe(versions, counters)
        os.sched_setaffinity(0, {client_cpu})
        progress.clear()
        print(report.heading(where, options, left_out), file=out, flush=True)
        if not versions:
            print("bench: none of the loops can be had", file=sys.stderr)
            return 1
        results: list[RowResult] = []
        before = machine.stolen()
        for row in chosen:
            columns = [
                name
                for name in versions
                if name in registry.LOOPS and registry.serves(name, row.groups)
            ]
            columns += [name for name in rows.programs(row) if name in versions]
            result = run_row(row, columns, options, progress)
            results.append(result)
            progress.clear()
            print("\n" + report.row_table(result, columns, row.base or arguments.base), file=out)
            if arguments.verbose:
                for name, text in result.output.items():
                    print(f"\n-- {row.name}, {name}:\n{text.rstrip()}", file=out)
            out.flush()
        steal = _share(before, machine.stolen())
        if steal >= 0.01:
            print(f"\nthe hypervisor took {steal:.0%} of the CPU time during the run", file=out)
    except KeyboardInterrupt:
        progress.clear()
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        os.sched_setaffinity(0, allowed)
    if arguments.json is not None:
        text = report.as_json(where, options, left_out, results, arguments.base) + "\n"
        if arguments.json == "-":
            sys.stdout.write(text)
        else:
            Path(arguments.json).write_text(text)
    return 0


def _share(before: tuple[int, int], after: tuple[int, int]) -> float:
    total = after[1] - before[1]
    return (after[0] - before[0]) / total if total > 0 else 0.0
