# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What native socket transports share: their life, their descriptor, flow control.

`stream.pyx` and `datagram.pyx` build on it.  The contract is that of asyncio's
_SelectorTransport: states, messages, and the order of callbacks are the same.

Rules of lifetime:

* The reactor's slot keeps a transport alive while it waits for something, as a reader
  handle would.  A transport that is dropped while it waits for nothing warns and closes
  its socket.
* The descriptor is closed in connection_lost's turn and nowhere else; if an operation
  of the ring still refers to it then, by the completion of the last one.
* A socket object exists only if the transport was made from one, or when somebody asks
  for it; then it owns the descriptor.
* All callbacks of the protocol run in one context, copied when the transport is made.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t
from posix.unistd cimport close as c_close

import asyncio
import socket
import warnings
from asyncio import constants, trsock
from asyncio.log import logger

from aiounify._core.address cimport address_of, sockaddr, sockaddr_storage, socklen_t
from aiounify._core.backlog cimport STATE_FORKED
from aiounify._core.reactor cimport Reactor, Watched


cdef extern from "<sys/socket.h>" nogil:
    int getsockname(int fd, sockaddr *addr, socklen_t *n)

cdef extern from "Python.h":
    PyObject *PyContext_CopyCurrent() except NULL
    void Py_DECREF(PyObject *)

cdef enum:
    DEFAULT_HIGH = 65536

cdef int LOG_THRESHOLD = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES


cdef class SocketTransport(Watched):
    """A socket under a protocol; what it is to isinstance() is given by its kind."""

    cdef int open(self, loop, int fd, sock, protocol, extra, server) except -1:
        self._loop = loop
        self.reactor = <Reactor>loop._reactor
        self.q = self.reactor.q
        self.sock = sock
        self._sock_fd = fd
        self.extra = {} if extra is None else dict(extra)
        self.high = DEFAULT_HIGH
        self.low = DEFAULT_HIGH // 4
        self.context = <object>PyContext_CopyCurrent()
        Py_DECREF(<PyObject *>self.context)
        self.set_protocol(protocol)
        self._server = server
        self.reactor.stream_open(fd, self)
        if server is not None:
            _attach(server, self)
        return 0

    @property
    def __class__(self):
        return _facades[self.kind]

    @property
    def _sock(self):
        """The socket object; made when first asked for."""
        if self.sock is None and self._sock_fd >= 0 and self._loop is not None:
            self.sock = socket.socket(self.family, self.kind, -1, self._sock_fd)
            self.sock.setblocking(False)
        return self.sock

    @property
    def _conn_lost(self):
        return self.conn_lost

    @property
    def _closing(self):
        return self.closing

    # -- what a protocol can ask ------------------------------------------------

    def get_extra_info(self, name, default=None):
        """As asyncio's: "socket", "sockname", "peername" and what the maker added."""
        if name in self.extra:
            return self.extra[name]
        if self._loop is None:
            return default
        if name == "socket":
            found = trsock.TransportSocket(self._sock)
        elif name == "sockname":
            try:
                found = self._sock.getsockname()
            except OSError:
                found = None
        else:
            return default
        self.extra[name] = found
        return found

    @property
    def _extra(self):
        for name in ("socket", "sockname", "peername"):
            self.get_extra_info(name)
        return self.extra

    def get_protocol(self):
        """The protocol that is called now."""
        return self._protocol

    def is_closing(self):
        """True once close() or abort() was called or the connection was lost."""
        return self.closing

    cdef int remember_sockname(self) except -1:
        """Programs ask for it after the connection is closed, too."""
        cdef sockaddr_storage name
        cdef socklen_t length = sizeof(name)
        if "sockname" in self.extra:
            return 0
        if self.sock is not None:
            try:
                self.extra["sockname"] = self.sock.getsockname()
            except OSError:
                self.extra["sockname"] = None
        elif getsockname(self._sock_fd, <sockaddr *>&name, &length) == 0:
            self.extra["sockname"] = address_of(&name, length)
        return 0

    # -- beginning and end --------------------------------------------------------

    cdef int start_reading(self) except -1:
        """Begin to have data brought."""
        return 0

    cdef int stop_reading(self) except -1:
        """Bring no more data, and drop what was not delivered."""
        return 0

    cdef int drop_pending(self) except -1:
        """Forget what was not sent."""
        return 0

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

    cdef int wait_for(self, uint32_t events) except -1:
        if events != self.events:
            self.reactor.stream_wait(self._sock_fd, events)
            self.events = events
        return 0

    def abort(self):
        """Close now; what is queued is dropped."""
        self._force_close(None)

    def _force_close(self, exc):
        if self.conn_lost or self._loop is None:
            return
        if self.q.state & STATE_FORKED:
            self._loop._check_closed()
        self.drop_pending()
        self.closing = True
        self.conn_lost += 1
        self._loop.call_soon(self._call_connection_lost, exc)
        self.stop_reading()
        self.wait_for(0)

    def _fatal_error(self, exc, message="Fatal error on transport"):
        if isinstance(exc, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=True)
        else:
            self._loop.call_exception_handler({
                "message": message,
                "exception": exc,
                "transport": self,
                "protocol": self._protocol,
            })
        self._force_close(exc)

    def _call_connection_lost(self, exc):
        try:
            if self.protocol_connected:
                self._protocol.connection_lost(exc)
        finally:
            self.lost_called = True
            if not self.receiving and not self.sending:
                self.close_socket()
            self._protocol = None
            self.received = None
            self._loop = None
            server = self._server
            if server is not None:
                self._server = None
                _detach(server, self)

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

    cdef int close_socket(self) except -1:
        cdef int fd = self._sock_fd
        self.remember_sockname()
        self.events = 0
        self.fd_closed = True
        self.reactor.stream_close(fd, self.sock is not None)
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        else:
            c_close(fd)
        return 0

    def __del__(self):
        if self.reactor is None or self.fd_closed:
            return
        if self._loop is not None:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
        self.close_socket()
        if self._server is not None:
            _detach(self._server, self)

    cdef int count_lost_write(self) except -1:
        if self.conn_lost >= LOG_THRESHOLD:
            logger.warning("socket.send() raised exception.")
        if self.conn_lost < 60000:
            self.conn_lost += 1
        return 0

    # -- flow control ---------------------------------------------------------------

    def get_write_buffer_size(self):
        """Bytes queued and not taken by the kernel."""
        return self.pending_size

    def get_write_buffer_limits(self):
        """(low, high), in bytes."""
        return (self.low, self.high)

    def set_write_buffer_limits(self, high=None, low=None):
        """pause_writing() above `high` bytes, resume_writing() at `low`."""
        if high is None:
            high = DEFAULT_HIGH if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self.high = high
        self.low = low
        self.maybe_pause_protocol()

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


cdef object _attach, _detach
cdef dict _facades = {}


def stream_at(Reactor reactor, int fd):
    """The transport that has the descriptor, or None."""
    if fd < 0 or fd >= reactor.q.n_slots or reactor.q.slots[fd].stream == NULL:
        return None
    transport = <SocketTransport>reactor.q.slots[fd].stream
    return None if transport.lent else transport


def configure(facades, attach, detach):
    """What is Python's: the class shown to isinstance() by socket type, and servers' clients."""
    global _facades, _attach, _detach
    _facades = dict(facades)
    _attach = attach
    _detach = detach
