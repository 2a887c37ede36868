from libc.stdint cimport uint32_t

from aiounify._core.reactor cimport Op
from aiounify._core.sources cimport Source


cdef class PollOp(Op):
    cdef PollSource source


cdef class PollSource(Source):
    cdef int fd               # -1: closed
    cdef uint32_t events
    cdef Op op                # what waits, or NULL
    cdef int error            # with which waiting failed, raised once

    cdef Op make_op(self)
    cdef int polled(self, Op op, int result) except -1
    cdef int check(self) except -1
    cdef int descriptor(self) except -1
