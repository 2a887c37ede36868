# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What native socket transports share: their life and their descriptor.

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
* What transport.pyx says.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t
from libc.string cimport memcpy
from posix.unistd cimport close as c_close

import asyncio
import socket
import warnings
from asyncio import trsock
from asyncio.log import logger

from aiounify._core.address cimport address_of, sockaddr, sockaddr_storage, socklen_t
from aiounify._core.backlog cimport STATE_FORKED
from aiounify._core.reactor cimport Reactor
from aiounify._core.transport cimport Transport


cdef extern from "<sys/socket.h>" nogil:
    int getsockname(int fd, sockaddr *addr, socklen_t *n)

cdef class SocketTransport(Transport):
    """A socket under a protocol; what it is to isinstance() is given by its kind."""

    cdef int open(self, loop, int fd, sock, protocol, extra, server) except -1:
        self.begin(loop, extra)
        self.sock = sock
        self._sock_fd = fd
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
            # All of it is known, so the socket module asks the kernel for none of it.
            self.sock = socket.socket(
                self.family, self.kind | SOCK_NONBLOCK, self.proto, self._sock_fd
            )
        return self.sock

    # -- what a protocol can ask ------------------------------------------------

    def get_extra_info(self, name, default=None):
        """As asyncio's: "socket", "sockname", "peername" and what the maker added."""
        cdef dict extra = self.facts()
        if name in extra:
            return extra[name]
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
        extra[name] = found
        return found

    cdef dict facts(self):
        """What get_extra_info() knows; of accepted connections made when first asked for."""
        cdef sockaddr_storage name
        if self.extra is None:
            self.extra = {}
            if self.peer_length:
                memcpy(&name, self.peer, self.peer_length)
                self.extra["peername"] = address_of(&name, self.peer_length)
            if self.local is not None:
                self.extra["sockname"] = self.local
        return self.extra

    @property
    def _extra(self):
        for name in ("socket", "sockname", "peername"):
            self.get_extra_info(name)
        return self.facts()

    cdef int remember_sockname(self) except -1:
        """Programs ask for it after the connection is closed, too."""
        cdef sockaddr_storage name
        cdef socklen_t length = sizeof(name)
        if self.local is not None or "sockname" in self.facts():
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

    # -- flow control ---------------------------------------------------------------

    def get_write_buffer_size(self):
        """Bytes queued and not taken by the kernel."""
        return self.pending_size

    def get_write_buffer_limits(self):
        """(low, high), in bytes."""
        return (self.low, self.high)

    def set_write_buffer_limits(self, high=None, low=None):
        """pause_writing() above `high` bytes, resume_writing() at `low`."""
        self.set_limits(high, low)


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
