# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The reading pipe transport: one end of a pipe, FIFO, socket or terminal under a protocol.

Why it exists: asyncio's allocates 256 KiB for every read and goes through a handle for every
event.  What it shares with the other direction is in `pipe.pyx`.

How it reads: when the descriptor is ready, once, never on speculation: a FIFO without a
writer would report the end of the file, and a device may block although O_NONBLOCK was set,
because the flag is shared with every process that has the same open file.  Small messages
come by way of the reactor's scratch buffer into a bytes object of their size; a long one
switches to reads straight into bytes objects, of what the pipe holds and 256 KiB at most,
and a run of small ones back.  What the protocol does not keep is read into again.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t
from posix.unistd cimport read as c_read

import os
import stat
from asyncio import futures
from asyncio.log import logger

from aiounify._core.backlog cimport STATE_DEBUG
from aiounify._core.pipe cimport PipeTransport
from aiounify._core.reactor cimport (
    EAGAIN,
    EINTR,
    EPOLLIN,
    errno,
    spare_give,
)
from aiounify._core.transport cimport BULK_MAX, BULK_MIN, SMALL_RUN


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

cdef extern from "Python.h":
    int PyContext_Enter(PyObject *) except -1
    int PyContext_Exit(PyObject *) except -1
    object PyObject_CallOneArg(object, object)

cdef object _set_result = futures._set_result_unless_cancelled


cdef bint is_stream(int fd) noexcept:
    cdef int kind = 0
    cdef socklen_t length = sizeof(kind)
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &length) == 0 and kind == SOCK_STREAM


cdef class ReadPipeTransport(PipeTransport):
    """The reading end under a protocol; an asyncio.ReadTransport to isinstance()."""

    cdef readonly bint _paused
    cdef bint whole             # a socket that keeps messages apart
    cdef uint32_t largest       # of a bulk read: what the pipe can hold, 0: not asked yet

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

    cdef Py_ssize_t read_some(self, char *data, Py_ssize_t size) noexcept:
        """What was read, or a negated errno."""
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

    cdef int received_none(self, Py_ssize_t n) except -1:
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
