# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What a loop waits for futexes with: its ring, threads, or its own sleep.

Why it exists: which of them it is depends on the backend, the kernel and, on epoll, on what ends
the loop's sleeps; nobody else has to know.

Waits of `aiounify.sync` are looked at four times a second (PATROL): one whose word no longer gives
a reason to sleep is ended.  So a wake that was swallowed by a process that was killed costs a
quarter of a second at most, and nothing depends on the dead.
"""

from libc.stdint cimport uint32_t

import asyncio

from aiounify._core.backlog cimport STATE_CLOSED, STATE_FORKED
from aiounify._core.epoll cimport EpollReactor
from aiounify._core.futex cimport Word
from aiounify._core.futex_near cimport NearWords
from aiounify._core.futex_threads cimport ThreadWaits
from aiounify._core.futex_wait cimport ANY, WAITV_MAX, FutexWait, Home
from aiounify._core.reactor cimport ECANCELED, Reactor
from aiounify._core.scheduler cimport Scheduler
from aiounify._core.uring import probe
from aiounify._core.words cimport word_load

cdef extern from "uring_abi.h" nogil:
    enum:
        IORING_OP_FUTEX_WAIT
        IORING_OP_FUTEX_WAITV

cdef enum:
    STREAK = 64    # waits without a reason in a row before the loop gets a turn

cdef uint32_t ALL = 0xffffffffu
cdef object _get_running_loop = asyncio._get_running_loop
cdef object make_futexes = None
PATROL_SECONDS = 0.25


cdef class LoopFutexes(Home):
    """A loop's futex waits: in its ring, or in threads."""

    cdef Reactor reactor
    cdef readonly bint in_ring
    cdef bint closed
    cdef object patrol_timer
    cdef ThreadWaits threads
    cdef NearWords near       # on epoll, or None
    cdef unsigned streak      # waits in a row that there was no reason for

    def __init__(self, Scheduler loop, bint ring, bint waitv, object near=None, int spins=1):
        """`ring`, `waitv`: whether FUTEX_WAIT and futex_waitv may be used.

        `near`: whether an epoll loop's own thread waits too; None: while it is worth it.
        `spins`: whether it looks a moment before it sleeps, 0: never, 2: always, see spin.h.
        """
        self.loop = loop
        self.reactor = loop.reactor
        self.reactor.spins = spins
        self.in_ring = (
            ring and loop.reactor.name() == "uring"
            and IORING_OP_FUTEX_WAIT in probe().ops and IORING_OP_FUTEX_WAITV in probe().ops
        )
        self.threads = ThreadWaits(self, self.reactor, waitv)
        if waitv and near is not False and isinstance(self.reactor, EpollReactor):
            self.near = NearWords(self.threads, <EpollReactor>self.reactor, near is True)
            if near:
                self.near.begin()

    @property
    def threads_used(self):
        return self.threads.threads.threads if self.threads.event_fd >= 0 else 0

    @property
    def in_loop(self):
        return self.near is not None and self.near.on

    cdef FutexWait start(self, Word word, uint32_t expected, uint32_t mask, int patrol,
                         Word moved):
        cdef FutexWait op
        if not mask:
            raise ValueError("mask must not be 0: nothing could wake this")
        if word_load(word.at()) != expected:
            self.streak += 1
            if self.streak < STREAK:
                return None
        self.streak = 0
        op = FutexWait.__new__(FutexWait)
        op.prepare_one(word, expected, mask, moved)
        op.patrol = patrol
        self.begin(op)
        if patrol:
            self.patrolled[op] = None
            if self.patrol_timer is None:
                self.patrol_timer = self.loop.call_later(PATROL_SECONDS, self.look_around)
        return op

    def wait_any(self, tuple words, tuple values):
        """Start a wait for up to 128 words."""
        cdef FutexWait op = FutexWait.__new__(FutexWait)
        if not 0 < len(words) <= WAITV_MAX or len(values) != len(words):
            raise ValueError("1 to 128 words, and a value for each")
        op.prepare_many(words, values)
        self.begin(op)
        return op

    cdef int begin(self, FutexWait op) except -1:
        if self.loop.q.state & (STATE_CLOSED | STATE_FORKED) or self.closed:
            self.loop._check_closed()
        op.home = self
        op.pin(1)
        if self.in_ring:
            self.reactor.submit(op)
            op.brisk = True
            self.reactor.brisk += 1
            return 0
        try:
            if self.near is not None and self.near.on and op.vector == NULL and op.mask == ALL:
                self.near.add(op)
            else:
                self.threads.add(op)
        except OSError:
            op.done = True
            op.over(-ECANCELED)
            raise
        return 0

    cdef int told(self) except -1:
        if self.near is not None:
            self.near.told()
        return 0

    cdef bint pass_to(self, uint32_t *word, uint32_t mask) except -1:
        """Wake another of this loop's waits; those in the ring, the kernel knows."""
        if self.near is not None and self.near.pass_to(word):
            return True
        return self.threads.pass_to(word, mask)

    cdef int end(self, FutexWait op) except -1:
        """End a wait that goes on; its future is told, or done already."""
        if op.done or self.closed:
            return 0
        if self.in_ring:
            if not self.loop.q.state & (STATE_CLOSED | STATE_FORKED):
                self.reactor.cancel(op)
            return 0
        if op.near:
            return self.near.finish(self.near.ops.index(op), -ECANCELED)
        return self.threads.end(op)

    def look_around(self):
        """The patrol: end waits whose word gives no reason to sleep any more."""
        cdef FutexWait op
        self.patrol_timer = None
        if self.closed:
            return
        for op in list(self.patrolled):
            if op.stale():
                self.end(op)
        if self.patrolled:
            self.patrol_timer = self.loop.call_later(PATROL_SECONDS, self.look_around)

    def close(self):
        """The loop closes: end the threads.  What is in the ring, the reactor cancels."""
        if self.closed:
            return
        self.closed = True
        if self.patrol_timer is not None:
            self.patrol_timer.cancel()
            self.patrol_timer = None
        if self.near is not None:
            self.near.end()
            self.near.on = False
            self.near.ops.clear()
            self.near = None  # the two refer to each other
        self.threads.close()
        self.threads.home = None  # so do these
        self.patrolled.clear()


def configure(make):
    """Tell how the running loop gets its LoopFutexes: see aiounify/_waiting.py."""
    global make_futexes
    make_futexes = make


def start_wait(Word word not None, uint32_t expected, uint32_t mask=ALL, int patrol=ANY,
               Word moved=None):
    """Start a wait for one word in the running loop; None if its value is another one.

    RuntimeError under another event loop.
    """
    cdef object loop = _get_running_loop()
    cdef object futexes = None
    if isinstance(loop, Scheduler):
        futexes = (<Scheduler>loop).attached.get("futexes")
    if futexes is None:
        futexes = make_futexes()
    return (<LoopFutexes?>futexes).start(word, expected, mask, patrol, moved)
