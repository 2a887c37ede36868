# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Sources that stand at a descriptor: readiness, event counters, received data, child exits.

Why it exists: each of these is "try the system call; if there is nothing, wait until the
descriptor is ready", and what runs once per event is here.

* Waiting is one operation: POLL_ADD in the ring, which costs no system call of its own, or
  readiness by the epoll set (on the ring as well, for exceptional conditions).  It is
  withdrawn when nobody waits any more.
* Whatever the operation reports, the value is fetched by take(), by a system call that does
  not block: what is in a counter, a socket or a child's status stays in the kernel until then,
  for this process or another one that shares the file.
* Asking consumes, for some files: a pressure trigger (PSI) tells each event once, to the first
  poll(2) that asks.  So what an operation saw of an exceptional condition is kept, also if
  it was withdrawn meanwhile.

Memory: a poll has no buffer.  The siginfo that WAITID writes belongs to its operation.  The
operation holds its source until its last completion; a source never closes a descriptor
before it has withdrawn, and an operation that has not reached the kernel by then and finds
another file under the number consumes nothing there.

Kernel facts: POLL_ADD since Linux 5.1, WAITID since 6.7, which tells no resource usage, so
it only looks (WNOWAIT).  A regular file is always ready, as poll(2) says.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from posix.unistd cimport close as c_close
from posix.unistd cimport read as c_read
from posix.unistd cimport write as c_write

import os
from collections import deque

cimport cython

from aiounify._core.backlog cimport STATE_CLOSED, STATE_FORKED
from aiounify._core.reactor cimport (
    EAGAIN,
    EBADF,
    ECANCELED,
    EINTR,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLPRI,
    EPOLLRDHUP,
    Op,
    errno,
)
from aiounify._core.scheduler cimport Scheduler
from aiounify._core.sources cimport Source, empty, running_loop

from aiounify._core.sources import taking



cdef extern from "uring_abi.h" nogil:
    enum:
        IORING_OP_POLL_ADD
        IORING_OP_WAITID

cdef extern from "<errno.h>" nogil:
    enum:
        EINVAL

cdef extern from "<poll.h>" nogil:
    enum:
        POLLNVAL
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll" (pollfd *fds, unsigned long n, int timeout)

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
        EFD_SEMAPHORE
    int eventfd(unsigned int initval, int flags)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
        MSG_OOB
    ssize_t recv(int fd, void *buf, size_t n, int flags)

cdef extern from "<fcntl.h>" nogil:
    enum:
        F_GETFL
        F_SETFL
        O_NONBLOCK
    int fcntl(int fd, int command, ...)

cdef enum:
    P_PIDFD = 3          # waitid(2), Linux 5.4
    WEXITED = 4
    WNOWAIT = 0x01000000
    SIGINFO = 128        # bytes, on every architecture
    SMALL = 65536        # receives up to here go by way of the reactor's own memory


cdef object failure(int code):
    return OSError(code, os.strerror(code))


cdef int poll_now(int fd, uint32_t events) noexcept:
    """What poll(2) says without waiting: events, or -EAGAIN, or another negated errno."""
    cdef pollfd p
    p.fd = fd
    p.events = <short>events
    p.revents = 0
    if c_poll(&p, 1, 0) < 0:
        return -EAGAIN if errno == EINTR else -errno
    if p.revents & POLLNVAL:
        return -EBADF
    return p.revents if p.revents else -EAGAIN


cdef class PollOp(Op):
    """Wait until a descriptor is ready: EPOLLIN and the like, which are poll(2)'s own."""

    def __cinit__(self, int fd, uint32_t events):
        self.fd = fd
        self.opcode = IORING_OP_POLL_ADD
        self.op_flags = events
        # the epoll set has to be asked for something
        self.readiness = events | EPOLLERR
        # POLL_ADD is not woken by EPOLLPRI: io_uring leaves that bit out when it compares a
        # wake-up with what is awaited (IO_ASYNC_POLL_COMMON; Linux 6.18)
        self.by_readiness = events & EPOLLPRI

    cdef int perform(self) noexcept:
        # what the set saw must not be asked for again, for it may be told only once
        cdef uint32_t seen = self.seen & (self.op_flags | EPOLLERR | EPOLLHUP)
        self.seen = 0
        return <int>seen if seen else poll_now(self.fd, self.op_flags)

    cdef int complete(self, int result, uint32_t flags) except -1:
        cdef PollSource source = self.source
        self.result = result
        self.source = None
        return source.polled(self, result) if source is not None else 0


cdef class WaitidOp(Op):
    """Wait until a child has ended, by its pidfd; the child stays to be waited for."""
    cdef PollSource source
    cdef char info[SIGINFO]

    def __cinit__(self, int pidfd):
        self.fd = pidfd
        self.opcode = IORING_OP_WAITID
        self.length = P_PIDFD
        self.file_index = WEXITED | WNOWAIT
        self.offset = <uint64_t><size_t>&self.info[0]

    cdef int perform(self) noexcept:
        return -EINVAL  # of the ring only

    cdef int complete(self, int result, uint32_t flags) except -1:
        cdef PollSource source = self.source
        self.result = result
        self.source = None
        return source.polled(self, result) if source is not None else 0


@cython.final
cdef class Lingering:
    """What nobody waits for any more, until the loop's next turn.

    A selection that is made anew for each event, or a wait with a timeout in a loop, arms again at
    once; that spares it two system calls or submissions.  Only for descriptors that a source
    owns: others may be closed meanwhile, and what is in flight would hold their file open.
    """
    cdef list withdrawn        # (source, operation)
    cdef Scheduler loop

    def run(self):
        cdef list withdrawn = self.withdrawn
        cdef PollSource source
        cdef Op op
        self.withdrawn = None
        for source, op in withdrawn:
            if source.op is op:
                if source.lingers:
                    source.give_up()
            elif not op.done:  # it waits in another loop by now
                self.loop.reactor.cancel(op)


cdef int linger(PollSource source) except -1:
    cdef object loop = source.loop
    cdef Lingering of_loop = getattr(loop, "_lingering", None)
    if of_loop is None:
        of_loop = loop._lingering = Lingering.__new__(Lingering)
        of_loop.loop = source.loop
    if of_loop.withdrawn is None:
        of_loop.withdrawn = []
        loop.call_soon(of_loop.run)
    of_loop.withdrawn.append((source, source.op))
    return 0


cdef class PollSource(Source):
    """Base of the sources at a descriptor."""

    def __cinit__(self):
        self.fd = -1

    cdef Op make_op(self):
        cdef PollOp op = PollOp.__new__(PollOp, self.descriptor(), self.events)
        op.source = self
        return op

    cdef int descriptor(self) except -1:
        if self.fd < 0:
            raise ValueError(f"{type(self).__qualname__}: it is closed")
        return self.fd

    cpdef object _begin(self):
        cdef Op op
        if self.loop.q.state & (STATE_CLOSED | STATE_FORKED):
            self.loop._check_closed()
        if self.lingers:
            self.lingers = False
            if self.waits_in is self.loop:
                return
        self.waits_in = self.loop
        op = self.make_op()
        self.op = op
        try:
            self.loop.reactor.submit(op)
        except BaseException:
            self.op = None
            raise

    cpdef object _withdraw(self):
        if self.own and self.op is not None and not self.loop.q.state:
            self.lingers = True
            linger(self)
        else:
            self.give_up()

    cdef int give_up(self) except -1:
        """Cancel what waits; also before the descriptor is closed."""
        cdef Op op = self.op
        self.op = None
        self.lingers = False
        if op is not None and not self.waits_in.q.state & (STATE_CLOSED | STATE_FORKED):
            self.waits_in.reactor.cancel(op)
        return 0

    cdef int polled(self, Op op, int result) except -1:
        """The operation's completion; it may have been withdrawn meanwhile."""
        if self.op is not op:
            return 0
        self.op = None
        self.lingers = False
        if self.waits_in.q.state & STATE_CLOSED:
            self.armed = None  # the loop was closed with tasks that wait for ever
            return 0
        if result < 0 and self.armed is not None:
            self.error = -result
        self.fire()
        return 0

    cdef int check(self) except -1:
        """Raise what waiting failed with."""
        cdef int error = self.error
        if error:
            self.error = 0
            raise failure(error)
        return 0

    def fileno(self):
        return self.fd

    def __repr__(self):
        return f"<{type(self).__qualname__} fd={self.fd}>"


cdef class Readiness(PollSource):
    """poll(2) as a source; see aiounify.events.readable() and its kin."""

    cdef object file
    cdef uint32_t got         # seen by an operation, and not given to anybody yet

    def __init__(self, file, events):
        self.file = file
        self.fd = _fileno(file)
        self.events = events

    cdef int descriptor(self) except -1:
        cdef int fd = self.fd if type(self.file) is int else _fileno(self.file)
        if fd != self.fd:
            raise ValueError(f"{self.file!r} had descriptor {self.fd}, and has {fd} now")
        return fd

    cdef int polled(self, Op op, int result) except -1:
        if result > 0 and self.events & EPOLLPRI:
            self.got |= <uint32_t>result
            if self.op is not op and self.op is not None:
                return 0 if self.armed is None else self.again()
        return PollSource.polled(self, op, result)

    cdef int again(self) except -1:
        """An operation that was withdrawn has seen something that another waits for now."""
        self._withdraw()
        self.fire()
        return 0

    cpdef object take(self):
        cdef int got = <int>self.got
        self.check()
        if got:
            self.got = 0
            return got
        got = poll_now(self.descriptor(), self.events)
        if got == -EAGAIN:
            return empty
        if got < 0:
            raise failure(-got)
        return got

    def __aiter__(self):
        return self

    def __anext__(self):
        return taking(self)

    def __repr__(self):
        return f"<{type(self).__qualname__} {self.file!r} events={self.events:#x}>"


cdef class EventCounter(PollSource):
    """eventfd(2); see aiounify.events.EventFD."""

    cdef readonly bint semaphore

    def __init__(self, initial=0, *, semaphore=False, fd=None):
        cdef uint64_t rest
        cdef int flags
        self.events = EPOLLIN
        self.own = True
        self.semaphore = bool(semaphore)
        if fd is not None:
            if initial:
                raise ValueError("a descriptor that exists has its own count: leave initial out")
            self.fd = _fileno(fd)
            flags = fcntl(self.fd, F_GETFL)
            if flags < 0 or fcntl(self.fd, F_SETFL, flags | O_NONBLOCK) < 0:
                self.fd, flags = -1, errno
                raise failure(flags)
            return
        if not 0 <= initial <= 0xfffffffffffffffe:
            raise ValueError(f"initial must be from 0 to 2**64 - 2, not {initial}")
        self.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | (EFD_SEMAPHORE if semaphore else 0))
        if self.fd < 0:
            raise failure(errno)
        if initial:
            rest = initial
            c_write(self.fd, &rest, 8)

    def __dealloc__(self):
        if self.fd >= 0:
            c_close(self.fd)

    cpdef object take(self):
        cdef uint64_t value
        cdef Py_ssize_t n
        self.check()
        while True:
            n = c_read(self.descriptor(), &value, 8)
            if n == 8:
                return value
            if n >= 0:
                raise failure(EINVAL)
            if errno == EAGAIN:
                return empty
            if errno != EINTR:
                raise failure(errno)

    def add(self, value=1):
        cdef uint64_t given
        if not 0 <= value <= 0xfffffffffffffffe:
            raise ValueError(f"value must be from 0 to 2**64 - 2, not {value}")
        given = value
        if c_write(self.descriptor(), &given, 8) < 0:
            if errno == EAGAIN:
                raise BlockingIOError(EAGAIN, "the counter has no room for that much")
            raise failure(errno)

    def detach(self):
        """Give the descriptor away, open; what waits here is told that it is closed."""
        cdef int fd = self.fd
        if fd >= 0:
            self.give_up()
            self.fd = -1
            self.fire()
        return fd

    def close(self):
        cdef int fd = self.detach()
        if fd >= 0:
            c_close(fd)

    @property
    def closed(self):
        return self.fd < 0

    def __aiter__(self):
        return self

    def __anext__(self):
        return taking(self)


cdef class Received(PollSource):
    """What arrives at a socket, or its urgent data; see aiounify.events.received()."""

    cdef object sock
    cdef Py_ssize_t size
    cdef bint urgent, ended

    def __init__(self, sock, size, urgent=False):
        if size <= 0:
            raise ValueError(f"size must be positive, not {size}")
        self.sock = sock
        self.size = size
        self.urgent = bool(urgent)
        self.fd = _fileno(sock)
        # the connection's end is told as well: urgent data will not come any more
        self.events = EPOLLPRI | EPOLLRDHUP if urgent else EPOLLIN

    cdef int descriptor(self) except -1:
        cdef int fd = _fileno(self.sock)
        if fd != self.fd:
            raise ValueError(f"{self.sock!r} had descriptor {self.fd} when waiting began")
        return fd

    cpdef object take(self):
        cdef int fd = self.descriptor(), flags = MSG_DONTWAIT, seen
        cdef Py_ssize_t n
        cdef char *into
        cdef bytes data = None
        if self.ended:
            raise StopAsyncIteration
        self.check()
        if self.urgent:
            flags |= MSG_OOB
        if self.size <= SMALL:
            into = running_loop(self).reactor.scratch
        else:
            data = PyBytes_FromStringAndSize(NULL, self.size)
            into = <char *>data
        while True:
            n = recv(fd, into, self.size, flags)
            if n >= 0:
                break
            if errno == EAGAIN:
                return empty
            if errno == EINVAL and self.urgent:  # there is no urgent data (tcp(7))
                seen = poll_now(fd, EPOLLRDHUP)
                if seen == -EAGAIN:
                    return empty
                n = 0
                break
            if errno != EINTR:
                raise failure(errno)
        if n == 0:
            self.ended = True
        if data is None:
            return PyBytes_FromStringAndSize(into, n)
        return data if n == self.size else data[:n]

    def __aiter__(self):
        return self

    def __anext__(self):
        return taking(self)

    def __repr__(self):
        return f"<{type(self).__qualname__} {self.sock!r}>"


cdef class Batches(PollSource):
    """Base for descriptors that give several records in one read, such as a pipe of structs.

    A subclass gives it with _attach(fd, size) and has _parse(data), which makes values of what
    one read gave.  The source keeps them until they are taken.  The descriptor does not block.
    """

    cdef object values
    cdef Py_ssize_t size

    def __cinit__(self):
        self.values = deque()

    def _attach(self, int fd, Py_ssize_t size):
        """The source closes the descriptor in the end."""
        self.fd = fd
        self.size = size
        self.events = EPOLLIN
        self.own = True

    def _parse(self, bytes data):
        raise NotImplementedError(f"{type(self).__qualname__}._parse()")

    cpdef object take(self):
        cdef Py_ssize_t n
        cdef bytes data
        while not self.values:
            if self.fd < 0:
                raise StopAsyncIteration
            self.check()
            data = PyBytes_FromStringAndSize(NULL, self.size)
            n = c_read(self.fd, <char *>data, self.size)
            if n > 0:
                self.values.extend(self._parse(data[:n]))
            elif n == 0:
                raise StopAsyncIteration
            elif errno == EAGAIN:
                return empty
            elif errno != EINTR:
                raise failure(errno)
        return self.values.popleft()

    def _drain(self):
        """Read what is left and close the descriptor; who waits is told that this is the end
        of it."""
        cdef int fd = self.fd
        cdef Py_ssize_t n
        cdef bytes data
        if fd < 0:
            return
        self.give_up()
        self.fd = -1
        try:
            while True:
                data = PyBytes_FromStringAndSize(NULL, self.size)
                n = c_read(fd, <char *>data, self.size)
                if n <= 0:
                    break
                self.values.extend(self._parse(data[:n]))
        finally:
            c_close(fd)
            self.fire()

    def _abandon(self):
        """In a forked child: close the descriptor, which is the parent's."""
        if self.fd >= 0:
            c_close(self.fd)
            self.fd = -1

    def __dealloc__(self):
        if self.fd >= 0:
            c_close(self.fd)

    def __aiter__(self):
        return self

    def __anext__(self):
        return taking(self)


cdef class ChildEnd(PollSource):
    """Base of aiounify.process.Child: waits for a pidfd, without reaping."""

    once = True
    cdef bint in_ring

    def __init__(self, int pidfd, bint in_ring):
        """`in_ring` has WAITID wait in the ring, and may be given where it is offered."""
        self.fd = pidfd
        self.events = EPOLLIN
        self.own = True
        self.in_ring = in_ring

    cdef Op make_op(self):
        cdef WaitidOp op
        if not self.in_ring:
            return PollSource.make_op(self)
        op = WaitidOp.__new__(WaitidOp, self.fd)
        op.source = self
        return op

    cdef int polled(self, Op op, int result) except -1:
        if result < 0 and result != -ECANCELED:
            result = 0  # somebody else has waited for it (ECHILD): take() finds out
        return PollSource.polled(self, op, result)

    def _close(self):
        """Close the pidfd; nobody may wait any more."""
        cdef int fd = self.fd
        if fd >= 0:
            self.give_up()
            self.fd = -1
            c_close(fd)

    def __dealloc__(self):
        if self.fd >= 0:
            c_close(self.fd)


cdef int _fileno(file) except -1:
    cdef object fd
    if type(file) is int:
        fd = file
    else:
        try:
            fd = file if isinstance(file, int) else int(file.fileno())
        except (AttributeError, TypeError):
            raise TypeError(
                f"a descriptor, or something with fileno(), is needed, not {file!r}"
            ) from None
    if fd < 0:
        raise ValueError(f"{file!r} is closed" if file is not fd
                         else f"a descriptor cannot be {fd}")
    return fd
