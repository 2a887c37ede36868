# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Endpoints: where sock_recv() and its kin wait, and what is known of a socket's readiness.

Why it exists: asyncio adds a socket to the selector for each wait and removes it behind it,
and finds out by a receive in vain that it has to wait at all.  Here neither takes a system
call.

* At each descriptor that was waited for stands an `Endpoint`.  Its registration in the
  epoll set is edge-triggered and stays between calls.  After some events in a row for which
  nobody waited it is taken out, until the next wait.
* A wait follows an EAGAIN seen while the registration was in place, or makes it, which tells
  the present state.  So no edge is missed.
* A TCP socket that gave less than was asked for is empty (epoll(7)).  The next receive then
  waits without trying, unless the end of the stream, an error or urgent data was reported:
  these end a read early as well, and come with an edge of their own.  Unix sockets end reads
  at the bounds of messages that carry descriptors, so they are always tried.
* While add_reader() or add_writer() watch the same descriptor, the registration is
  level-triggered and holds what is awaited at that moment.

Rules:

* Several calls may wait at one descriptor; each is woken and tries.
* An endpoint holds its socket by a weak reference, and is used for that very socket object
  as long as it has that descriptor: a registration in the kernel goes with the file, and
  the number may be another's by the time of the next call.  What still waits at the old
  endpoint then fails with EBADF.
* The slot in the reactor owns the endpoint, the endpoint owns the waits, and these the
  tasks: as asyncio's handles do.
"""

from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport uint32_t

import asyncio
import errno as errors
import os
import socket
from asyncio import format_helpers

cimport cython

from aiounify._core.address cimport AF_INET, AF_INET6
from aiounify._core.backlog cimport FdSlot
from aiounify._core.reactor cimport (
    EDGE,
    EPOLLERR,
    EPOLLHUP,
    EPOLLOUT,
    EPOLLPRI,
    EPOLLRDHUP,
    Reactor,
)
from aiounify._core.scheduler cimport Scheduler
from aiounify._core.sock_object cimport (
    SOCK_FAMILY,
    SOCK_FD,
    SOCK_PROTO,
    SOCK_STREAM,
    SOCK_TYPE,
    sock_fd,
    sock_get,
    sock_verify,
)


cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_TCP

cdef extern from "wait.h":
    ctypedef struct WaitObject:
        char state
    enum:
        WAIT_DONE
    PyTypeObject *Wait_Type
    PyObject *wait_cancelled_error
    PyObject *wait_describe
    int (*wait_schedule)(PyObject *, PyObject *, PyObject *, PyObject *) except -1
    WaitObject *wait_new(PyObject *loop) except NULL
    int wait_finish(WaitObject *w, char state) except -1
    int wait_init(PyObject *over) except -1

cdef extern from "Python.h":
    object PyWeakref_NewRef(object, PyObject *)
    void Py_INCREF(PyObject *)
    void Py_DECREF(PyObject *)

cdef enum:
    IDLE_EVENTS = 16         # events in a row that nobody waited for


@cython.no_gc_clear  # calls use the reactor unchecked; the backlog and the waits break cycles
cdef class Endpoint(Watched):
    """What waits at one descriptor, and what is known of its readiness."""

    cdef bint valid(self) noexcept:
        cdef PyObject *sock = weak_get(<PyObject *>self.sock)
        return sock != NULL and sock_fd(sock) == self.fd

    cdef int ready(self, uint32_t events) except -1:
        cdef uint32_t over = 0
        if events & (READ | EPOLLHUP | EPOLLERR):
            self.empty = False
            over = READ
            if events & (EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                self.eager = True
        if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
            over |= EPOLLOUT
        if self.wake(over):
            self.idle = 0
            self.reactor.calls_leave(self.fd, over)
            return 0
        self.idle += 1
        if self.idle >= IDLE_EVENTS:
            self.idle = 0
            self.reactor.calls_rest(self.fd)
        return 0

    cdef int drained(self, PyObject *sock) except -1:
        """A receive gave less than was asked for: is nothing left, and will an edge tell
        what comes?"""
        cdef FdSlot *slot = &self.reactor.q.slots[self.fd]
        cdef int family, protocol
        if self.eager or not slot.armed & EDGE or slot.call_events & READ != READ:
            return 0
        family = sock_get(sock, SOCK_FAMILY)
        protocol = sock_get(sock, SOCK_PROTO)
        self.empty = (
            (family == AF_INET or family == AF_INET6)
            and sock_get(sock, SOCK_TYPE) == SOCK_STREAM
            and (protocol == 0 or protocol == IPPROTO_TCP)
        )
        return 0

    cdef int add(self, object wait, uint32_t events) except -1:
        if self.more is None:
            if events == READ and self.reader is None:
                self.reader = wait
                return 0
            if events != READ and self.writer is None:
                self.writer = wait
                return 0
            self.more = []
        self.more.append((wait, events))
        return 0

    cdef bint remove(self, object wait, uint32_t events) except -1:
        """True if nothing else waits for these events."""
        cdef list more
        if self.reader is wait:
            self.reader = None
        elif self.writer is wait:
            self.writer = None
        elif self.more is not None:
            more = [each for each in self.more if each[0] is not wait]
            self.more = more or None
        if self.more is not None:
            for _, awaits in self.more:
                if awaits == events:
                    return False
        return (self.reader if events == READ else self.writer) is None

    cdef bint wake(self, uint32_t events) except -1:
        """End the waits for these; False if there is none."""
        cdef object wait
        cdef list more, rest
        cdef bint woken = False
        if events & READ and self.reader is not None:
            wait, self.reader = self.reader, None
            wait_finish(<WaitObject *><PyObject *>wait, WAIT_DONE)
            woken = True
        if events & EPOLLOUT and self.writer is not None:
            wait, self.writer = self.writer, None
            wait_finish(<WaitObject *><PyObject *>wait, WAIT_DONE)
            woken = True
        if self.more is not None:
            more = self.more
            rest = [each for each in more if not each[1] & events]
            self.more = rest or None
            for wait, awaits in more:
                if awaits & events:
                    wait_finish(<WaitObject *><PyObject *>wait, WAIT_DONE)
                    woken = True
        return woken

    cdef int displaced(self) except -1:
        """They try again, and find out why: closed, or used by a transport."""
        self.wake(READ | EPOLLOUT)
        return 0


cdef Endpoint endpoint_for(Reactor reactor, int fd, object sock):
    """The endpoint of this socket object; a new one if there is none."""
    cdef Endpoint endpoint
    cdef PyObject *found = endpoint_at(reactor.q, fd, <PyObject *>sock)
    if found != NULL:
        return <Endpoint>found
    if fd >= 0 and fd < reactor.q.n_slots:
        found = reactor.q.slots[fd].calls
        if found != NULL and (<Endpoint>found).valid():
            # Two objects for one descriptor: both use it, and whenever it passes from one
            # to the other the registration is made sure of.
            endpoint = <Endpoint>found
            endpoint.sock = PyWeakref_NewRef(sock, NULL)
            endpoint.empty = False
            reactor.calls_rest(fd)
            return endpoint
    endpoint = Endpoint.__new__(Endpoint)
    endpoint.sock = PyWeakref_NewRef(sock, NULL)
    endpoint.fd = fd
    endpoint.reactor = reactor
    reactor.calls_open(fd, endpoint)
    return endpoint


cdef PyObject *endpoint_wait(Scheduler loop, PyObject *sock, uint32_t events, bint again,
                             PyObject **endpoint) except NULL:
    """A wait for READ or EPOLLOUT at the socket, and the endpoint it stands in: two new
    references.

    The caller has just had EAGAIN; `again` if it has not.  RuntimeError if a transport uses
    the socket, OSError if it is closed or cannot be watched.
    """
    cdef Reactor reactor = loop.reactor
    cdef int fd = sock_get(sock, SOCK_FD)
    cdef PyObject *found = endpoint_at(reactor.q, fd, sock)
    cdef PyObject *wait
    if loop.q.state:
        loop._check_closed()
    if fd < 0:
        raise OSError(errors.EBADF, os.strerror(errors.EBADF))
    if found == NULL or reactor.q.slots[fd].stream != NULL \
            or not reactor.q.slots[fd].armed & EDGE:
        # it may be a transport's, one of asyncio's too
        loop._ensure_fd_no_transport(fd)
        made = endpoint_for(reactor, fd, <object>sock)
        found = reactor.q.slots[fd].calls
    wait = <PyObject *>wait_new(<PyObject *>loop)
    Py_INCREF(found)
    try:
        reactor.calls_wait(fd, events, again)
        (<Endpoint>found).add(<object>wait, events)
    except BaseException:
        Py_DECREF(wait)
        Py_DECREF(found)
        raise
    endpoint[0] = found
    return wait


cdef int endpoint_leave(PyObject *endpoint, PyObject *wait, uint32_t events) except -1:
    """The wait is over, or given up.  Takes over both references."""
    cdef Endpoint e = <Endpoint>endpoint
    try:
        # a wait that was woken stands nowhere any more
        if (<WaitObject *>wait).state != WAIT_DONE and e.remove(<object>wait, events) \
                and e.reactor.q.slots[e.fd].calls == endpoint:
            e.reactor.calls_leave(e.fd, events)
    finally:
        Py_DECREF(wait)
        Py_DECREF(endpoint)
    return 0


cdef object wait_begin(Scheduler loop):
    """A wait to be yielded to the task, for those who wake it themselves."""
    cdef PyObject *made = <PyObject *>wait_new(<PyObject *>loop)
    cdef object wait = <object>made
    Py_DECREF(made)
    return wait


cdef int wait_end(object wait) except -1:
    """Let the task go on; nothing if it does already, or was cancelled."""
    return wait_finish(<WaitObject *><PyObject *>wait, WAIT_DONE)


class _NoLoop:
    """What the future that is always done has in place of a loop."""

    def get_debug(self):
        return False


cdef int schedule(PyObject *loop, PyObject *callback, PyObject *wait,
                  PyObject *context) except -1:
    return (<Scheduler>loop).schedule(callback, wait, context)


cdef object _CancelledError = asyncio.CancelledError
cdef object _describe = format_helpers._format_callback_source


def _install():
    global wait_schedule, wait_cancelled_error, wait_describe
    over = asyncio.Future(loop=_NoLoop())
    over.set_result(None)
    wait_init(<PyObject *>over)
    wait_schedule = schedule
    wait_cancelled_error = <PyObject *>_CancelledError
    wait_describe = <PyObject *>_describe
    sock_verify(<PyObject *>socket.socket)


_install()
Wait = <object><PyObject *>Wait_Type
