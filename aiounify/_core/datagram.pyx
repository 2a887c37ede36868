# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The datagram transport: UDP, native per packet.

The contract is asyncio's _SelectorDatagramTransport.  What differs is the work for each
packet: recvmmsg takes up to BATCH datagrams of one turn in one system call, and what
the protocol sends while they are delivered goes out by one sendmmsg after the last.
A sendto() at any other time is sent at once.

Errors of the socket (ICMP port unreachable and the like) go to error_received(), for
received and for sent datagrams.  The receive buffers hold the largest datagram there
is, so nothing is truncated.  A protocol that pauses within a batch gets the rest of it
when it resumes, before anything that comes later.

Addresses: the tuple of a peer is made once while it keeps sending, and a reply to the
very tuple that was delivered needs no parsing.  An address that is not numeric, or of
another family, goes through the socket object, as in asyncio.

Lifetime: as socket_transport.pyx.  Queued datagrams are bytes objects with the address
they go to; nothing the kernel works on outlives a system call.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

import asyncio
import os
import socket
from asyncio import futures
from asyncio.log import logger

from cpython.mem cimport PyMem_Free, PyMem_Malloc

from aiounify._core.address cimport (
    AF_INET,
    AF_INET6,
    address_of,
    parse_address,
    sockaddr,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_storage,
    socklen_t,
)
from aiounify._core.backlog cimport STATE_DEBUG
from aiounify._core.reactor cimport (
    EAGAIN,
    EINTR,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    errno,
)
from aiounify._core.socket_transport cimport (
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SocketTransport,
    msghdr,
)
from aiounify._core.transport cimport iovec

cdef extern from "<sys/socket.h>" nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    """
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int recvmmsg(int fd, mmsghdr *vec, unsigned int n, int flags, void *timeout)
    int sendmmsg(int fd, mmsghdr *vec, unsigned int n, int flags)
    ssize_t sendto(int fd, const void *buf, size_t n, int flags, const sockaddr *to,
                   socklen_t length)

cdef extern from "Python.h":
    int PyContext_Enter(PyObject *) except -1
    int PyContext_Exit(PyObject *) except -1
    char *bytes_data "PyBytes_AS_STRING" (object)
    Py_ssize_t bytes_size "PyBytes_GET_SIZE" (object)

cdef enum:
    BATCH = 16
    LARGEST = 65536          # no datagram is longer
    PEERS = 64               # addresses remembered, a power of two


cdef class Receiver:
    """Buffers for one batch, shared by all datagram transports of a process.

    Used between recvmmsg and the last delivery of the batch only, under the GIL; a
    transport that finds it in use (a protocol that runs a loop in its callback) waits
    for the next turn.
    """

    cdef char *memory
    cdef sockaddr_storage[BATCH] names
    cdef iovec[BATCH] vec
    cdef mmsghdr[BATCH] messages
    cdef bint busy

    def __cinit__(self):
        # touched only as far as datagrams are long
        self.memory = <char *>PyMem_Malloc(BATCH * LARGEST)
        if self.memory == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.memory)


cdef Receiver _receiver = None


cdef class DatagramTransport(SocketTransport):
    """A UDP socket under a protocol; an asyncio.DatagramTransport to isinstance()."""

    cdef readonly object _address        # the remote address, if connected by asyncio
    cdef bint connected
    cdef bint batching                   # datagrams of a batch are being delivered
    cdef bint paused
    cdef list held                       # (sockaddr, bytes) received before the protocol paused
    cdef list queued                     # (bytes, address) not sent yet
    cdef object last_address             # the tuple delivered last ...
    cdef sockaddr_storage last_name      # ... and what it stands for
    cdef socklen_t last_length
    cdef list peers                      # tuples, by hash of the address
    cdef sockaddr_storage[PEERS] names
    cdef socklen_t name_length

    def __cinit__(self):
        self.kind = socket.SOCK_DGRAM
        self.held = []
        self.queued = []
        self.peers = [None] * PEERS

    def __init__(self, loop, sock, protocol, address=None, waiter=None, extra=None):
        global _receiver
        if _receiver is None:
            _receiver = Receiver()
        self.family = sock.family
        self.name_length = sizeof(sockaddr_in) if self.family == AF_INET else sizeof(sockaddr_in6)
        self.open(loop, sock.fileno(), sock, protocol, extra, None)
        if "peername" not in self.extra:
            try:
                self.extra["peername"] = sock.getpeername()
            except OSError:
                self.extra["peername"] = None
        self.remember_sockname()
        self.connected = self.extra["peername"] is not None
        self._address = address
        loop.call_soon(self._start, waiter)

    def set_protocol(self, protocol):
        """Hand the socket to another protocol."""
        self._protocol = protocol
        self.received = protocol.datagram_received
        self.protocol_connected = True

    def _start(self, waiter):
        """connection_made, then the waiter and reading: one callback in place of three."""
        try:
            self.connection_made()
        finally:
            if waiter is None:
                self.start_reading()
            else:
                futures._set_result_unless_cancelled(waiter, None)
                self._loop.call_soon(self._start_reading)

    def _start_reading(self):
        self.start_reading()

    cdef int start_reading(self) except -1:
        self.started = True
        if not self.closing and not self.paused:
            self.wait_for(self.events | EPOLLIN)
        return 0

    cdef int drop_pending(self) except -1:
        self.held.clear()
        self.queued.clear()
        self.pending_size = 0
        return 0

    def close(self):
        """Send what is queued, then close."""
        if self.closing:
            return
        self.closing = True
        self.held.clear()
        if not self.queued:
            self.conn_lost += 1
            self._loop.call_soon(self._call_connection_lost, None)
            self.wait_for(0)
        else:
            self.wait_for(self.events & ~<uint32_t>EPOLLIN)

    def __repr__(self):
        cdef list info = [self.__class__.__name__]
        if self._loop is None:
            info.append("closed")
        elif self.closing:
            info.append("closing")
        info.append(f"fd={self._sock_fd}")
        if self._loop is not None and not self._loop.is_closed():
            info.append("read=polling" if self.events & EPOLLIN else "read=idle")
            state = "polling" if self.events & EPOLLOUT else "idle"
            info.append(f"write=<{state}, bufsize={self.pending_size}>")
        return "<{}>".format(" ".join(info))

    # -- what only streams have, which asyncio's have too to say so ---------------

    def can_write_eof(self):
        """NotImplementedError: datagrams have no end."""
        raise NotImplementedError

    def write_eof(self):
        """NotImplementedError: datagrams have no end."""
        raise NotImplementedError

    def write(self, data):
        """NotImplementedError: see sendto()."""
        raise NotImplementedError

    def writelines(self, list_of_data):
        """NotImplementedError: see sendto()."""
        raise NotImplementedError

    # -- receiving ----------------------------------------------------------------

    def is_reading(self):
        """True unless closing or paused."""
        return not self.closing and not self.paused

    def pause_reading(self):
        """Deliver nothing more until resume_reading(); the kernel keeps what fits its buffer."""
        if self.closing or self.paused:
            return
        self.paused = True
        self.wait_for(self.events & ~<uint32_t>EPOLLIN)
        if self.q.state & STATE_DEBUG:
            logger.debug("%r pauses reading", self)

    def resume_reading(self):
        """Deliver again what has come and what comes."""
        if self.closing or not self.paused:
            return
        self.paused = False
        if self.held:
            self._loop.call_soon(self._deliver_held, context=self.context)
        elif self.started:
            self.wait_for(self.events | EPOLLIN)
        if self.q.state & STATE_DEBUG:
            logger.debug("%r resumes reading", self)

    def _deliver_held(self):
        """What was received before the protocol paused; then the kernel is asked again."""
        cdef bytes address, data
        cdef sockaddr_storage name
        self.batching = True
        try:
            while self.held and not (self.paused or self.closing or self.conn_lost
                                     or self.reactor.closed):
                address, data = self.held.pop(0)
                memcpy(&name, bytes_data(address), bytes_size(address))
                self.deliver_datagram(&name, <socklen_t>bytes_size(address), data)
        finally:
            self.end_batch()
            if not (self.paused or self.closing or self.conn_lost or self.reactor.closed):
                if self.held:  # SystemExit or KeyboardInterrupt
                    self._loop.call_soon(self._deliver_held, context=self.context)
                elif self.started:
                    self.wait_for(self.events | EPOLLIN)

    cdef int ready(self, uint32_t events) except -1:
        if self.q.state & STATE_DEBUG:
            self._loop.call_soon(self._ready_in_debug_mode, events)
            return 0
        return self.handle_ready(events)

    def _ready_in_debug_mode(self, events):
        if self._loop is not None:
            self.handle_ready(events)

    cdef int handle_ready(self, uint32_t events) except -1:
        if events & (EPOLLOUT | EPOLLHUP | EPOLLERR) and self.events & EPOLLOUT:
            self.write_ready()
        if events & (EPOLLIN | EPOLLHUP | EPOLLERR) and self.events & EPOLLIN \
                and not self.conn_lost and not self.closing and not _receiver.busy:
            _receiver.busy = True
            PyContext_Enter(<PyObject *>self.context)
            try:
                self.receive()
            finally:
                PyContext_Exit(<PyObject *>self.context)
                _receiver.busy = False
        return 0

    cdef int receive(self) except -1:
        cdef Receiver r = _receiver
        cdef bytes data
        cdef int i, n
        for i in range(BATCH):
            r.vec[i].iov_base = r.memory + i * LARGEST
            r.vec[i].iov_len = LARGEST
            memset(&r.messages[i], 0, sizeof(mmsghdr))
            r.messages[i].msg_hdr.msg_name = &r.names[i]
            r.messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
            r.messages[i].msg_hdr.msg_iov = &r.vec[i]
            r.messages[i].msg_hdr.msg_iovlen = 1
        self.reactor.n_syscalls += 1
        n = recvmmsg(self._sock_fd, r.messages, BATCH, MSG_DONTWAIT, NULL)
        if n < 0:
            if errno != EAGAIN and errno != EINTR:
                self.error(errno)
            return 0
        self.batching = True
        try:
            for i in range(n):
                if self.closing or self.conn_lost or self.reactor.closed:
                    break  # closed: the protocol forked, and this is the child
                data = PyBytes_FromStringAndSize(<char *>r.vec[i].iov_base,
                                                 r.messages[i].msg_len)
                if self.paused or self.held:
                    # its resume_reading() of a paused batch has not been answered yet
                    self.held.append((PyBytes_FromStringAndSize(
                        <char *>&r.names[i], r.messages[i].msg_hdr.msg_namelen), data))
                else:
                    self.deliver_datagram(&r.names[i], r.messages[i].msg_hdr.msg_namelen, data)
        finally:
            self.end_batch()
        return 0

    cdef int end_batch(self) except -1:
        self.batching = False
        if self.queued and not self.events & EPOLLOUT and not self.reactor.closed:
            self.flush()
        return 0

    cdef int deliver_datagram(self, sockaddr_storage *name, socklen_t length, bytes data) except -1:
        self.last_address = self.tuple_of(name, length)
        memcpy(&self.last_name, name, length)
        self.last_length = length
        try:
            self.received(data, self.last_address)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._loop.call_exception_handler({
                "message": "Exception in callback "
                           f"{getattr(self.received, '__qualname__', self.received)}()",
                "exception": exc,
                "transport": self,
                "protocol": self._protocol,
            })
        return 0

    cdef object tuple_of(self, sockaddr_storage *name, socklen_t length):
        """The address as a tuple, the same object while the peer is remembered."""
        cdef uint32_t hash = 0
        cdef int i
        cdef uint8_t *p = <uint8_t *>name
        if length != self.name_length:
            return address_of(name, length)
        for i in range(2, 8):
            hash = hash * 31 + p[i]
        if self.family == AF_INET6:
            for i in range(8, 24):
                hash = hash * 31 + p[i]
        hash = (hash ^ hash >> 8) & (PEERS - 1)
        # bytes past the port and address of IPv4 are padding
        if self.peers[hash] is None or memcmp(
            &self.names[hash], name, 8 if self.family == AF_INET else length
        ):
            self.peers[hash] = address_of(name, length)
            memcpy(&self.names[hash], name, length)
        return self.peers[hash]

    cdef int error(self, int code) except -1:
        """An error of the socket, for the protocol."""
        self._protocol.error_received(OSError(code, os.strerror(code)))
        return 0

    # -- sending ------------------------------------------------------------------

    def sendto(self, data, addr=None):
        """Send a datagram to `addr`, or to the address the socket is connected to."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"data argument must be a bytes-like object, not {type(data).__name__!r}"
            )
        if self._address is not None:
            if addr is not None and addr != self._address:
                raise ValueError(f"Invalid address: must be None or {self._address}")
            addr = self._address
            if self.conn_lost:
                self.count_lost_write("socket.send() raised exception.")
                return
        if self.conn_lost and self._loop is None:
            self.count_lost_write("socket.send() raised exception.")
            return
        if type(data) is not bytes:
            data = bytes(data)
        if self.queued or self.batching:
            self.queue(data, addr)
            return
        if self.send_one(data, addr) == 0:
            self.queue(data, addr)
            self.wait_for(self.events | EPOLLOUT)

    cdef int queue(self, bytes data, addr) except -1:
        self.queued.append((data, addr))
        self.pending_size += bytes_size(data)
        return self.maybe_pause_protocol()

    cdef int name_of(self, addr, sockaddr_storage *name, socklen_t *length) except -1:
        """Fill in an address; 0 if only the socket module can."""
        if addr is self.last_address and addr is not None:
            memcpy(name, &self.last_name, self.last_length)
            length[0] = self.last_length
            return 1
        return parse_address(self.family, addr, name, length)

    cdef int send_one(self, bytes data, addr) except -1:
        """1: done with it, sent or reported.  0: the socket is full."""
        cdef sockaddr_storage name
        cdef socklen_t length = 0
        cdef ssize_t n
        self.reactor.n_syscalls += 1
        if self.connected:
            n = sendto(self._sock_fd, bytes_data(data), bytes_size(data),
                       MSG_NOSIGNAL | MSG_DONTWAIT, NULL, 0)
        elif self.name_of(addr, &name, &length):
            n = sendto(self._sock_fd, bytes_data(data), bytes_size(data),
                       MSG_NOSIGNAL | MSG_DONTWAIT, <sockaddr *>&name, length)
        else:
            return self.send_by_socket(data, addr)
        if n >= 0 or self.conn_lost:
            return 1
        if errno == EAGAIN or errno == EINTR:
            return 0
        self.error(errno)
        return 1

    cdef int send_by_socket(self, bytes data, addr) except -1:
        try:
            self._sock.sendto(data, addr)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            self._protocol.error_received(exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal write error on datagram transport")
        return 1

    cdef int flush(self) except -1:
        """Send from the queue, a batch in one system call, until the socket is full."""
        cdef mmsghdr[BATCH] messages
        cdef iovec[BATCH] vec
        cdef sockaddr_storage[BATCH] names
        cdef socklen_t length
        cdef int n, sent, done, failed
        while self.queued and not self.conn_lost:
            n = 0
            for data, addr in self.queued:
                memset(&messages[n], 0, sizeof(mmsghdr))
                if not self.connected:
                    if not self.name_of(addr, &names[n], &length):
                        break
                    messages[n].msg_hdr.msg_name = &names[n]
                    messages[n].msg_hdr.msg_namelen = length
                vec[n].iov_base = bytes_data(data)
                vec[n].iov_len = bytes_size(data)
                messages[n].msg_hdr.msg_iov = &vec[n]
                messages[n].msg_hdr.msg_iovlen = 1
                n += 1
                if n == BATCH:
                    break
            failed = 0
            if n == 0:
                data, addr = self.queued[0]
                sent = self.send_by_socket(data, addr)
                if not sent:
                    failed = EAGAIN
            else:
                self.reactor.n_syscalls += 1
                sent = sendmmsg(self._sock_fd, messages, n, MSG_NOSIGNAL | MSG_DONTWAIT)
                if sent < 0:
                    failed = errno
                    sent = 0
            for done in range(sent):
                if self.queued:
                    self.pending_size -= bytes_size(self.queued[done][0])
            del self.queued[:sent]
            if failed == EAGAIN or failed == EINTR:
                if not self.conn_lost:
                    self.wait_for(self.events | EPOLLOUT)
                break
            if failed and self.queued:
                # the first of the batch cannot be sent: that one is reported and gone
                self.pending_size -= bytes_size(self.queued[0][0])
                del self.queued[0]
                self.error(failed)
        return self.after_sending()

    cdef int after_sending(self) except -1:
        self.maybe_resume_protocol()  # may queue more
        if self.queued or self._loop is None:
            return 0
        if not self.conn_lost:
            self.wait_for(self.events & ~<uint32_t>EPOLLOUT)
            if self.closing:
                self.conn_lost += 1
                self.lost_now()
        return 0

    cdef int write_ready(self) except -1:
        if self.conn_lost:
            return 0
        return self.flush()
