from cpython.object cimport PyObject
from libc.stdint cimport uint16_t, uint32_t

from aiounify._core.backlog cimport BacklogObject
from aiounify._core.reactor cimport SCRATCH, Reactor, Watched


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef enum:
    IOV = 64                 # chunks that go out by one system call
    BULK_MIN = 65536         # first size of a bulk read
    BULK_MAX = 262144        # asyncio's limit of one read
    SMALL_RUN = 16           # small reads in a row that end bulk mode
    LONG = SCRATCH // 4      # a read of this many bytes is a long one


cdef class Transport(Watched):
    cdef readonly object _loop
    cdef Reactor reactor
    cdef BacklogObject *q
    cdef object _protocol
    cdef object received        # the protocol's method that takes what comes
    cdef object context
    cdef dict extra
    cdef Py_ssize_t pending_size     # bytes queued and not taken by the kernel
    cdef Py_ssize_t high, low
    cdef uint32_t events        # the readiness the slot waits for
    cdef uint16_t conn_lost
    cdef uint32_t bulk          # size of the next bulk read; 0: small mode
    cdef uint16_t small_run     # small reads in a row while in bulk mode
    cdef bint keeps             # the protocol kept the last bulk chunk
    cdef bint closing
    cdef readonly bint _protocol_paused

    cdef int begin(self, loop, extra) except -1
    cdef int connection_made(self) except -1
    cdef int lost_now(self) except -1
    cdef Py_ssize_t read_some(self, char *data, Py_ssize_t size) noexcept
    cdef int received_none(self, Py_ssize_t result) except -1
    cdef int deliver(self, PyObject *data) except -1
    cdef int adapt(self, Py_ssize_t n, Py_ssize_t size) except -1
    cdef int receive(self) except -1
    cdef int receive_bulk(self) except -1
    cdef int count_lost_write(self, str warning) except -1
    cdef int set_limits(self, high, low) except -1
    cdef int maybe_pause_protocol(self) except -1
    cdef int maybe_resume_protocol(self) except -1
    cdef int flow(self, str name) except -1


cdef int gather(list chunks, Py_ssize_t offset, iovec *vec) noexcept
cdef Py_ssize_t taken(list chunks, Py_ssize_t offset, Py_ssize_t n) except -1
