"""From windows to the numbers in the table.

* Absolutes are medians over the rounds.
* A ratio is taken within a round, loop against base, where both ran next to each other; the
  median of these is shown, with the lowest and highest.  A ratio of two medians would mix rounds
  in which the machine had different speeds.
* A value that is missing in any round is missing in the result.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiounify.bench.channel import Measurement

__all__ = ["METRICS", "Ratio", "lateness", "median", "percentile", "ratio"]


def _per_op(key: str) -> Callable[[Measurement], float | None]:
    def value(window: Measurement) -> float | None:
        total = window.get(key)
        if not isinstance(total, int | float):
            return None
        return total / window["ops"]

    return value


def _rate(window: Measurement) -> float | None:
    return window["ops"] / window["seconds"] if "seconds" in window else None


def _beside(window: Measurement) -> float | None:
    return window["beside"] / window["seconds"] if "beside" in window else None


def _cell(key: str) -> Callable[[Measurement], float | None]:
    def value(window: Measurement) -> float | None:
        found = window.get(key)
        return found if isinstance(found, int | float) else None

    return value


def _busy(key: str) -> Callable[[Measurement], float | None]:
    def value(window: Measurement) -> float | None:
        cpu = window.get(key)
        return cpu / window["seconds"] if isinstance(cpu, int | float) else None

    return value


#: Name to the function that takes it from one window; times in seconds, memory in bytes.
METRICS: dict[str, Callable[[Measurement], float | None]] = {
    "rate": _rate,
    "beside": _beside,
    "cpu": _per_op("cpu"),
    "user": _per_op("user"),
    "system": _per_op("system"),
    "instructions_user": _per_op("instructions_user"),
    "instructions": _per_op("instructions"),
    "p50": _cell("p50"),
    "p99": _cell("p99"),
    "busy": _busy("cpu"),
    "client_busy": _busy("client_cpu"),
    "memory": _per_op("memory"),
    "resident": _per_op("resident"),
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """A loop's value divided by the base's, over all rounds."""

    median: float
    low: float
    high: float


def median(windows: Sequence[Measurement], metric: str) -> float | None:
    """The median over the rounds, or None if any round lacks the value."""
    values = [METRICS[metric](window) for window in windows]
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return None
    return statistics.median(present)


def ratio(
    windows: Sequence[Measurement],
    base: Sequence[Measurement],
    metric: str,
) -> Ratio | None:
    """Loop against base, round by round; None if a value is missing or the base has none."""
    value = METRICS[metric]
    ratios: list[float] = []
    for mine, theirs in zip(windows, base, strict=True):
        above, below = value(mine), value(theirs)
        if above is None or not below:
            return None
        ratios.append(above / below)
    if not ratios:
        return None
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the sorted values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def lateness(windows: Sequence[Measurement]) -> tuple[float, float, int, int]:
    """p50 and p99 of all samples in seconds, how many were early, and how many there are."""
    samples = [late for window in windows for late in window["lateness_ns"]]
    early = sum(late < 0 for late in samples)
    return percentile(samples, 0.5) / 1e9, percentile(samples, 0.99) / 1e9, early, len(samples)
