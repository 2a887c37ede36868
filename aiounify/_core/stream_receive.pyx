# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The receiving half of the stream transport: from the packet to the protocol's method.

Why it exists: it decides by what arrives which way the next data comes, and keeps order
across that change, across pauses and across a change of protocol.

How it receives: small messages are brought by one multishot receive of the ring, into
buffers that all connections share; a message is copied to a bytes object of its size and
its buffer given back before the protocol is called.  On the epoll backend the
descriptor's readiness comes straight from the reactor, with no handle in between, and
the scratch buffer of the reactor takes the place of the shared ones.  A message that
fills a shared buffer switches the connection to bulk on both: readiness, and a receive
into a fresh bytes object of the size seen lately, which is cut to what came.  After a
run of small reads it goes back.

Rules of lifetime:

* pause_reading() stops delivery at once.  The readiness registration is left until
  something arrives, so a protocol that pauses and resumes makes no system call.
* What the ring received while it must not be delivered is stashed in order, and so is the
  end of the stream, or its error, behind it.
* The ring writes to shared buffers only, never to memory of a transport.
* What socket_transport.pyx and transport.pyx say.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

import asyncio
import os
from asyncio.log import logger

from aiounify._core.backlog cimport STATE_DEBUG
from aiounify._core.reactor cimport (
    EAGAIN,
    ECANCELED,
    EINTR,
    ENOBUFS,
    EPOLLIN,
    errno,
    raise_pending,
    spare_give,
    spare_take,
)
from aiounify._core.socket_transport cimport MSG_DONTWAIT, SocketTransport
from aiounify._core.transport cimport BULK_MAX, BULK_MIN, LONG, SMALL_RUN

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buf, size_t n, int flags)

cdef extern from "Python.h":
    int PyContext_Enter(PyObject *) except -1
    int PyContext_Exit(PyObject *) except -1
    void Py_DECREF(PyObject *)
    void Py_INCREF(PyObject *)
    int get_view "PyObject_GetBuffer" (PyObject *, Py_buffer *, int)
    void set_error "PyErr_SetString" (PyObject *, const char *)
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)

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

cdef object _Buffered = asyncio.BufferedProtocol
cdef object _NO_HINT = -1


cdef class StreamReceiver(SocketTransport):
    """What a stream transport is before it can send."""

    @property
    def _paused(self):
        return self.paused

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

    # -- when -----------------------------------------------------------------------

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

    cdef int back_to_small(self) except -1:
        """Let the ring receive again, if it is the one that handed over."""
        if self.reactor.receive_start(self._sock_fd, self):
            self.by_readiness = False
            self.receiving = True
            self.stopping = False
            self.wait_for(self.events & ~<uint32_t>EPOLLIN)
        return 0

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

    # -- by readiness -----------------------------------------------------------------

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

    cdef Py_ssize_t read_some(self, char *data, Py_ssize_t size) noexcept:
        cdef Py_ssize_t n
        self.reactor.n_syscalls += 1
        n = recv(self._sock_fd, data, size, MSG_DONTWAIT)
        return n if n >= 0 else -errno

    cdef int adapt(self, Py_ssize_t n, Py_ssize_t size) except -1:
        if n < LONG:
            self.small_run += 1
            if self.small_run >= SMALL_RUN:
                self.bulk = 0
                self.back_to_small()
        else:
            self.small_run = 0
            if n == size and size < BULK_MAX:
                self.bulk = <uint32_t>size * 2
        return 0

    # -- by the ring ------------------------------------------------------------------

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

    # -- what waits for delivery --------------------------------------------------------

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

    # -- to the protocol ----------------------------------------------------------------

    cdef int deliver(self, PyObject *data) except -1:
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

    cdef int received_none(self, Py_ssize_t result) except -1:
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

    cdef int in_context_eof(self) except -1:
        PyContext_Enter(<PyObject *>self.context)
        try:
            self.received_eof()
        finally:
            PyContext_Exit(<PyObject *>self.context)
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
