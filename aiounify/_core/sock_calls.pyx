# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""loop.sock_recv() and its kin: sockets that the program keeps in its own hands.

Why it exists: asyncio's run in Python for each packet, and enter and leave the selector
for each wait.  `SocketCalls` stands between the scheduler and asyncio in the loop's bases
and has the same methods.  Each returns a call (call.h): a coroutine that tries at once and,
where the kernel answers EAGAIN, yields a wait (wait.h) and tries again.

Whatever is not a socket.socket of the families IPv4, IPv6 and unix, or overrides one of
the methods that are not called here, is served by asyncio's own coroutine.

Readiness:

* At each descriptor that was waited for stands an `Endpoint`.  Its registration in the
  epoll set is edge-triggered and stays between calls, so a wait makes no system call.  After
  some events in a row for which nobody waited it is taken out, until the next wait.
* A wait follows an EAGAIN seen while the registration was in place, or makes it, which tells
  the present state.  So no edge is missed.
* A TCP socket that gave less than was asked for is empty.  The next sock_recv() then waits
  without trying in vain, unless the end of the stream, an error or urgent data was reported:
  these end a read early as well, and come with an edge of their own.  After large reads it
  tries, for more is on its way then.  Unix sockets end reads at the bounds of messages that
  carry descriptors, so they are always tried.
* While add_reader() or add_writer() watch the same descriptor the registration is
  level-triggered and holds what is awaited at that moment.

Rules:

* Nothing is received before the task that gets it runs: a call that is cancelled while it
  waits has consumed nothing.
* Several calls may wait at one descriptor; each is woken and tries.
* No call blocks, whatever the socket's timeout is.
* An endpoint holds its socket by a weak reference, and is used for that very socket object
  as long as it has that descriptor.  A number that was closed and used again gets a new
  endpoint; what still waits at the old one fails with EBADF.
* The slot in the reactor owns the endpoint, the endpoint owns the waits, and these the
  tasks: as asyncio's handles do.  A call owns its socket.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport uint16_t, uint32_t
from posix.unistd cimport close as c_close

import asyncio
import errno as errors
import os
import socket
from asyncio import format_helpers

cimport cython

from aiounify._core.address cimport (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    address_of,
    parse_address,
    sockaddr,
    sockaddr_storage,
    socklen_t,
)
from aiounify._core.backlog cimport STATE_DEBUG, STATE_FORKED, FdSlot
from aiounify._core.reactor cimport (
    EAGAIN,
    EDGE,
    EINTR,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLPRI,
    EPOLLRDHUP,
    SCRATCH,
    Reactor,
    Watched,
    errno,
)
from aiounify._core.scheduler cimport Scheduler
from aiounify._core.socket_transport cimport (
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
)


cdef extern from "<sys/socket.h>" nogil:
    enum:
        SOCK_STREAM
        SOL_SOCKET
        SO_ERROR
    ssize_t recv(int fd, void *buf, size_t n, int flags)
    ssize_t recvfrom(int fd, void *buf, size_t n, int flags, sockaddr *name, socklen_t *length)
    ssize_t send(int fd, const void *buf, size_t n, int flags)
    ssize_t sendto(int fd, const void *buf, size_t n, int flags, const sockaddr *to,
                   socklen_t length)
    int accept4(int fd, sockaddr *addr, socklen_t *n, int flags)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *n)

cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_TCP

cdef extern from "<errno.h>" nogil:
    enum:
        EALREADY
        EINPROGRESS

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll" (pollfd *fds, unsigned long n, int timeout)

cdef extern from "sock_object.h":
    enum:
        SOCK_FD
        SOCK_FAMILY
        SOCK_TYPE
        SOCK_PROTO
    bint sock_readable
    int sock_get(PyObject *sock, int what) except -2
    int sock_probe(PyObject *sock) except -1

cdef extern from "wait.h":
    ctypedef struct WaitObject:
        char state
    enum:
        WAIT_PENDING
        WAIT_DONE
    PyTypeObject *Wait_Type
    PyObject *wait_cancelled_error
    PyObject *wait_describe
    int wait_init(PyObject *over) except -1
    int (*wait_schedule)(PyObject *, PyObject *, PyObject *, PyObject *) except -1
    WaitObject *wait_new(PyObject *loop) except NULL
    int wait_finish(WaitObject *w, char state) except -1

cdef extern from "call.h":
    ctypedef struct CallObject
    ctypedef struct CallKind:
        const char *name
        int (*attempt)(CallObject *, PyObject **) except -1
    ctypedef struct Py_buffer_t "Py_buffer":
        void *buf
        PyObject *obj
        Py_ssize_t len
    ctypedef struct CallObject:
        const CallKind *kind
        PyObject *loop
        PyObject *sock
        PyObject *what
        PyObject *more
        PyObject *wait
        PyObject *endpoint
        PyObject *origin
        Py_buffer_t view
        const char *at
        Py_ssize_t left
        uint32_t awaits
        int fd
        char begun
    PyTypeObject *Call_Type
    int (*call_begin)(CallObject *) except -1
    PyObject *(*call_suspend)(CallObject *) except NULL
    void (*call_withdraw)(CallObject *) noexcept
    PyObject *call_unawaited
    CallObject *call_new(const CallKind *kind, PyObject *loop, PyObject *sock, PyObject *what,
                         PyObject *more) except NULL
    int call_init() except -1

cdef extern from *:
    """
    /* Whether a weak reference is one to this object, which is alive. */
    static inline int weak_is(PyObject *ref, PyObject *object)
    {
        return ((PyWeakReference *)ref)->wr_object == object;
    }

    /* What it refers to, borrowed; NULL if that is gone.  PyWeakref_GetRef() costs ten times
     * as much, and the functions before it are deprecated from 3.13 on. */
    static inline PyObject *weak_get(PyObject *ref)
    {
        PyObject *found = ((PyWeakReference *)ref)->wr_object;
        return found == Py_None || Py_REFCNT(found) == 0 ? NULL : found;
    }
    """
    bint weak_is(PyObject *ref, PyObject *object)
    PyObject *weak_get(PyObject *ref)

cdef extern from "Python.h":
    object PyWeakref_NewRef(object, PyObject *)
    object PyNumber_Index(object)
    Py_ssize_t PyLong_AsSsize_t(object) except? -1
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    PyObject *bytes_new "PyBytes_FromStringAndSize" (const char *, Py_ssize_t) except NULL
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    int get_buffer "PyObject_GetBuffer" (PyObject *, Py_buffer_t *, int) except -1
    void release_buffer "PyBuffer_Release" (Py_buffer_t *)
    int PySys_Audit(const char *, const char *, ...) except -1
    void Py_INCREF(PyObject *)
    void Py_DECREF(PyObject *)
    void Py_XDECREF(PyObject *)

cdef enum:
    BULK_MIN = 65536         # first size of a bulk receive
    BULK_MAX = 262144
    BULK_FROM = 16384        # a read of this size begins it
    SMALL_RUN = 16           # reads below it, in a row, that end it
    IDLE_EVENTS = 4          # events in a row that nobody waited for
    # what ends a wait for data; the last two are reported while it lasts
    READ = EPOLLIN | EPOLLRDHUP | EPOLLPRI

cdef object _Socket = socket.socket
cdef object _describe = format_helpers._format_callback_source

# The methods of a socket for which there are system calls here; a class that has its own is
# asyncio's to serve.
cdef tuple _METHODS = (
    "accept", "connect", "fileno", "gettimeout", "recv", "recv_into", "recvfrom",
    "recvfrom_into", "send", "sendto", "family", "type", "proto",
)


cdef class Endpoint(Watched):
    """What waits at one descriptor, and what is known of its readiness."""

    cdef object sock            # a weak reference
    cdef int fd
    cdef Reactor reactor
    cdef object reader, writer  # waits, or None
    cdef list more              # the others, which are rare: (wait, READ or EPOLLOUT)
    cdef bint empty             # nothing to read at the last look, and no edge since
    cdef bint eager             # something was reported that ends reads early: always try
    cdef unsigned idle          # events in a row that nobody waited for
    cdef uint32_t bulk          # size of the next bulk receive; 0: small reads
    cdef uint16_t small_run

    cdef bint valid(self) noexcept:
        cdef PyObject *sock = weak_get(<PyObject *>self.sock)
        return sock != NULL and sock_fd(sock) == self.fd

    cdef int ready(self, uint32_t events) except -1:
        cdef uint32_t over = 0
        if events & (READ | EPOLLHUP | EPOLLERR):
            self.empty = False
            over = READ
            if events & (EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                self.eager = True
        if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
            over |= EPOLLOUT
        if self.wake(over):
            self.idle = 0
            self.reactor.calls_leave(self.fd, over)
            return 0
        self.idle += 1
        if self.idle >= IDLE_EVENTS:
            self.idle = 0
            self.reactor.calls_rest(self.fd)
        return 0

    cdef int add(self, object wait, uint32_t events) except -1:
        if self.more is None:
            if events == READ and self.reader is None:
                self.reader = wait
                return 0
            if events != READ and self.writer is None:
                self.writer = wait
                return 0
            self.more = []
        self.more.append((wait, events))
        return 0

    cdef bint remove(self, object wait, uint32_t events) except -1:
        """True if it stood here and nothing else waits for these events."""
        cdef bint others = False, found = True
        if self.reader is wait:
            self.reader = None
        elif self.writer is wait:
            self.writer = None
        else:
            found = False
        if self.more is not None:
            for other, awaits in self.more:
                if other is wait:
                    found = True
                elif awaits == events:
                    others = True
            self.keep([each for each in self.more if each[0] is not wait])
        return found and not others and (
            self.reader if events == READ else self.writer) is None

    cdef int keep(self, list more) except -1:
        self.more = more or None
        return 0

    cdef bint wake(self, uint32_t events) except -1:
        """End the waits for these; False if there is none."""
        cdef object wait
        cdef list more
        cdef bint woken = False
        if events & READ and self.reader is not None:
            wait, self.reader = self.reader, None
            wait_finish(<WaitObject *><PyObject *>wait, WAIT_DONE)
            woken = True
        if events & EPOLLOUT and self.writer is not None:
            wait, self.writer = self.writer, None
            wait_finish(<WaitObject *><PyObject *>wait, WAIT_DONE)
            woken = True
        if self.more is not None:
            more = self.more
            self.keep([each for each in more if not each[1] & events])
            for wait, awaits in more:
                if awaits & events:
                    wait_finish(<WaitObject *><PyObject *>wait, WAIT_DONE)
                    woken = True
        return woken

    cdef int displaced(self) except -1:
        """They try again, and find out why: closed, or used by a transport."""
        self.wake(READ | EPOLLOUT)
        return 0


cdef inline int sock_fd(PyObject *sock) noexcept:
    """Its descriptor; -1 if it has none (any more)."""
    if sock_readable:
        return sock_get(sock, SOCK_FD)
    try:
        return sock_get(sock, SOCK_FD)
    except Exception:
        return -1


cdef inline PyObject *endpoint_at(Reactor reactor, int fd, PyObject *sock) noexcept:
    """The endpoint of this socket object, or NULL."""
    cdef PyObject *found
    if fd < 0 or fd >= reactor.q.n_slots:
        return NULL
    found = reactor.q.slots[fd].calls
    if found == NULL or not weak_is(<PyObject *>(<Endpoint>found).sock, sock):
        return NULL
    return found


cdef Endpoint endpoint_for(Reactor reactor, int fd, object sock):
    """The endpoint of this socket object; a new one if there is none."""
    cdef Endpoint endpoint
    cdef PyObject *found = endpoint_at(reactor, fd, <PyObject *>sock)
    if found != NULL:
        return <Endpoint>found
    if fd >= 0 and fd < reactor.q.n_slots:
        found = reactor.q.slots[fd].calls
        if found != NULL and (<Endpoint>found).valid():
            # Two objects for one descriptor.  The registration is checked whenever the
            # other one waits.
            endpoint = <Endpoint>found
            endpoint.sock = PyWeakref_NewRef(sock, NULL)
            endpoint.empty = False
            endpoint.reactor.calls_rest(fd)
            return endpoint
    endpoint = Endpoint.__new__(Endpoint)
    endpoint.sock = PyWeakref_NewRef(sock, NULL)
    endpoint.fd = fd
    endpoint.reactor = reactor
    reactor.calls_open(fd, endpoint)
    return endpoint


# -- the steps of every call -------------------------------------------------------

cdef int begin(CallObject *c) except -1:
    """Before the first attempt: asyncio's checks."""
    cdef SocketCalls loop = <SocketCalls>c.loop
    if loop.q.state & STATE_FORKED:
        loop._check_forked()
    if loop.q.state & STATE_DEBUG and (<object>c.sock).gettimeout() != 0:
        raise ValueError("the socket must be non-blocking")
    return 0


cdef PyObject *suspend(CallObject *c) except NULL:
    """A wait for what the attempt said it awaits."""
    cdef SocketCalls loop = <SocketCalls>c.loop
    cdef Reactor reactor = loop.reactor
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef PyObject *found = endpoint_at(reactor, fd, c.sock)
    cdef Endpoint endpoint
    cdef FdSlot *slot
    cdef PyObject *wait
    if loop.q.state:
        loop._check_closed()
    if fd < 0:
        raise OSError(errors.EBADF, os.strerror(errors.EBADF))
    if found == NULL or reactor.q.slots[fd].stream != NULL or not reactor.q.slots[fd].armed & EDGE:
        # not known to be ours alone
        loop._ensure_fd_no_transport(fd)
        endpoint = endpoint_for(reactor, fd, <object>c.sock)
    else:
        endpoint = <Endpoint>found
    wait = <PyObject *>wait_new(c.loop)
    try:
        reactor.calls_wait(fd, c.awaits, c.kind == &CONNECT)
        endpoint.add(<object>wait, c.awaits)
    except BaseException:
        Py_DECREF(wait)
        raise
    c.fd = fd
    c.endpoint = <PyObject *>endpoint
    Py_INCREF(c.endpoint)
    c.wait = wait
    Py_INCREF(wait)
    return wait


cdef void withdraw(CallObject *c) noexcept:
    """It waits no longer; the registration stays."""
    cdef Endpoint endpoint = <Endpoint>c.endpoint
    cdef PyObject *wait = c.wait
    c.wait = c.endpoint = NULL
    Py_DECREF(<PyObject *>endpoint)
    # a wait that was woken stands nowhere any more
    if (<WaitObject *>wait).state != WAIT_DONE and endpoint.remove(<object>wait, c.awaits) \
            and endpoint.reactor.q.slots[c.fd].calls == <PyObject *>endpoint:
        endpoint.reactor.calls_leave(c.fd, c.awaits)
    Py_DECREF(wait)


cdef inline int blocked(CallObject *c, uint32_t events) except -1:
    """After a system call failed: 0 if the call has to wait, else the error is raised."""
    if errno == EAGAIN:
        c.awaits = events
        return 0
    if errno == EINTR:
        PyErr_CheckSignals()
        return 1
    PyErr_SetFromErrno(OSError)
    return -1


cdef inline Py_ssize_t count_of(object value) except? -1:
    """An argument that the socket module takes as a number of bytes."""
    return PyLong_AsSsize_t(value if type(value) is int else PyNumber_Index(value))


cdef inline object taken(PyObject *raw):
    """The reference that `raw` is becomes the result."""
    cdef object result = <object>raw
    Py_DECREF(raw)
    return result


cdef inline int give(PyObject **result, object value) except -1:
    Py_INCREF(<PyObject *>value)
    result[0] = <PyObject *>value
    return 1


# -- receiving -----------------------------------------------------------------------

cdef int attempt_recv(CallObject *c, PyObject **result) except -1:
    cdef Reactor reactor = (<SocketCalls>c.loop).reactor
    cdef Py_ssize_t limit = count_of(<object>c.what), size, n
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef PyObject *found = endpoint_at(reactor, fd, c.sock)
    cdef PyObject *raw
    cdef Endpoint endpoint = None
    cdef bint stream = sock_get(c.sock, SOCK_TYPE) == SOCK_STREAM
    if limit < 0:
        raise ValueError("negative buffersize in recv")
    if limit == 0:
        return give(result, b"")
    if found != NULL:
        endpoint = <Endpoint>found
        if endpoint.empty:
            c.awaits = READ
            return 0
    if stream:
        if limit > BULK_FROM and endpoint is not None and endpoint.bulk:
            size = min(limit, <Py_ssize_t>endpoint.bulk)
            return receive_bulk(c, endpoint, fd, size, result)
    elif limit > SCRATCH and sock_get(c.sock, SOCK_FAMILY) == AF_UNIX:
        # a message may be that long, and what is not taken is lost
        return receive_bulk(c, None, fd, limit, result)
    size = min(limit, <Py_ssize_t>SCRATCH)  # no IP datagram is longer
    while True:
        reactor.n_syscalls += 1
        n = recv(fd, reactor.scratch, size, MSG_DONTWAIT)
        if n >= 0:
            break
        if not blocked(c, READ):
            return 0
    result[0] = bytes_new(reactor.scratch, n)
    if stream and n:
        if n < BULK_FROM:
            if endpoint is not None:
                endpoint.empty = n < size and is_drained(endpoint, c.sock)
        elif limit > BULK_FROM:
            if endpoint is None:
                endpoint = endpoint_for(reactor, fd, <object>c.sock)
            endpoint.bulk = BULK_MIN
            endpoint.small_run = 0
    return 1


cdef inline bint is_drained(Endpoint endpoint, PyObject *sock) noexcept:
    """After a read that gave less than was asked for: nothing is left, and what comes is
    told by an edge."""
    cdef FdSlot *slot = &endpoint.reactor.q.slots[endpoint.fd]
    cdef int family, protocol
    if endpoint.eager or not slot.armed & EDGE or slot.call_events & READ != READ:
        return False
    if not sock_readable:
        return False
    family = sock_get(sock, SOCK_FAMILY)
    protocol = sock_get(sock, SOCK_PROTO)
    return (family == AF_INET or family == AF_INET6) and (
        protocol == 0 or protocol == IPPROTO_TCP)


cdef int receive_bulk(CallObject *c, Endpoint endpoint, int fd, Py_ssize_t size,
                      PyObject **result) except -1:
    """Receive into a fresh bytes object, which is cut to what came."""
    cdef Reactor reactor = (<SocketCalls>c.loop).reactor
    cdef PyObject *raw = bytes_new(NULL, size)
    cdef Py_ssize_t n
    cdef int error
    while True:
        reactor.n_syscalls += 1
        n = recv(fd, bytes_data(raw), size, MSG_DONTWAIT)
        if n >= 0:
            break
        try:
            if not blocked(c, READ):
                Py_DECREF(raw)
                return 0
        except BaseException:
            Py_DECREF(raw)
            raise
    if n != size:
        _PyBytes_Resize(&raw, n)
    result[0] = raw
    if endpoint is not None:
        if n < BULK_FROM:
            endpoint.small_run += 1
            if endpoint.small_run >= SMALL_RUN:
                endpoint.bulk = 0
        else:
            endpoint.small_run = 0
            if n == size and endpoint.bulk < BULK_MAX:
                endpoint.bulk *= 2
    return 1


cdef int attempt_recv_into(CallObject *c, PyObject **result) except -1:
    cdef Reactor reactor = (<SocketCalls>c.loop).reactor
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef PyObject *found = endpoint_at(reactor, fd, c.sock)
    cdef Py_buffer_t view
    cdef Py_ssize_t n
    if found != NULL and (<Endpoint>found).empty:
        c.awaits = READ
        return 0
    if not writable(c, &view):
        (<object>c.sock).recv_into(<object>c.what)  # raises, with the socket module's words
        raise TypeError("a read-write bytes-like object is required")
    try:
        if view.len == 0:
            return give(result, 0)
        while True:
            reactor.n_syscalls += 1
            n = recv(fd, view.buf, view.len, MSG_DONTWAIT)
            if n >= 0:
                break
            if not blocked(c, READ):
                return 0
        if found != NULL and 0 < n < BULK_FROM and n < view.len:
            (<Endpoint>found).empty = (
                sock_get(c.sock, SOCK_TYPE) == SOCK_STREAM and is_drained(<Endpoint>found, c.sock)
            )
        return give(result, n)
    finally:
        release_buffer(&view)


cdef bint writable(CallObject *c, Py_buffer_t *view):
    """Export the caller's buffer for one attempt; False if it cannot be written to."""
    try:
        get_buffer(c.what, view, PyBUF_WRITABLE)
    except Exception:
        return False
    return True


cdef int attempt_recvfrom(CallObject *c, PyObject **result) except -1:
    cdef Reactor reactor = (<SocketCalls>c.loop).reactor
    cdef Py_ssize_t limit = count_of(<object>c.what), n
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef sockaddr_storage name
    cdef socklen_t length
    cdef char *into = reactor.scratch
    cdef PyObject *raw = NULL
    cdef object data
    if limit < 0:
        raise ValueError("negative buffersize in recvfrom")
    if limit > SCRATCH:
        if sock_get(c.sock, SOCK_FAMILY) == AF_UNIX and \
                sock_get(c.sock, SOCK_TYPE) != SOCK_STREAM:
            raw = bytes_new(NULL, limit)
            into = bytes_data(raw)
        else:
            limit = SCRATCH
    try:
        while True:
            length = sizeof(name)
            reactor.n_syscalls += 1
            n = recvfrom(fd, into, limit, MSG_DONTWAIT, <sockaddr *>&name, &length)
            if n >= 0:
                break
            if not blocked(c, READ):
                return 0
        if raw == NULL:
            data = PyBytes_FromStringAndSize(into, n)
        else:
            _PyBytes_Resize(&raw, n)
            data = <object>raw
        return give(result, (data, address_of(&name, length)))
    finally:
        Py_XDECREF(raw)


cdef int attempt_recvfrom_into(CallObject *c, PyObject **result) except -1:
    cdef Reactor reactor = (<SocketCalls>c.loop).reactor
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef sockaddr_storage name
    cdef socklen_t length
    cdef Py_buffer_t view
    cdef Py_ssize_t n, limit = -1
    if not <object>c.more:
        limit = len(<object>c.what)
    elif type(<object>c.more) is int:
        limit = count_of(<object>c.more)
    if limit < 0 or not writable(c, &view):
        # raises, with the socket module's words
        (<object>c.sock).recvfrom_into(<object>c.what, <object>c.more)
        raise TypeError("a read-write bytes-like object is required")
    try:
        if limit > view.len:
            raise ValueError("nbytes is greater than the length of the buffer")
        if limit == 0:
            limit = view.len
        while True:
            length = sizeof(name)
            reactor.n_syscalls += 1
            n = recvfrom(fd, view.buf, limit, MSG_DONTWAIT, <sockaddr *>&name, &length)
            if n >= 0:
                break
            if not blocked(c, READ):
                return 0
        return give(result, (n, address_of(&name, length)))
    finally:
        release_buffer(&view)


cdef int attempt_accept(CallObject *c, PyObject **result) except -1:
    cdef Reactor reactor = (<SocketCalls>c.loop).reactor
    cdef int fd = sock_get(c.sock, SOCK_FD), accepted
    cdef sockaddr_storage name
    cdef socklen_t length
    cdef pollfd p
    if (<object>c.sock).gettimeout() != 0:
        # accept4() has no flag against blocking
        p.fd = fd
        p.events = POLLIN
        if c_poll(&p, 1, 0) == 0:
            c.awaits = READ
            return 0
    while True:
        length = sizeof(name)
        reactor.n_syscalls += 1
        accepted = accept4(fd, <sockaddr *>&name, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if accepted >= 0:
            break
        if not blocked(c, READ):
            return 0
    try:
        # the flag spares the system call by which setblocking(False) would say it again
        sock = _Socket(
            sock_get(c.sock, SOCK_FAMILY),
            sock_get(c.sock, SOCK_TYPE) | SOCK_NONBLOCK,
            sock_get(c.sock, SOCK_PROTO),
            accepted,
        )
    except BaseException:
        c_close(accepted)
        raise
    return give(result, (sock, address_of(&name, length)))


# -- sending -------------------------------------------------------------------------

cdef int attempt_sendall(CallObject *c, PyObject **result) except -1:
    cdef Reactor reactor = (<SocketCalls>c.loop).reactor
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef Py_ssize_t n
    if not c.begun:
        c.begun = True
        if type(<object>c.what) is bytes:
            c.at = PyBytes_AS_STRING(<bytes>c.what)
            c.left = PyBytes_GET_SIZE(<bytes>c.what)
        else:
            get_buffer(c.what, &c.view, PyBUF_SIMPLE)
            c.at = <const char *>c.view.buf
            c.left = c.view.len
    while True:
        reactor.n_syscalls += 1
        n = send(fd, c.at, c.left, MSG_DONTWAIT | MSG_NOSIGNAL)
        if n < 0:
            if not blocked(c, EPOLLOUT):
                return 0
            continue
        c.at += n
        c.left -= n
        if c.left == 0:
            return give(result, None)


cdef int attempt_sendto(CallObject *c, PyObject **result) except -1:
    cdef Reactor reactor = (<SocketCalls>c.loop).reactor
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef sockaddr_storage name
    cdef socklen_t length = 0
    cdef Py_buffer_t view
    cdef Py_ssize_t n
    if not parse_address(sock_get(c.sock, SOCK_FAMILY), <object>c.more, &name, &length):
        return send_by_socket(c, result)
    get_buffer(c.what, &view, PyBUF_SIMPLE)
    try:
        PySys_Audit("socket.sendto", "OO", c.sock, c.more)
        while True:
            reactor.n_syscalls += 1
            n = sendto(fd, view.buf, view.len, MSG_DONTWAIT | MSG_NOSIGNAL, <sockaddr *>&name,
                       length)
            if n >= 0:
                return give(result, n)
            if not blocked(c, EPOLLOUT):
                return 0
    finally:
        release_buffer(&view)


cdef int send_by_socket(CallObject *c, PyObject **result) except -1:
    """Names are looked up by the socket module, in the loop's thread, as in asyncio."""
    try:
        sent = (<object>c.sock).sendto(<object>c.what, MSG_DONTWAIT, <object>c.more)
    except BlockingIOError:
        c.awaits = EPOLLOUT
        return 0
    return give(result, sent)


cdef int attempt_connected(CallObject *c, PyObject **result) except -1:
    """connect() was called and goes on: wait first, then ask what became of it."""
    cdef int error = 0
    cdef socklen_t n = sizeof(error)
    if c.begun:
        (<SocketCalls>c.loop).reactor.n_syscalls += 1
        if getsockopt(sock_get(c.sock, SOCK_FD), SOL_SOCKET, SO_ERROR, &error, &n) < 0:
            error = errno
        if error == 0:
            return give(result, None)
        if error != EAGAIN and error != EINPROGRESS and error != EALREADY and error != EINTR:
            raise OSError(error, f"Connect call failed {<object>c.what}")
    c.begun = True
    c.awaits = EPOLLOUT
    return 0


# -- the methods of the loop --------------------------------------------------------------

cdef CallKind RECV, RECV_INTO, RECVFROM, RECVFROM_INTO, SENDALL, SENDTO, ACCEPT, CONNECT
RECV = CallKind(b"sock_recv", attempt_recv)
RECV_INTO = CallKind(b"sock_recv_into", attempt_recv_into)
RECVFROM = CallKind(b"sock_recvfrom", attempt_recvfrom)
RECVFROM_INTO = CallKind(b"sock_recvfrom_into", attempt_recvfrom_into)
SENDALL = CallKind(b"sock_sendall", attempt_sendall)
SENDTO = CallKind(b"sock_sendto", attempt_sendto)
ACCEPT = CallKind(b"sock_accept", attempt_accept)
CONNECT = CallKind(b"sock_connect", attempt_connected)


cdef inline bint is_native(object sock) except -1:
    """True for what is served here."""
    cdef int family
    if type(sock) is not _Socket and not is_plain(sock):
        return False
    family = sock_get(<PyObject *>sock, SOCK_FAMILY)
    return family == AF_INET or family == AF_INET6 or family == AF_UNIX


cdef bint is_plain(object sock) except -1:
    """A socket of a class that changes nothing of what is done here; ssl.SSLSocket does."""
    kind = type(sock)
    if not issubclass(kind, _Socket):
        return False
    for name in _METHODS:
        if getattr(kind, name) is not getattr(_Socket, name):
            return False
    return True


cdef inline object call(CallKind *kind, SocketCalls loop, object sock, object what,
                        PyObject *more):
    cdef PyObject *made = <PyObject *>call_new(
        kind, <PyObject *>loop, <PyObject *>sock, <PyObject *>what, more
    )
    if loop.q.state & STATE_DEBUG:
        origin = _origin()
        if origin is not None:
            Py_INCREF(<PyObject *>origin)
            (<CallObject *>made).origin = <PyObject *>origin
    return taken(made)


@cython.no_gc_clear  # as its base
cdef class SocketCalls(Scheduler):
    """Second native base of the event loop; see the module's docstring."""

    def sock_recv(self, sock, n):
        """Receive at most `n` bytes; b"" at the end of the stream.

        Cancelling it consumes nothing.  Errors of the socket are raised as OSError.
        """
        if not is_native(sock):
            return super().sock_recv(sock, n)
        return call(&RECV, self, sock, n, NULL)

    def sock_recv_into(self, sock, buf):
        """Receive into a writable buffer, as much as it holds; returns the number of bytes.

        Cancelling it consumes nothing.  The buffer is not held while it waits.
        """
        if not is_native(sock):
            return super().sock_recv_into(sock, buf)
        return call(&RECV_INTO, self, sock, buf, NULL)

    def sock_recvfrom(self, sock, bufsize):
        """Receive a datagram of at most `bufsize` bytes: (bytes, address).

        What is longer is cut.  Cancelling it consumes nothing.
        """
        if not is_native(sock):
            return super().sock_recvfrom(sock, bufsize)
        return call(&RECVFROM, self, sock, bufsize, NULL)

    def sock_recvfrom_into(self, sock, buf, nbytes=0):
        """Receive a datagram into a writable buffer: (number of bytes, address).

        At most `nbytes`, or as much as the buffer holds if that is 0.  Cancelling it
        consumes nothing.
        """
        if not is_native(sock):
            return super().sock_recvfrom_into(sock, buf, nbytes)
        return call(&RECVFROM_INTO, self, sock, buf, <PyObject *>nbytes)

    def sock_sendall(self, sock, data):
        """Send all of `data`, a bytes-like object, which must not change meanwhile.

        Returns None when the kernel has taken all of it.  After an error, or when it is
        cancelled, nothing tells how much was taken.
        """
        if not is_native(sock):
            return super().sock_sendall(sock, data)
        return call(&SENDALL, self, sock, data, NULL)

    def sock_sendto(self, sock, data, address):
        """Send a datagram to `address`; returns the number of bytes sent.

        Cancelling it while it waits for room sends nothing.
        """
        if not is_native(sock):
            return super().sock_sendto(sock, data, address)
        return call(&SENDTO, self, sock, data, <PyObject *>address)

    def sock_accept(self, sock):
        """Accept a connection: (a new non-blocking socket, the peer's address).

        Cancelling it accepts nothing.
        """
        if not is_native(sock):
            return super().sock_accept(sock)
        return call(&ACCEPT, self, sock, None, NULL)

    def _sock_connected(self, sock, address):
        """Await what becomes of sock.connect(address), which could not end at once."""
        return call(&CONNECT, self, sock, address, NULL)


def is_native_socket(sock):
    """True if the socket's calls are served natively, False if by asyncio's coroutines."""
    return is_native(sock)


cdef int schedule(PyObject *loop, PyObject *callback, PyObject *wait,
                  PyObject *context) except -1:
    return (<SocketCalls>loop).schedule(callback, wait, context)


def _probe():
    """Whether socket objects hold their numbers where they are believed to."""
    global sock_readable
    sock_readable = True
    try:
        for arguments in ((socket.AF_UNIX, socket.SOCK_STREAM),
                          (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP)):
            sock = _Socket(*arguments)
            try:
                sock_probe(<PyObject *>sock)
            finally:
                sock.close()
            sock_probe(<PyObject *>sock)
    except OSError:
        sock_readable = False  # no socket can be made now


class _NoLoop:
    """What the future that is always done has in place of a loop."""

    def get_debug(self):
        return False


def _install():
    global wait_schedule, wait_cancelled_error, wait_describe
    global call_begin, call_suspend, call_withdraw
    wait_schedule = schedule
    wait_cancelled_error = <PyObject *>asyncio.CancelledError
    wait_describe = <PyObject *>_describe
    call_begin = begin
    call_suspend = suspend
    call_withdraw = withdraw
    over = asyncio.Future(loop=_NoLoop())
    over.set_result(None)
    wait_init(<PyObject *>over)
    call_init()
    _probe()


_install()
Call = <object><PyObject *>Call_Type
Wait = <object><PyObject *>Wait_Type
cdef object _origin


def configure(origin, unawaited):
    """What is Python's, once: see aiounify/_debug.py.

    origin() returns where a call is made, as cr_origin, or None; unawaited(name, origin)
    warns of one that was never awaited.
    """
    global _origin, call_unawaited
    _origin = origin
    Py_INCREF(<PyObject *>unawaited)
    call_unawaited = <PyObject *>unawaited
