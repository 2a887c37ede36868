# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Accepting: from a listening socket to transports under new protocols.

Why it exists: a connection that carries one request costs mostly its set-up, and asyncio
sets it up with a socket object, a task, a future and three callbacks.

Rules of lifetime: the descriptor is this module's from accept4 until a transport has it;
whatever fails in between closes it.  The rest is socket_transport.pyx's.
"""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy
from posix.unistd cimport close as c_close

import os

from aiounify._core.address cimport address_of, sockaddr, sockaddr_storage, socklen_t
from aiounify._core.backlog cimport monotonic_ns
from aiounify._core.reactor cimport EAGAIN, EINTR, ENOBUFS, Reactor, errno
from aiounify._core.socket_transport cimport SOCK_CLOEXEC, SOCK_NONBLOCK
from aiounify._core.stream cimport StreamTransport

cdef extern from "<errno.h>" nogil:
    enum:
        ECONNABORTED
        EMFILE
        ENFILE
        ENOMEM

cdef extern from "<sys/socket.h>" nogil:
    int accept4(int fd, sockaddr *addr, socklen_t *n, int flags)

cdef extern from "Python.h":
    int PyContext_Enter(PyObject *) except -1
    int PyContext_Exit(PyObject *) except -1


cdef enum:
    TURN_NS = 1_000_000      # after so long the loop has its turn


cdef class Acceptor:
    """Accepts connections of one listening socket; the callback of its reader.

    accept4 until the backlog is empty, at most `backlog` times a turn, and for a millisecond: to
    clients that come as fast as they are accepted the rest of the loop is not lost.  No socket
    object, no task and no hop through the loop for each connection: the transport is
    made from the descriptor and the protocol gets connection_made at once.

    By readiness on the ring too.  A multishot accept waits exclusively: of several
    processes that share a listening socket the kernel wakes one, which may be busy, and
    the connection waits for it while the others are idle.  Nor does it tell the peer's
    address, so that the system call it saves is spent on getpeername.
    """

    cdef object loop, factory, sock, server, restart
    cdef object local           # the address of all that are accepted, if it is one
    cdef int fd, backlog, family, proto
    cdef bint exhausted         # the last attempt failed for want of descriptors or memory

    def __init__(self, loop, factory, sock, server, int backlog, restart):
        self.loop = loop
        self.factory = factory
        self.sock = sock
        self.server = server
        self.restart = restart
        self.fd = sock.fileno()
        self.family = sock.family
        self.proto = sock.proto
        self.backlog = backlog
        name = sock.getsockname()
        wildcard = type(name) is tuple and name[0] in ("0.0.0.0", "::")
        self.local = None if wildcard else name

    def __call__(self):
        cdef sockaddr_storage address
        cdef socklen_t n
        cdef int fd, error
        cdef Reactor reactor = <Reactor>self.loop._reactor
        cdef int64_t began = monotonic_ns()
        for _ in range(self.backlog):
            if self.sock.fileno() < 0 or reactor.closed:
                return  # the factory or the protocol closed the server, or forked
            n = sizeof(address)
            reactor.n_syscalls += 1
            fd = accept4(self.fd, <sockaddr *>&address, &n, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if fd < 0:
                error = errno
                if error == EAGAIN or error == EINTR or error == ECONNABORTED:
                    return
                exc = OSError(error, os.strerror(error))
                if error in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                    first = not self.exhausted
                    self.exhausted = True
                    self.restart(self, exc, first)
                    return
                raise exc
            self.exhausted = False
            self.accepted(fd, &address, n)
            if monotonic_ns() - began >= TURN_NS:
                return  # being level-triggered, the others are told again in the next turn

    cdef int accepted(self, int fd, sockaddr_storage *address, socklen_t n) except -1:
        cdef StreamTransport transport = None
        cdef object protocol = None
        try:
            protocol = self.factory()
            transport = StreamTransport.__new__(StreamTransport)
            transport.family = self.family
            transport.proto = self.proto
            transport.local = self.local
            extra = None
            if n <= sizeof(transport.peer):
                memcpy(transport.peer, address, n)
                transport.peer_length = <uint8_t>n
            else:
                extra = {"peername": address_of(address, n)}
                if self.local is not None:
                    extra["sockname"] = self.local
            transport.open(self.loop, fd, None, protocol, extra, self.server)
            if extra is None:
                transport.extra = None  # made when asked for
        except (SystemExit, KeyboardInterrupt):
            self.refuse(fd, transport)
            raise
        except BaseException as exc:
            self.refuse(fd, transport)
            if self.loop.get_debug():
                context = {
                    "message": "Error on transport creation for incoming connection",
                    "exception": exc,
                }
                if protocol is not None:
                    context["protocol"] = protocol
                self.loop.call_exception_handler(context)
            return 0
        PyContext_Enter(<PyObject *>transport.context)
        try:
            transport.connection_made()
        finally:
            PyContext_Exit(<PyObject *>transport.context)
            transport.start_reading()
        return 0

    cdef int refuse(self, int fd, StreamTransport transport) except -1:
        """No transport could be made of it."""
        if transport is None or transport.reactor is None:
            c_close(fd)
        else:
            transport._loop = None  # it was not the program that forgot to close it
            transport.close_socket()
        return 0
