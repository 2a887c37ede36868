from libc.stdint cimport uint32_t


cdef class Word:
    cdef Py_buffer view
    cdef bint viewed
    cdef Py_ssize_t pins      # waits that need the memory
    cdef uint32_t *word       # NULL once it is released
    cdef readonly Py_ssize_t offset
    cdef object __weakref__

    cdef int let_go(self) except -1
    cdef uint32_t *at(self) except NULL


# wakes up to n waits of this thread's loops that are not in the kernel; how many
ctypedef int (*awake)(uint32_t *word, int n) except -1
cdef void wake_also(awake loops) noexcept
