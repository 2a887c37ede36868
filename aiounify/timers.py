"""Deadlines and ticks on a clock of one's choice.

    await sleep_until(time.monotonic() + 1.5)
    async for tick in every(0.001): ...
    async for tick in every(60.0, clock=time.CLOCK_REALTIME, aligned=True): ...

Why it exists: `asyncio.sleep()` knows one clock and relative times.  A job at three in the
morning is a time of the wall clock, which somebody may set; one that has to go on counting
while the machine is suspended is a time of CLOCK_BOOTTIME; and a loop around sleep() drifts.

* A float is seconds, an int is nanoseconds, of the clock that is named.
* Nothing is early, not by a nanosecond of its clock: a deadline given in seconds is taken
  exactly and rounded up, and the clock is asked before anything is given out.
* CLOCK_MONOTONIC waits in the loop's timer heap.  CLOCK_REALTIME and CLOCK_BOOTTIME have one
  timerfd for each loop that uses them (timerfd_create(2)), closed with the loop.
* When CLOCK_REALTIME is set, by a person or in a step of NTP, waits for it follow: a
  deadline is that reading of the clock, wherever the clock went.  That it was set is told
  (TFD_TIMER_CANCEL_ON_SET, Linux 3.0).
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from aiounify._core import clocks
from aiounify._core.clocks import Alarm, Ticks
from aiounify._kernel_events import ffi, lib
from aiounify.sources import current_loop

if TYPE_CHECKING:
    from aiounify._core.clocks import Deadline
    from aiounify.loop import EventLoop

__all__ = ["Alarm", "ClockSetError", "Tick", "Ticks", "after", "every", "sleep_until"]

CLOCKS = (time.CLOCK_MONOTONIC, time.CLOCK_REALTIME, time.CLOCK_BOOTTIME)

# An int is nanoseconds.  One that is this small was meant as seconds: no such time of the clock
# can still come, and nobody ticks that fast.
_SECONDS_BELOW = {
    time.CLOCK_MONOTONIC: 10**9,
    time.CLOCK_BOOTTIME: 10**9,
    time.CLOCK_REALTIME: 10**10,
}
_SHORTEST = 1000
_FAR = 2**62


class ClockSetError(OSError):
    """CLOCK_REALTIME was set while somebody waited who wants to know; errno is ECANCELED."""


class Tick(NamedTuple):
    """What every() gives."""

    due_ns: int  #: when this tick was due, in nanoseconds of its clock
    late_ns: int  #: how long after that it was taken; never negative
    missed: int  #: ticks that were due since the one before, and are left out
    clock_set: bool  #: CLOCK_REALTIME was set while this tick was awaited


def _check_clock(clock: int) -> None:
    if clock not in CLOCKS:
        raise ValueError(
            f"clock must be time.CLOCK_MONOTONIC, CLOCK_REALTIME or CLOCK_BOOTTIME, not {clock!r}"
        )


def _deadline_ns(deadline: float | int, clock: int, what: str) -> int:
    """A time of the clock in nanoseconds, not before the one that was given."""
    _check_clock(clock)
    if isinstance(deadline, int):
        if 0 < deadline < _SECONDS_BELOW[clock]:
            raise ValueError(
                f"{what} is an int, which is nanoseconds: for {deadline} seconds write "
                f"{float(deadline)}"
            )
        return max(-_FAR, min(_FAR, deadline))
    if deadline != deadline:
        raise ValueError(f"{what} must not be NaN")
    if abs(deadline) >= 4e9:  # also infinity
        return _FAR if deadline > 0 else -_FAR
    numerator, denominator = deadline.as_integer_ratio()
    return -(-numerator * 1_000_000_000 // denominator)


def _interval_ns(interval: float | int, what: str) -> int:
    if not isinstance(interval, int):
        if not 0 <= interval < 4e9:
            raise ValueError(f"{what} must be a positive number of seconds, not {interval!r}")
        interval = round(interval * 1e9)
    if interval < _SHORTEST:
        raise ValueError(
            f"{what} must be a microsecond at least, and is {interval} ns; "
            "a float is seconds, an int is nanoseconds"
        )
    return min(interval, _FAR)


def sleep_until(
    deadline: float | int,
    clock: int = time.CLOCK_MONOTONIC,
    *,
    clock_set: Literal["ignore", "raise"] = "ignore",
) -> Alarm:
    """Wait until `clock` reads `deadline`: a float in seconds, an int in nanoseconds.

    `clock` is time.CLOCK_MONOTONIC (that of loop.time()), CLOCK_REALTIME (that of time.time())
    or CLOCK_BOOTTIME (monotonic, and goes on while the machine is suspended).  Awaiting what
    this returns gives the lateness in nanoseconds, never negative; a deadline that is past
    does not wait.  It can be awaited again, and by several tasks, and goes into select().

    Where CLOCK_REALTIME is set meanwhile the wait goes on for the same reading; with
    `clock_set="raise"` it ends with ClockSetError, once.  Cancelling has no effect on the
    others that wait.  ValueError for another clock and for NaN.
    """
    if clock_set not in ("ignore", "raise"):
        raise ValueError(f"clock_set must be 'ignore' or 'raise', not {clock_set!r}")
    return Alarm(_deadline_ns(deadline, clock, "deadline"), clock, clock_set == "raise")


def after(delay: float | int, clock: int = time.CLOCK_MONOTONIC) -> Alarm:
    """sleep_until() at `delay` from now: a float in seconds, an int in nanoseconds."""
    _check_clock(clock)
    wait_ns = delay if isinstance(delay, int) else _deadline_ns(float(delay), clock, "delay")
    return Alarm(min(_FAR, time.clock_gettime_ns(clock) + wait_ns), clock)


def every(
    interval: float | int,
    clock: int = time.CLOCK_MONOTONIC,
    *,
    first: float | int | None = None,
    aligned: bool = False,
) -> Ticks:
    """Tick at a fixed distance: `async for tick in every(0.5)`, or one source in a select().

    `interval` is a float in seconds or an int in nanoseconds, a microsecond at least.  Ticks
    are due at `first` (a time of the clock; by default one interval from now) and at every
    multiple of the interval after it, whatever the program does in between: they do not
    drift.  Each `Tick` says when it was due and how late it is.  Of ticks that were not
    fetched in time the last is given, and `missed` counts those before it.  With `aligned`
    ticks are due when the clock reads a multiple of the interval: full minutes, for 60.0 on
    CLOCK_REALTIME.

    If CLOCK_REALTIME is set forward, ticks are missed; if it is set back, those of the repeated
    time come again.  `clock_set` of the next tick tells.  Nothing runs between ticks that
    nobody awaits, and a cancelled await loses none: what it would have got is late or counted.
    """
    _check_clock(clock)
    interval_ns = _interval_ns(interval, "interval")
    if first is not None and aligned:
        raise ValueError("first and aligned exclude each other")
    now = time.clock_gettime_ns(clock)
    if first is not None:
        first_ns = _deadline_ns(first, clock, "first")
    elif aligned:
        first_ns = (now // interval_ns + 1) * interval_ns
    else:
        first_ns = now + interval_ns
    return Ticks(first_ns, interval_ns, clock)


# -- clocks with a timerfd --------------------------------------------------------


class _Wait:
    """One deadline at a clock; what a Deadline cancels when nobody waits any more."""

    __slots__ = ("clock", "deadline")

    def __init__(self, clock: _Clock, deadline: Deadline[object]) -> None:
        self.clock = clock
        self.deadline: Deadline[object] | None = deadline

    def cancel(self) -> None:
        if self.deadline is not None:
            self.deadline = None
            self.clock.gave_up()


class _Clock:
    """All deadlines of one loop on one clock, in one timerfd.

    The timerfd is armed for the first of them.  It stands in the loop's epoll set; reading it
    says that the time has come or, with ECANCELED, that the clock was set.
    """

    def __init__(self, loop: EventLoop, clock: int) -> None:
        fd = lib.au_timerfd_create(clock)
        if fd < 0:
            raise OSError(ffi.errno, f"timerfd_create: {os.strerror(ffi.errno)}")
        self._fd = fd
        self._told = clock == time.CLOCK_REALTIME
        self._clock = clock
        self._heap: list[tuple[int, int, _Wait]] = []
        self._order = itertools.count()
        self._given_up = 0
        self._armed = _FAR
        try:
            loop._add_reader(fd, self._readable)
            loop._close_with(self.close)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def add(self, deadline: Deadline[object], due_ns: int) -> _Wait:
        wait = _Wait(self, deadline)
        heapq.heappush(self._heap, (due_ns, next(self._order), wait))
        if due_ns < self._armed:
            self._arm()
        return wait

    def gave_up(self) -> None:
        self._given_up += 1
        if self._given_up > 64 and self._given_up > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2].deadline is not None]
            heapq.heapify(self._heap)
            self._given_up = 0

    def _arm(self) -> None:
        """For the first deadline; for none, if there is none."""
        while self._heap and self._heap[0][2].deadline is None:
            heapq.heappop(self._heap)
            self._given_up -= 1
        self._armed = self._heap[0][0] if self._heap else _FAR
        # Times before the epoch of the clock are past.
        when = max(0, self._armed) if self._heap else -1
        # ECANCELED: armed, and the clock was set since the last read, which will say so too
        if lib.au_timerfd_set(self._fd, when, self._told) < 0 and ffi.errno != errno.ECANCELED:
            raise OSError(ffi.errno, f"timerfd_settime: {os.strerror(ffi.errno)}")

    def _readable(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno != errno.ECANCELED:
                raise
            # Each looks at the clock anew; who has to go on waiting comes back.
            waits, self._heap, self._given_up = self._heap, [], 0
            for _, _, wait in sorted(waits):
                self._end(wait, clock_set=True)
        now = time.clock_gettime_ns(self._clock)
        while self._heap and self._heap[0][0] <= now:
            self._end(heapq.heappop(self._heap)[2])
        self._arm()

    def _end(self, wait: _Wait, *, clock_set: bool = False) -> None:
        deadline, wait.deadline = wait.deadline, None
        if deadline is None:
            self._given_up = max(0, self._given_up - 1)
        elif clock_set:
            deadline._clock_was_set()
        else:
            deadline._rang()


def _clock_of(loop: EventLoop, clock: int) -> _Clock:
    current_loop("aiounify.timers")
    found: _Clock | None = loop._clocks.get(clock)
    if found is None:
        found = loop._clocks[clock] = _Clock(loop, clock)
    return found


clocks.configure(_clock_of, Tick, ClockSetError)
