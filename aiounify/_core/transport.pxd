from libc.stdint cimport uint16_t, uint32_t

from aiounify._core.backlog cimport BacklogObject
from aiounify._core.reactor cimport Reactor, Watched


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef enum:
    IOV = 64                 # chunks that go out by one system call
    BULK_MIN = 65536         # first size of a bulk read
    BULK_MAX = 262144        # asyncio's limit of one read
    SMALL_RUN = 16           # small reads in a row that end bulk mode


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
    cdef bint closing
    cdef readonly bint _protocol_paused

    cdef int begin(self, loop, extra) except -1
    cdef int connection_made(self) except -1
    cdef int lost_now(self) except -1
    cdef int count_lost_write(self, str warning) except -1
    cdef int set_limits(self, high, low) except -1
    cdef int maybe_pause_protocol(self) except -1
    cdef int maybe_resume_protocol(self) except -1
    cdef int flow(self, str name) except -1


cdef int gather(list chunks, Py_ssize_t offset, iovec *vec) noexcept
cdef Py_ssize_t taken(list chunks, Py_ssize_t offset, Py_ssize_t n) except -1
