from libc.stdint cimport uint8_t, uint32_t

from aiounify._core.address cimport socklen_t
from aiounify._core.transport cimport Transport, iovec


cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_NOSIGNAL
        MSG_DONTWAIT
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SHUT_WR
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen


cdef class SocketTransport(Transport):
    cdef readonly int _sock_fd
    cdef object sock            # the socket object, once there is one
    cdef readonly object _server
    cdef object local           # "sockname", if all that one server accepts have the same
    cdef char[28] peer          # "peername" as the kernel gave it: no longer than sockaddr_in6
    cdef uint8_t peer_length
    cdef int family, kind, proto
    cdef bint protocol_connected, started
    cdef bint receiving         # a receive is in the ring
    cdef bint sending           # a send is in the ring
    cdef bint lent              # sendfile has the descriptor
    cdef bint fd_closed
    cdef bint lost_called       # connection_lost was called; the descriptor waits for the ring
    cdef dict __dict__          # programs may add attributes and replace methods, as in asyncio

    cdef int open(self, loop, int fd, sock, protocol, extra, server) except -1
    cdef dict facts(self)
    cdef int remember_sockname(self) except -1
    cdef int wait_for(self, uint32_t events) except -1
    cdef int start_reading(self) except -1
    cdef int stop_reading(self) except -1
    cdef int drop_pending(self) except -1
    cdef int close_socket(self) except -1
