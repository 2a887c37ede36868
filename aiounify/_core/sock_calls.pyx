# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""loop.sock_recv() and its kin: sockets that the program keeps in its own hands.

Why it exists: asyncio's run in Python for each packet.  `SocketCalls` stands between the
scheduler and asyncio in the loop's bases and has the same methods.  Each returns a call
(call.h), a coroutine to whoever looks.  It tries at once; where the kernel answers EAGAIN it
waits at the socket's endpoint (endpoint.pyx) and tries again.

Rules:

* Nothing is received, accepted or sent before the task that awaits it runs: a call that is
  cancelled while it waits has consumed nothing.
* No call blocks, whatever the socket's timeout is.
* Small reads go through the reactor's scratch buffer into a bytes object of their size.  A
  large one makes the socket's endpoint remember a size, in which the next is received
  directly and cut; the caller's limit is never allocated for a stream.
* What is not a socket.socket of the families IPv4, IPv6 and unix, or overrides a method for
  which there is a system call here, is served by asyncio's own coroutines.
* A call owns its socket and what it was given.  Data to be sent stays exported to the end,
  a buffer to receive into only while the kernel writes to it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport uint32_t
from posix.unistd cimport close as c_close

import socket

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
from aiounify._core.backlog cimport STATE_DEBUG, STATE_FORKED, BacklogObject
from aiounify._core.call cimport (
    Buffer,
    Call_Type,
    CallKind,
    CallObject,
    call_begin,
    call_init,
    call_new,
    call_suspend,
    call_unawaited,
    call_withdraw,
)
from aiounify._core.endpoint cimport (
    READ,
    Endpoint,
    endpoint_at,
    endpoint_for,
    endpoint_leave,
    endpoint_wait,
)
from aiounify._core.reactor cimport EAGAIN, EINTR, EPOLLOUT, SCRATCH, errno
from aiounify._core.scheduler cimport Scheduler
from aiounify._core.sendfile cimport STEP_BLOCKED, Transfer
from aiounify._core.sock_object cimport (
    SOCK_FAMILY,
    SOCK_FD,
    SOCK_PROTO,
    SOCK_STREAM,
    SOCK_TYPE,
    sock_get,
    sock_verify,
)
from aiounify._core.socket_transport cimport (
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
)


cdef extern from "<sys/socket.h>" nogil:
    enum:
        SOL_SOCKET
        SO_ERROR
    ssize_t recv(int fd, void *buf, size_t n, int flags)
    ssize_t recvfrom(int fd, void *buf, size_t n, int flags, sockaddr *name, socklen_t *length)
    ssize_t send(int fd, const void *buf, size_t n, int flags)
    ssize_t sendto(int fd, const void *buf, size_t n, int flags, const sockaddr *to,
                   socklen_t length)
    int accept4(int fd, sockaddr *addr, socklen_t *n, int flags)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *n)

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

cdef extern from "Python.h":
    object PyNumber_Index(object)
    Py_ssize_t PyLong_AsSsize_t(object) except? -1
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    PyObject *bytes_new "PyBytes_FromStringAndSize" (const char *, Py_ssize_t) except NULL
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    int get_buffer "PyObject_GetBuffer" (PyObject *, Buffer *, int) except -1
    void release_buffer "PyBuffer_Release" (Buffer *)
    int PySys_Audit(const char *, const char *, ...) except -1
    void Py_INCREF(PyObject *)
    void Py_DECREF(PyObject *)
    void Py_XDECREF(PyObject *)

cdef enum:
    BULK_MIN = 65536         # first size of a bulk receive
    BULK_MAX = 262144
    BULK_FROM = 16384        # a read of this size begins it
    SMALL_RUN = 16           # reads below it, in a row, that end it

cdef object _Socket = socket.socket

# The methods of a socket for which there are system calls here, and the attributes that are
# read from its memory; a class that has its own is asyncio's to serve.
cdef tuple _ATTRIBUTES = (
    "accept", "connect", "family", "fileno", "gettimeout", "proto", "recv", "recv_into",
    "recvfrom", "recvfrom_into", "send", "sendto", "type",
)


# -- the steps of every call -------------------------------------------------------

cdef int begin(CallObject *c) except -1:
    """Before the first attempt: asyncio's checks."""
    cdef uint32_t state = (<SocketCalls>c.loop).q.state
    if state & STATE_FORKED:
        (<object>c.loop)._check_forked()
    if state & STATE_DEBUG and (<object>c.sock).gettimeout() != 0:
        raise ValueError("the socket must be non-blocking")
    return 0


cdef PyObject *suspend(CallObject *c) except NULL:
    """A wait for what the attempt said it awaits."""
    # The first attempt of sock_connect() is none, so nothing says that the socket was not
    # ready.  A unix datagram that its receiver has no room for leaves the sender's socket
    # writable, unless the two are connected.
    cdef bint again = c.kind == &CONNECT or c.awaits == EPOLLOUT and is_unix_message(c.sock)
    c.wait = endpoint_wait(<SocketCalls>c.loop, c.sock, c.awaits, again, &c.endpoint)
    Py_INCREF(c.wait)
    return c.wait


cdef int withdraw(CallObject *c) except -1:
    cdef PyObject *endpoint = c.endpoint
    cdef PyObject *wait = c.wait
    c.endpoint = c.wait = NULL
    return endpoint_leave(endpoint, wait, c.awaits)


cdef inline int blocked(CallObject *c, uint32_t events) except -1:
    """After a system call failed: 0 if the call has to wait, 1 if it is to be made again;
    else the error is raised."""
    if errno == EAGAIN:
        c.awaits = events
        return 0
    if errno == EINTR:
        PyErr_CheckSignals()
        return 1
    PyErr_SetFromErrno(OSError)
    return -1


cdef inline int count_system_call(CallObject *c) noexcept:
    (<SocketCalls>c.loop).reactor.n_syscalls += 1
    return 0


cdef inline Py_ssize_t size_of(PyObject *value) except? -1:
    """An argument that the socket module takes as a number of bytes."""
    if type(<object>value) is int:
        return PyLong_AsSsize_t(<object>value)
    return PyLong_AsSsize_t(PyNumber_Index(<object>value))


cdef inline int give(PyObject **result, object value) except -1:
    Py_INCREF(<PyObject *>value)
    result[0] = <PyObject *>value
    return 1


# -- receiving -----------------------------------------------------------------------

cdef int attempt_recv(CallObject *c, PyObject **result) except -1:
    cdef Py_ssize_t size = size_of(c.what), limit = size, n
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef PyObject *found = endpoint_at((<SocketCalls>c.loop).q, fd, c.sock)
    cdef char *scratch = (<SocketCalls>c.loop).reactor.scratch
    if limit <= 0:
        if limit < 0:
            raise ValueError("negative buffersize in recv")
        return give(result, b"")
    if found != NULL:
        if (<Endpoint>found).empty:
            c.awaits = READ
            return 0
        if (<Endpoint>found).bulk and limit > BULK_FROM:
            return receive_bulk(c, fd, min(limit, <Py_ssize_t>(<Endpoint>found).bulk), found,
                                result)
    if limit > SCRATCH:
        if is_unix_message(c.sock):
            return receive_bulk(c, fd, limit, NULL, result)
        size = SCRATCH
    while True:
        count_system_call(c)
        n = recv(fd, scratch, size, MSG_DONTWAIT)
        if n >= 0:
            break
        if not blocked(c, READ):
            return 0
    result[0] = bytes_new(scratch, n)
    if n < BULK_FROM:
        if found != NULL and 0 < n < size:
            (<Endpoint>found).drained(c.sock)
    elif limit > BULK_FROM and sock_get(c.sock, SOCK_TYPE) == SOCK_STREAM:
        remember_bulk(c, fd)
    return 1


cdef bint is_unix_message(PyObject *sock) except -1:
    """Messages that may be longer than the scratch buffer: no IP datagram is."""
    return sock_get(sock, SOCK_TYPE) != SOCK_STREAM and sock_get(sock, SOCK_FAMILY) == AF_UNIX


cdef int remember_bulk(CallObject *c, int fd) except -1:
    cdef Endpoint endpoint = endpoint_for((<SocketCalls>c.loop).reactor, fd, <object>c.sock)
    endpoint.bulk = BULK_MIN
    endpoint.small_run = 0
    return 0


cdef int receive_bulk(CallObject *c, int fd, Py_ssize_t size, PyObject *found,
                      PyObject **result) except -1:
    """Receive into a fresh bytes object, which is cut to what came."""
    cdef PyObject *raw = bytes_new(NULL, size)
    cdef Endpoint endpoint
    cdef Py_ssize_t n
    try:
        while True:
            count_system_call(c)
            n = recv(fd, bytes_data(raw), size, MSG_DONTWAIT)
            if n >= 0:
                break
            if not blocked(c, READ):
                return 0
        if n != size:
            _PyBytes_Resize(&raw, n)
        result[0] = raw
        raw = NULL
    finally:
        Py_XDECREF(raw)
    if found == NULL:
        return 1
    endpoint = <Endpoint>found
    if n >= BULK_FROM:
        endpoint.small_run = 0
        if n == size and endpoint.bulk < BULK_MAX:
            endpoint.bulk *= 2
    else:
        endpoint.small_run += 1
        if endpoint.small_run >= SMALL_RUN:
            endpoint.bulk = 0
    return 1


cdef bint writable(CallObject *c, Buffer *view) except -1:
    """Export the caller's buffer for one attempt; False if it cannot be written to."""
    try:
        get_buffer(c.what, view, PyBUF_WRITABLE)
    except (BufferError, TypeError):
        return False
    return True


cdef int attempt_recv_into(CallObject *c, PyObject **result) except -1:
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef PyObject *found = endpoint_at((<SocketCalls>c.loop).q, fd, c.sock)
    cdef Buffer view
    cdef Py_ssize_t n
    if found != NULL and (<Endpoint>found).empty:
        c.awaits = READ
        return 0
    if not writable(c, &view):
        (<object>c.sock).recv_into(<object>c.what)  # for its words
        raise BufferError("the buffer cannot be written to")
    try:
        if view.len == 0:
            return give(result, 0)
        while True:
            count_system_call(c)
            n = recv(fd, view.buf, view.len, MSG_DONTWAIT)
            if n >= 0:
                break
            if not blocked(c, READ):
                return 0
        if found != NULL and 0 < n < BULK_FROM and n < view.len:
            (<Endpoint>found).drained(c.sock)
        return give(result, n)
    finally:
        release_buffer(&view)


cdef int attempt_recvfrom(CallObject *c, PyObject **result) except -1:
    cdef Py_ssize_t limit = size_of(c.what), n
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef char *into = (<SocketCalls>c.loop).reactor.scratch
    cdef sockaddr_storage name
    cdef socklen_t length
    cdef PyObject *raw = NULL
    cdef object data
    if limit < 0:
        raise ValueError("negative buffersize in recvfrom")
    if limit > SCRATCH:
        if is_unix_message(c.sock):
            raw = bytes_new(NULL, limit)
            into = bytes_data(raw)
        else:
            limit = SCRATCH
    try:
        while True:
            length = sizeof(name)
            count_system_call(c)
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
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef sockaddr_storage name
    cdef socklen_t length
    cdef Buffer view
    cdef Py_ssize_t n, limit
    # zero means all of it, as in asyncio
    limit = size_of(c.more) if <object>c.more else len(<object>c.what)
    if limit < 0:
        raise ValueError("negative buffersize in recvfrom_into")
    if not writable(c, &view):
        (<object>c.sock).recvfrom_into(<object>c.what, limit)  # for its words
        raise BufferError("the buffer cannot be written to")
    try:
        if limit > view.len:
            raise ValueError("nbytes is greater than the length of the buffer")
        while True:
            length = sizeof(name)
            count_system_call(c)
            n = recvfrom(fd, view.buf, limit or view.len, MSG_DONTWAIT, <sockaddr *>&name,
                         &length)
            if n >= 0:
                break
            if not blocked(c, READ):
                return 0
        return give(result, (n, address_of(&name, length)))
    finally:
        release_buffer(&view)


cdef int attempt_accept(CallObject *c, PyObject **result) except -1:
    cdef int fd = sock_get(c.sock, SOCK_FD), accepted
    cdef sockaddr_storage name
    cdef socklen_t length
    cdef pollfd p
    if (<object>c.sock).gettimeout() != 0:
        # accept4() has no flag against blocking
        p.fd = fd
        p.events = POLLIN
        count_system_call(c)
        if c_poll(&p, 1, 0) == 0:
            c.awaits = READ
            return 0
    while True:
        length = sizeof(name)
        count_system_call(c)
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
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef Py_ssize_t n
    if not c.begun:
        if type(<object>c.what) is bytes:
            c.at = PyBytes_AS_STRING(<object>c.what)
            c.left = PyBytes_GET_SIZE(<object>c.what)
        else:
            get_buffer(c.what, &c.view, PyBUF_SIMPLE)
            c.at = <const char *>c.view.buf
            c.left = c.view.len
        c.begun = True
    while True:
        count_system_call(c)
        n = send(fd, c.at, c.left, MSG_DONTWAIT | MSG_NOSIGNAL)
        if n >= 0:
            c.at += n
            c.left -= n
            if c.left == 0:
                return give(result, None)
        elif not blocked(c, EPOLLOUT):
            return 0


cdef int attempt_sendto(CallObject *c, PyObject **result) except -1:
    cdef int fd = sock_get(c.sock, SOCK_FD)
    cdef sockaddr_storage name
    cdef socklen_t length = 0
    cdef Buffer view
    cdef Py_ssize_t n
    if not parse_address(sock_get(c.sock, SOCK_FAMILY), <object>c.more, &name, &length):
        return send_by_socket(c, result)
    get_buffer(c.what, &view, PyBUF_SIMPLE)
    try:
        PySys_Audit(b"socket.sendto", b"OO", c.sock, c.more)
        while True:
            count_system_call(c)
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
    count_system_call(c)
    try:
        sent = (<object>c.sock).sendto(<object>c.what, MSG_DONTWAIT, <object>c.more)
    except BlockingIOError:
        c.awaits = EPOLLOUT
        return 0
    return give(result, sent)


cdef int attempt_sendfile(CallObject *c, PyObject **result) except -1:
    """Step by step, as long as it is the socket that has to be waited for."""
    cdef Transfer transfer = <Transfer>c.what
    cdef int state = transfer.go(sock_get(c.sock, SOCK_FD))
    (<SocketCalls>c.loop).reactor.n_syscalls += transfer.syscalls
    transfer.syscalls = 0
    if state == STEP_BLOCKED:
        c.awaits = EPOLLOUT
        return 0
    return give(result, state)


cdef int attempt_connected(CallObject *c, PyObject **result) except -1:
    """connect() was called and goes on: wait first, then ask what became of it."""
    cdef int error = 0
    cdef socklen_t n = sizeof(error)
    if c.begun:
        count_system_call(c)
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

cdef CallKind RECV = CallKind(b"sock_recv", attempt_recv)
cdef CallKind RECV_INTO = CallKind(b"sock_recv_into", attempt_recv_into)
cdef CallKind RECVFROM = CallKind(b"sock_recvfrom", attempt_recvfrom)
cdef CallKind RECVFROM_INTO = CallKind(b"sock_recvfrom_into", attempt_recvfrom_into)
cdef CallKind SENDALL = CallKind(b"sock_sendall", attempt_sendall)
cdef CallKind SENDTO = CallKind(b"sock_sendto", attempt_sendto)
cdef CallKind ACCEPT = CallKind(b"sock_accept", attempt_accept)
cdef CallKind SENDFILE = CallKind(b"sock_sendfile", attempt_sendfile)
cdef CallKind CONNECT = CallKind(b"sock_connect", attempt_connected)


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
    own = getattr(sock, "__dict__", ())
    for name in _ATTRIBUTES:
        if name in own or getattr(kind, name) is not getattr(_Socket, name):
            return False
    return True


cdef inline object call(CallKind *kind, SocketCalls loop, object sock, object what,
                        PyObject *more):
    cdef PyObject *made = <PyObject *>call_new(
        kind, <PyObject *>loop, <PyObject *>sock, <PyObject *>what, more
    )
    cdef object result = <object>made
    Py_DECREF(made)
    if loop.q.state & STATE_DEBUG:
        origin = _origin()
        if origin is not None:
            Py_INCREF(<PyObject *>origin)
            (<CallObject *>made).origin = <PyObject *>origin
    return result


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

    def _sendfile(self, sock, Transfer transfer):
        """Go on with sending a file, until anything but the socket has to be waited for.

        Returns what stopped it; see sendfile.pyx.  The socket must not be a blocking one.
        """
        return call(&SENDFILE, self, sock, transfer, NULL)

    def _sock_connected(self, sock, address):
        """Await what becomes of sock.connect(address), which could not end at once."""
        return call(&CONNECT, self, sock, address, NULL)


def is_native_socket(sock):
    """True if the socket's calls are served natively, False if by asyncio's coroutines."""
    return is_native(sock)


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


def _install():
    global call_begin, call_suspend, call_withdraw
    call_begin = begin
    call_suspend = suspend
    call_withdraw = withdraw
    call_init()
    sock_verify(<PyObject *>_Socket)


_install()
Call = <object><PyObject *>Call_Type
