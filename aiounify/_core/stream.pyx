# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The stream transport: TCP and unix stream sockets, native per packet.

Why it exists: under a protocol the transport runs for every packet, and asyncio's
does it in Python.  This one has the same contract (states, messages, exceptions and
their order are asyncio's) and calls recv, send and the protocol from C.

How it receives: small messages are brought by one multishot receive of the ring, into
buffers that all connections share; a message is copied to a bytes object of its size and
its buffer given back before the protocol is called.  On the epoll backend the
descriptor's readiness comes straight from the reactor, with no handle in between, and
the scratch buffer of the reactor takes the place of the shared ones.  A message that
fills a shared buffer switches the connection to bulk on both: readiness, and a receive
into a fresh bytes object of the size seen lately, which is cut to what came.  After a
run of small reads it goes back.

How it sends: at once if nothing is queued, as asyncio does; on the ring, while more of
the same turn is still to be handled, together with the others by the next submission, at
most 100 us later.  What the socket does not take is queued; bytes are kept by reference,
anything mutable is copied, so changing a bytearray after write() changes nothing.  The queue goes out by sendmsg when the socket
is writable.

Rules of lifetime:

* Those of socket_transport.pyx.
* pause_reading() stops delivery at once.  The readiness registration is left until
  something arrives, so a protocol that pauses and resumes makes no system call.
* The ring reads from the bytes object `in_flight` and writes to the shared buffers; a
  send in flight keeps its object, also after abort().
* A received message that nobody holds when the protocol returns, or when it is sent, is
  received into again: see spare_bytes.h.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close as c_close

import asyncio
import os
import socket
from asyncio import constants, futures
from asyncio.log import logger

from aiounify._core.address cimport (
    AF_UNIX,
    address_of,
    sockaddr,
    sockaddr_storage,
    socklen_t,
)
from aiounify._core.backlog cimport STATE_DEBUG, STATE_FORKED
from aiounify._core.reactor cimport (
    EAGAIN,
    ECANCELED,
    EINTR,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    SCRATCH,
    Reactor,
    bytes_reuse,
    errno,
    raise_pending,
    spare_give,
    spare_take,
)
from aiounify._core.socket_transport cimport (
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SHUT_WR,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SocketTransport,
    msghdr,
)
from aiounify._core.transport cimport (
    BULK_MAX,
    BULK_MIN,
    IOV,
    SMALL_RUN,
    gather,
    iovec,
    taken,
)

cdef extern from "<errno.h>" nogil:
    enum:
        ECONNABORTED
        EMFILE
        ENOTCONN
        ENFILE
        ENOBUFS
        ENOMEM

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buf, size_t n, int flags)
    ssize_t send(int fd, const void *buf, size_t n, int flags)
    ssize_t sendmsg(int fd, const msghdr *msg, int flags)
    int shutdown(int fd, int how)
    int accept4(int fd, sockaddr *addr, socklen_t *n, int flags)

cdef extern from "Python.h":
    int PyContext_Enter(PyObject *) except -1
    int PyContext_Exit(PyObject *) except -1
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    void Py_DECREF(PyObject *)
    void Py_INCREF(PyObject *)
    Py_ssize_t Py_REFCNT(PyObject *)
    int get_view "PyObject_GetBuffer" (PyObject *, Py_buffer *, int)
    void clear_error "PyErr_Clear" ()
    void set_error "PyErr_SetString" (PyObject *, const char *)
    bint PyByteArray_Check(object)
    bint PyMemoryView_Check(object)
    Py_ssize_t PyList_GET_SIZE(object)
    PyObject *PyList_GET_ITEM(object, Py_ssize_t)
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    Py_ssize_t bytes_size "PyBytes_GET_SIZE" (PyObject *)

cdef extern from *:
    """
    /* m(argument), without the detour through the bound method's own call */
    static inline PyObject *call_bound(PyObject *m, PyObject *argument)
    {
        if (PyMethod_Check(m)) {
            PyObject *args[3] = {NULL, PyMethod_GET_SELF(m), argument};
            return PyObject_Vectorcall(PyMethod_GET_FUNCTION(m), args + 1,
                                       2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        }
        return PyObject_CallOneArg(m, argument);
    }
    """
    PyObject *call_bound(object m, PyObject *argument)  # NULL: an exception is set

cdef enum:
    RING_BUFFER = 16384      # size of the ring's shared buffers
    BURSTS = 8               # single writes in a row after which they are sent at once again
    BATCH_MAX = 8192         # longer sends gain nothing from being submitted together

cdef object _Buffered = asyncio.BufferedProtocol
cdef object _set_result = futures._set_result_unless_cancelled


cdef object _NO_HINT = -1
cdef object _TRY_NATIVE = constants._SendfileMode.TRY_NATIVE


cdef class StreamTransport(SocketTransport):
    """A connected stream socket under a protocol; an asyncio.Transport to isinstance()."""

    cdef bytes in_flight        # what the reactor sends from; in front of `pending`
    cdef Py_ssize_t place       # of the send in the reactor ...
    cdef uint64_t submission    # ... until its next submission
    cdef uint64_t written_in    # the turn of the last write that was sent at once
    cdef int bursts             # above 0: writes come several in a turn
    cdef list pending           # bytes objects not sent yet
    cdef Py_ssize_t pending_offset   # into the first of them
    cdef object empty_waiter
    cdef uint32_t bulk          # size of the next bulk receive; 0: small mode
    cdef uint16_t small_run
    cdef object get_buffer      # the method of a BufferedProtocol
    cdef bint buffered, paused, eof, read_eof
    cdef bint stopping          # the receive in the ring was asked to end
    cdef bint by_readiness      # bulk, or a reactor that has nothing else
    cdef bint keeps             # the protocol kept the last bulk chunk
    cdef list stash             # received while it must not be delivered
    cdef bint stash_scheduled, stash_eof
    cdef int stash_error
    cdef public object _sendfile_compatible

    def __cinit__(self):
        self.kind = socket.SOCK_STREAM
        self._sendfile_compatible = _TRY_NATIVE

    def __init__(self, loop, sock, protocol, waiter=None, extra=None, server=None):
        self.open(loop, sock.fileno(), sock, protocol, extra, server)
        self.family = sock.family
        if "peername" not in self.extra:
            try:
                self.extra["peername"] = sock.getpeername()
            except OSError:
                self.extra["peername"] = None
        self.remember_sockname()
        asyncio.base_events._set_nodelay(sock)
        loop.call_soon(self._start, waiter)

    @property
    def _start_tls_compatible(self):
        return True

    @property
    def _paused(self):
        return self.paused

    @property
    def _eof(self):
        return self.eof

    @property
    def _buffer(self):
        waiting = [] if self.in_flight is None else [self.in_flight]
        return waiting + (self.pending or [])

    def set_protocol(self, protocol):
        """Hand the stream to another protocol, also in mid-stream."""
        self.buffered = isinstance(protocol, _Buffered)
        if self.buffered:
            self.received = protocol.buffer_updated
            self.get_buffer = protocol.get_buffer
        else:
            self.get_buffer = None
            self.received = getattr(protocol, "data_received", None)
        self._protocol = protocol
        self.protocol_connected = True

    def is_reading(self):
        """True unless closing or paused."""
        return not self.closing and not self.paused

    # -- beginning and end --------------------------------------------------------

    def _start(self, waiter):
        """connection_made, then the waiter and reading: one callback in place of three."""
        try:
            self.connection_made()
        finally:
            if waiter is None:
                self.start_reading()
            else:
                # Data is delivered from the wait itself.  Whoever awaits the transport
                # has to have it by then, so reading begins behind its wake-up.
                _set_result(waiter, None)
                self._loop.call_soon(self._start_reading)

    def _start_reading(self):
        self.start_reading()

    cdef int start_reading(self) except -1:
        self.started = True
        if not self.closing and not self.paused and not self.read_eof:
            self.receive_on()
        return 0

    cdef int receive_on(self) except -1:
        """Have data brought: by the ring where it can, else by readiness."""
        if self.receiving:
            return 0  # also if it was asked to stop: receive_ended() starts it again
        if not self.by_readiness:
            if self.reactor.receive_start(self._sock_fd, self):
                self.receiving = True
                self.stopping = False
                return 0
            self.by_readiness = True
        return self.wait_for(self.events | EPOLLIN)

    cdef int stop_reading(self) except -1:
        self.stash = None
        if self.receiving and not self.stopping:
            self.stopping = True
            self.reactor.receive_stop(self)
        return self.wait_for(self.events & ~<uint32_t>EPOLLIN)

    def pause_reading(self):
        """Deliver nothing more until resume_reading()."""
        if self.closing or self.paused:
            return
        self.paused = True
        if self.q.state & STATE_DEBUG:
            logger.debug("%r pauses reading", self)

    def resume_reading(self):
        """Deliver again what has come and what comes."""
        if self.closing or not self.paused:
            return
        self.paused = False
        if self.stash is not None:
            self.schedule_stash()
        elif self.started and not self.read_eof:
            self.receive_on()
        if self.q.state & STATE_DEBUG:
            logger.debug("%r resumes reading", self)

    def close(self):
        """Stop reading, send what is queued, then close."""
        if self.closing:
            return
        if self.q.state & STATE_FORKED:
            self._loop._check_closed()
        self.closing = True
        self.stop_reading()
        if not self.pending_size:
            self.conn_lost += 1
            self._loop.call_soon(self._call_connection_lost, None)
            self.wait_for(0)

    cdef int drop_pending(self) except -1:
        if self.sending:
            # the kernel reads from `in_flight` until the send completes
            self.reactor.send_stop(self)
        self.pending = None
        self.pending_size = self.pending_offset = 0
        return 0

    def __repr__(self):
        cdef list info = [self.__class__.__name__]
        if self._loop is None:
            info.append("closed")
        elif self.closing:
            info.append("closing")
        info.append(f"fd={self._sock_fd}")
        if self._loop is not None and not self._loop.is_closed():
            info.append("read=polling" if self.events & EPOLLIN and not self.paused
                        else "read=idle")
            state = "polling" if self.events & EPOLLOUT else "idle"
            info.append(f"write=<{state}, bufsize={self.pending_size}>")
        return "<{}>".format(" ".join(info))

    # -- receiving ----------------------------------------------------------------

    cdef int ready(self, uint32_t events) except -1:
        if self.q.state & STATE_DEBUG:
            self._loop.call_soon(self._ready_in_debug_mode, events)
            return 0
        return self.handle_ready(events)

    def _ready_in_debug_mode(self, events):
        if self._loop is not None:
            self.handle_ready(events)

    cdef int handle_ready(self, uint32_t events) except -1:
        PyContext_Enter(<PyObject *>self.context)
        try:
            if events & (EPOLLOUT | EPOLLHUP | EPOLLERR) and self.events & EPOLLOUT:
                self.write_ready()
            if events & (EPOLLIN | EPOLLHUP | EPOLLERR) and self.events & EPOLLIN:
                if self.paused:
                    self.wait_for(self.events & ~<uint32_t>EPOLLIN)
                elif not self.conn_lost and not self.closing and not self.reactor.closed:
                    if self.buffered:
                        self.receive_into()
                    else:
                        self.receive()
        finally:
            PyContext_Exit(<PyObject *>self.context)
        return 0

    cdef int receive(self) except -1:
        cdef Py_ssize_t n
        cdef PyObject *data
        if self.bulk:
            return self.receive_bulk()
        self.reactor.n_syscalls += 1
        n = recv(self._sock_fd, self.reactor.scratch, SCRATCH, MSG_DONTWAIT)
        if n <= 0:
            return self.received_nothing(n)
        if n >= SCRATCH // 4:
            self.bulk = BULK_MIN
            self.small_run = 0
        data = spare_take(&self.reactor.spares, n)
        memcpy(bytes_data(data), self.reactor.scratch, n)
        return self.deliver(data)

    cdef int receive_bulk(self) except -1:
        """Straight into a bytes object, which is used again unless the protocol keeps it.

        A protocol that keeps what it receives gets objects cut to their size; what one
        kept is known from the chunk before.
        """
        cdef Reactor reactor = self.reactor
        cdef PyObject *data = reactor.bulk_take(self.bulk)
        cdef Py_ssize_t n, size = bytes_size(data)
        cdef PyObject *message
        cdef bint cut
        reactor.n_syscalls += 1
        n = recv(self._sock_fd, bytes_data(data), size, MSG_DONTWAIT)
        if n <= 0:
            n = n if n == 0 else -errno
            reactor.bulk_give(data)
            return self.received_none(n)
        if n < SCRATCH // 4:
            self.small_run += 1
            if self.small_run >= SMALL_RUN:
                self.bulk = 0
                self.back_to_small()
        else:
            self.small_run = 0
            if n == size and size < BULK_MAX:
                self.bulk = <uint32_t>size * 2
        if n < size >> 2:
            message = spare_take(&reactor.spares, n)
            memcpy(bytes_data(message), bytes_data(data), n)
            reactor.bulk_give(data)
            return self.deliver(message)
        cut = self.keeps and n < size
        if cut:
            _PyBytes_Resize(&data, n)
        elif n < size:
            bytes_reuse(data, n)
        Py_INCREF(data)
        try:
            self.deliver(data)
        finally:
            self.keeps = Py_REFCNT(data) > 1
            if self.keeps or cut:
                Py_DECREF(data)
            else:
                bytes_reuse(data, size)
                reactor.bulk_give(data)
        return 0

    # -- receiving by the ring ------------------------------------------------------

    cdef int received_in(self, char *data, int n, int buffer) except -1:
        """The ring received into a shared buffer: copy, give it back, deliver."""
        if n == RING_BUFFER and not self.closing:
            # More than fits: the rest and what follows comes faster by readiness and
            # direct receives.  What the ring has received already comes first.
            self.by_readiness = True
            self.bulk = BULK_MIN
            self.small_run = 0
            if not self.stopping:
                self.stopping = True
                self.reactor.receive_stop(self)
        if self.closing or self.reactor.shutting:
            self.reactor.give_back(buffer)
            return 0
        cdef object chunk
        cdef PyObject *message
        if self.paused or self.stash is not None or self.q.state & STATE_DEBUG:
            chunk = PyBytes_FromStringAndSize(data, n)
            self.reactor.give_back(buffer)
            if self.stash is None:
                self.stash = []
            self.stash.append(chunk)
            if not self.paused:
                self.schedule_stash()
            elif not self.stopping:
                self.stopping = True
                self.reactor.receive_stop(self)
            return 0
        PyContext_Enter(<PyObject *>self.context)
        try:
            if self.buffered:
                self.fill(data, n, buffer)
            else:
                message = spare_take(&self.reactor.spares, n)
                memcpy(bytes_data(message), data, n)
                self.reactor.give_back(buffer)
                self.deliver(message)
        finally:
            PyContext_Exit(<PyObject *>self.context)
        return 0

    cdef int deliver(self, PyObject *data) except -1:
        """Takes over the reference: what the protocol does not keep is used again."""
        cdef PyObject *result = call_bound(self.received, data)
        spare_give(&self.reactor.spares, data)
        if result == NULL:
            return self.protocol_raised("data_received")
        Py_DECREF(result)
        return 0

    cdef int protocol_raised(self, str method) except -1:
        """A method of the protocol failed with the exception that is set."""
        try:
            raise_pending()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, f"Fatal error: protocol.{method}() call failed.")
        return 0

    cdef int fill(self, const char *data, Py_ssize_t n, int buffer) except -1:
        """Copy to the protocol's own buffers, as many as it takes."""
        cdef Py_buffer view
        cdef Py_ssize_t size, done = 0
        while done < n and not self.closing:
            if self.borrow(&view) < 0:
                self.protocol_raised("get_buffer")
                break
            if self.reactor.closed:
                PyBuffer_Release(&view)
                break  # get_buffer() forked, and the child has no shared buffers
            size = min(view.len, n - done)
            memcpy(view.buf, data + done, size)
            PyBuffer_Release(&view)
            done += size
            self.tell_updated(size)
            if done < n and (self.paused or not self.buffered) and not self.closing:
                # paused, or another kind of protocol took over, in the middle
                if self.stash is None:
                    self.stash = []
                # in front of what the stash holds, if this is delivered from there
                self.stash.insert(0, PyBytes_FromStringAndSize(data + done, n - done))
                if not self.paused:
                    self.schedule_stash()
                break
        if buffer >= 0:
            self.reactor.give_back(buffer)
        return 0

    cdef int schedule_stash(self) except -1:
        if not self.stash_scheduled:
            self.stash_scheduled = True
            self._loop.call_soon(self._deliver_stash)
        return 0

    def _deliver_stash(self):
        """Deliver in order what came while it could not be delivered."""
        cdef bytes chunk
        self.stash_scheduled = False
        PyContext_Enter(<PyObject *>self.context)
        try:
            while self.stash and not self.paused and not self.closing:
                chunk = self.stash.pop(0)
                if self.buffered:
                    self.fill(bytes_data(<PyObject *>chunk), len(chunk), -1)
                else:
                    Py_INCREF(<PyObject *>chunk)
                    self.deliver(<PyObject *>chunk)
        finally:
            PyContext_Exit(<PyObject *>self.context)
        if self.closing:
            self.stash = None
        elif self.paused and (self.stash_eof or self.stash_error):
            pass  # the end comes behind resume_reading(), too; an empty stash keeps it
        elif not self.stash:
            self.stash = None
            if self.stash_eof:
                self.stash_eof = False
                self.in_context_eof()
            elif self.stash_error:
                error, self.stash_error = self.stash_error, 0
                self.receive_failed(error)
            elif self.started and not self.paused and not self.read_eof:
                self.receive_on()

    cdef int receive_ended(self, int result) except -1:
        self.receiving = self.stopping = False
        # The slot's reference may be the last one but our caller's.
        self.reactor.stream_release(self._sock_fd)
        if self.lost_called:
            if not self.sending:
                self.close_socket()
            return 0
        if self.closing or self.reactor.shutting or self._loop is None:
            return 0
        if result == 0:
            if self.stash:
                self.stash_eof = True  # in order: first what came before
            elif self.paused:
                self.stash = []
                self.stash_eof = True
            else:
                # Behind what the data before it made ready: asyncio, too, sees the end
                # in a later turn than the last data.
                self.stash = []
                self.stash_eof = True
                self.schedule_stash()
            return 0
        if result < 0 and result != -ECANCELED and result != -ENOBUFS and result != -EINTR \
                and result != -EAGAIN:
            if self.stash or self.paused:
                if self.stash is None:
                    self.stash = []
                self.stash_error = -result
            else:
                self.receive_failed(-result)
            return 0
        if not self.paused and self.stash is None and not self.read_eof:
            self.receive_on()
        return 0

    cdef int in_context_eof(self) except -1:
        PyContext_Enter(<PyObject *>self.context)
        try:
            self.received_eof()
        finally:
            PyContext_Exit(<PyObject *>self.context)
        return 0

    cdef int receive_again(self) except -1:
        if self.receiving:
            self.receiving = self.stopping = False
            self.reactor.stream_release(self._sock_fd)
            if self.lost_called:
                if not self.sending:
                    self.close_socket()
            elif not self.paused and not self.closing:
                self.receive_on()
        return 0

    cdef int sent(self, int result) except -1:
        cdef Reactor reactor = self.reactor
        cdef PyObject *data = <PyObject *>self.in_flight
        cdef Py_ssize_t size = bytes_size(data)
        Py_INCREF(data)
        self.in_flight = None
        self.sending = False
        reactor.stream_release(self._sock_fd)  # the caller holds the stream
        if self.lost_called:
            Py_DECREF(data)
            if not self.receiving:
                self.close_socket()
            return 0
        if self.pending_size == 0 or self.conn_lost or reactor.shutting:
            Py_DECREF(data)
            return 0
        if result < 0:
            if result != -EAGAIN and result != -EINTR:
                Py_DECREF(data)
                self.send_failed(-result)
                return 0
            result = 0
        self.pending_size -= result
        if self.bursts:
            self.bursts -= 1
        if result == size:
            spare_give(&reactor.spares, data)
        else:
            # MSG_WAITALL was interrupted: the rest goes first
            if self.pending is None:
                self.pending = []
            self.pending.insert(0, <object>data)
            self.pending_offset = result
            Py_DECREF(data)
        if self.pending_size:
            # queued meanwhile
            if self.flush() < 0:
                return 0
            if self.pending_size:
                self.wait_for(self.events | EPOLLOUT)
        if not self._protocol_paused and not self.closing:
            return self.after_sending()
        PyContext_Enter(<PyObject *>self.context)
        try:
            self.after_sending()
        finally:
            PyContext_Exit(<PyObject *>self.context)
        return 0

    cdef int back_to_small(self) except -1:
        """Let the ring receive again, if it is the one that handed over."""
        if self.reactor.receive_start(self._sock_fd, self):
            self.by_readiness = False
            self.receiving = True
            self.stopping = False
            self.wait_for(self.events & ~<uint32_t>EPOLLIN)
        return 0

    cdef int received_nothing(self, Py_ssize_t n) except -1:
        return self.received_none(n if n == 0 else -errno)

    cdef int received_none(self, Py_ssize_t result) except -1:
        """0 at the end of the stream, or a negated errno."""
        if result == 0:
            return self.received_eof()
        if result == -EAGAIN or result == -EINTR:
            return 0
        return self.receive_failed(<int>-result)

    cdef int receive_failed(self, int error) except -1:
        try:
            raise OSError(error, os.strerror(error))
        except OSError as exc:
            self._fatal_error(exc, "Fatal read error on socket transport")
        return 0

    cdef int received_eof(self) except -1:
        if self.q.state & STATE_DEBUG:
            logger.debug("%r received EOF", self)
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
            return 0
        if keep_open:
            # the protocol may go on writing; there is nothing more to receive
            self.read_eof = True
            if not self.closing:
                self.wait_for(self.events & ~<uint32_t>EPOLLIN)
        else:
            self.close()
        return 0

    cdef int receive_into(self) except -1:
        cdef Py_buffer view
        cdef Py_ssize_t n
        if self.borrow(&view) < 0:
            return self.protocol_raised("get_buffer")
        if self.reactor.closed:
            PyBuffer_Release(&view)
            return 0  # get_buffer() forked: the data is the parent's
        self.reactor.n_syscalls += 1
        n = recv(self._sock_fd, view.buf, view.len, MSG_DONTWAIT)
        if n < 0:
            n = -errno
        PyBuffer_Release(&view)
        if n <= 0:
            return self.received_none(n)
        return self.tell_updated(n)

    cdef int borrow(self, Py_buffer *view) noexcept:
        """The protocol's buffer; -1 with an exception set."""
        cdef PyObject *buffer = call_bound(self.get_buffer, <PyObject *>_NO_HINT)
        if buffer == NULL:
            return -1
        if get_view(buffer, view, PyBUF_WRITABLE) < 0:
            Py_DECREF(buffer)
            return -1
        Py_DECREF(buffer)  # the view has a reference of its own
        if not view.len:
            PyBuffer_Release(view)
            set_error(<PyObject *>RuntimeError, b"get_buffer() returned an empty buffer")
            return -1
        return 0

    cdef int tell_updated(self, Py_ssize_t n) except -1:
        cdef object count = n
        cdef PyObject *result = call_bound(self.received, <PyObject *>count)
        if result == NULL:
            return self.protocol_raised("buffer_updated")
        Py_DECREF(result)
        return 0

    # -- sending ------------------------------------------------------------------

    def write(self, data):
        """Send bytes, or queue what the socket does not take now."""
        cdef Py_ssize_t n, size
        cdef Py_buffer view
        cdef PyObject *copy
        if type(data) is bytes:
            if not self.pending_size and not self.conn_lost and not self.eof \
                    and self.empty_waiter is None:
                if not bytes_size(<PyObject *>data):
                    return
                if bytes_size(<PyObject *>data) <= BATCH_MAX and self.worth_waiting():
                    self.send_with_others(<bytes>data)
                    return
                n = self.send_now(bytes_data(<PyObject *>data), bytes_size(<PyObject *>data))
                if n == bytes_size(<PyObject *>data) or n < 0:
                    return
                self.queue(data, n)
                return
        elif not (PyByteArray_Check(data) or PyMemoryView_Check(data) or isinstance(data, bytes)):
            raise TypeError(
                f"data argument must be a bytes-like object, not {type(data).__name__!r}"
            )
        if self.eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.empty_waiter is not None:
            raise RuntimeError("unable to write; sendfile is in progress")
        if not data:
            return
        if self.conn_lost:
            self.count_lost_write("socket.send() raised exception.")
            return
        if self.pending_size:
            self.queue(bytes(data), 0)
            return
        if get_view(<PyObject *>data, &view, PyBUF_SIMPLE) < 0:
            clear_error()  # not contiguous
            data = bytes(data)
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        if view.len <= BATCH_MAX and self.worth_waiting():
            copy = spare_take(&self.reactor.spares, view.len)
            memcpy(bytes_data(copy), view.buf, view.len)
            PyBuffer_Release(&view)
            try:
                self.send_with_others(<bytes>copy)
            finally:
                Py_DECREF(copy)
            return
        n = self.send_now(<char *>view.buf, view.len)
        size = view.len
        PyBuffer_Release(&view)
        if n < 0 or n == size:
            return
        # only the rest is copied, and only once
        self.queue(bytes(memoryview(data).cast("B")[n:]), 0)

    cdef inline bint worth_waiting(self) noexcept:
        """The end of the turn, or the others that send in it."""
        cdef Reactor reactor = self.reactor
        cdef uint64_t turn
        if reactor.worth_batching():
            return True
        turn = reactor.n_polls + reactor.n_waits
        if self.written_in == turn:
            self.bursts = BURSTS
        self.written_in = turn
        return self.bursts and reactor.running

    cdef int send_with_others(self, bytes data) except -1:
        """With the next submission of all that this turn sends."""
        self.place = self.reactor.send_start(
            self._sock_fd, self, bytes_data(<PyObject *>data), bytes_size(<PyObject *>data)
        )
        self.submission = self.reactor.submissions
        self.sending = True
        self.in_flight = data
        self.pending_size = bytes_size(<PyObject *>data)
        return self.maybe_pause_protocol()

    cdef bint join(self, bytes data) except -1:
        """Let it go with the send that is not submitted yet, if there is one."""
        cdef Py_ssize_t before, size
        cdef PyObject *joined
        if not self.sending or self.submission != self.reactor.submissions \
                or self.pending is not None:
            return False
        before = bytes_size(<PyObject *>self.in_flight)
        size = before + bytes_size(<PyObject *>data)
        if size > 2 * BATCH_MAX:
            return False
        joined = spare_take(&self.reactor.spares, size)
        memcpy(bytes_data(joined), bytes_data(<PyObject *>self.in_flight), before)
        memcpy(bytes_data(joined) + before, bytes_data(<PyObject *>data), size - before)
        self.reactor.send_replace(self.place, bytes_data(joined), size)
        self.in_flight = <bytes>joined
        Py_DECREF(joined)
        self.pending_size = size
        self.bursts = BURSTS
        return True

    cdef Py_ssize_t send_now(self, const char *data, Py_ssize_t size) except -2:
        """What the socket took, or -1 after a fatal error."""
        cdef Py_ssize_t n
        self.reactor.n_syscalls += 1
        n = send(self._sock_fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n >= 0:
            return n
        return self.send_failed(errno)

    cdef Py_ssize_t send_failed(self, int error) except -2:
        if error == EAGAIN or error == EINTR:
            return 0
        try:
            raise OSError(error, os.strerror(error))
        except OSError as exc:
            self.drop_pending()
            self._fatal_error(exc, "Fatal write error on socket transport")
            if self.empty_waiter is not None and not self.empty_waiter.done():
                self.empty_waiter.set_exception(exc)
        return -1

    cdef int queue(self, bytes data, Py_ssize_t sent) except -1:
        if self.join(data):
            return self.maybe_pause_protocol()
        if self.pending is None:
            self.pending = []
        if not self.pending_size:
            self.pending_offset = sent
        self.pending.append(data)
        self.pending_size += bytes_size(<PyObject *>data) - sent
        if not self.sending:
            self.wait_for(self.events | EPOLLOUT)
        return self.maybe_pause_protocol()

    def writelines(self, list_of_data):
        """write() each; one system call for many."""
        if self.eof:
            raise RuntimeError("Cannot call writelines() after write_eof()")
        if self.empty_waiter is not None:
            raise RuntimeError("unable to writelines; sendfile is in progress")
        cdef list added = []
        cdef Py_ssize_t size = 0
        for data in list_of_data:
            if type(data) is not bytes:
                if not isinstance(data, (bytes, bytearray, memoryview)):
                    raise TypeError(
                        f"data argument must be a bytes-like object, not {type(data).__name__!r}"
                    )
                data = bytes(data)
            if data:
                added.append(data)
                size += len(data)
        if not added:
            return
        if self.conn_lost:
            self.count_lost_write("socket.send() raised exception.")
            return
        cdef bint idle = self.pending_size == 0
        if size <= BATCH_MAX and (self.sending if not idle else self.worth_waiting()):
            together = added[0] if len(added) == 1 else b"".join(added)
            if idle:
                self.send_with_others(together)
            else:
                self.queue(together, 0)
            return
        if self.pending is None:
            self.pending = added
        else:
            self.pending.extend(added)
        if idle:
            self.pending_offset = 0
        self.pending_size += size
        if idle and self.flush() < 0:
            return
        if self.pending_size:
            if not self.sending:
                self.wait_for(self.events | EPOLLOUT)
            self.maybe_pause_protocol()

    cdef Py_ssize_t flush(self) except -2:
        """Send from the queue, once; -1 after a fatal error."""
        cdef iovec[IOV] vec
        cdef msghdr msg
        cdef Py_ssize_t n
        memset(&msg, 0, sizeof(msg))
        msg.msg_iov = vec
        msg.msg_iovlen = gather(self.pending, self.pending_offset, vec)
        self.reactor.n_syscalls += 1
        n = sendmsg(self._sock_fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n < 0:
            return self.send_failed(errno)
        self.pending_size -= n
        if not self.pending_size:
            self.pending = None
            self.pending_offset = 0
        else:
            self.pending_offset = taken(self.pending, self.pending_offset, n)
        return n

    cdef int write_ready(self) except -1:
        if self.conn_lost:
            return 0
        if self.sending:
            return 0
        if self.pending_size and self.flush() < 0:
            return 0
        return self.after_sending()

    cdef int after_sending(self) except -1:
        self.maybe_resume_protocol()  # may queue more
        if self.pending_size or self._loop is None or self.reactor.closed:
            return 0
        if not self.conn_lost:
            self.wait_for(self.events & ~<uint32_t>EPOLLOUT)
        if self.empty_waiter is not None and not self.empty_waiter.done():
            self.empty_waiter.set_result(None)
        if self.closing and not self.conn_lost:
            self.conn_lost += 1
            self.lost_now()
        elif self.eof and not self.conn_lost:
            self.shut_down(True)
        return 0

    def can_write_eof(self):
        """True."""
        return True

    def write_eof(self):
        """Half close, once the queue is sent."""
        if self.closing or self.eof:
            return
        self.eof = True
        if not self.pending_size:
            self.shut_down(False)

    cdef int shut_down(self, bint late) except -1:
        """Late is after write_eof() has returned: a peer that is gone is then the reader's find.

        A reset may answer the last bytes, and small ones, which asyncio sends in write(), may
        still be under way here: it would be an error of a call that nobody made.
        """
        self.reactor.n_syscalls += 1
        if shutdown(self._sock_fd, SHUT_WR) < 0 and not (late and errno == ENOTCONN):
            raise OSError(errno, os.strerror(errno))
        return 0

    # -- lending the socket to sendfile ------------------------------------------------

    def _make_empty_waiter(self):
        if self.empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self.empty_waiter = self._loop.create_future()
        if not self.pending_size:
            self.empty_waiter.set_result(None)
        return self.empty_waiter

    def _call_connection_lost(self, exc):
        try:
            SocketTransport._call_connection_lost(self, exc)
        finally:
            self.get_buffer = None
            if self.empty_waiter is not None and not self.empty_waiter.done():
                self.empty_waiter.set_exception(ConnectionError("Connection is closed by peer"))

    def _reset_empty_waiter(self):
        self.empty_waiter = None

    def _lend(self):
        """Give the descriptor's readiness to somebody else, until _take_back()."""
        self.lent = True
        self.wait_for(0)

    def _take_back(self):
        self.lent = False


cdef class Acceptor:
    """Accepts connections of one listening socket; the callback of its reader.

    accept4 until the backlog is empty, at most `backlog` times a turn.  No socket
    object, no task and no hop through the loop for each connection: the transport is
    made from the descriptor and the protocol gets connection_made at once.

    By readiness on the ring too.  A multishot accept waits exclusively: of several
    processes that share a listening socket the kernel wakes one, which may be busy, and
    the connection waits for it while the others are idle.  Nor does it tell the peer's
    address, so that the system call it saves is spent on getpeername.
    """

    cdef object loop, factory, sock, server, restart
    cdef object local           # the address of all that are accepted, if it is one
    cdef int fd, backlog, family, proto
    cdef bint exhausted         # the last attempt failed for want of descriptors or memory

    def __init__(self, loop, factory, sock, server, int backlog, restart):
        self.loop = loop
        self.factory = factory
        self.sock = sock
        self.server = server
        self.restart = restart
        self.fd = sock.fileno()
        self.family = sock.family
        self.proto = sock.proto
        self.backlog = backlog
        name = sock.getsockname()
        wildcard = type(name) is tuple and name[0] in ("0.0.0.0", "::")
        self.local = None if wildcard else name

    def __call__(self):
        cdef sockaddr_storage address
        cdef socklen_t n
        cdef int fd, error
        cdef Reactor reactor = <Reactor>self.loop._reactor
        for _ in range(self.backlog):
            if self.sock.fileno() < 0 or reactor.closed:
                return  # the factory or the protocol closed the server, or forked
            n = sizeof(address)
            reactor.n_syscalls += 1
            fd = accept4(self.fd, <sockaddr *>&address, &n, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if fd < 0:
                error = errno
                if error == EAGAIN or error == EINTR or error == ECONNABORTED:
                    return
                exc = OSError(error, os.strerror(error))
                if error in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                    first = not self.exhausted
                    self.exhausted = True
                    self.restart(self, exc, first)
                    return
                raise exc
            self.exhausted = False
            self.accepted(fd, &address, n)

    cdef int accepted(self, int fd, sockaddr_storage *address, socklen_t n) except -1:
        cdef StreamTransport transport = None
        cdef object protocol = None
        try:
            protocol = self.factory()
            transport = StreamTransport.__new__(StreamTransport)
            transport.family = self.family
            transport.proto = self.proto
            transport.local = self.local
            extra = None
            if n <= sizeof(transport.peer):
                memcpy(transport.peer, address, n)
                transport.peer_length = <uint8_t>n
            else:
                extra = {"peername": address_of(address, n)}
                if self.local is not None:
                    extra["sockname"] = self.local
            transport.open(self.loop, fd, None, protocol, extra, self.server)
            if extra is None:
                transport.extra = None  # made when asked for
        except (SystemExit, KeyboardInterrupt):
            self.refuse(fd, transport)
            raise
        except BaseException as exc:
            self.refuse(fd, transport)
            if self.loop.get_debug():
                context = {
                    "message": "Error on transport creation for incoming connection",
                    "exception": exc,
                }
                if protocol is not None:
                    context["protocol"] = protocol
                self.loop.call_exception_handler(context)
            return 0
        PyContext_Enter(<PyObject *>transport.context)
        try:
            transport.connection_made()
        finally:
            PyContext_Exit(<PyObject *>transport.context)
            transport.start_reading()
        return 0

    cdef int refuse(self, int fd, StreamTransport transport) except -1:
        """No transport could be made of it."""
        if transport is None or transport.reactor is None:
            c_close(fd)
        else:
            transport._loop = None  # it was not the program that forgot to close it
            transport.close_socket()
        return 0
