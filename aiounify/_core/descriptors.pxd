from libc.stdint cimport uint32_t

from aiounify._core.reactor cimport Op
from aiounify._core.scheduler cimport Scheduler
from aiounify._core.sources cimport Source


cdef class PollOp(Op):
    cdef PollSource source


cdef class PollSource(Source):
    cdef int fd               # -1: closed
    cdef uint32_t events
    cdef Op op                # what waits, or None
    cdef Scheduler waits_in   # the loop `op` was given to
    cdef bint own             # the descriptor is the source's own
    cdef bint lingers         # nobody is armed, and `op` is still in flight
    cdef int error            # with which waiting failed, raised once

    cdef Op make_op(self)
    cdef int polled(self, Op op, int result) except -1
    cdef int give_up(self) except -1
    cdef int check(self) except -1
    cdef int descriptor(self) except -1
