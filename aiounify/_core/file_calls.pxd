from cpython.object cimport PyObject

cimport cython

from aiounify._core.file_service cimport FileService


cdef object MISS             # the answer of who cannot answer at once

cdef enum:
    READ
    READLINE
    NEXT
    PREAD
    TEXT_LINE
    TEXT_NEXT
    WHOLE
    STAT


cdef class Answers:
    cdef object at_once(self, FileCall call)
    cdef object awaited(self, FileCall call)


@cython.final
cdef class FileCall:
    cdef object __weakref__
    cdef int kind
    cdef char state
    cdef bint flag
    cdef FileService service
    cdef Answers target
    cdef object a, b, inner

    cdef int step(self, object value, PyObject **result) except -1


cdef FileCall call_new(int kind, FileService service, Answers target, object a, object b,
                       bint flag)


cdef class Guarded(Answers):
    cdef readonly bint held
    cdef object queue        # a deque of futures, or None
    cdef public FileService service
