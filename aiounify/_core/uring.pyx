# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The io_uring backend: one ring in which everything is submitted and awaited.

How a turn goes:

* Callbacks are ready: look at the completion tail and at the ring's flags, both in
  shared memory.  Nothing there and nothing to submit means no system call at all.
* Nothing is ready: one io_uring_enter submits what has gathered and waits, with
  the next timer's deadline as absolute timeout.  It ignores the thread's timer
  slack, so timers are as exact as the kernel's own.

Readiness (add_reader and its kin) lives in the epoll set of the base class.  The
ring waits for the set by EPOLL_WAIT, which brings the events along in its
completion (Linux 6.15), or else by a POLL_ADD on the set followed by an
epoll_wait that does not block.  After such a completion the operation is armed
again, at the latest before the next wait.

Kernel facts this file leans on:

* SINGLE_ISSUER binds a ring to the thread that enables it.  A loop made in one
  thread and run in another gets its ring enabled at the first run; one that ran
  in thread A and then in B gets a new ring, which needs no more than arming the
  epoll operation again, unless operations are in flight.
* DEFER_TASKRUN posts completions only when this thread enters the kernel with
  GETEVENTS; TASKRUN_FLAG raises a bit in shared memory when that is worth it.
* A full completion ring drops nothing (NODROP): the kernel keeps the rest and
  raises CQ_OVERFLOW until it is entered.
* A descriptor registered with io_uring_register belongs to one thread and keeps
  the ring alive, so it is registered while the loop runs and no longer.

Memory: the ring is not inherited by fork; in a child all that may be done is to
forget it.  An operation's user_data is the address of its Op, which the in-flight
list keeps alive; small numbers are this file's own marks.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

import os

from aiounify._core.backlog cimport UNSENT_NS, OpLink, monotonic_ns, op_link
from aiounify._core.reactor cimport (
    EAGAIN,
    EBADF,
    EBUSY,
    ECANCELED,
    EINTR,
    ENOBUFS,
    ENOSYS,
    EPOLLIN,
    ETIME,
    MAX_EVENTS,
    NEVER,
    OP_KINDS,
    Op,
    Reactor,
    Watched,
    epoll_event,
    epoll_wait,
)


cdef extern from "ring.h" nogil:
    enum:
        IORING_OP_NOP
        IORING_OP_POLL_ADD
        IORING_OP_ASYNC_CANCEL
        IORING_OP_EPOLL_WAIT
        IORING_REGISTER_PROBE
        IORING_REGISTER_ENABLE_RINGS
        IORING_CQE_F_MORE
        IORING_SETUP_SINGLE_ISSUER
        IORING_SETUP_DEFER_TASKRUN
        IORING_ENTER_NO_IOWAIT
        IORING_ENTER_REGISTERED_RING

    struct au_sqe:
        uint8_t opcode
        uint8_t flags
        uint16_t ioprio
        int fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t op_flags
        uint64_t user_data
        uint16_t buf_index
        int splice_fd_in
        uint64_t addr3

    struct au_cqe:
        uint64_t user_data
        int res
        uint32_t flags

    struct au_probe_op:
        uint8_t op
        uint16_t flags

    struct au_probe:
        uint8_t last_op
        uint8_t ops_len
        au_probe_op *ops

    enum:
        IORING_OP_RECV
        IORING_OP_SEND
        IOSQE_IO_LINK
        IOSQE_IO_HARDLINK
        IOSQE_BUFFER_SELECT
        IORING_CQE_F_BUFFER
        IORING_CQE_BUFFER_SHIFT
        IORING_RECV_MULTISHOT

    struct buffers:
        void *ring
        char *memory
        unsigned count
        unsigned size

    int buffers_open(buffers *b, ring *r, unsigned count, unsigned size)
    void buffers_close(buffers *b)
    void buffers_abandon(buffers *b)
    void buffers_add(buffers *b, unsigned bid)
    unsigned buffers_more(buffers *b)

    struct ring:
        int fd
        unsigned enter_flags
        unsigned setup_flags
        unsigned sq_entries
        unsigned cq_entries

    int ring_open(ring *r, unsigned entries, unsigned cq_entries)
    int ring_enable(ring *r)
    int ring_register(int fd, unsigned opcode, void *arg, unsigned n)
    int ring_register_fd(ring *r)
    void ring_unregister_fd(ring *r)
    int ring_make_table(ring *r, unsigned count)
    void ring_close(ring *r)
    void ring_abandon(ring *r)
    au_sqe *ring_sqe(ring *r)
    unsigned ring_unsubmitted(ring *r)
    bint ring_full(ring *r)
    bint ring_wants_enter(ring *r)
    bint ring_overflown(ring *r)
    unsigned ring_cq_ready(ring *r)
    au_cqe *ring_cqe(ring *r)
    void ring_cq_advance(ring *r)
    int ring_enter(ring *r)
    int ring_wait(ring *r, int64_t deadline_ns, int64_t now_ns)
    int ring_spin(ring *r, spin *s)

cdef extern from "spin.h" nogil:
    enum:
        SPIN_NS
    struct spin:
        pass
    bint spin_wanted(spin *s, int spins)

cdef extern from "<unistd.h>" nogil:
    int gettid()

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_NOSIGNAL
        MSG_WAITALL

cdef enum:
    MARK_EPOLL = 1       # user_data of the operation that waits for the epoll set
    MARK_IGNORE = 2      # nobody waits for this completion
    MARKS_END = 4096     # from here on user_data is an address, with a tag in its low bits
    TAG_OP = 0           # of an Op
    TAG_RECEIVE = 1      # of a Watched, whose receive this is
    TAG_SEND = 2         # ... whose send this is
    TAG_BITS = 15
    BUFFER_SIZE = 16384
    BUFFER_COUNT = 512   # at most; at first 64, see buffers_more()
    FILE_SLOTS = 128     # in the ring's own table of files
    CLOCK_TURNS = 4      # turns with callbacks ready between two looks at the clock
    DEFER_NS = 50_000    # time after which such turns arm the epoll set again
    HOT_NS = 5_000       # a wait that is shorter did not sleep
    BREATHE_TURNS = 64   # turns without a wait between two chances for threads and signals
    CLOSE_NS = 5_000_000_000  # how long close() waits for operations that cannot be cancelled


cdef class Probe:
    """What this kernel's io_uring can do; made once for the process.

    `error` is 0 or the errno with which the kernel refused; `step` says at what.
    `ops` holds the numbers of the operations the kernel knows.
    """

    cdef readonly int error
    cdef readonly str step
    cdef readonly frozenset ops
    cdef readonly bint no_iowait, defer_taskrun

    def __cinit__(self):
        self.ops = frozenset()
        self.step = ""
        cdef ring r
        cdef au_sqe *sqe
        cdef int error = ring_open(&r, 8, 16)
        cdef au_probe *probe = NULL
        cdef uint8_t space[16 + 64 * 8]
        if error:
            self.error, self.step = -error, "io_uring_setup"
            return
        self.no_iowait = (r.enter_flags & IORING_ENTER_NO_IOWAIT) != 0
        self.defer_taskrun = (r.setup_flags & IORING_SETUP_DEFER_TASKRUN) != 0
        error = ring_enable(&r)
        if error:
            self.error, self.step = -error, "enabling the ring"
        else:
            # a real submission and a real completion, not a version number
            sqe = ring_sqe(&r)
            sqe.opcode = IORING_OP_NOP
            sqe.user_data = 77
            error = ring_wait(&r, -1, 0)
            if error < 0:
                self.error, self.step = -error, "io_uring_enter"
            elif not ring_cq_ready(&r) or ring_cqe(&r).user_data != 77 or ring_cqe(&r).res != 0:
                self.error, self.step = ENOSYS, "a no-op"
        if not self.error:
            memset(space, 0, sizeof(space))
            error = ring_register(r.fd, IORING_REGISTER_PROBE, space, 64)
            if error == 0:
                probe = <au_probe *>space
                self.ops = frozenset(
                    [probe.ops[i].op for i in range(probe.ops_len) if probe.ops[i].flags & 1]
                )
        ring_close(&r)


cdef Probe _probe = None
cdef int _probe_pid = 0


def probe():
    """The kernel's io_uring as it is for this process; asked once, and again after a fork."""
    global _probe, _probe_pid
    if _probe is None or _probe_pid != os.getpid():
        _probe = Probe()
        _probe_pid = os.getpid()
    return _probe


# Called through pointers that do not propagate: see stream_ready in reactor.pyx.
ctypedef int (*ended_call)(Watched, int) noexcept
ctypedef int (*received_call)(Watched, char *, int, int) noexcept

cdef int stream_receive_ended(Watched stream, int result) except -1:
    return stream.receive_ended(result)


cdef int stream_received(Watched stream, char *data, int n, int buffer) except -1:
    return stream.received_in(data, n, buffer)


cdef class UringReactor(Reactor):
    """One ring, made disabled with the loop and enabled by the thread that runs it.

    OSError with the kernel's errno if no ring can be had.
    """

    cdef ring ring
    cdef buffers buffers
    cdef bint no_buffers       # the kernel has no provided buffers or no multishot receive
    cdef unsigned buffer_count
    cdef unsigned n_sends      # in flight
    cdef list parked           # operations for which there was no room before the loop runs
    cdef list held             # completions taken off the ring and not delivered yet, or None
    cdef bint moving           # receives that end are started by move_ring(), in the new ring
    cdef int thread            # the thread the ring is bound to, 0 before the first run
    cdef bint epoll_armed
    cdef bint has_epoll_wait
    cdef bint hot              # the last wait for the epoll set was none
    cdef spin spin
    cdef unsigned turns_unbroken
    cdef int64_t seen_ns       # when the epoll set was last asked
    cdef unsigned entries, cq_entries_asked
    cdef int[FILE_SLOTS] slots # free places in the table of files
    cdef int n_free            # of them; -1: the kernel was not asked for a table yet

    def __cinit__(self):
        self.ring.fd = -1
        self.parked = []

    def __init__(self, object backlog, unsigned entries=256, unsigned cq_entries=4096,
                 bint epoll_wait_op=True, unsigned buffer_count=BUFFER_COUNT):
        Reactor.__init__(self, backlog)
        self.buffer_count = buffer_count
        self.no_buffers = not buffer_count or not probe().defer_taskrun
        self.entries = entries
        self.cq_entries_asked = cq_entries
        self.has_epoll_wait = epoll_wait_op and IORING_OP_EPOLL_WAIT in probe().ops
        self.make_ring()

    def __dealloc__(self):
        # Reached with a ring only if the loop was never closed: whatever was in
        # flight is kept alive by the in-flight list, which is never freed then.
        ring_close(&self.ring)
        buffers_close(&self.buffers)

    cdef str name(self):
        return "uring"

    cdef int make_ring(self) except -1:
        cdef int error = ring_open(&self.ring, self.entries, self.cq_entries_asked)
        if error:
            raise OSError(-error, f"io_uring_setup: {os.strerror(-error)}")
        self.thread = 0
        self.epoll_armed = False
        self.n_free = -1
        return 0

    @property
    def ring_size(self):
        """Entries of the submission and the completion ring."""
        return self.ring.sq_entries, self.ring.cq_entries

    @property
    def uses_epoll_wait(self):
        return self.has_epoll_wait

    cdef int start(self) except -1:
        cdef int thread = gettid()
        if self.ring.fd < 0 or (self.thread and self.thread != thread):
            self.leave_thread()
        elif not self.thread:
            self.bind(thread)
        ring_register_fd(&self.ring)
        self.n_syscalls += 1
        Reactor.start(self)
        parked, self.parked = self.parked, []
        for op in parked:
            self.prepare(<Op>op)
        return 0

    cdef int bind(self, int thread) except -1:
        """From now on the ring is this thread's."""
        cdef int error = ring_enable(&self.ring)
        if error:
            raise OSError(-error, f"enabling the io_uring: {os.strerror(-error)}")
        self.thread = thread
        self.n_syscalls += 1
        return 0

    cdef int leave_thread(self) except -1:
        """The loop ran in another thread before, and its ring is bound to that one."""
        cdef OpLink *link = self.q.in_flight.next
        cdef Py_ssize_t left = self.n_sends
        if self.ring.fd >= 0:  # else an earlier move failed
            self.hold()
        while link != &self.q.in_flight:
            left += 1
            link = link.next
        for user_data, _, flags in self.held or ():
            if user_data >= MARKS_END and user_data & TAG_BITS != TAG_RECEIVE \
                    and not flags & IORING_CQE_F_MORE:
                left -= 1
        if left:
            raise RuntimeError(
                "this event loop has operations in flight that belong to the thread it ran "
                "in before; run it in that thread, or close what it has open first"
            )
        self.thread = -1  # whatever a protocol raises now, the next start goes on from here
        self.moving = True
        try:
            self.deliver_held()
        finally:
            self.moving = False
        return self.move_ring()

    cdef int move_ring(self) except -1:
        """A new ring, for another thread.

        Data is received only while the ring's own thread is in the kernel, so all that
        was received is in completions that were reaped; the receives themselves are
        cancelled by closing the old ring and started again.  The new ring is bound first:
        there may be more of them than it has entries, and only its thread can submit.
        """
        cdef int fd
        cdef list streams = []
        ring_close(&self.ring)
        buffers_close(&self.buffers)
        self.thread = 0
        self.epoll_armed = False
        self.make_ring()
        self.bind(gettid())
        for fd in range(self.q.n_slots):
            if self.q.slots[fd].stream != NULL:
                streams.append(<object>self.q.slots[fd].stream)
        for stream in streams:
            (<Watched>stream).receive_again()
        return 0

    cdef int stop(self) except -1:
        try:
            if ring_unsubmitted(&self.ring):
                self.enter()
            while ring_overflown(&self.ring):
                # Another thread may run the loop next, and could not ask for them.
                self.hold()
                self.enter()
        finally:
            ring_unregister_fd(&self.ring)
            self.n_syscalls += 1
        return Reactor.stop(self)

    cdef int hold(self) except -1:
        """Empty the completion ring without delivering anything."""
        cdef au_cqe *cqe
        if self.held is None:
            self.held = []
        while ring_cq_ready(&self.ring):
            cqe = ring_cqe(&self.ring)
            self.held.append((cqe.user_data, cqe.res, cqe.flags))
            ring_cq_advance(&self.ring)
        return 0

    cdef int deliver_held(self) except -1:
        """Deliver what hold() put aside, in order."""
        cdef au_cqe cqe
        memset(&cqe, 0, sizeof(cqe))
        while self.held and not self.closed:
            cqe.user_data, cqe.res, cqe.flags = self.held.pop(0)
            self.take(&cqe)
        self.held = None
        return 0

    cdef inline int enter(self) except -1:
        cdef int n
        self.submissions += 1
        n = ring_enter(&self.ring)
        self.n_syscalls += 1
        self.q.unsent_ns = 0
        if n < 0 and n != -EINTR and n != -EBUSY and n != -EAGAIN:
            raise OSError(-n, f"io_uring_enter: {os.strerror(-n)}")
        return 0

    cdef au_sqe *sqe(self) except NULL:
        """A free entry; a full ring is submitted first."""
        cdef au_sqe *sqe
        if self.ring.fd < 0:
            raise OSError(EBADF, "the ring is closed")
        sqe = ring_sqe(&self.ring)
        if sqe == NULL:
            if self.running or self.thread == gettid():
                self.enter()
            sqe = ring_sqe(&self.ring)
            if sqe == NULL:
                raise OSError(EBUSY, "the submission ring is full")
        return sqe

    cdef int arm_epoll(self) except -1:
        cdef au_sqe *sqe = self.sqe()
        sqe.fd = self.epfd
        sqe.user_data = MARK_EPOLL
        if self.has_epoll_wait:
            sqe.opcode = IORING_OP_EPOLL_WAIT
            sqe.addr = <uint64_t><size_t>&self.events[0]
            sqe.len = MAX_EVENTS
        else:
            sqe.opcode = IORING_OP_POLL_ADD
            sqe.op_flags = EPOLLIN
        self.epoll_armed = True
        self.n_ops[sqe.opcode] += 1
        return 0

    cdef int poll(self) except -1:
        cdef int64_t now
        self.n_polls += 1
        if self.finished:
            self.deliver_finished()
        self.turns_unbroken += 1
        if not self.epoll_armed and (self.look or self.turns_unbroken % CLOCK_TURNS == 0):
            # Arming costs a system call, so turns that only run callbacks share one;
            # neither many turns nor slow ones may starve descriptors.
            now = monotonic_ns()
            if self.look or now - self.seen_ns >= DEFER_NS:
                self.look = False
                self.seen_ns = now
                self.arm_epoll()
        self.looked = self.epoll_armed
        if ring_unsubmitted(&self.ring) or ring_wants_enter(&self.ring):
            self.enter()
        if ring_cq_ready(&self.ring) or self.held is not None:
            self.reap()
        if self.turns_unbroken >= BREATHE_TURNS:
            self.turns_unbroken = 0
            self.breathe()
        return 0

    cdef int wait(self, int64_t deadline) except -1:
        cdef int n = 0
        cdef int64_t before, after
        cdef bint spin
        if self.finished:
            self.deliver_finished()
        self.looked = False
        if not self.epoll_armed:
            if self.hot and self.look_directly():
                return 0
            self.arm_epoll()
        before = monotonic_ns()
        if deadline <= before or self.q.head != self.q.tail or ring_cq_ready(&self.ring) \
                or self.held is not None:
            if ring_unsubmitted(&self.ring) or ring_wants_enter(&self.ring):
                self.enter()
            self.reap()
            return 0
        self.q.sleeping = 1
        self.q.unsent_ns = 0
        self.submissions += 1
        spin = self.brisk and deadline - before > SPIN_NS and spin_wanted(&self.spin, self.spins)
        with nogil:
            n = ring_spin(&self.ring, &self.spin) if spin else 0
            if n == 0:
                n = ring_wait(&self.ring, -1 if deadline == NEVER else deadline, before)
            after = monotonic_ns()
        self.q.sleeping = 0
        self.n_syscalls += 2 if spin else 1
        self.n_waits += 1
        self.wait_ns += after - before
        self.seen_ns = after
        self.turns_unbroken = 0
        if n < 0 and n != -ETIME and n != -EINTR and n != -EBUSY and n != -EAGAIN:
            raise OSError(-n, f"io_uring_enter: {os.strerror(-n)}")
        self.reap()
        self.hot = after - before < HOT_NS and not self.epoll_armed
        PyErr_CheckSignals()
        return 0

    cdef bint look_directly(self) except -1:
        """Ask the epoll set without the ring.  True if something was there.

        While descriptors are ready whenever the loop looks, the operation that waits for
        them costs more than epoll_wait.  The ring is passed over only as long as it has
        nothing: neither submissions nor completions, nor work of which the kernel says so.
        """
        cdef int n
        if ring_unsubmitted(&self.ring) or ring_cq_ready(&self.ring) \
                or ring_wants_enter(&self.ring) or self.q.head != self.q.tail:
            return False
        self.n_waits += 1
        self.n_syscalls += 1
        with nogil:
            n = epoll_wait(self.epfd, self.events, MAX_EVENTS, 0)
        if n <= 0:
            self.hot = False
            return False
        self.turns_unbroken = 0
        self.look = False
        self.seen_ns = monotonic_ns()
        self.dispatch(n)
        PyErr_CheckSignals()
        return True

    cdef int reap(self) except -1:
        """Take the completions that are there now.

        What comes while they are delivered is for the next turn: protocols that answer
        each other would otherwise keep timers and callbacks from ever running.
        """
        cdef au_cqe cqe
        cdef unsigned n = ring_cq_ready(&self.ring)
        if self.held is not None:
            self.deliver_held()
        while n and not self.closed:  # closed: a callback forked, and this is the child
            n -= 1
            cqe = ring_cqe(&self.ring)[0]
            ring_cq_advance(&self.ring)
            self.take(&cqe)
        return 0

    cdef int take(self, au_cqe *cqe) except -1:
        """Deliver one completion."""
        cdef int n
        if cqe.user_data == MARK_EPOLL:
            self.epoll_armed = False
            n = cqe.res
            if n < 0 and n != -ECANCELED and n != -EINTR and n != -EAGAIN:
                raise OSError(-n, f"waiting for the epoll set: {os.strerror(-n)}")
            if n > 0 and not self.has_epoll_wait:
                n = epoll_wait(self.epfd, self.events, MAX_EVENTS, 0)
                self.n_syscalls += 1
            if n > 0:
                self.dispatch(n)
        elif cqe.user_data < MARKS_END:
            pass
        elif cqe.user_data & TAG_BITS == TAG_OP:
            self.completed(<Op><PyObject *><size_t>cqe.user_data, cqe.res, cqe.flags,
                           not cqe.flags & IORING_CQE_F_MORE)
        else:
            self.stream_completed(cqe)
            if self.q.unsent_ns and monotonic_ns() - self.q.unsent_ns > UNSENT_NS:
                self.submit_sends()
        return 0

    # -- streams --------------------------------------------------------------

    cdef int stream_completed(self, au_cqe *cqe) except -1:
        cdef Watched stream = <Watched><PyObject *><size_t>(cqe.user_data & ~<uint64_t>TAG_BITS)
        cdef int buffer
        self.n_completions += 1
        if cqe.user_data & TAG_BITS == TAG_SEND:
            self.n_sends -= 1
            return self.tell_sent(stream, cqe.res)
        if cqe.flags & IORING_CQE_F_BUFFER:
            buffer = cqe.flags >> IORING_CQE_BUFFER_SHIFT
            if cqe.res <= 0:
                self.give_back(buffer)
            elif (<received_call>stream_received)(
                stream, self.buffers.memory + <size_t>buffer * self.buffers.size, cqe.res, buffer
            ) < 0:
                try:
                    self.stream_raised(stream)
                finally:
                    self.receive_goes_on(stream, cqe)
                return 0
        return self.receive_goes_on(stream, cqe)

    cdef inline int receive_goes_on(self, Watched stream, au_cqe *cqe) except -1:
        """Unless this completion was the last of its receive."""
        if not cqe.flags & IORING_CQE_F_MORE:
            if cqe.res == -ENOBUFS and self.buffers.ring != NULL:
                buffers_more(&self.buffers)
            if (<ended_call>stream_receive_ended)(stream, cqe.res) < 0:
                self.stream_raised(stream)
        return 0

    cdef bint receive_start(self, int fd, Watched stream) except -1:
        """Receive until told to stop.  False if this kernel's ring cannot."""
        cdef au_sqe *sqe
        if self.no_buffers or self.ring.fd < 0:
            return False
        if self.moving:
            self.stream_hold(fd)
            return True
        if self.buffers.ring == NULL:
            if buffers_open(&self.buffers, &self.ring, self.buffer_count, BUFFER_SIZE) < 0:
                self.no_buffers = True
                return False
        sqe = self.sqe()
        sqe.opcode = IORING_OP_RECV
        sqe.flags = IOSQE_BUFFER_SELECT
        sqe.ioprio = IORING_RECV_MULTISHOT
        sqe.fd = fd
        sqe.user_data = <uint64_t><size_t><PyObject *>stream | TAG_RECEIVE
        self.stream_hold(fd)
        self.n_ops[IORING_OP_RECV] += 1
        return True

    cdef int receive_stop(self, Watched stream) except -1:
        return self.cancel_mark(<uint64_t><size_t><PyObject *>stream | TAG_RECEIVE)

    cdef int give_back(self, int buffer) noexcept:
        if not self.closed:  # in a forked child they are not there
            buffers_add(&self.buffers, buffer)
        return 0

    cdef Py_ssize_t send_start(self, int fd, Watched stream, char *data, Py_ssize_t n) except -1:
        cdef au_sqe *sqe = self.sqe()
        sqe.opcode = IORING_OP_SEND
        sqe.fd = fd
        sqe.addr = <uint64_t><size_t>data
        sqe.len = <uint32_t>n
        sqe.op_flags = MSG_NOSIGNAL | MSG_WAITALL
        sqe.user_data = <uint64_t><size_t><PyObject *>stream | TAG_SEND
        self.stream_hold(fd)
        self.n_sends += 1
        self.n_ops[IORING_OP_SEND] += 1
        if not self.q.unsent_ns:
            self.q.unsent_ns = monotonic_ns()
        return <Py_ssize_t><size_t>sqe

    cdef int send_replace(self, Py_ssize_t place, char *data, Py_ssize_t n) noexcept:
        cdef au_sqe *sqe = <au_sqe *><size_t>place
        sqe.addr = <uint64_t><size_t>data
        sqe.len = <uint32_t>n
        return 0

    cdef int submit_sends(self) except -1:
        return 0 if self.closed else self.enter()

    cdef int send_stop(self, Watched stream) except -1:
        return self.cancel_mark(<uint64_t><size_t><PyObject *>stream | TAG_SEND)

    cdef bint worth_batching(self) noexcept:
        """More is to be done in this turn that is likely to send as well."""
        return self.running and ring_cq_ready(&self.ring) + (self.q.tail - self.q.head) >= 2

    cdef int submit(self, Op op) except -1:
        if op.by_readiness:
            return self.submit_readiness(op)
        if op.link.next != NULL or op.done:
            raise RuntimeError("an operation can be submitted once only")
        if self.parked or self.moving or (not self.running and not self.has_room(op)):
            # Only the thread that runs the loop can enter the ring; it will.
            self.parked.append(op)
        else:
            self.prepare(op)
        while op is not None:
            op_link(self.q, &op.link, <PyObject *>op)
            self.n_ops[op.opcode % OP_KINDS] += 1
            op = op.linked
        return 0

    cdef bint has_room(self, Op op) noexcept:
        """For an operation and those linked to it."""
        cdef unsigned n = 1
        if op.linked is None:
            return not ring_full(&self.ring)
        while op.linked is not None:
            n += 1
            op = op.linked
        return self.ring.fd < 0 or ring_unsubmitted(&self.ring) + n <= self.ring.sq_entries

    cdef int prepare(self, Op op) except -1:
        """Fill the next entries.  A chain that is submitted in two parts is two chains."""
        cdef au_sqe *sqe
        if op.linked is not None and not self.has_room(op):
            if self.running or self.thread == gettid():
                self.enter()
            if not self.has_room(op):
                raise OSError(EBUSY, "the submission ring is full")
        while op.linked is not None:
            sqe = self.fill(op)
            if not sqe.flags & IOSQE_IO_HARDLINK:
                sqe.flags |= IOSQE_IO_LINK
            op = op.linked
        self.fill(op)
        return 0

    cdef au_sqe *fill(self, Op op) except NULL:
        cdef au_sqe *sqe = self.sqe()
        sqe.opcode = op.opcode
        sqe.flags = op.sqe_flags
        sqe.ioprio = op.ioprio
        sqe.fd = op.fd
        sqe.off = op.offset
        sqe.addr = op.address
        sqe.len = op.length
        sqe.op_flags = op.op_flags
        sqe.splice_fd_in = op.file_index
        sqe.addr3 = op.address3
        sqe.user_data = <uint64_t><size_t><PyObject *>op
        return sqe

    cdef int take_slot(self) noexcept:
        cdef int i
        if self.n_free < 0 and self.ring.fd >= 0:
            self.n_free = 0
            if ring_make_table(&self.ring, FILE_SLOTS) >= 0:
                self.n_free = FILE_SLOTS
                for i in range(FILE_SLOTS):
                    self.slots[i] = FILE_SLOTS - 1 - i
            self.n_syscalls += 1
        if self.n_free <= 0:
            return -1
        self.n_free -= 1
        return self.slots[self.n_free]

    cdef int free_slot(self, int slot) noexcept:
        if 0 <= self.n_free < FILE_SLOTS:  # else the table is another one, or closed
            self.slots[self.n_free] = slot
            self.n_free += 1
        return 0

    cdef int cancel_mark(self, uint64_t user_data) except -1:
        cdef au_sqe *sqe
        if self.ring.fd < 0 or self.moving:
            return 0  # closing the ring cancels
        sqe = self.sqe()
        sqe.opcode = IORING_OP_ASYNC_CANCEL
        sqe.addr = user_data
        sqe.user_data = MARK_IGNORE
        return 0

    cdef int cancel(self, Op op) except -1:
        if op.link.next != NULL and not op.cancel_asked:
            op.cancel_asked = True
            if op.by_readiness:
                return self.cancel_readiness(op)
            if op in self.parked:
                self.parked.remove(op)
                while op is not None:
                    self.finish_later(op, -ECANCELED)
                    op = op.linked
                return 0
            self.cancel_mark(<uint64_t><size_t><PyObject *>op)
        return 0

    cdef int close(self) except -1:
        cdef OpLink *link
        cdef int64_t deadline
        cdef int n, fd
        cdef Watched stream
        if self.closed:
            return 0
        self.shutting = True
        if self.thread and self.thread == gettid():
            for fd in range(self.q.n_slots):
                if self.q.slots[fd].stream != NULL:
                    stream = <Watched>self.q.slots[fd].stream
                    self.receive_stop(stream)
                    self.send_stop(stream)
            link = self.q.in_flight.next
            while link != &self.q.in_flight:
                self.cancel(<Op>link.op)
                link = link.next
            self.deliver_finished()
            if self.epoll_armed:
                self.cancel_mark(MARK_EPOLL)
            deadline = monotonic_ns() + CLOSE_NS
            while (self.q.in_flight.next != &self.q.in_flight or self.epoll_armed
                   or self.streams_in_flight()):
                n = ring_wait(&self.ring, deadline, monotonic_ns())
                self.reap()
                if monotonic_ns() >= deadline:
                    break  # what is left stays in the in-flight list, and so in memory
            if self.streams_in_flight():
                for fd in range(self.q.n_slots):
                    self.q.slots[fd].stream_refs = 0  # never freed: the kernel has it
        self.give_up_in_flight(self.thread != 0)
        # A ring bound to another thread cannot be entered from here.  Closing it makes
        # the kernel cancel; the in-flight list keeps the memory.
        ring_close(&self.ring)
        buffers_close(&self.buffers)
        return Reactor.close(self)

    cdef bint streams_in_flight(self):
        cdef int fd
        for fd in range(self.q.n_slots):
            if self.q.slots[fd].stream_refs > (self.q.slots[fd].stream_events != 0):
                return True
        return False

    cdef int abandon(self) except -1:
        """In a forked child: close descriptors, touch nothing else."""
        self.running = False
        self.q.unsent_ns = 0
        ring_abandon(&self.ring)
        buffers_abandon(&self.buffers)
        return Reactor.close(self)
