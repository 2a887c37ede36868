"""A scheduler of jobs by the wall clock, in the manner of cron, with seconds.

    python examples/scheduler.py '*/10 * * * * *' 'date' '0 30 3 * * 1-5' 'backup --all'

Pairs of a time and a shell command.  A time has six fields: second, minute, hour, day of the
month, month, day of the week (0 or 7 is Sunday); each is *, a number, a range 1-5, a list 1,3,5,
with a step as in */10 or 1-31/2.  Local time.  SIGTERM or Ctrl-C end it when the jobs that run have
ended; each end is reported with the time it took on the processor.

One select() waits for the clock, for the jobs and for the signals.  Deadlines are readings of
CLOCK_REALTIME: if somebody sets the clock, the scheduler is told and works out the next times
anew, so a job is neither run twice nor forgotten.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import datetime, timedelta
from typing import NamedTuple

import aiounify
from aiounify import process
from aiounify.signals import signals
from aiounify.timers import ClockSetError, sleep_until

_RANGES = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def parse_field(text: str, low: int, high: int) -> frozenset[int]:
    """The values that one field stands for; ValueError if it cannot be read."""
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        if span == "*":
            first, last = low, high
        else:
            begin, _, end = span.partition("-")
            first, last = int(begin), int(end or begin)
        if not low <= first <= last <= high or int(step or 1) < 1:
            raise ValueError(f"{part!r} is not between {low} and {high}")
        found.update(range(first, last + 1, int(step or 1)))
    return frozenset(found)


class Job(NamedTuple):
    """A command and its times."""

    command: str
    fields: tuple[frozenset[int], ...]

    @classmethod
    def parse(cls, when: str, command: str) -> Job:
        """Make one of the two texts of the command line."""
        texts = when.split()
        if len(texts) != len(_RANGES):
            raise ValueError(f"{when!r} has {len(texts)} fields, not {len(_RANGES)}")
        fields = [parse_field(t, *bounds) for t, bounds in zip(texts, _RANGES, strict=True)]
        fields[5] = frozenset(day % 7 for day in fields[5])
        return cls(command, tuple(fields))

    def next_after(self, moment: datetime) -> datetime:
        """The first time of the job after that moment."""
        seconds, minutes, hours, days, months, weekdays = self.fields
        t = moment.replace(microsecond=0) + timedelta(seconds=1)
        for _ in range(366 * 8 * 24 * 60):
            if t.month not in months or t.day not in days or t.isoweekday() % 7 not in weekdays:
                t = t.replace(hour=0, minute=0, second=0) + timedelta(days=1)
            elif t.hour not in hours:
                t = t.replace(minute=0, second=0) + timedelta(hours=1)
            elif t.minute not in minutes:
                t = t.replace(second=0) + timedelta(minutes=1)
            elif t.second not in seconds:
                t += timedelta(seconds=1)
            else:
                return t
        raise ValueError(f"{self.command!r} is never due")


def say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {text}", flush=True)


async def main(jobs: list[Job]) -> None:
    running: dict[process.Child, Job] = {}
    ending = False
    last = datetime.now()
    async with (
        signals(signal.SIGTERM, signal.SIGINT) as arriving,
        aiounify.select(arriving, return_exceptions=True) as events,
    ):
        alarm = None
        while running or not ending:
            if alarm is None and not ending:
                due = min(job.next_after(last) for job in jobs)
                alarm = sleep_until(due.timestamp(), time.CLOCK_REALTIME, clock_set="raise")
                events.add(alarm)
            source, value = await events
            if source is arriving:
                say(f"{value.signal.name} from process {value.sender_pid}: ending")
                ending = True
                if alarm is not None and alarm in events:
                    events.remove(alarm)
            elif source is alarm:
                alarm = None
                if isinstance(value, ClockSetError):
                    say("the clock was set")
                    last = datetime.now()
                    continue
                for job in jobs:
                    if job.next_after(last) == due:
                        argv = ["sh", "-c", job.command]
                        pid = os.posix_spawn("/bin/sh", argv, os.environ)  # noqa: ASYNC221 - it does not block
                        child = process.wait(pid)
                        running[child] = job
                        events.add(child)
                        say(f"started {job.command!r}, {value / 1e6:.1f} ms after it was due")
                last = due
            else:
                job = running.pop(source)
                used = value.rusage.ru_utime + value.rusage.ru_stime
                say(
                    f"{job.command!r} ended with {value.returncode}, {used:.3f} s of processor time"
                )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments or len(arguments) % 2:
        sys.exit(__doc__)
    try:
        table = [Job.parse(*arguments[i : i + 2]) for i in range(0, len(arguments), 2)]
    except ValueError as exc:
        sys.exit(f"scheduler: {exc}")
    aiounify.run(main(table))
