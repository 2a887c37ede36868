"""Results as text for people and as JSON for programs."""

import json
from collections.abc import Mapping, Sequence

from aiounify.bench import stats
from aiounify.bench.channel import Measurement
from aiounify.bench.machine import Machine
from aiounify.bench.rows import IdleRow, LoopRow
from aiounify.bench.runner import Options, RowResult

__all__ = ["as_json", "heading", "micro", "number", "row_table"]

_NOTHING = "n/a"


def number(value: float | None) -> str:
    """Three significant digits, with k and M for the large."""
    if value is None:
        return _NOTHING
    for unit, factor in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor * 0.9995:
            return f"{_three(value / factor)}{unit}"
    return _three(value)


def _three(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def micro(value: float | None) -> str:
    if value is None:
        return _NOTHING
    micro = value * 1e6
    return _three(micro) if micro < 9999.5 else number(micro)


def _kib(value: float | None) -> str:
    return _NOTHING if value is None else f"{value / 1024:.2f}"


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.0%}"


def _ratio(value: stats.Ratio | None) -> str:
    return _NOTHING if value is None else f"{value.median:.2f}"


def _spread(value: stats.Ratio | None) -> str:
    return _NOTHING if value is None else f"{value.low:.2f}-{value.high:.2f}"


def _lines(head: Sequence[str], body: Sequence[Sequence[str]], tails: Mapping[int, str]) -> str:
    """Columns: the first to the left, the others to the right; `tails` replaces a line's cells."""
    rows = [head, *(cells for i, cells in enumerate(body) if i not in tails)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    widths[0] = max(widths[0], *(len(cells[0]) for cells in body))
    lines = []
    for i, cells in enumerate([head, *body], -1):
        if i in tails:
            lines.append(f"  {cells[0]:<{widths[0]}}  {tails[i]}")
            continue
        right = (f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
        lines.append("  ".join([f"  {cells[0]:<{widths[0]}}", *right]))
    return "\n".join(lines)


def heading(machine: Machine, options: Options, left_out: Mapping[str, str]) -> str:
    """What was measured where, which loops are missing, which columns have no values."""
    lines = [
        f"{machine.python}, {machine.kernel}, {machine.cpu}, {machine.cpus} CPUs",
        "loops: " + ", ".join(f"{k} {v}".rstrip() for k, v in machine.loops.items()),
        f"{options.rounds} rounds of {options.window:g} s; "
        f"loops on CPU {options.server_cpu}, load generator on CPU {options.client_cpu}",
    ]
    if options.server_cpu == options.client_cpu:
        lines.append("only one CPU: the load generator takes time from the servers it asks")
    lines += [f"left out: {name}: {why}" for name, why in left_out.items()]
    if options.callgrind:
        lines.append("instr:u: counted by callgrind, in processes of their own")
    for why in dict.fromkeys(machine.counters.values()):
        columns = " and ".join(
            _COLUMN[name] for name, other in machine.counters.items() if other == why
        )
        lines.append(f"{columns} n/a: {why}")
    return "\n".join(lines)


_COLUMN = {"instructions_user": "instr:u", "instructions": "instr"}


def row_table(result: RowResult, loops: Sequence[str], base: str) -> str:
    """The table of one row."""
    row = result.row
    if isinstance(row, LoopRow) and row.lateness:
        head, cells = _lateness_cells(result, row.beside, base)
    elif isinstance(row, IdleRow):
        head, cells = _memory_cells(result, base)
    else:
        head, cells = _rate_cells(result, base)
    body: list[list[str]] = []
    tails: dict[int, str] = {}
    for i, name in enumerate(loops):
        if name in result.failed:
            tails[i] = f"failed: {result.failed[name]}"
            body.append([name])
        else:
            body.append([name, *cells[name]])
    lines = [f"{row.name}: {row.summary}", _lines(["", *head], body, tails)]
    for why in dict.fromkeys(result.uncounted.values()):
        names = ", ".join(name for name, other in result.uncounted.items() if other == why)
        lines.append(f"  instr:u n/a for {names}: {why}")
    return "\n".join(lines)


def _lateness_cells(
    result: RowResult, beside: str, base: str
) -> tuple[list[str], dict[str, list[str]]]:
    head = ["p50 us late", "p99 us late", "early", "of", "cpu us"]
    reference = result.windows.get(base)
    cells = {}
    for name, windows in result.windows.items():
        p50, p99, early, samples = stats.lateness(windows)
        cpu = stats.median(windows, "cpu")
        cells[name] = [micro(p50), micro(p99), str(early), str(samples), micro(cpu)]
        if beside:
            against = stats.ratio(windows, reference, "beside") if reference else None
            cells[name] += [number(stats.median(windows, "beside")), _ratio(against)]
            cells[name].append(_spread(against))
    if beside:
        head += [f"{beside}/s", f"x {base}", "low-high"]
    return head, cells


def _memory_cells(result: RowResult, base: str) -> tuple[list[str], dict[str, list[str]]]:
    reference = result.windows.get(base)
    cells = {}
    for name, windows in result.windows.items():
        against = stats.ratio(windows, reference, "memory") if reference else None
        cells[name] = [
            _kib(stats.median(windows, "memory")),
            _ratio(against),
            _spread(against),
            _kib(stats.median(windows, "resident")),
        ]
    return ["KiB", f"x {base}", "low-high", "resident KiB"], cells


def _rate_cells(result: RowResult, base: str) -> tuple[list[str], dict[str, list[str]]]:
    unit = result.row.unit
    latencies = any("p50" in window for ws in result.windows.values() for window in ws)
    head = [f"{unit}/s", f"x {base}", "low-high", "busy", "cpu us", "x", "user", "sys"]
    head += ["instr:u", "x", "instr", "x"]
    if latencies:
        head += ["p50 us", "p99 us", "client"]
    cells: dict[str, list[str]] = {}
    for name, windows in result.windows.items():
        reference = result.windows.get(base)

        def against(
            metric: str,
            windows: list[Measurement] = windows,
            reference: list[Measurement] | None = reference,
        ) -> stats.Ratio | None:
            return stats.ratio(windows, reference, metric) if reference else None

        rate = against("rate")
        line = [number(stats.median(windows, "rate")), _ratio(rate), _spread(rate)]
        line.append(_percent(stats.median(windows, "busy")))
        line += [micro(stats.median(windows, "cpu")), _ratio(against("cpu"))]
        line += [micro(stats.median(windows, part)) for part in ("user", "system")]
        for metric in ("instructions_user", "instructions"):
            line += [number(stats.median(windows, metric)), _ratio(against(metric))]
        if latencies:
            line += [micro(stats.median(windows, part)) for part in ("p50", "p99")]
            line.append(_percent(stats.median(windows, "client_busy")))
        cells[name] = line
    return head, cells


def as_json(
    machine: Machine,
    options: Options,
    left_out: Mapping[str, str],
    results: Sequence[RowResult],
    base: str,
) -> str:
    """Everything: conditions, medians, ratios, and every window they come from."""
    document = {
        "format": 1,
        "machine": machine.as_dict(),
        "options": {
            "rounds": options.rounds,
            "window": options.window,
            "server_cpu": options.server_cpu,
            "client_cpu": options.client_cpu,
            "base": base,
            "callgrind": options.callgrind,
        },
        "left_out": dict(left_out),
        "rows": [_json_row(result, result.row.base or base) for result in results],
    }
    return json.dumps(document, indent=1)


def _json_row(result: RowResult, base: str) -> dict[str, object]:
    row = result.row
    loops: dict[str, object] = {name: {"failed": why} for name, why in result.failed.items()}
    uncounted = {"uncounted": result.uncounted} if result.uncounted else {}
    lateness = isinstance(row, LoopRow) and row.lateness
    beside = row.beside if isinstance(row, LoopRow) else ""
    for name, windows in result.windows.items():
        found: dict[str, object] = {
            "median": {metric: stats.median(windows, metric) for metric in stats.METRICS},
        }
        if lateness:
            p50, p99, early, samples = stats.lateness(windows)
            found["lateness"] = {"p50": p50, "p99": p99, "early": early, "samples": samples}
            if beside and base in result.windows:
                against = stats.ratio(windows, result.windows[base], "beside")
                found["ratio"] = {"beside": _json_ratio(against)}
        elif base in result.windows:
            found["ratio"] = {
                metric: _json_ratio(stats.ratio(windows, result.windows[base], metric))
                for metric in stats.METRICS
            }
        found["windows"] = [
            {key: value for key, value in window.items() if key != "lateness_ns"}
            for window in windows
        ]
        loops[name] = found
    return {
        "name": row.name,
        "summary": row.summary,
        "unit": row.unit,
        "groups": list(row.groups),
        "loops": loops,
        **({"base": row.base} if row.base else {}),
        **({"beside": beside} if beside else {}),
        **uncounted,
    }


def _json_ratio(ratio: stats.Ratio | None) -> dict[str, float] | None:
    if ratio is None:
        return None
    return {"median": ratio.median, "low": ratio.low, "high": ratio.high}
