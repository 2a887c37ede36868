from libc.stdint cimport uint32_t

from aiounify._core.sources cimport Source


cdef class Changes(Source):
    cdef object queue
    cdef uint32_t mask          # what is told
    cdef bint begun
    cdef bint touched           # told something since _fire() was called last
    cdef bint ended
    cdef object error
    cdef readonly object reason
    cdef readonly list skipped

    cdef int begin(self, uint32_t mask) except -1
    cpdef object _end(self, reason)
    cpdef object _pull(self)
    cdef int tell(self, uint32_t bit, str path, str old, bint is_dir, bint found) except -1
    cdef int touch(self) except -1
    cdef int fail(self, object error) except -1
