from libc.stdint cimport uint16_t, uint32_t

from aiounify._core.address cimport socklen_t
from aiounify._core.backlog cimport BacklogObject
from aiounify._core.reactor cimport Reactor, Watched


cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_NOSIGNAL
        MSG_DONTWAIT
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SHUT_WR
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen


cdef class SocketTransport(Watched):
    cdef readonly object _loop
    cdef Reactor reactor
    cdef BacklogObject *q
    cdef readonly int _sock_fd
    cdef object sock            # the socket object, once there is one
    cdef object _protocol
    cdef object received        # the protocol's method that takes what comes
    cdef object context
    cdef dict extra
    cdef readonly object _server
    cdef Py_ssize_t pending_size     # bytes queued and not taken by the kernel
    cdef Py_ssize_t high, low
    cdef uint32_t events        # the readiness the slot waits for
    cdef uint16_t conn_lost
    cdef int family, kind
    cdef bint closing, protocol_connected, started
    cdef bint receiving         # a receive is in the ring
    cdef bint sending           # a send is in the ring
    cdef bint lent              # sendfile has the descriptor
    cdef bint fd_closed
    cdef bint lost_called       # connection_lost was called; the descriptor waits for the ring
    cdef readonly bint _protocol_paused

    cdef int open(self, loop, int fd, sock, protocol, extra, server) except -1
    cdef int connection_made(self) except -1
    cdef int remember_sockname(self) except -1
    cdef int wait_for(self, uint32_t events) except -1
    cdef int start_reading(self) except -1
    cdef int stop_reading(self) except -1
    cdef int drop_pending(self) except -1
    cdef int close_socket(self) except -1
    cdef int lost_now(self) except -1
    cdef int count_lost_write(self) except -1
    cdef int maybe_pause_protocol(self) except -1
    cdef int maybe_resume_protocol(self) except -1
    cdef int flow(self, str name) except -1
