"""Where a run was made: what a reader needs to know before comparing two runs."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Machine", "choose_cpus", "describe", "stolen"]


@dataclass(frozen=True, slots=True)
class Machine:
    """The conditions of a run."""

    python: str
    kernel: str
    cpu: str
    cpus: int
    #: Loop name to the version of its package, for the loops that were measured.
    loops: Mapping[str, str]
    #: Columns that this machine cannot fill, and why.
    counters: Mapping[str, str]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def describe(loops: Mapping[str, str], counters: Mapping[str, str]) -> Machine:
    return Machine(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        kernel=f"{platform.system()} {platform.release()}",
        cpu=_cpu_model(),
        cpus=len(os.sched_getaffinity(0)),
        loops=dict(loops),
        counters=dict(counters),
    )


def choose_cpus() -> tuple[int, int]:
    """One CPU for the loops and another for the load generator, as far apart as they come.

    The last two of those allowed, since the first often has the machine's interrupts; but the two
    must not be siblings of one core if that can be helped.
    """
    allowed = sorted(os.sched_getaffinity(0))
    server = allowed[-1]
    others = [cpu for cpu in reversed(allowed[:-1]) if cpu not in _siblings(server)]
    if others:
        return server, others[0]
    return server, allowed[0]


def stolen() -> tuple[int, int]:
    """Ticks that the hypervisor gave to others, and all ticks, since boot."""
    try:
        values = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return (values[7] if len(values) > 7 else 0), sum(values)


def _siblings(cpu: int) -> set[int]:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    found: set[int] = set()
    try:
        for part in path.read_text().strip().split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return {cpu}
    return found


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.machine()
