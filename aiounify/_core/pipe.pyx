# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The pipe transports: one end of a pipe, FIFO, socket or character device, native per packet.

Why it exists: asyncio's pipe transports allocate 256 KiB for every read, keep what is not
written in a bytearray whose front is cut off, and go through a handle for every event.
The contract here is that of its _UnixReadPipeTransport and _UnixWritePipeTransport: states,
messages, exceptions and their order.

How it reads: when the descriptor is ready, once, never on speculation: a FIFO without a
writer would report the end of the file, and a device may block although O_NONBLOCK was set,
because the flag is shared with every process that has the same open file.  Small messages
come by way of the reactor's scratch buffer into a bytes object of their size; a long one
switches to reads straight into bytes objects, of what the pipe holds and 256 KiB at most,
and a run of small ones back.  What the protocol does not keep is read into again.

How it writes: at once if nothing is queued.  What the pipe does not take is queued; bytes
are kept by reference, anything mutable is copied, so changing a bytearray after write()
changes nothing.  The queue goes out by writev when the pipe is writable.

How the other end is seen to be gone: Linux reports EPOLLERR for the writing end of a pipe
that nobody reads, whether asked for or not, and nothing else; a socket becomes readable,
as asyncio takes it.  Of devices only a write tells.

Rules of lifetime:

* The file object belongs to the transport, which closes it behind connection_lost and
  nowhere else.  A transport that is dropped while it waits for nothing warns and closes it.
* The slot keeps a transport alive while it waits for something, as a reader handle would;
  not while reading is paused, though the registration is then left until something
  arrives, so that a protocol that pauses and resumes makes no system call.
* Both ends of a terminal can have one descriptor: the second transport then leaves the
  slot to the first and uses the loop's own watchers.  Of two in the same direction the
  later one wins, as in asyncio.
* The kernel works on memory of a transport during a system call only.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy
from posix.unistd cimport read as c_read
from posix.unistd cimport write as c_write

import os
import stat
import warnings
from asyncio import futures
from asyncio.log import logger

from aiounify._core.backlog cimport STATE_CLOSED, STATE_DEBUG, STATE_FORKED
from aiounify._core.reactor cimport (
    EAGAIN,
    EINTR,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    SCRATCH,
    Reactor,
    bytes_reuse,
    errno,
    spare_give,
    spare_take,
)
from aiounify._core.transport cimport (
    BULK_MAX,
    BULK_MIN,
    IOV,
    SMALL_RUN,
    Transport,
    gather,
    iovec,
    taken,
)


cdef extern from "<errno.h>" nogil:
    enum:
        EIO

cdef extern from "<fcntl.h>" nogil:
    """
    #ifndef F_GETPIPE_SZ
    #define F_GETPIPE_SZ 1032
    #endif
    """
    enum:
        F_GETPIPE_SZ
    int fcntl(int fd, int command)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        SOL_SOCKET
        SO_TYPE
        SOCK_STREAM
    ctypedef unsigned int socklen_t
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)

cdef extern from "<sys/uio.h>" nogil:
    ssize_t writev(int fd, const iovec *vec, int count)

cdef extern from "Python.h":
    int PyContext_Enter(PyObject *) except -1
    int PyContext_Exit(PyObject *) except -1
    object PyObject_CallOneArg(object, object)
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    void Py_DECREF(PyObject *)
    void Py_INCREF(PyObject *)
    Py_ssize_t Py_REFCNT(PyObject *)
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    Py_ssize_t bytes_size "PyBytes_GET_SIZE" (PyObject *)

cdef enum:
    LONG = SCRATCH // 4      # a read of this many bytes is a long one
    JOIN_MAX = 8192          # chunks of less in all are joined: cheaper than a vector

cdef object _set_result = futures._set_result_unless_cancelled
cdef dict _facades = {}


cdef bint is_stream(int fd) noexcept:
    cdef int kind = 0
    cdef socklen_t length = sizeof(kind)
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &length) == 0 and kind == SOCK_STREAM


cdef class PipeTransport(Transport):
    """What both ends share; what they are to isinstance() is said by the facade classes."""

    cdef dict __dict__          # programs' own attributes, as asyncio's transports take them
    cdef public object _pipe    # the file object; None once closed
    cdef readonly int _fileno
    cdef bint reads             # the direction
    cdef bint device            # a character device
    cdef bint by_watcher        # the other direction has the slot
    cdef bint unheld            # in the slot and registered, but not kept alive by it
    cdef bint lost_asked        # connection_lost is scheduled

    cdef int open(self, loop, pipe, protocol, extra, str refused) except -1:
        cdef int fd = pipe.fileno()
        mode = os.fstat(fd).st_mode
        self.device = stat.S_ISCHR(mode)
        if not (self.device or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise ValueError(refused)
        os.set_blocking(fd, False)
        self.begin(loop, extra)
        self.extra["pipe"] = pipe
        self._fileno = fd
        self.set_protocol(protocol)
        self.take_slot()
        self._pipe = pipe
        return stat.S_IFMT(mode)

    cdef int take_slot(self) except -1:
        cdef PyObject *there = self.reactor.slot(self._fileno).stream
        cdef PipeTransport other
        if there != NULL:
            if not isinstance(<object>there, PipeTransport):
                self.by_watcher = True
                return 0
            other = <PipeTransport>there
            if other.reads != self.reads:
                self.by_watcher = True
                return other.share()
            # its file was closed behind its back, or it loses it now
            other.wait_for(0)
            self.reactor.stream_close(self._fileno, other, True)
        return self.reactor.stream_open(self._fileno, self)

    cdef int share(self) except -1:
        """A transport of the other direction has come to the descriptor."""
        return 0

    @property
    def __class__(self):
        return _facades[self.reads]

    @property
    def _extra(self):
        return self.extra

    def get_extra_info(self, name, default=None):
        """As asyncio's: "pipe" is the file object."""
        return self.extra.get(name, default)

    cdef bint has_slot(self) noexcept:
        return (self._fileno < self.q.n_slots
                and self.q.slots[self._fileno].stream == <PyObject *>self)

    cdef int wait_for(self, uint32_t events) except -1:
        if events and self.q.state & (STATE_CLOSED | STATE_FORKED):
            self._loop._check_closed()
        if self.unheld:
            self.unheld = False
            if self.has_slot():
                self.reactor.stream_hold(self._fileno)
        if events == self.events:
            return 0
        if self.by_watcher:
            self.watch(events)
        else:
            self.reactor.stream_wait(self._fileno, self, events)
        self.events = events
        return 0

    cdef int watch(self, uint32_t events) except -1:
        """The same by the loop's own watchers, which hold a reference each."""
        if self.reads:
            if events:
                self._loop._add_reader(self._fileno, self._read_ready)
            else:
                self._loop._remove_reader(self._fileno)
        elif events:
            self._loop._add_writer(self._fileno, self._write_ready)
        else:
            self._loop._remove_writer(self._fileno)
        return 0

    # -- the end ------------------------------------------------------------------------

    cdef int drop_pending(self) except -1:
        """Forget what was not written."""
        return 0

    def _close(self, exc=None):
        """connection_lost(exc) in the next turn; what is queued is dropped."""
        if self.lost_asked or self._loop is None:
            return
        if self.q.state & STATE_FORKED:
            self._loop._check_closed()
        self.closing = True
        self.drop_pending()
        self.lose(exc)

    cdef int lose(self, exc) except -1:
        self.wait_for(0)
        self._loop.call_soon(self._call_connection_lost, exc)
        self.lost_asked = True
        return 0

    def _call_connection_lost(self, exc):
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._protocol = None
            self.received = None
            self._loop = None
            self.close_pipe()

    cdef int close_pipe(self) except -1:
        pipe, self._pipe = self._pipe, None
        self.events = 0
        self.unheld = False
        self.reactor.stream_close(self._fileno, self, True)
        if pipe is not None:
            pipe.close()
        return 0

    def __del__(self):
        if self._pipe is None:
            return
        try:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
        finally:
            self.close_pipe()  # whether or not the warning is an error

    cdef int report(self, exc, message) except -1:
        self._loop.call_exception_handler({
            "message": message,
            "exception": exc,
            "transport": self,
            "protocol": self._protocol,
        })
        return 0

    cdef int failed(self, exc) except -1:
        """What a method of the protocol raised is reported, and the pipe goes on."""
        if self._loop is None:
            raise exc
        name = "_read_ready" if self.reads else "_write_ready"
        return self.report(exc, f"Exception in callback {self.__class__.__name__}.{name}()")

    cdef list description(self, bint polling):
        """The parts of repr() that both ends have, in asyncio's words."""
        cdef list info = [self.__class__.__name__]
        if self._pipe is None:
            info.append("closed")
        elif self.closing:
            info.append("closing")
        info.append(f"fd={self._fileno}")
        if self._pipe is None:
            info.append("closed")
        elif self._loop is None or self._loop.is_closed():
            info.append("open")
        else:
            info.append("polling" if polling else "idle")
        return info

    # -- the system calls ---------------------------------------------------------------
    # Each returns what was moved or a negated errno.  Devices get the GIL released: a
    # terminal can be set to block by any process that shares it.

    cdef Py_ssize_t read_some(self, char *data, Py_ssize_t size) noexcept:
        cdef Py_ssize_t n
        self.reactor.n_syscalls += 1
        if self.device:
            with nogil:
                n = c_read(self._fileno, data, size)
                if n < 0:
                    n = -errno
            return n
        n = c_read(self._fileno, data, size)
        return n if n >= 0 else -errno

    cdef Py_ssize_t write_some(self, const char *data, Py_ssize_t size) noexcept:
        cdef Py_ssize_t n
        self.reactor.n_syscalls += 1
        if self.device:
            with nogil:
                n = c_write(self._fileno, data, size)
                if n < 0:
                    n = -errno
            return n
        n = c_write(self._fileno, data, size)
        return n if n >= 0 else -errno

    cdef Py_ssize_t write_vector(self, const iovec *vec, int count) noexcept:
        cdef Py_ssize_t n
        self.reactor.n_syscalls += 1
        if self.device:
            with nogil:
                n = writev(self._fileno, vec, count)
                if n < 0:
                    n = -errno
            return n
        n = writev(self._fileno, vec, count)
        return n if n >= 0 else -errno


cdef class ReadPipeTransport(PipeTransport):
    """The reading end under a protocol; an asyncio.ReadTransport to isinstance()."""

    cdef readonly bint _paused
    cdef bint whole             # a socket that keeps messages apart
    cdef bint keeps             # the protocol kept the last bulk read
    cdef uint32_t bulk          # size of the next bulk read; 0: small mode
    cdef uint32_t largest       # of a bulk read: what the pipe can hold, 0: not asked yet
    cdef uint16_t small_run

    def __cinit__(self):
        self.reads = True

    def __init__(self, loop, pipe, protocol, waiter=None, extra=None):
        if self.open(loop, pipe, protocol, extra,
                     "Pipe transport is for pipes/sockets only.") == stat.S_IFSOCK:
            # What is not read of a datagram is gone: room for all of it, always.
            self.whole = not is_stream(self._fileno)
            if self.whole:
                self.bulk = BULK_MAX
        loop.call_soon(self._start, waiter)

    def set_protocol(self, protocol):
        """Hand the pipe to another protocol, also in mid-stream."""
        self._protocol = protocol
        self.received = getattr(protocol, "data_received", None)

    def _start(self, waiter):
        """connection_made, then reading and the waiter: one callback in place of three."""
        try:
            self.connection_made()
        finally:
            if waiter is None:
                self._start_reading()
            else:
                # Data is delivered from the wait itself.  Whoever awaits the transport
                # has to have it by then, so reading begins behind its wake-up.
                _set_result(waiter, None)
                self._loop.call_soon(self._start_reading)

    def _start_reading(self):
        if not self._paused and not self.closing:
            self.wait_for(EPOLLIN)

    def is_reading(self):
        """True unless closing or paused."""
        return not self._paused and not self.closing

    def pause_reading(self):
        """Deliver nothing more until resume_reading()."""
        if self._paused or self.closing:
            return
        self._paused = True
        if self.by_watcher:
            self.wait_for(0)
        elif self.events and self.has_slot():
            # The registration stays until something arrives, or reading goes on.
            self.unheld = True
            self.reactor.stream_release(self._fileno)
        if self.q.state & STATE_DEBUG:
            logger.debug("%r pauses reading", self)

    def resume_reading(self):
        """Deliver again what has come and what comes."""
        if self.closing or not self._paused:
            return
        self._paused = False
        self.wait_for(EPOLLIN)
        if self.q.state & STATE_DEBUG:
            logger.debug("%r resumes reading", self)

    def close(self):
        """Close; what has not been read is lost to this process."""
        if not self.closing:
            self._close(None)

    def __repr__(self):
        polling = self.events != 0 and not self._paused
        return "<{}>".format(" ".join(self.description(polling)))

    cdef int ready(self, uint32_t events) except -1:
        if self._paused or self.closing:
            return self.wait_for(0)
        if self.q.state & STATE_DEBUG:
            self._loop.call_soon(self._read_ready)
            return 0
        PyContext_Enter(<PyObject *>self.context)
        try:
            self.receive()
        finally:
            PyContext_Exit(<PyObject *>self.context)
        return 0

    def _read_ready(self):
        """In debug mode, where the loop measures callbacks, and when another transport
        has the slot."""
        if not self._paused and not self.closing:
            self.receive()

    cdef int receive(self) except -1:
        cdef Py_ssize_t n
        cdef PyObject *data
        if self.bulk:
            return self.receive_bulk()
        n = self.read_some(self.reactor.scratch, SCRATCH)
        if n <= 0:
            return self.received_nothing(n)
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
            return self.received_nothing(n)
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

    cdef int deliver(self, PyObject *data) except -1:
        """Takes over the reference: what the protocol does not keep is used again."""
        try:
            if self.received is None:
                self._protocol.data_received(<object>data)  # it says what is missing
            else:
                PyObject_CallOneArg(self.received, <object>data)
        finally:
            spare_give(&self.reactor.spares, data)
        return 0

    cdef int adapt(self, Py_ssize_t n, Py_ssize_t size) except -1:
        """Choose the size of the next bulk read by what this one of `size` brought."""
        cdef int capacity
        if n == size:
            self.small_run = 0
            if not self.largest:
                capacity = fcntl(self._fileno, F_GETPIPE_SZ)
                self.largest = BULK_MAX if capacity < 0 else min(BULK_MAX, capacity)
            if self.bulk < self.largest:
                self.bulk *= 2
        elif n > self.bulk // 4 or self.whole:
            self.small_run = 0
        else:
            self.small_run += 1
            if self.small_run >= SMALL_RUN:
                self.small_run = 0
                self.bulk = self.bulk // 2 if self.bulk > BULK_MIN else 0
        return 0

    cdef int received_nothing(self, Py_ssize_t n) except -1:
        if n < 0:
            if n != -EAGAIN and n != -EINTR:
                try:
                    raise OSError(-n, os.strerror(-n))
                except OSError as exc:
                    self._fatal_error(exc, "Fatal read error on pipe transport")
            return 0
        if self.q.state & STATE_DEBUG:
            logger.info("%r was closed by peer", self)
        self.closing = True
        try:
            self._loop.call_soon(self._protocol.eof_received)
        finally:
            self.lose(None)
        return 0

    def _fatal_error(self, exc, message="Fatal error on pipe transport"):
        if isinstance(exc, OSError) and exc.errno == EIO:
            # how the master of a terminal sees its last slave go
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=True)
        else:
            self.report(exc, message)
        self._close(exc)


cdef class WritePipeTransport(PipeTransport):
    """The writing end under a protocol; an asyncio.WriteTransport to isinstance()."""

    cdef list pending                # bytes objects not written yet
    cdef Py_ssize_t pending_offset   # into the first of them
    cdef uint32_t peer               # what says that the reader has gone; 0: nothing does

    def __init__(self, loop, pipe, protocol, waiter=None, extra=None):
        kind = self.open(loop, pipe, protocol, extra,
                         "Pipe transport is only for pipes, sockets and character devices")
        if not self.by_watcher:
            self.peer = EPOLLERR if kind == stat.S_IFIFO else EPOLLIN if not self.device else 0
        loop.call_soon(self._start, waiter)

    @property
    def _buffer(self):
        return b"".join(self.pending or ())[self.pending_offset:]

    def set_protocol(self, protocol):
        """Hand the pipe to another protocol."""
        self._protocol = protocol

    def _start(self, waiter):
        """connection_made, then a watch on the reader and the waiter: one callback in place
        of three."""
        try:
            self.connection_made()
        finally:
            if waiter is not None:
                _set_result(waiter, None)
            if not self.closing:
                self.wait_for(self.events | self.peer)

    cdef int share(self) except -1:
        # What arrives at a socket is the reading transport's from now on.
        self.wait_for(self.events & ~self.peer)
        self.peer = 0
        return 0

    def __repr__(self):
        cdef list info = self.description(self.pending_size != 0)
        if "polling" in info or "idle" in info:
            info.append(f"bufsize={self.pending_size}")
        return "<{}>".format(" ".join(info))

    # -- flow control -------------------------------------------------------------------

    def get_write_buffer_size(self):
        """Bytes queued and not taken by the kernel."""
        return self.pending_size

    def get_write_buffer_limits(self):
        """(low, high), in bytes."""
        return (self.low, self.high)

    def set_write_buffer_limits(self, high=None, low=None):
        """pause_writing() above `high` bytes, resume_writing() at `low`."""
        self.set_limits(high, low)

    # -- writing ------------------------------------------------------------------------

    def write(self, data):
        """Write bytes, or queue what the pipe does not take now."""
        cdef Py_ssize_t n, size
        cdef Py_buffer view
        if type(data) is bytes:
            size = bytes_size(<PyObject *>data)
            if size and not self.pending_size and not self.closing and not self.conn_lost:
                n = self.write_now(bytes_data(<PyObject *>data), size)
                if 0 <= n < size:
                    self.queue(data, n)
                return
        elif not isinstance(data, (bytes, bytearray, memoryview)):
            raise AssertionError(repr(data))  # as asyncio's
        if not data:
            return
        if self.conn_lost or self.closing:
            self.lost_write()
            return
        if self.pending_size:
            self.queue(bytes(data), 0)
            return
        if isinstance(data, memoryview) and not data.c_contiguous:
            data = bytes(data)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        size = view.len
        try:
            n = self.write_now(<char *>view.buf, size)
        finally:
            PyBuffer_Release(&view)
        if 0 <= n < size:
            # only the rest is copied, and only once
            self.queue(bytes(memoryview(data).cast("B")[n:]), 0)

    def writelines(self, list_of_data):
        """write() all of it; long chunks are not copied."""
        cdef list chunks = list(list_of_data)
        cdef Py_ssize_t size = 0
        for data in chunks:
            if type(data) is not bytes:
                size = 0
                break
            size += bytes_size(<PyObject *>data)
        if size <= JOIN_MAX:
            self.write(b"".join(chunks))
            return
        if self.conn_lost or self.closing:
            self.lost_write()
            return
        chunks = [data for data in chunks if data]
        if self.pending_size:
            self.pending.extend(chunks)
            self.pending_size += size
        else:
            self.pending = chunks
            self.pending_size = size
            self.pending_offset = 0
            if self.flush() < 0 or not self.pending_size:
                return
            self.wait_for(self.events | EPOLLOUT)
        self.maybe_pause_protocol()

    cdef int lost_write(self) except -1:
        return self.count_lost_write(
            "pipe closed by peer or os.write(pipe, data) raised exception."
        )

    cdef Py_ssize_t write_now(self, const char *data, Py_ssize_t size) except -2:
        """What the pipe took, or -1 after a fatal error."""
        cdef Py_ssize_t n = self.write_some(data, size)
        return n if n >= 0 else self.write_failed(-n)

    cdef Py_ssize_t write_failed(self, int error) except -2:
        if error == EAGAIN or error == EINTR:
            return 0
        self.conn_lost += 1
        try:
            raise OSError(error, os.strerror(error))
        except OSError as exc:
            self._fatal_error(exc, "Fatal write error on pipe transport")
        return -1

    cdef int queue(self, bytes data, Py_ssize_t sent) except -1:
        if not self.pending_size:
            self.wait_for(self.events | EPOLLOUT)
            self.pending = []
            self.pending_offset = sent
        self.pending.append(data)
        self.pending_size += bytes_size(<PyObject *>data) - sent
        return self.maybe_pause_protocol()

    cdef Py_ssize_t flush(self) except -2:
        """Write from the queue, once; -1 after a fatal error."""
        cdef iovec[IOV] vec
        cdef list chunks = self.pending  # held: devices are written to without the GIL
        cdef Py_ssize_t n = self.write_vector(vec, gather(chunks, self.pending_offset, vec))
        if n < 0:
            return self.write_failed(-n)
        self.pending_size -= n
        if not self.pending_size:
            self.pending = None
            self.pending_offset = 0
        else:
            self.pending_offset = taken(chunks, self.pending_offset, n)
        return n

    cdef int drop_pending(self) except -1:
        self.pending = None
        self.pending_size = self.pending_offset = 0
        return 0

    # -- readiness ----------------------------------------------------------------------

    cdef int ready(self, uint32_t events) except -1:
        cdef bint gone = self.peer and events & (self.peer | EPOLLERR | EPOLLHUP)
        if self.q.state & STATE_DEBUG:
            self._loop.call_soon(self._read_ready if gone else self._write_ready)
            return 0
        PyContext_Enter(<PyObject *>self.context)
        try:
            if gone:
                self._read_ready()
            else:
                self._write_ready()
        finally:
            PyContext_Exit(<PyObject *>self.context)
        return 0

    def _read_ready(self):
        """The reader has gone."""
        if self.lost_asked or self._loop is None:
            return
        if self.q.state & STATE_DEBUG:
            logger.info("%r was closed by peer", self)
        self._close(BrokenPipeError() if self.pending_size else None)

    def _write_ready(self):
        """The pipe takes more."""
        cdef bint was_paused
        if self.lost_asked or self._loop is None:
            return
        if self.pending_size:
            if self.flush() < 0:
                return
            was_paused = self._protocol_paused
            self.maybe_resume_protocol()  # may queue more, or close
            if self.pending_size or self.lost_asked:
                return
            if self.closing:
                self.wait_for(0)
                self.lost_asked = True
                self.lost_now()
                return
            if was_paused:
                # It is about to write again.  If it has nothing, this is called again.
                return
        self.wait_for(self.events & ~<uint32_t>EPOLLOUT)

    # -- the end ------------------------------------------------------------------------

    def can_write_eof(self):
        """True."""
        return True

    def write_eof(self):
        """Write what is queued, then close: there is nothing in between with pipes."""
        if self.closing:
            return
        if self.q.state & STATE_FORKED:
            self._loop._check_closed()
        self.closing = True
        if not self.pending_size:
            self.lose(None)

    def close(self):
        """Write what is queued, then close."""
        if self._pipe is not None and not self.closing:
            self.write_eof()

    def abort(self):
        """Close now; what is queued is dropped."""
        self._close(None)

    def _fatal_error(self, exc, message="Fatal error on pipe transport"):
        if isinstance(exc, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=True)
        else:
            self.report(exc, message)
        self._close(exc)


def configure(read_facade, write_facade):
    """The classes that the transports show to isinstance()."""
    _facades[True] = read_facade
    _facades[False] = write_facade
