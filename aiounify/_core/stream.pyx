# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The stream transport: TCP and unix stream sockets, native per packet.

Why it exists: under a protocol the transport runs for every packet, and asyncio's
does it in Python.  This one has the same contract (states, messages, exceptions and
their order are asyncio's) and calls recv, send and the protocol from C.

How it receives is said in stream_receive.pyx, who accepts in acceptor.pyx.

How it sends: at once if nothing is queued, as asyncio does; on the ring, while more of
the same turn is still to be handled, together with the others by the next submission, at
most 100 us later.  What the socket does not take is queued; bytes are kept by reference,
anything mutable is copied, so changing a bytearray after write() changes nothing.  The
queue goes out by sendmsg when the socket is writable.

Rules of lifetime:

* Those of socket_transport.pyx and stream_receive.pyx.
* The ring reads from the bytes object `in_flight`; a send in flight keeps its object, also
  after abort().
* A received message that nobody holds when the protocol returns, or when it is sent, is
  received into again: see spare_bytes.h.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import asyncio
import os
import socket
from asyncio import constants, futures

from aiounify._core.backlog cimport STATE_DEBUG, STATE_FORKED
from aiounify._core.reactor cimport (
    EAGAIN,
    EINTR,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    Reactor,
    errno,
    spare_give,
    spare_take,
)
from aiounify._core.sendfile cimport CHUNK, Transfer
from aiounify._core.socket_transport cimport (
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SHUT_WR,
    SocketTransport,
    msghdr,
)
from aiounify._core.stream_receive cimport StreamReceiver
from aiounify._core.transport cimport IOV, gather, iovec, taken

cdef extern from "<errno.h>" nogil:
    enum:
        ENOTCONN

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_MORE
    ssize_t send(int fd, const void *buf, size_t n, int flags)
    ssize_t sendmsg(int fd, const msghdr *msg, int flags)
    int shutdown(int fd, int how)

cdef extern from "Python.h":
    int PyContext_Enter(PyObject *) except -1
    int PyContext_Exit(PyObject *) except -1
    void Py_DECREF(PyObject *)
    void Py_INCREF(PyObject *)
    int get_view "PyObject_GetBuffer" (PyObject *, Py_buffer *, int)
    void clear_error "PyErr_Clear" ()
    bint PyByteArray_Check(object)
    bint PyMemoryView_Check(object)
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    Py_ssize_t bytes_size "PyBytes_GET_SIZE" (PyObject *)

cdef enum:
    BURSTS = 8               # single writes in a row after which they are sent at once again
    BATCH_MAX = 8192         # longer sends gain nothing from being submitted together

cdef object _set_result = futures._set_result_unless_cancelled
cdef object _TRY_NATIVE = constants._SendfileMode.TRY_NATIVE


cdef class StreamTransport(StreamReceiver):
    """A connected stream socket under a protocol; an asyncio.Transport to isinstance()."""

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
    def _eof(self):
        return self.eof

    @property
    def _buffer(self):
        waiting = [] if self.in_flight is None else [self.in_flight]
        return waiting + (self.pending or [])

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

    def _call_connection_lost(self, exc):
        try:
            SocketTransport._call_connection_lost(self, exc)
        finally:
            self.get_buffer = None
            if self.empty_waiter is not None and not self.empty_waiter.done():
                self.empty_waiter.set_exception(ConnectionError("Connection is closed by peer"))

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

    # -- readiness ------------------------------------------------------------------

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

    cdef bint worth_waiting(self) noexcept:
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

    # -- files ------------------------------------------------------------------------

    def try_sendfile(self, bytes head not None, int fd, int64_t offset, int64_t count,
                     bint look=True):
        """Send `head`, and `count` bytes of a file behind it, as far as both go at once.

        Returns how many bytes of the file were sent.  They are fewer than `count` if the socket
        takes no more, the next ones are not in memory, the file is shorter, half a millisecond is
        over, or there was an error; the rest is for loop.sendfile(), which also tells what is
        wrong.  What the socket did not take of `head` is queued, as by write().

        -1: nothing was done.  Something that was written before is not sent yet, the transport
        is closing, or the beginning of the file is not in memory: write() and loop.sendfile() do it.

        `offset` and `count` are in bytes; `fd` is used during the call only, and is that of a
        regular file.  `look` false: the caller knows that the bytes are in memory, as they were
        sent a moment ago, and spares the look at them (see sendfile(2) in docs/sendfile.md).
        """
        cdef Transfer transfer
        cdef Py_ssize_t n, size = bytes_size(<PyObject *>head)
        if offset < 0 or count <= 0:
            raise ValueError(f"offset {offset} and count {count} are no part of a file")
        if self.pending_size or self.conn_lost or self.closing or self.eof or self.lent \
                or self.empty_waiter is not None or self._loop is None or self.reactor.closed:
            return -1
        transfer = Transfer(fd, offset, count)
        if not look:
            transfer.warm_until = offset + count
        elif transfer.cold(min(count, CHUNK)):
            return -1
        else:
            transfer.warm_until = offset + min(count, CHUNK)
        if size:
            self.reactor.n_syscalls += 1
            # one packet with what follows: of the two, the receiver would be woken twice
            n = send(self._sock_fd, bytes_data(<PyObject *>head), size,
                     MSG_NOSIGNAL | MSG_DONTWAIT | MSG_MORE)
            if n < 0:
                n = self.send_failed(errno)
                if n < 0:
                    return 0
            if n < size:
                self.queue(head, n)
                return 0
        try:
            transfer.go(self._sock_fd)
        except OSError:
            pass  # no descriptor for what is to go on; whoever goes on finds out
        self.reactor.n_syscalls += transfer.syscalls
        return transfer.sent

    # lending the socket to sendfile

    def _make_empty_waiter(self):
        if self.empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self.empty_waiter = self._loop.create_future()
        if not self.pending_size:
            self.empty_waiter.set_result(None)
        return self.empty_waiter

    def _reset_empty_waiter(self):
        self.empty_waiter = None

    def _lend(self):
        """Give the descriptor's readiness to somebody else, until _take_back()."""
        self.lent = True
        self.wait_for(0)

    def _take_back(self):
        self.lent = False
