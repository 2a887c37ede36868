from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from aiounify._core.reactor cimport Op


cdef extern from *:
    """
    #include <sys/uio.h>
    """
    ctypedef struct Buffer "Py_buffer":
        void *buf
        PyObject *obj
        Py_ssize_t len
    struct iovec:
        void *iov_base
        size_t iov_len


cdef class FileOp(Op):
    cdef object waiter           # the future of whoever awaits it, or None
    cdef object keep             # what the addresses point into
    cdef PyObject *out           # the bytes object that is read into, or NULL
    cdef Buffer view          # view.obj: exported until the operation has ended
    cdef iovec *vectors
    cdef list views              # of the vectors
    cdef public bint direct      # of O_DIRECT
    cdef bint opens           # the result is a descriptor, and ours until it is taken
    cdef readonly bint polled    # not a regular file: may wait for ever

    cdef int release(self) except -1
    cdef int part_ended(self) except -1


cdef class ChainPart(FileOp):
    cdef FileOp owner            # the operation of the chain that is awaited


cdef int set_writev(FileOp op, buffers, int64_t skip, size_t most) except -1
