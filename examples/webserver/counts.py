"""What is counted, by each worker for itself and by all of them together.

Each worker has a slot of its own in a piece of shared memory that the supervisor made, and writes
its numbers there once a second and before anybody reads them.  So any worker can show the sums,
without a lock: a reader may see a slot in the middle of being written, which makes a number a
second old. A worker that takes the place of a dead one counts on from what that one had written:
counters of Prometheus must not go back.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BUCKETS", "SLOT", "Counts", "text"]

#: upper ends in seconds; what takes longer is in the last one
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)

_NAMES = ("hits", "misses", "built", "connections", "aborted", "refused", "timeouts")
_CLASSES = 6
_FORMAT = struct.Struct(f"{len(_NAMES) + _CLASSES + len(BUCKETS) + 1}Qd2Q")
SLOT = _FORMAT.size


class Counts:
    """One worker's numbers; `hits` are answers from memory, `misses` all others."""

    def __init__(self, memory: mmap.mmap | None = None, slot: int = 0) -> None:
        self._memory = memory if memory is not None else mmap.mmap(-1, SLOT)
        self._at = slot * SLOT
        self.workers = len(self._memory) // SLOT
        before = _FORMAT.unpack_from(self._memory, self._at)
        self.hits, self.misses, self.built, self.connections = before[:4]
        self.aborted, self.refused, self.timeouts = before[4:7]
        self.classes = list(before[7 : 7 + _CLASSES])
        self.histogram = list(before[7 + _CLASSES : 7 + _CLASSES + len(BUCKETS) + 1])
        self.seconds = float(before[-3])

    def answered(self, status: int, seconds: float) -> None:
        """An answer that was not given from memory."""
        self.misses += 1
        self.classes[status // 100] += 1
        self.took(seconds)

    def took(self, seconds: float, times: int = 1) -> None:
        """Put a time into the histogram."""
        self.seconds += seconds * times
        for i, end in enumerate(BUCKETS):
            if seconds <= end:
                self.histogram[i] += times
                return
        self.histogram[-1] += times

    def publish(self, connections: int, pages: int) -> None:
        """Write the numbers where the others see them; what is open now, too."""
        _FORMAT.pack_into(
            self._memory,
            self._at,
            *(getattr(self, name) for name in _NAMES),
            *self.classes,
            *self.histogram,
            self.seconds,
            connections,
            pages,
        )

    def total(self) -> dict[str, Any]:
        """The sums over all workers."""
        rows = [_FORMAT.unpack_from(self._memory, i * SLOT) for i in range(self.workers)]
        sums = [sum(column) for column in zip(*rows, strict=True)]
        found: dict[str, Any] = dict(zip(_NAMES, sums, strict=False))
        at = len(_NAMES)
        found["classes"] = sums[at : at + _CLASSES]
        at += _CLASSES
        found["histogram"] = sums[at : at + len(BUCKETS) + 1]
        found["seconds"], found["open"], found["pages"] = sums[-3:]
        return found


# -- the text format of Prometheus -----------------------------------------------------


def text(total: Mapping[str, Any], loop: Mapping[str, Any], labels: str, generation: int) -> str:
    """What /_metrics answers; `labels` are those of the one worker that answers."""
    lines: list[str] = []

    def metric(name: str, kind: str, about: str, *samples: tuple[str, float]) -> None:
        lines.append(f"# HELP aiounify_{name} {about}")
        lines.append(f"# TYPE aiounify_{name} {kind}")
        lines.extend(f"aiounify_{name}{which} {value:.15g}" for which, value in samples)

    metric(
        "http_answers_total",
        "counter",
        "Answers, by whether they came from memory.",
        ('{from="memory"}', total["hits"]),
        ('{from="elsewhere"}', total["misses"]),
    )
    metric(
        "http_status_total",
        "counter",
        "Answers that did not come from memory, by class of their status.",
        *((f'{{class="{i}xx"}}', n) for i, n in enumerate(total["classes"]) if i),
    )
    metric("pages_built_total", "counter", "Pages that were built.", ("", total["built"]))
    for name, about in (
        ("connections", "Connections that were accepted."),
        ("aborted", "Clients that went away before their answer was complete."),
        ("refused", "Connections that were ended for what they sent."),
        ("timeouts", "Connections that were ended for being late."),
    ):
        metric(f"{name}_total", "counter", about, ("", total[name]))
    metric("connections_open", "gauge", "Connections that are open.", ("", total["open"]))
    metric("pages_kept", "gauge", "Built pages in the caches.", ("", total["pages"]))
    buckets, count = [], 0
    for end, n in zip((*BUCKETS, "+Inf"), total["histogram"], strict=True):
        count += n
        buckets.append((f'_bucket{{le="{end}"}}', count))
    metric(
        "http_seconds",
        "histogram",
        "From a request's end to its answer; of answers from memory one in 64 is timed, "
        "and counted 64 times.",
        *buckets,
        ("_sum", total["seconds"]),
        ("_count", count),
    )
    metric(
        "changes_generation",
        "gauge",
        "Changes of files this worker has seen.",
        (labels, generation),
    )
    for name, about in (
        ("turns", "Turns of the loop."),
        ("callbacks", "Callbacks that ran."),
        ("syscalls", "System calls of the engine."),
        ("waits", "Waits."),
        ("wait_seconds", "Seconds spent waiting."),
        ("readiness_events", "Readiness of descriptors."),
        ("completions", "Operations that were completed."),
        ("timers_fired", "Timers that fired."),
        ("inline_hits", "Operations that needed no wait."),
    ):
        if name in loop:
            metric(f"loop_{name}_total", "counter", about, (labels, loop[name]))
    if loop.get("operations"):
        inner = labels[1:-1]
        metric(
            "loop_operations_total",
            "counter",
            "Operations by kind.",
            *((f'{{{inner},kind="{kind}"}}', n) for kind, n in sorted(loop["operations"].items())),
        )
    return "\n".join(lines) + "\n"
