from libc.stdint cimport int64_t

from aiounify._core.sources cimport Source


cdef class Deadline(Source):
    cdef int clock_id
    cdef int64_t due
    cdef object set_for        # the loop's timer, or what the clock of that loop was given
    cdef bint was_set          # the clock was set while it waited
    cdef int64_t now(self) noexcept
