# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The epoll backend: the same interface where io_uring is not to be had.

Most containers forbid io_uring, so this is what most programs run on; it has the
same meaning and the same tests as the other backend.

* Deadlines are a timerfd in the set, armed with the absolute time of the next
  timer.  epoll_wait's own timeout would be rounded to the thread's timer slack
  (50 us), and lowering the slack would be inherited by every thread and child the
  program starts.  The timerfd is edge-triggered, never read, and set again only
  when a timer is due before the one it is armed for.
* While callbacks are ready the set is asked once in 50 us, by the clock, which is
  looked at in every fourth turn: callbacks that only schedule callbacks pay hardly
  a system call, and a descriptor waits for 50 us or four turns, whichever is longer.
* Sends that wait for the end of the turn, so that what a program writes in pieces goes
  out together, are a list here.
* Operations are tried at once and, after EAGAIN, again when their descriptor is
  ready; a result that is known early is still delivered in the next turn.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t
from libc.string cimport memmove, memset
from posix.time cimport itimerspec
from posix.unistd cimport close as c_close

import os

from aiounify._core.backlog cimport OpLink, monotonic_ns
from aiounify._core.reactor cimport (
    EINTR,
    MAX_EVENTS,
    NEVER,
    WAKE_MARK,
    Op,
    Reactor,
    Watched,
    epoll_wait,
    errno,
)
cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_NOSIGNAL
        MSG_DONTWAIT
    ssize_t send(int fd, const void *buf, size_t n, int flags)

cdef extern from "<sys/timerfd.h>" nogil:
    enum:
        TFD_CLOEXEC
        TFD_NONBLOCK
        TFD_TIMER_ABSTIME
        CLOCK_MONOTONIC
    int timerfd_create(int clockid, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new, itimerspec *old)

cdef enum:
    CLOCK_TURNS = 4      # turns with callbacks ready between two looks at the clock
    SKIP_NS = 50_000     # time after which such turns ask the set, whether it matters or not
    BREATHE_TURNS = 64   # turns without a wait between two chances for threads and signals


cdef class Sleeper:
    """Sleeps in epoll_wait's place, and has the set watched by a thread meanwhile."""

    cdef bint sleeps(self) noexcept:
        return False

    cdef int sleep(self) except -1:
        return True

    cdef int look(self) except -1:
        return 0

    cdef int renewed(self) except -1:
        return 0


cdef class EpollReactor(Reactor):
    """The epoll set of the base class, waited for directly."""

    def __cinit__(self):
        self.timer_fd = -1
        self.timer_ns = NEVER

    def __init__(self, object backlog):
        self.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        if self.timer_fd < 0:
            raise OSError(errno, f"timerfd_create: {os.strerror(errno)}")
        Reactor.__init__(self, backlog)

    cdef int make_set(self) except -1:
        Reactor.make_set(self)
        return self.add_internal(self.timer_fd, WAKE_MARK)

    def __dealloc__(self):
        if self.timer_fd >= 0:
            c_close(self.timer_fd)
        PyMem_Free(self.sends)

    cdef str name(self):
        return "epoll"

    cdef int poll(self) except -1:
        cdef int64_t now
        self.n_polls += 1
        if self.n_sends:
            self.submit_sends()
        if self.finished:
            self.deliver_finished()
        if self.sleeper is not None:
            self.sleeper.look()
        self.turns_unbroken += 1
        self.looked = False
        if self.look or self.turns_unbroken % CLOCK_TURNS == 0:
            now = monotonic_ns()
            if self.look or now - self.seen_ns >= SKIP_NS:
                self.look = False
                self.looked = True
                self.seen_ns = now
                self.take(0)
            if self.turns_unbroken >= BREATHE_TURNS:
                self.turns_unbroken = 0
                self.breathe()
        return 0

    cdef int take(self, int timeout) except -1:
        cdef int n
        self.n_syscalls += 1
        n = epoll_wait(self.epfd, self.events, MAX_EVENTS, timeout)
        if n > 0:
            self.dispatch(n)
        elif n < 0 and errno != EINTR:
            raise OSError(errno, f"epoll_wait: {os.strerror(errno)}")
        return 0

    cdef int wait(self, int64_t deadline) except -1:
        cdef int n = 0, error = 0
        cdef int64_t before, after
        if self.n_sends:
            self.submit_sends()
        if self.finished:
            self.deliver_finished()
        before = monotonic_ns()
        self.turns_unbroken = 0
        self.looked = False
        if deadline <= before or self.q.head != self.q.tail:
            self.seen_ns = before
            if self.sleeper is not None:
                self.sleeper.look()
            return self.take(0)
        if deadline < self.timer_ns or self.timer_ns <= before:
            self.set_timer(deadline)
        if self.sleeper is not None and self.sleeper.sleeps():
            return self.sleep_elsewhere()
        self.q.sleeping = 1
        with nogil:
            n = epoll_wait(self.epfd, self.events, MAX_EVENTS, -1)
            if n < 0:
                error = errno
            after = monotonic_ns()
        self.q.sleeping = 0
        self.n_syscalls += 1
        self.n_waits += 1
        self.wait_ns += after - before
        self.seen_ns = after
        if n > 0:
            self.dispatch(n)
        elif n < 0 and error != EINTR:
            raise OSError(error, f"epoll_wait: {os.strerror(error)}")
        PyErr_CheckSignals()
        return 0

    cdef int sleep_elsewhere(self) except -1:
        cdef int64_t before = monotonic_ns()
        cdef bint look = False
        self.q.sleeping = 1
        try:
            look = self.sleeper.sleep()
        finally:
            self.q.sleeping = 0
            self.seen_ns = monotonic_ns()
        self.n_syscalls += 1
        self.n_waits += 1
        self.wait_ns += self.seen_ns - before
        if look:
            self.take(0)
        PyErr_CheckSignals()
        return 0

    cdef int renew(self) except -1:
        Reactor.renew(self)
        if self.sleeper is not None:
            self.sleeper.renewed()
        return 0

    cdef int set_timer(self, int64_t deadline) except -1:
        """Arm for a time to come; a timer armed for an earlier one is left alone."""
        cdef itimerspec t
        if deadline == NEVER:
            self.timer_ns = NEVER  # an expired timer stays silent until it is set again
            return 0
        memset(&t, 0, sizeof(t))
        t.it_value.tv_sec = deadline // 1_000_000_000
        t.it_value.tv_nsec = deadline % 1_000_000_000
        self.n_syscalls += 1
        if timerfd_settime(self.timer_fd, TFD_TIMER_ABSTIME, &t, NULL) < 0:
            raise OSError(errno, f"timerfd_settime: {os.strerror(errno)}")
        self.timer_ns = deadline
        return 0

    # -- sends at the end of the turn -----------------------------------------

    cdef int stop(self) except -1:
        try:
            if self.n_sends:
                self.submit_sends()
        finally:
            Reactor.stop(self)
        return 0

    cdef Py_ssize_t send_start(self, int fd, Watched stream, char *data, Py_ssize_t n) except -1:
        cdef unsent *sends
        cdef Py_ssize_t room
        if self.n_sends == self.room:
            room = max(64, self.room * 2)
            sends = <unsent *>PyMem_Realloc(self.sends, room * sizeof(unsent))
            if sends == NULL:
                raise MemoryError
            self.sends = sends
            self.room = room
        sends = &self.sends[self.n_sends]
        sends.stream = <PyObject *>stream
        sends.data = data
        sends.size = n
        sends.fd = fd
        self.stream_hold(fd)
        if not self.q.unsent_ns:
            self.q.unsent_ns = monotonic_ns()
        self.n_sends += 1
        return self.n_sends - 1

    cdef int send_replace(self, Py_ssize_t place, char *data, Py_ssize_t n) noexcept:
        self.sends[place].data = data
        self.sends[place].size = n
        return 0

    cdef int submit_sends(self) except -1:
        """A stream that sends again while it is told so is served in the same round."""
        cdef Py_ssize_t n, done = 0
        cdef unsent now
        cdef Watched stream
        self.submissions += 1
        try:
            while done < self.n_sends:
                now = self.sends[done]
                done += 1
                stream = <Watched>now.stream
                self.n_syscalls += 1
                n = send(now.fd, now.data, now.size, MSG_NOSIGNAL | MSG_DONTWAIT)
                self.tell_sent(stream, <int>n if n >= 0 else -errno)
        finally:
            # a protocol may have forked, and this be the child, which has no sends
            self.n_sends = max(0, self.n_sends - done)
            if self.n_sends:
                memmove(self.sends, self.sends + done, self.n_sends * sizeof(unsent))
            else:
                self.q.unsent_ns = 0
        return 0

    # -- operations, by readiness -------------------------------------------

    cdef int submit(self, Op op) except -1:
        return self.submit_readiness(op)

    cdef int cancel(self, Op op) except -1:
        if op.link.next == NULL or op.cancel_asked:
            return 0
        op.cancel_asked = True
        return self.cancel_readiness(op)

    cdef int close(self) except -1:
        cdef OpLink *link
        if self.closed:
            return 0
        self.shutting = True
        if self.n_sends:
            self.submit_sends()
        link = self.q.in_flight.next
        while link != &self.q.in_flight:
            self.cancel(<Op>link.op)
            link = link.next
        self.deliver_finished()
        return self.abandon()

    cdef int abandon(self) except -1:
        self.n_sends = 0
        if self.timer_fd >= 0:
            c_close(self.timer_fd)
            self.timer_fd = -1
        return Reactor.close(self)
