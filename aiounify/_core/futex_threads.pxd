from libc.stdint cimport uint32_t, uint64_t

from aiounify._core.futex_wait cimport FutexWait, Home
from aiounify._core.reactor cimport Reactor, Watched


cdef extern from "futex_thread.h" nogil:
    struct ft:
        unsigned threads


cdef class ThreadWaits(Watched):
    cdef Home home
    cdef Reactor reactor
    cdef bint has_waitv
    cdef int event_fd         # -1 before the first wait
    cdef ft threads
    cdef uint64_t last_id
    cdef dict by_id           # id -> FutexWait
    cdef int pid

    cdef int add(self, FutexWait op) except -1
    cdef int open(self) except -1
    cdef bint pass_to(self, uint32_t *word, uint32_t mask) except -1
    cdef int leave(self, FutexWait op) except -1
    cdef int end(self, FutexWait op) except -1
    cdef int close(self) except -1
