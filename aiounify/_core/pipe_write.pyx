# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The writing pipe transport: one end of a pipe, FIFO, socket or device under a protocol.

Why it exists: asyncio's keeps what is not written in a bytearray whose front is cut off, and
goes through a handle for every event.  What it shares with the other direction is in
`pipe.pyx`.

How it writes: at once if nothing is queued.  What the pipe does not take is queued; bytes
are kept by reference, anything mutable is copied, so changing a bytearray after write()
changes nothing.  The queue goes out by writev when the pipe is writable.

How the other end is seen to be gone: Linux reports EPOLLERR for the writing end of a pipe
that nobody reads, whether asked for or not, and nothing else; a socket becomes readable,
as asyncio takes it.  Of devices only a write tells.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t
from posix.unistd cimport write as c_write

import os
import stat
from asyncio import futures
from asyncio.log import logger

from aiounify._core.backlog cimport STATE_DEBUG, STATE_FORKED
from aiounify._core.pipe cimport PipeTransport
from aiounify._core.reactor cimport EAGAIN, EINTR, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, errno
from aiounify._core.transport cimport IOV, gather, iovec, taken


cdef extern from "<sys/uio.h>" nogil:
    ssize_t writev(int fd, const iovec *vec, int count)

cdef extern from "Python.h":
    int PyContext_Enter(PyObject *) except -1
    int PyContext_Exit(PyObject *) except -1
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    Py_ssize_t bytes_size "PyBytes_GET_SIZE" (PyObject *)

cdef enum:
    JOIN_MAX = 8192          # chunks of less in all are joined: cheaper than a vector

cdef object _set_result = futures._set_result_unless_cancelled


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

    # -- reading, which asyncio's have too, to say that they do not ----------------------

    def is_reading(self):
        """NotImplementedError: this is the writing end."""
        raise NotImplementedError

    def pause_reading(self):
        """NotImplementedError: this is the writing end."""
        raise NotImplementedError

    def resume_reading(self):
        """NotImplementedError: this is the writing end."""
        raise NotImplementedError

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

    # -- the system calls: what was written, or a negated errno ------------------------

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
