from libc.stdint cimport int64_t, uint64_t

from aiounify._core.reactor cimport Op


cdef enum:
    CHUNK = 1_048_576          # bytes given to one system call
    TURN_NS = 500_000        # after so long the loop has its turn

cdef enum:
    # what a step comes back with
    STEP_DONE = 0            # the end of the file, or of what was asked for, or an error
    STEP_BLOCKED = 1         # the other side takes nothing now
    STEP_COLD = 2            # the next bytes of the file are not in memory
    STEP_TURN = 3            # it goes on, but others are to run first


cdef class Source:
    cdef int fd
    cdef bint owned          # the descriptor is a duplicate that goes with this object
    cdef int probing
    cdef int64_t warm_until  # up to here the file was just read
    cdef readonly int64_t offset
    cdef uint64_t syscalls   # made and not counted by a loop yet

    cdef int let_go(self) noexcept
    cdef int own(self) except -1
    cdef int64_t within(self, int64_t size) noexcept
    cdef bint cold(self, int64_t size) noexcept


cdef class Transfer(Source):
    cdef int64_t left        # -1: to the end of the file
    cdef readonly uint64_t sent
    cdef readonly int error  # errno with which it ended, or 0

    cdef int go(self, int out) except -1


cdef class ReadAhead(Op):
    cdef readonly int64_t end


cdef int duplicate(int fd) except -1
