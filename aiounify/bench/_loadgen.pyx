# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The load generator: N connections that each send a message and wait for its echo.

It must cost far less than any server it asks, or the benchmark would measure it instead: one epoll
instance, edge triggered, so that a request is one send, one recv and a share of one epoll_wait; no
Python object and no GIL within a window.

Rules:
* Depth is 1: a connection never has two requests under way.
* Every request that was begun is finished within the window's result: the window stops issuing at
  its deadline, waits for what is under way, and counts it.  Connections are then quiet, and the
  server's CPU time before and after belongs to exactly these requests.
* The length of every echo is verified, the content of the first one of each connection in each
  window.  TCP bytes of the others are dropped by the kernel (MSG_TRUNC), not copied.

A conversation is a `kind`:
  "stream"     TCP or unix stream, connections stay open
  "reconnect"  the same, with a new connection for each request
  "datagram"   UDP or unix datagram; what is lost is sent again and counted
The address decides the family: (host, port) is IPv4 or IPv6, (path,) a unix socket.
"""

from cpython.exc cimport PyErr_SetFromErrno
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close

import os
import socket

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct sockaddr_storage:
        pass
    int socket_ "socket"(int domain, int type, int protocol)
    int connect(int fd, const sockaddr *address, socklen_t length)
    int getpeername(int fd, sockaddr *address, socklen_t *length)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)
    int SOCK_STREAM, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_CLOEXEC, MSG_NOSIGNAL, MSG_TRUNC

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY

cdef extern from "<sys/epoll.h>" nogil:
    union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int count, int timeout)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD
    uint32_t EPOLLIN, EPOLLOUT, EPOLLET

cdef extern from *:
    """
    static inline int bench_log2(unsigned long long value)
    {
        return 63 - __builtin_clzll(value | 1);
    }
    """
    int bench_log2(uint64_t value) nogil

cdef enum:
    EVENTS = 512
    # Room for one recv; messages are shorter, so that too long an echo is seen.
    SCRATCH = 1 << 18
    # Latencies: 32 steps for each power of two, at most 3 % apart.
    STEPS = 32
    BUCKETS = 32 * 48
    # How long nothing may come back: a lost datagram, a dead server.
    RESEND_MS = 200
    SILENCE_MS = 5000

cdef enum:
    STREAM, RECONNECT, DATAGRAM

cdef struct Connection:
    int fd
    bint busy       # a request is under way
    bint verified   # the content of an echo was compared in this window
    size_t sent     # bytes of the request
    size_t got      # bytes of the echo
    int64_t began

cdef inline int64_t _now() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return <int64_t>at.tv_sec * 1_000_000_000 + at.tv_nsec


cdef inline int _bucket(int64_t ns) noexcept nogil:
    cdef uint64_t value = <uint64_t>ns if ns > 0 else 0
    cdef int shift
    if value < 2 * STEPS:
        return <int>value
    shift = bench_log2(value) - 5
    value = <uint64_t>shift * STEPS + (value >> shift)
    return <int>value if value < BUCKETS else BUCKETS - 1


cdef double _bucket_value(int bucket) noexcept:
    """The middle of a bucket, in seconds."""
    cdef int shift
    if bucket < 2 * STEPS:
        return bucket / 1e9
    shift = bucket // STEPS - 1
    return ((<uint64_t>(bucket - shift * STEPS) << shift) + (<uint64_t>1 << shift) / 2.0) / 1e9


cdef class Load:
    """Connections to one server."""

    cdef Connection *_all
    cdef int _count
    cdef int _kind
    cdef int _family
    cdef int _epoll
    cdef int _discard           # recv flags once the content was verified
    cdef size_t _size
    cdef char *_message
    cdef char *_scratch
    cdef sockaddr_storage _peer
    cdef socklen_t _peer_size
    # of the window that runs
    cdef int64_t _deadline
    cdef int64_t _last
    cdef int64_t _requests
    cdef int64_t _left          # requests that may still begin; -1: until the deadline
    cdef int64_t _resent
    cdef int _busy
    cdef const char *_wrong
    cdef uint32_t *_latency

    def __cinit__(self):
        self._epoll = -1

    def __init__(self, address, int connections, Py_ssize_t size, str kind="stream"):
        cdef int i
        if connections < 1 or size < 1:
            raise ValueError("at least one connection and one byte")
        if size >= SCRATCH:
            raise ValueError(f"messages are shorter than {SCRATCH} bytes")
        self._kind = {"stream": STREAM, "reconnect": RECONNECT, "datagram": DATAGRAM}[kind]
        self._size = size
        self._all = <Connection *>PyMem_Calloc(connections, sizeof(Connection))
        self._message = <char *>PyMem_Malloc(size)
        self._scratch = <char *>PyMem_Malloc(SCRATCH)
        self._latency = <uint32_t *>PyMem_Calloc(BUCKETS, sizeof(uint32_t))
        if not (self._all and self._message and self._scratch and self._latency):
            raise MemoryError()
        pattern = os.urandom(size)
        memcpy(self._message, <const char *>pattern, size)
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        if self._epoll < 0:
            PyErr_SetFromErrno(OSError)
        self._learn(address)
        self._count = 0
        for i in range(connections):
            self._all[i].fd = -1
            self._count += 1
            if self._kind != RECONNECT and self._connect(&self._all[i]) < 0:
                PyErr_SetFromErrno(OSError)

    def _learn(self, address):
        """Let Python resolve the address: the peer of a connected socket, in the kernel's form."""
        kind = socket.SOCK_DGRAM if self._kind == DATAGRAM else socket.SOCK_STREAM
        if len(address) == 1:
            family, where = socket.AF_UNIX, address[0]
        else:
            family, _, _, _, where = socket.getaddrinfo(address[0], address[1], type=kind)[0]
        self._peer_size = sizeof(self._peer)
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            self._family = probe.family
            if getpeername(probe.fileno(), <sockaddr *>&self._peer, &self._peer_size) < 0:
                PyErr_SetFromErrno(OSError)
        if self._kind != DATAGRAM and self._family != socket.AF_UNIX:
            self._discard = MSG_TRUNC

    def __dealloc__(self):
        self._close()
        PyMem_Free(self._all)
        PyMem_Free(self._message)
        PyMem_Free(self._scratch)
        PyMem_Free(self._latency)

    def close(self):
        """Close all connections."""
        self._close()

    cdef void _close(self) noexcept:
        cdef int i
        for i in range(self._count):
            if self._all[i].fd >= 0:
                close(self._all[i].fd)
        self._count = 0
        if self._epoll >= 0:
            close(self._epoll)
            self._epoll = -1

    def run(self, double seconds, int64_t requests=0):
        """Ask for so long, or so many requests; return what `client` puts into the measurement."""
        cdef int i, status
        cdef int64_t began
        if self._epoll < 0:
            raise ValueError("the connections are closed")
        memset(self._latency, 0, BUCKETS * sizeof(uint32_t))
        self._requests = self._resent = 0
        self._wrong = NULL
        self._busy = 0
        for i in range(self._count):
            self._all[i].verified = False
            self._all[i].busy = False
        began = self._last = _now()
        self._left = requests if requests > 0 else -1
        self._deadline = began + <int64_t>(seconds * 1e9)
        with nogil:
            status = self._window()
        if self._wrong != NULL:
            raise ValueError((<bytes>self._wrong).decode())
        if status < 0:
            PyErr_SetFromErrno(OSError)
        return {
            "ops": self._requests,
            "seconds": (self._last - began) / 1e9,
            "p50": self._percentile(0.50),
            "p99": self._percentile(0.99),
            "resent": self._resent,
        }

    cdef double _percentile(self, double share):
        cdef int64_t below = 0, wanted = <int64_t>(share * self._requests)
        cdef int bucket
        for bucket in range(BUCKETS):
            below += self._latency[bucket]
            if below > wanted:
                return _bucket_value(bucket)
        return _bucket_value(BUCKETS - 1)

    cdef int _window(self) noexcept nogil:
        cdef epoll_event events[EVENTS]
        cdef int i, n
        for i in range(self._count):
            if self._left != 0 and self._begin(&self._all[i], _now()) < 0:
                return -1
        while self._busy:
            n = epoll_wait(self._epoll, events, EVENTS, RESEND_MS)
            if n < 0 and errno != EINTR:
                return -1
            if n == 0 and self._silent() < 0:
                return -1
            for i in range(n):
                if self._pump(<Connection *>events[i].data.ptr) < 0:
                    return -1
        return 0

    cdef int _silent(self) noexcept nogil:
        """Nothing came for RESEND_MS."""
        cdef int i
        if _now() - self._last > SILENCE_MS * <int64_t>1_000_000:
            self._wrong = b"no answer for 5 seconds"
            return -1
        if self._kind == DATAGRAM:
            for i in range(self._count):
                if self._all[i].busy:
                    self._resent += 1
                    self._all[i].sent = 0
                    if self._push(&self._all[i]) < 0:
                        return -1
        return 0

    cdef int _connect(self, Connection *connection) noexcept nogil:
        """Connect without waiting, and watch both directions, edge triggered, once and for all."""
        cdef epoll_event event
        cdef int one = 1, kind = SOCK_DGRAM if self._kind == DATAGRAM else SOCK_STREAM
        connection.fd = socket_(self._family, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        if connection.fd < 0:
            return -1
        if self._discard:
            setsockopt(connection.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        if connect(connection.fd, <sockaddr *>&self._peer, self._peer_size) < 0:
            if errno != EINPROGRESS:
                return -1
        memset(&event, 0, sizeof(event))
        event.events = EPOLLIN | EPOLLOUT | EPOLLET
        event.data.ptr = connection
        return epoll_ctl(self._epoll, EPOLL_CTL_ADD, connection.fd, &event)

    cdef int _begin(self, Connection *connection, int64_t now) noexcept nogil:
        """Begin a request."""
        connection.sent = connection.got = 0
        connection.began = now
        connection.busy = True
        self._busy += 1
        if self._left > 0:
            self._left -= 1
        if connection.fd < 0 and self._connect(connection) < 0:
            return -1
        return self._push(connection)

    cdef int _push(self, Connection *connection) noexcept nogil:
        """Send what is left of the request, as far as the socket takes it."""
        cdef ssize_t n
        while connection.sent < self._size:
            n = send(
                connection.fd,
                self._message + connection.sent,
                self._size - connection.sent,
                MSG_NOSIGNAL,
            )
            if n < 0:
                # EAGAIN also while the connection is being made.
                return 0 if errno == EAGAIN else -1
            connection.sent += n
        return 0

    cdef int _pump(self, Connection *connection) noexcept nogil:
        """A socket became readable or writable."""
        cdef ssize_t n
        cdef size_t wanted
        if not connection.busy:
            # The edge of the connection's first writability, or an end that the next send sees.
            return 0
        if connection.sent < self._size and self._push(connection) < 0:
            return -1
        # One recv: a short read means that the socket is empty, and the next bytes make a new edge.
        # One byte more than is due, so that too long an echo does not pass for the next one.
        wanted = self._size - connection.got + 1
        n = recv(connection.fd, self._scratch, wanted, self._discard if connection.verified else 0)
        if n < 0:
            return 0 if errno == EAGAIN else -1
        if n == 0 and self._kind != DATAGRAM:
            self._wrong = b"the server closed the connection in the middle of a request"
            return -1
        if connection.got + n > self._size or (self._kind == DATAGRAM and <size_t>n != self._size):
            self._wrong = b"an echo has not the length of its request"
            return -1
        if not connection.verified:
            if memcmp(self._scratch, self._message + connection.got, n) != 0:
                self._wrong = b"an echo differs from its request"
                return -1
        connection.got += n
        return self._finish(connection) if connection.got == self._size else 0

    cdef int _finish(self, Connection *connection) noexcept nogil:
        """An echo is complete: count it, and ask again unless the window is over."""
        cdef int64_t now = _now()
        connection.verified = True
        connection.busy = False
        self._busy -= 1
        self._requests += 1
        self._last = now
        self._latency[_bucket(now - connection.began)] += 1
        if self._kind == RECONNECT:
            close(connection.fd)
            connection.fd = -1
        if self._left > 0 or (self._left < 0 and now < self._deadline):
            return self._begin(connection, now)
        return 0
