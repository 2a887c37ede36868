"""What a worker reads about itself before and after a window: CPU time and instructions.

* The sum of CPU time comes from CLOCK_PROCESS_CPUTIME_ID and is exact to the microsecond.  Its
  split into user and system comes from getrusage, which most kernels take from timer ticks: right
  over a run, coarse over one short window.
* Instructions come from two perf_event_open counters, user only and user plus kernel.  A machine
  without a PMU or with a strict perf_event_paranoid has none; `missing` then says why, and the
  values are None.
* Under callgrind the user's instructions are those that valgrind executed: no hardware is needed,
  and the same work gives the same count.  Times then mean nothing.
* Threads are counted, child processes are not.
"""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aiounify.bench.channel import Measurement, SampleValues

__all__ = ["Counters", "Sample", "memory_used"]


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of all counters at one moment."""

    wall_ns: int
    cpu_ns: int
    user: float
    system: float
    instructions_user: int | None
    instructions: int | None

    def since(self, before: "Sample", ops: int) -> Measurement:
        """The window between two samples, in which `ops` requests were done."""
        return {
            "ops": ops,
            "seconds": (self.wall_ns - before.wall_ns) / 1e9,
            "cpu": (self.cpu_ns - before.cpu_ns) / 1e9,
            "user": self.user - before.user,
            "system": self.system - before.system,
            "instructions_user": _difference(before.instructions_user, self.instructions_user),
            "instructions": _difference(before.instructions, self.instructions),
        }

    def values(self) -> SampleValues:
        """As sent over the channel."""
        return {
            "wall_ns": self.wall_ns,
            "cpu_ns": self.cpu_ns,
            "user": self.user,
            "system": self.system,
            "instructions_user": self.instructions_user,
            "instructions": self.instructions,
        }


class _Counter(Protocol):
    def read(self) -> int | None: ...


class _Callgrind:
    """Instructions since the first reading, from the files that callgrind writes when told to."""

    def __init__(self, path: str) -> None:
        from aiounify.bench import _perf

        if not _perf.in_valgrind():
            raise OSError("the process does not run under valgrind")
        self._request = _perf
        self._path = path
        self._parts = 0
        self._total = 0

    def read(self) -> int:
        if self._parts == 0:
            self._request.callgrind_start()
        self._request.callgrind_dump()
        self._parts += 1
        part = Path(f"{self._path}.{self._parts}")
        with part.open() as lines:
            self._total += next(
                int(v) for k, _, v in (x.partition(":") for x in lines) if k == "totals"
            )
        part.unlink()
        return self._total


def _difference(before: int | None, after: int | None) -> int | None:
    if before is None or after is None or after <= before:
        return None
    return after - before


class Counters:
    """The counters of this process; made before any thread is started, so that all are counted."""

    def __init__(self, callgrind: str | None = None) -> None:
        """`callgrind`: what valgrind was told to call its output."""
        #: Column name to the reason why it has no value.
        self.missing: dict[str, str] = {}
        self._user: _Counter | None
        self._all: _Counter | None
        if callgrind is not None:
            self._user, self._all = _Callgrind(callgrind), None
            return
        self._user = self._open("instructions_user", user_only=True)
        self._all = self._open("instructions", user_only=False)

    def _open(self, name: str, user_only: bool) -> _Counter | None:
        try:
            from aiounify.bench._perf import Counter
        except ImportError as exc:
            self.missing[name] = f"the compiled module is missing ({exc})"
            return None
        try:
            counter = Counter(user_only)
        except OSError as exc:
            self.missing[name] = _explain(exc)
            return None
        if counter.read() is None:
            self.missing[name] = "the kernel gave the counter no time on the PMU"
            return None
        return counter

    def sample(self) -> Sample:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Sample(
            wall_ns=time.perf_counter_ns(),
            cpu_ns=time.process_time_ns(),
            user=usage.ru_utime,
            system=usage.ru_stime,
            instructions_user=self._user.read() if self._user else None,
            instructions=self._all.read() if self._all else None,
        )


def memory_used() -> tuple[int, int]:
    """Bytes of this process: private dirty pages, and all that are resident."""
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    return found["Private_Dirty"], found["Rss"]


def _explain(exc: OSError) -> str:
    """Why perf_event_open refused, in words that tell the user what to change."""
    name = os.strerror(exc.errno or 0)
    if isinstance(exc, PermissionError):
        try:
            level = Path("/proc/sys/kernel/perf_event_paranoid").read_text().strip()
        except OSError:
            level = "unknown"
        return f"perf_event_open was refused ({name}; kernel.perf_event_paranoid is {level})"
    if isinstance(exc, FileNotFoundError):
        return f"this machine offers no hardware instruction counter (perf_event_open: {name})"
    return f"perf_event_open failed ({name})"
