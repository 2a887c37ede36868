from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from aiounify._core.reactor cimport Reactor


cdef class Sleeper:
    """What sleeps in epoll_wait's place, for things an epoll set cannot hold."""
    cdef bint sleeps(self) noexcept      # whether it does, the next time
    cdef int sleep(self) except -1       # sleep; True if the set may have something
    cdef int look(self) except -1        # a turn that does not sleep
    cdef int renewed(self) except -1     # the set is another one now


cdef struct unsent:
    PyObject *stream     # kept by its slot
    char *data           # kept by the stream
    Py_ssize_t size
    int fd


cdef class EpollReactor(Reactor):
    cdef int timer_fd
    cdef int64_t timer_ns        # what the timerfd is armed for; NEVER: not armed
    cdef unsigned turns_unbroken
    cdef int64_t seen_ns
    cdef unsent *sends           # for the end of this turn
    cdef Py_ssize_t n_sends, room
    cdef Sleeper sleeper         # or None
    cdef int take(self, int timeout) except -1
    cdef int sleep_elsewhere(self) except -1
    cdef int set_timer(self, int64_t deadline) except -1
