# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What all native transports share: their protocol and its exceptions, bulk reads, flow control.

Why it exists: sockets (`socket_transport.pyx`) and pipes (`pipe.pyx`) differ in the
descriptor they own and in the contract of its end, not in this.

Rules:

* A transport holds its loop and protocol until connection_lost has returned, the reactor
  for good: the reactor's memory (`q`) is valid as long as the transport exists.
* All callbacks of the protocol run in one context, copied when the transport is made.
* What is queued is a list of bytes objects, the first of which may be partly sent.  It is
  not copied; whoever queues something mutable copies it.
* Reading in bulk goes straight into a bytes object; what a protocol does not keep is read
  into again (spare_bytes.h).  The call that reads is the subclass's.
* This class watches no descriptor and closes none: its subclasses do.
"""

from cpython.object cimport PyObject
from libc.string cimport memcpy

from asyncio import constants
from asyncio.log import logger

from aiounify._core.reactor cimport (
    SCRATCH,
    Reactor,
    Watched,
    bytes_reuse,
    spare_give,
    spare_take,
)


cdef extern from "Python.h":
    PyObject *PyContext_CopyCurrent() except NULL
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    void Py_DECREF(PyObject *)
    void Py_INCREF(PyObject *)
    Py_ssize_t Py_REFCNT(PyObject *)
    Py_ssize_t PyList_GET_SIZE(object)
    PyObject *PyList_GET_ITEM(object, Py_ssize_t)
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    Py_ssize_t bytes_size "PyBytes_GET_SIZE" (PyObject *)

cdef enum:
    DEFAULT_HIGH = 65536

cdef int LOG_THRESHOLD = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES


cdef class Transport(Watched):
    """A descriptor under a protocol; what it is to isinstance() is said by its subclasses."""

    cdef int begin(self, loop, extra) except -1:
        self._loop = loop
        self.reactor = <Reactor>loop._reactor
        self.q = self.reactor.q
        self.extra = {} if extra is None else dict(extra)
        self.high = DEFAULT_HIGH
        self.low = DEFAULT_HIGH // 4
        self.context = <object>PyContext_CopyCurrent()
        Py_DECREF(<PyObject *>self.context)
        return 0

    @property
    def _conn_lost(self):
        return self.conn_lost

    @property
    def _closing(self):
        return self.closing

    def get_protocol(self):
        """The protocol that is called now."""
        return self._protocol

    def is_closing(self):
        """True once close() or abort() was called or the connection was lost."""
        return self.closing

    # -- calls of the protocol ------------------------------------------------------

    cdef int connection_made(self) except -1:
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            callback = self._protocol.connection_made
            self._loop.call_exception_handler({
                "message": f"Exception in callback {callback!r}",
                "exception": exc,
                "transport": self,
                "protocol": self._protocol,
            })
        return 0

    cdef int lost_now(self) except -1:
        """connection_lost from inside the reactor: what it raises is reported, as that of
        any callback is."""
        loop = self._loop
        try:
            self._call_connection_lost(None)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            loop.call_exception_handler({
                "message": "Exception in callback connection_lost()",
                "exception": exc,
                "transport": self,
            })
        return 0

    cdef int failed(self, exc) except -1:
        """An exception left one of the reactor's calls."""
        if self._loop is None:
            raise exc
        self._loop.call_exception_handler({
            "message": "Exception in callback of a transport",
            "exception": exc,
            "transport": self,
            "protocol": self._protocol,
        })
        return 0

    # -- receiving, of those that do ------------------------------------------------

    cdef Py_ssize_t read_some(self, char *data, Py_ssize_t size) noexcept:
        """One system call: what it brought, or a negated errno."""
        return 0

    cdef int received_none(self, Py_ssize_t result) except -1:
        """0 at the end, or a negated errno."""
        return 0

    cdef int deliver(self, PyObject *data) except -1:
        """Give it to the protocol.  Takes over the reference: what is not kept is used again."""
        return 0

    cdef int adapt(self, Py_ssize_t n, Py_ssize_t size) except -1:
        """Choose the size of the next bulk read by the n bytes that one of `size` brought."""
        return 0

    cdef int receive(self) except -1:
        """Read once; what is short by way of the scratch buffer, into an object of its size."""
        cdef Py_ssize_t n
        cdef PyObject *data
        if self.bulk:
            return self.receive_bulk()
        n = self.read_some(self.reactor.scratch, SCRATCH)
        if n <= 0:
            return self.received_none(n)
        if n >= LONG:
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
        n = self.read_some(bytes_data(data), size)
        if n <= 0:
            reactor.bulk_give(data)
            return self.received_none(n)
        self.adapt(n, size)
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

    # -- flow control ---------------------------------------------------------------

    cdef int count_lost_write(self, str warning) except -1:
        if self.conn_lost >= LOG_THRESHOLD:
            logger.warning(warning)
        if self.conn_lost < 60000:
            self.conn_lost += 1
        return 0

    cdef int set_limits(self, high, low) except -1:
        """pause_writing() above `high` bytes, resume_writing() at `low`."""
        if high is None:
            high = DEFAULT_HIGH if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self.high = high
        self.low = low
        return self.maybe_pause_protocol()

    cdef int maybe_pause_protocol(self) except -1:
        if self.pending_size <= self.high or self._protocol_paused:
            return 0
        self._protocol_paused = True
        return self.flow("pause_writing")

    cdef int maybe_resume_protocol(self) except -1:
        if not self._protocol_paused or self.pending_size > self.low:
            return 0
        self._protocol_paused = False
        return self.flow("resume_writing")

    cdef int flow(self, str name) except -1:
        try:
            getattr(self._protocol, name)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._loop.call_exception_handler({
                "message": f"protocol.{name}() failed",
                "exception": exc,
                "transport": self,
                "protocol": self._protocol,
            })
        return 0


# -- the queue of what is to be sent ----------------------------------------------------


cdef int gather(list chunks, Py_ssize_t offset, iovec *vec) noexcept:
    """Point at the first chunks, at most IOV; `offset` bytes of the first are sent already."""
    cdef Py_ssize_t i, count = PyList_GET_SIZE(chunks)
    cdef PyObject *item
    if count > IOV:
        count = IOV
    for i in range(count):
        item = PyList_GET_ITEM(chunks, i)
        vec[i].iov_base = bytes_data(item) + offset
        vec[i].iov_len = bytes_size(item) - offset
        offset = 0
    return <int>count


cdef Py_ssize_t taken(list chunks, Py_ssize_t offset, Py_ssize_t n) except -1:
    """The kernel took n bytes: drop the chunks that are sent; the offset into the next."""
    cdef Py_ssize_t left, done = 0
    while n:
        left = bytes_size(PyList_GET_ITEM(chunks, done)) - offset
        if left > n:
            offset += n
            break
        n -= left
        offset = 0
        done += 1
    if done:
        del chunks[:done]
    return offset
