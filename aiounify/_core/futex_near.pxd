from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from aiounify._core.epoll cimport EpollReactor, Sleeper
from aiounify._core.futex_threads cimport ThreadWaits
from aiounify._core.futex_wait cimport FutexWait


cdef extern from "futex_near.h" nogil:
    struct near:
        pass


cdef class NearWords(Sleeper):
    cdef ThreadWaits threads  # who waits for what is not near
    cdef EpollReactor reactor
    cdef near watch
    cdef bint on, watched, always
    cdef list ops
    cdef int score, warm, needed
    cdef uint64_t waits
    cdef unsigned long thread
    cdef int pid
    cdef PyObject *next       # of near_loops, which own nothing

    cdef int told(self) except -1
    cdef int begin(self) except -1
    cdef int cease(self) except -1
    cdef int add(self, FutexWait op) except -1
    cdef int finish(self, Py_ssize_t i, int result) except -1
    cdef bint pass_to(self, uint32_t *word) except -1
    cdef int forget(self) noexcept
    cdef int end(self) noexcept
