# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Deadlines and ticks as sources; see aiounify/timers.py.

Why it exists: a hundred thousand sleeping tasks are a hundred thousand of these, and a tick a
millisecond is one of them a millisecond.

* Times are nanoseconds of their clock, in 64 bits.  take() asks the clock and nothing else, so
  nothing is early however the wake-up came about, and a tick that nobody fetched is
  counted, not lost.
* CLOCK_MONOTONIC waits in the loop's own timer heap.  The other clocks wait in a timerfd, one
  for each clock and loop, which timers.py keeps.
"""

from libc.stdint cimport int64_t
from posix.time cimport clock_gettime, timespec

import errno as errors

from aiounify._core.sources cimport Source, empty

from aiounify._core.sources import taking


cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_REALTIME
        CLOCK_MONOTONIC
        CLOCK_BOOTTIME

cdef object _clock_of = None
cdef object _Tick = None
cdef object _ClockSet = None


def configure(clock_of, tick, clock_set):
    """Give the native side what it needs of aiounify.timers, once.

    clock_of(loop, clock_id) is what waits for a clock; tick and clock_set make the values.
    """
    global _clock_of, _Tick, _ClockSet
    _clock_of, _Tick, _ClockSet = clock_of, tick, clock_set


cdef inline int64_t clock_ns(int clock) noexcept:
    cdef timespec t
    clock_gettime(clock, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef class Deadline(Source):
    """Base: waits until a clock has reached `due`."""

    cdef int64_t now(self) noexcept:
        return clock_ns(self.clock_id)

    cpdef object _begin(self):
        if self.clock_id == CLOCK_MONOTONIC:
            self.set_for = self.loop.timer_at(self.due, self)
        else:
            self.set_for = _clock_of(self.loop, self.clock_id).add(self, self.due)

    cpdef object _withdraw(self):
        set_for, self.set_for = self.set_for, None
        if set_for is not None:
            set_for.cancel()

    def __call__(self):
        """The time has come; it is the timer's callback, which spares a bound method."""
        self.set_for = None
        self.fire()

    def _rang(self):
        self.set_for = None
        self.fire()

    def _clock_was_set(self):
        self.was_set = True
        self._rang()

    @property
    def clock(self):
        return self.clock_id

    @property
    def deadline_ns(self):
        return self.due


cdef class Alarm(Deadline):
    """One deadline; see aiounify.timers.sleep_until()."""

    once = True
    cdef bint raises

    def __init__(self, int64_t deadline_ns, int clock, bint raises=False):
        self.due = deadline_ns
        self.clock_id = clock
        self.raises = raises

    cpdef object take(self):
        cdef int64_t now = self.now()
        if now >= self.due:
            return now - self.due
        if self.was_set and self.raises:
            self.was_set = False
            raise _ClockSet(errors.ECANCELED, "the clock was set")
        return empty

    @property
    def clock_set(self):
        return self.was_set

    def __repr__(self):
        return f"<{type(self).__qualname__} clock={self.clock_id} due={self.due}>"


cdef class Ticks(Deadline):
    """Deadlines at a fixed distance; see aiounify.timers.every()."""

    cdef int64_t distance
    cdef bint begun            # the first one may be any time away, the others may not

    def __init__(self, int64_t first_ns, int64_t interval_ns, int clock):
        self.due = first_ns
        self.distance = interval_ns
        self.clock_id = clock

    cpdef object take(self):
        cdef int64_t now = self.now(), missed, due
        cdef bint told
        if now < self.due:
            if self.begun and self.clock_id == CLOCK_REALTIME \
                    and self.due - now > self.distance:
                # the clock was set back: go on from here, on the same grid
                self.due -= (self.due - now - 1) // self.distance * self.distance
                self.was_set = True
            return empty
        missed = (now - self.due) // self.distance
        due = self.due + missed * self.distance
        self.due = due + self.distance
        self.begun = True
        told = self.was_set
        self.was_set = False
        return _Tick(due, now - due, missed, told)

    @property
    def interval_ns(self):
        return self.distance

    def __aiter__(self):
        return self

    def __anext__(self):
        return taking(self)

    def __repr__(self):
        return (f"<{type(self).__qualname__} interval={self.distance} clock={self.clock_id} "
                f"due={self.due}>")
