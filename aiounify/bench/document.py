"""`bench report`: a document's tables and its plot from the JSON of a run.

The document keeps its prose: only what is between the two marker lines is replaced.  Every row and
every loop of the run is in the tables, whatever the result; a cell without numbers says so and has
its reason below the table.
"""

import argparse
import importlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiounify.bench.report import micro, number
from aiounify.bench.rows import DEFAULT, PROGRAMS

__all__ = ["BEGIN", "END", "insert", "run", "tables", "together"]

BEGIN = "<!-- tables: begin -->"
END = "<!-- tables: end -->"

_NEW = f"# Performance\n\n{BEGIN}\n{END}\n"

#: Headings, and which rows are below them: the first that has one of the row's groups.
_SECTIONS: tuple[tuple[str, frozenset[str]], ...] = (
    ("Loop primitives", frozenset({"call_soon", "tasks", "threads", "loops"})),
    ("Timers: how late", frozenset({"lateness"})),
    ("TCP", frozenset({"tcp"})),
    ("Unix sockets", frozenset({"unix"})),
    ("Connections and datagrams", frozenset({"connect", "udp"})),
    ("Memory of idle connections", frozenset({"idle"})),
    ("Files", frozenset({"files", "sendfile"})),
    ("Futexes, and locks between processes", frozenset({"futex"})),
    ("Changes of files", frozenset({"watch"})),
    ("HTTP servers", frozenset({"http"})),
    ("Servers, against other programs", frozenset({"server"})),
)
_OTHERS = "Pipes, processes, import"

# As the JSON has it; checked nowhere but by use, since this program wrote it.
_Row = Mapping[str, Any]
_Run = Mapping[str, Any]


def run(argv: list[str]) -> int:
    """The command `bench report`; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m aiounify bench report",
        description="Write the tables and the plot of a document from the JSON of a run.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN.json",
        help="what --json wrote; rows of a later one take the place of an earlier one's",
    )
    parser.add_argument(
        "-o",
        "--output",
        default="docs/performance.md",
        metavar="FILE",
        help=f"a text with the lines {BEGIN} and {END}; made if missing (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    try:
        measured = together([_read(name) for name in arguments.runs])
        target = Path(arguments.output)
        target.parent.mkdir(parents=True, exist_ok=True)
        plot = target.with_suffix(".svg")
        drawn = _plot(measured, plot)
        text = target.read_text() if target.exists() else _NEW
        target.write_text(insert(text, tables(measured, plot.name if drawn else None)))
    except (OSError, ValueError) as exc:
        print(f"bench report: {exc}", file=sys.stderr)
        return 2
    print(f"wrote {target}" + (f" and {plot}" if drawn else ""))
    if not drawn:
        print("no plot: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
    return 0


def _read(name: str) -> _Run:
    measured = json.loads(Path(name).read_text())
    if not isinstance(measured, dict) or measured.get("format") != 1:
        raise ValueError(f"{name} is no result of --json")
    return measured


def together(runs: Sequence[_Run]) -> _Run:
    """One run with the newest of each row; ValueError if they are not comparable.

    The loops, their versions, the machine and the base have to be the same in all.
    """
    first = runs[0]
    rows = {row["name"]: row for row in first["rows"]}
    left_out = dict(first["left_out"])
    for run in runs[1:]:
        if run["machine"] != first["machine"]:
            raise ValueError(f"the runs differ: {first['machine']} and {run['machine']}")
        left_out |= run["left_out"]
        if run["options"]["base"] != first["options"]["base"]:
            raise ValueError("the runs are relative to different loops")
        rows |= {row["name"]: row for row in run["rows"]}
    return {**first, "left_out": left_out, "rows": list(rows.values())}


def insert(text: str, content: str) -> str:
    """The text with the content between its markers; ValueError if it lacks them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{content.strip()}\n\n{END}{after}"


def tables(measured: _Run, plot: str | None = None) -> str:
    """Everything between the markers."""
    base: str = measured["options"]["base"]
    loops = _loops(measured)
    parts = [_conditions(measured)]
    if plot is not None:
        parts.append(f"![User and kernel CPU time for one operation, relative to {base}]({plot})")
    parts.append(_key(measured, base))
    found: dict[str, list[_Row]] = {}
    for row in measured["rows"]:
        found.setdefault(_section(row), []).append(row)
    for title in [*(title for title, _ in _SECTIONS), _OTHERS]:
        if title in found:
            parts.append(f"### {title}")
            parts += _tables(found[title], base, loops)
    return "\n\n".join(parts)


def _loops(measured: _Run) -> list[str]:
    """All but the base, in the order of the run."""
    base = measured["options"]["base"]
    return [name for name in measured["machine"]["loops"] if name != base]


def _section(row: _Row) -> str:
    groups = set(row["groups"])
    # Lateness rows are timers too, and have other columns.
    if "lateness" in groups:
        return "Timers: how late"
    return next((title for title, some in _SECTIONS if groups & some), _OTHERS)


def _conditions(measured: _Run) -> str:
    machine, options = measured["machine"], measured["options"]
    versions = ", ".join(f"{k} {v}".rstrip() for k, v in machine["loops"].items())
    text = (
        f"{machine['python']}, {machine['kernel']}, {machine['cpu']}, {machine['cpus']} CPUs; "
        f"{versions}; {options['rounds']} rounds of {options['window']:g} s."
    )
    out = [f"Not measured: {name} ({why})." for name, why in measured["left_out"].items()]
    if options.get("callgrind"):
        out.append("User-space instructions were counted by callgrind.")
    return " ".join([text, *out])


def _key(measured: _Run, base: str) -> str:
    counted = _has_instructions(measured["rows"])
    names = "rate / CPU time" + (" / user instructions" if counted else "")
    text = (
        f"The first column ({base}) has absolute values; the others are relative to it: {names} "
        "for one operation. More is better of a rate, less of the rest. `~` is before a ratio "
        "whose rounds lie on both sides of 1.00."
    )
    if not counted:
        reasons = dict.fromkeys(measured["machine"]["counters"].values())
        text += f" There are no instructions: {'; '.join(reasons) or 'no loop has a value'}."
    return text


def _has_instructions(rows: Sequence[_Row]) -> bool:
    return any(
        (found.get("median") or {}).get("instructions_user") is not None
        for row in rows
        for found in row["loops"].values()
    )


def _tables(rows: Sequence[_Row], base: str, loops: Sequence[str]) -> list[str]:
    """One for each base of the section's rows; a program is a column where a row has it."""
    found: dict[str, list[_Row]] = {}
    for row in rows:
        found.setdefault(row.get("base", base), []).append(row)
    every = [base, *loops]
    return [
        _table(some, own, [name for name in every if name != own and _shown(some, name)])
        for own, some in found.items()
    ]


def _shown(rows: Sequence[_Row], name: str) -> bool:
    if name in PROGRAMS or any("base" in row for row in rows):
        return any(name in row["loops"] for row in rows)
    return True


def _table(rows: Sequence[_Row], base: str, loops: Sequence[str]) -> str:
    notes: list[str] = []
    lines = [f"| row | {base} | " + " | ".join(loops) + " |", "|---" * (len(loops) + 2) + "|"]
    for row in rows:
        cells = [_cell(row, name, base, notes) for name in [base, *loops]]
        lines.append(f"| `{row['name']}` | " + " | ".join(cells) + " |")
    if notes:
        lines.append("")
        lines += [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    return "\n".join(lines)


def _cell(row: _Row, name: str, base: str, notes: list[str]) -> str:
    found = row["loops"].get(name)
    if found is None:
        return "not measured"
    if "failed" in found:
        notes.append(f"`{row['name']}`, {name}: {_escaped(found['failed'])}")
        return f"failed ({len(notes)})"
    if "lateness" in found:
        late = found["lateness"]
        text = (
            f"{late['p50'] * 1e6:.0f} us, p99 {late['p99'] * 1e6:.0f} us; "
            f"early {late['early']} of {late['samples']}"
        )
        if "beside" in row:
            text += f"; {number(found['median']['beside'])} {row['beside']}/s"
        return text
    # Without the base there is nothing to be relative to.
    return _relative(found["ratio"]) if name != base and "ratio" in found else _absolute(row, found)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _absolute(row: _Row, found: Mapping[str, Any]) -> str:
    median = found["median"]
    if median.get("memory") is not None:
        return f"{median['memory'] / 1024:.2f} KiB"
    parts = [f"{number(median['rate'])} {row['unit']}/s"]
    if median["cpu"] is not None:
        parts.append(f"{micro(median['cpu'])} us")
    if median["instructions_user"] is not None:
        parts.append(f"{number(median['instructions_user'])} instr")
    return ", ".join(parts)


def _relative(ratios: Mapping[str, Any]) -> str:
    if ratios.get("memory"):
        return _ratio(ratios["memory"])
    parts = [_ratio(ratios["rate"]), _ratio(ratios["cpu"])]
    if ratios["instructions_user"]:
        parts.append(_ratio(ratios["instructions_user"]))
    return " / ".join(parts)


def _ratio(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return "n/a"
    unsure = "~" if ratio["low"] < 1 < ratio["high"] else ""
    return f"{unsure}{ratio['median']:.2f}"


def _plot(measured: _Run, target: Path) -> bool:
    """One line a row, one dot a loop: CPU time relative to the base.  False without matplotlib.

    Of a whole matrix the selection that is measured by default: more than fits on a page shows
    nothing.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
        figures = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError:
        return False
    base, loops = measured["options"]["base"], _loops(measured)
    rows = [row for row in measured["rows"] if any(_dot(row, name) for name in loops)]
    rows = [row for row in rows if row["name"] in DEFAULT] or rows
    # So that the same run gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "aiounify", "font.size": 8}):
        figure = figures.Figure(figsize=(8, 1.2 + 0.2 * max(len(rows), 1)), layout="constrained")
        axes = figure.add_subplot()
        for i, name in enumerate(loops):
            dots = [(_dot(row, name), y) for y, row in enumerate(rows)]
            axes.plot(
                [x for x, _ in dots if x],
                [y for x, y in dots if x],
                "osD^vP*X"[i % 8],
                markersize=4.5,
                alpha=0.85,
                label=name,
            )
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        low, high = axes.get_xlim()
        ticks = [2.0**k for k in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.invert_yaxis()
        axes.grid(alpha=0.3)
        axes.set_xlabel(f"CPU time for one operation relative to {base} (memory where idle-)")
        axes.margins(y=0.02)
        figure.legend(loc="outside upper center", ncols=4)
        figure.savefig(target, metadata={"Date": None})
    return True


def _dot(row: _Row, name: str) -> float | None:
    ratios = row["loops"].get(name, {}).get("ratio") or {}
    ratio = ratios.get("memory") or ratios.get("cpu")
    return float(ratio["median"]) if ratio and ratio["median"] > 0 else None
