# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""A splice between two sockets that goes on by itself, from its first wait to its end.

Why it exists: a proxy moves a piece each time a socket is ready.  To let a task go on for each
costs more than moving it if the piece is small: a wait, a turn, a coroutine, and two changes of
the epoll set.  A `Relay` stands at both descriptors edge by edge and takes the steps of its
`Splice` (splice.pyx) where events are taken; its task goes on when there is something to say.

How a piece goes, and why:

* Up to 64 KiB it is received and sent through the reactor's scratch buffer.  splice() takes as
  many system calls, and moves references to pages whose bookkeeping costs more than copying so
  little.  A receive that fills the buffer is the sign of more, which is spliced; when the source
  has to be waited for after less than 64 KiB, it is copied again.
* What the target does not take is put into the pipe, which is empty then, and comes first.
* A TCP socket that gave less than was asked for is empty (epoll(7)), so the receive that would
  say so is spared, unless the end, an error or urgent data was reported: as in endpoint.pyx.

Rules:

* The descriptors are the splice's own duplicates: nothing else ever stands at them.  They leave
  the epoll set before they are closed, as closing a duplicate would not do it.
* An edge is waited for only after EAGAIN was seen, so none is missed while no task waits.
* A slot owns its End, which owns the Relay; close() breaks the circle, and so does the loop's end.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

cimport cython

from aiounify._core.backlog cimport BacklogObject
from aiounify._core.endpoint cimport READ, Endpoint, wait_begin, wait_end
from aiounify._core.reactor cimport EPOLLERR, EPOLLHUP, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from aiounify._core.scheduler cimport Scheduler
from aiounify._core.sendfile cimport STEP_BLOCKED, STEP_TURN
from aiounify._core.splice cimport Splice


cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_TCP

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned socklen_t
    enum:
        SOL_SOCKET
        SO_PROTOCOL
        SO_TYPE
        SOCK_STREAM
    int getsockopt(int fd, int level, int name, void *value, socklen_t *n)

cdef extern from "Python.h":
    object PyWeakref_NewRef(object, PyObject *)

cdef enum:
    # reported with what ends a receive early, though more may be there
    ENDS_EARLY = EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR


cdef int option(int fd, int name) noexcept:
    cdef int value = 0
    cdef socklen_t n = sizeof(value)
    return value if getsockopt(fd, SOL_SOCKET, name, &value, &n) == 0 else -1


@cython.final
cdef class End(Endpoint):
    """One of the two descriptors, in the reactor's table."""

    cdef Relay relay          # None when it has left

    cdef bint valid(self) noexcept:
        return True

    cdef int ready(self, uint32_t events) except -1:
        return 0 if self.relay is None else self.relay.told(self, events)

    cdef int displaced(self) except -1:
        return 0 if self.relay is None else self.relay.wake()


cdef class Relay:
    """What goes on with a Splice between two sockets.  Await it when a step was BLOCKED.

    The value is the next state that is not BLOCKED.  Cancelling it ends it between two
    system calls.  One task at a time; close() it before the splice.
    """

    cdef object __weakref__
    cdef Scheduler loop
    cdef Splice job
    cdef End source, target   # None until it was waited for
    cdef object wait          # of the task, or None
    cdef int state
    cdef bint exact           # a short receive proves that nothing is left

    def __cinit__(self, Scheduler loop not None, Splice job not None):
        self.loop = loop
        self.job = job
        if option(job.fd, SO_TYPE) == SOCK_STREAM and option(job.out, SO_TYPE) == SOCK_STREAM:
            job.scratch = loop.reactor.scratch
            self.exact = option(job.fd, SO_PROTOCOL) == IPPROTO_TCP

    def __await__(self):
        self.state = STEP_BLOCKED
        self.stand()
        self.wait = wait_begin(self.loop)
        try:
            yield self.wait
        finally:
            self.wait = None
        return self.state

    def close(self):
        """Leave the descriptors.  Twice is allowed."""
        cdef End source = self.source, target = self.target
        self.source = self.target = None
        self.job.scratch = NULL  # it goes with the reactor
        if source is not None:
            self.leave(source)
        if target is not None:
            self.leave(target)

    cdef int leave(self, End end) except -1:
        cdef BacklogObject *q = self.loop.q
        end.relay = None
        if end.fd < q.n_slots and q.slots[end.fd].calls == <PyObject *>end:
            self.loop.reactor.calls_close(end.fd)
        return 0

    cdef End new_end(self, int fd):
        cdef End end = End.__new__(End)
        end.fd = fd
        end.reactor = self.loop.reactor
        end.sock = PyWeakref_NewRef(self, NULL)  # none of the socket objects there are
        end.relay = self
        self.loop.reactor.calls_open(fd, end)
        return end

    cdef int stand(self) except -1:
        """Be told when what blocks does so no more."""
        cdef Splice job = self.job
        if job.waits_for == job.out:
            if self.target is None:
                self.target = self.new_end(job.out)
            return self.loop.reactor.calls_wait(job.out, EPOLLOUT, False)
        if self.source is None:
            self.source = self.new_end(job.fd)
            job.tells_empty = self.exact
        return self.loop.reactor.calls_wait(job.fd, READ, False)

    cdef int told(self, End end, uint32_t events) except -1:
        cdef Splice job = self.job
        if end is self.source and events & (READ | EPOLLHUP | EPOLLERR):
            job.empty = False
            if events & ENDS_EARLY:
                job.tells_empty = self.exact = False
        if self.wait is None or self.state != STEP_BLOCKED or end.fd != job.waits_for:
            return 0
        self.state = job.go()
        self.loop.reactor.n_syscalls += job.syscalls
        job.syscalls = 0
        if self.state == STEP_BLOCKED:
            try:
                return self.stand()
            except OSError:
                self.state = STEP_TURN  # the task tries again, and gets the error
        return wait_end(self.wait)

    cdef int wake(self) except -1:
        """Something else uses the number: let the task try, and find out."""
        if self.wait is not None and self.state == STEP_BLOCKED:
            self.state = STEP_TURN
            return wait_end(self.wait)
        return 0
