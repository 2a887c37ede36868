# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What both pipe transports share: their descriptor, its slot in the reactor, their end.

Why it exists: a transport of asyncio's over a pipe, FIFO, socket or character device has one
direction; see `pipe_read.pyx` and `pipe_write.pyx`.  The contract of all three is that of
asyncio's _UnixReadPipeTransport and _UnixWritePipeTransport: states, messages, exceptions
and their order.

Rules of lifetime:

* The file object belongs to the transport, which closes it behind connection_lost and
  nowhere else.  A transport that is dropped while it waits for nothing warns and closes it.
* The slot keeps a transport alive while it waits for something, as a reader handle would;
  not while reading is paused, though the registration is then left until something
  arrives, so that a protocol that pauses and resumes makes no system call.
* Both ends of a terminal can have one descriptor: the second transport then leaves the
  slot to the first and uses the loop's own watchers.  Of two in the same direction the
  later one wins, as in asyncio.
* The kernel works on memory of a transport during a system call only.  The calls on
  devices release the GIL: a terminal can be set to block by any process that shares it.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

import os
import stat
import warnings

from aiounify._core.backlog cimport STATE_CLOSED, STATE_FORKED
from aiounify._core.transport cimport Transport


cdef dict _facades = {}


cdef class PipeTransport(Transport):
    """What both ends share; what they are to isinstance() is said by the facade classes."""

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


def configure(read_facade, write_facade):
    """The classes that the transports show to isinstance()."""
    _facades[True] = read_facade
    _facades[False] = write_facade
