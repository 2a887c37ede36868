from libc.stdint cimport int64_t

from aiounify._core.file_calls cimport Guarded


cdef class BinaryBase(Guarded):
    cdef public int fd
    cdef public int64_t position     # behind the read buffer; -1 never: see regular
    cdef public Py_ssize_t chunk     # how much the buffer is filled by
    cdef public bint regular         # seekable, read and written at `position`
    cdef public bint can_read, can_write
    cdef public bint raw             # no buffer at all
    cdef public bint shut            # closing or closed
    cdef public bint dirty           # data to be written is waiting
    cdef public int nowait
    cdef public int busy             # positional operations in flight
    cdef char *data
    cdef Py_ssize_t room, at, end

    cdef object cut(self, Py_ssize_t n)
    cdef int make_room(self, Py_ssize_t more) except -1
    cdef ssize_t fill(self) except? -2
    cdef object try_read(self, object wanted)
    cdef object try_rest(self)
    cdef object try_pread(self, object wanted, object where)
    cdef object try_line(self)
    cdef object try_readline(self, object limit)
    cdef object try_next(self)
