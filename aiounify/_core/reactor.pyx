# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The reactor: what a loop waits in, and the interface of its two backends.

Why it exists: everything above the engine knows one short interface (start,
poll, wait, submit, cancel, watch, unwatch, close) and never a kernel mechanism.
`uring.pyx` and `epoll.pyx` implement it.

Two kinds of event come out of a reactor:

* **Completions.** An `Op` is one submission.  It owns every buffer that the
  kernel may touch, from submit() until its last completion, also when whoever
  awaited it is gone: the in-flight list holds a reference to it.  cancel() only
  asks; the operation's own completion says what happened, so nothing the kernel
  has already done is ever thrown away unseen.
* **Readiness** of descriptors, for add_reader() and its kin.  Both backends keep
  it in an epoll set, so it is level-triggered, knows which files cannot be
  watched (EPERM) and forgets closed files exactly as asyncio's own loop does; the
  io_uring backend waits for the set by an operation in the ring.

Rules:

* One thread runs the loop.  Other threads may only push to the backlog and wake
  the loop through its eventfd, which stands in the epoll set edge-triggered and
  is never read: each write is an edge, and 2**64 writes fill it.
* Dispatching moves handles to the ready queue; only native transports are called
  while events are taken, and call their protocols.  What these close or replace is told
  by the generation of its registration.
* Each registration has a generation, which its events carry: an event that the
  kernel handed out before a number was closed and used again reaches nobody.
* The first turn of a run, a turn entered with stop() asked for, and a turn after a
  watcher was set look at the kernel in any case: programs that run the loop "once"
  rely on it.  Between other turns that only run callbacks a backend may skip it.
* A watcher's handle is kept by its slot; the slot table grows to the highest
  descriptor number in use.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from libc.string cimport memset
from posix.unistd cimport close as c_close
from posix.unistd cimport read as c_read

import os

cimport cython

from aiounify._core.backlog cimport (
    HANDLE_CANCELLED,
    UNSENT_NS,
    WATCH_KINDS,
    WATCH_PRIORITY,
    WATCH_READER,
    WATCH_WRITER,
    BacklogObject,
    FdSlot,
    HandleObject,
    OpLink,
    monotonic_ns,
    op_link,
    op_unlink,
    ready_push,
)


cdef extern from "<fcntl.h>" nogil:
    enum:
        F_GETFD
    int fcntl(int fd, int command)

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll" (pollfd *fds, unsigned long n, int timeout)

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int initval, int flags)

cdef extern from "Python.h":
    PyObject *bytes_new "PyBytes_FromStringAndSize" (const char *, Py_ssize_t) except NULL
    Py_ssize_t bytes_size "PyBytes_GET_SIZE" (PyObject *)
    void Py_DECREF(PyObject *)
    void Py_INCREF(PyObject *)

cdef extern from "uring_abi.h" nogil:
    enum:
        IORING_OP_NOP
        IORING_OP_READ

cdef enum:
    BREATHE_NS = 6_000_000
    STALE_SHARE = 8      # a new epoll set after events in vain for one in so many slots


# Exceptions of a stream's calls are rare, and a try block around each call is not free: it
# saves and restores the thread's exception state.  So the calls are made through
# pointers that do not propagate, and an error is raised anew where it is handled.
ctypedef int (*ready_call)(Watched, uint32_t) noexcept
ctypedef int (*sent_call)(Watched, int) noexcept

cdef int stream_ready(Watched stream, uint32_t events) except -1:
    return stream.ready(events)


cdef int stream_sent(Watched stream, int result) except -1:
    return stream.sent(result)


cdef inline object os_error(int code, str what):
    return OSError(code, f"{what}: {os.strerror(code)}")


cdef class Op:
    """One submission to the kernel, and the owner of its memory.

    Subclasses fill the fields of the submission and say, for the epoll backend,
    how the same thing is tried without blocking (`perform`) and what readiness to
    wait for when the kernel answers EAGAIN (`readiness`).

    Several can be submitted as one chain: each names its successor in `linked`, and only the
    first is given to submit().  Each has a completion of its own.  The first that fails or does
    less than it was told to ends the chain: the rest complete with ECANCELED.  One with
    IOSQE_IO_HARDLINK among its `sqe_flags` does not end it.
    """

    def __cinit__(self):
        self.fd = -1
        self.link.next = self.link.prev = NULL

    @property
    def in_flight(self):
        """True from submit() until the last completion was taken."""
        return self.link.next != NULL

    @property
    def finished(self):
        """True once the last completion was taken; `result` is valid then."""
        return self.done

    cdef int perform(self) noexcept:
        """Try without blocking: the result, or a negated errno."""
        return -ECANCELED

    cdef int complete(self, int result, uint32_t flags) except -1:
        """A completion, in the loop's thread."""
        self.result = result
        return 0


cdef class NopOp(Op):
    """Nothing, by way of the kernel: proves that a reactor works."""

    def __cinit__(self):
        self.opcode = IORING_OP_NOP

    cdef int perform(self) noexcept:
        return 0


cdef class ReadOp(Op):
    """Read once from a descriptor that can be polled (pipe, socket, eventfd ...).

    The bytes belong to the operation and stay with it, whether or not anybody
    still waits: `data` is what was read.
    """

    def __cinit__(self, int fd, int size):
        if size <= 0:
            raise ValueError(f"size must be positive, not {size}")
        self.fd = fd
        self.opcode = IORING_OP_READ
        self.buffer = bytearray(size)
        self.address = <uint64_t><size_t><char *>self.buffer
        self.length = size
        self.offset = <uint64_t>-1
        self.readiness = EPOLLIN

    cdef int perform(self) noexcept:
        # The descriptor may be a blocking one: ask first.
        cdef pollfd p
        p.fd = self.fd
        p.events = POLLIN
        if c_poll(&p, 1, 0) == 0:
            return -EAGAIN
        cdef Py_ssize_t n = c_read(self.fd, <void *><size_t>self.address, self.length)
        return -errno if n < 0 else <int>n

    @property
    def data(self):
        """The bytes read, once finished without an error; else empty."""
        return bytes(self.buffer[: self.result]) if self.done and self.result > 0 else b""


cdef class Watched:
    cdef int ready(self, uint32_t events) except -1:
        """Readiness, as epoll says it."""
        return 0

    cdef int received_in(self, char *data, int n, int buffer) except -1:
        """n bytes in a shared buffer, which has to be given back."""
        return 0

    cdef int receive_ended(self, int result) except -1:
        """receive_start() is over: 0 at the end of the stream, or a negated errno."""
        return 0

    cdef int sent(self, int result) except -1:
        """The completion of send_start()."""
        return 0

    cdef int failed(self, exc) except -1:
        """An exception left one of these calls; SystemExit and KeyboardInterrupt do not
        come here."""
        raise exc

    cdef int receive_again(self) except -1:
        """The ring was replaced: start receiving anew."""
        return 0

    cdef bint valid(self) noexcept:
        """False if the descriptor this stands for was closed."""
        return True

    cdef int displaced(self) except -1:
        """It no longer stands at its descriptor: nothing more is told."""
        return 0


@cython.no_gc_clear  # q points into backlog
cdef class Reactor:
    """Base of the backends: the descriptor table, the wake-up, the counters."""

    def __cinit__(self):
        self.epfd = -1
        self.wake_fd = -1
        self.spins = 1
        self.finished = []
        self.waiting = {}
        self.scratch = <char *>PyMem_Malloc(SCRATCH)
        if self.scratch == NULL:
            raise MemoryError

    def __init__(self, object backlog):
        """`backlog` is the scheduler's queue object; both live as long as the loop."""
        self.backlog = backlog
        self.q = <BacklogObject *><PyObject *>backlog
        cdef int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if fd < 0:
            raise os_error(errno, "eventfd")
        self.wake_fd = fd
        self.make_set()
        self.q.wake_fd = fd

    cdef int make_set(self) except -1:
        """A new epoll set with the reactor's own descriptors in it."""
        cdef int fd = epoll_create1(EPOLL_CLOEXEC)
        if fd < 0:
            raise os_error(errno, "epoll_create1")
        if self.epfd >= 0:
            c_close(self.epfd)
        self.epfd = fd
        return self.add_internal(self.wake_fd, WAKE_MARK)

    cdef int add_internal(self, int fd, uint64_t mark) except -1:
        cdef epoll_event ev
        memset(&ev, 0, sizeof(ev))
        ev.events = EPOLLIN | EDGE
        ev.data.u64 = mark
        if epoll_ctl(self.epfd, EPOLL_CTL_ADD, fd, &ev) < 0:
            raise os_error(errno, "epoll_ctl")
        return 0

    def __dealloc__(self):
        # Only descriptors: the backlog may be gone already.  close() did the rest,
        # unless the loop was never closed, in which case nothing refers to it.
        if self.epfd >= 0:
            c_close(self.epfd)
        if self.wake_fd >= 0:
            c_close(self.wake_fd)
        PyMem_Free(self.scratch)
        spare_clear(&self.spares)
        self.bulk_drop()

    cdef str name(self):
        return "none"

    @property
    def backend(self):
        """ "uring" or "epoll"."""
        return self.name()

    cdef int start(self) except -1:
        """The loop begins to run in this thread."""
        self.look = self.running = True
        self.looked = False
        return 0

    cdef int stop(self) except -1:
        """The loop stops running."""
        self.running = False
        return 0

    cdef int poll(self) except -1:
        """Take what has happened, without waiting."""
        return 0

    cdef int breathe(self) except -1:
        """Between turns that do not wait: signals, and the GIL for who wants it.

        A thread that wants the GIL asks for it after 5 ms (sys.setswitchinterval) in
        which nobody else let go of it; a release that is taken back at once only starts
        that time anew.  So it is released at longer intervals, and then handed over.
        Callbacks in Python hand it over by themselves; native ones would not.
        """
        cdef int64_t now = monotonic_ns()
        if now - self.breathed_ns >= BREATHE_NS:
            self.breathed_ns = now
            with nogil:
                pass
        return PyErr_CheckSignals()

    cdef int wait(self, int64_t deadline) except -1:
        """Wait until something happens or the monotonic clock reaches `deadline`."""
        return 0

    cdef int submit(self, Op op) except -1:
        return 0

    cdef int cancel(self, Op op) except -1:
        return 0

    cdef int close(self) except -1:
        """Free descriptors; the caller has cancelled and reaped all operations."""
        if self.closed:
            return 0
        self.closed = True
        if self.epfd >= 0:
            c_close(self.epfd)
            self.epfd = -1
        if self.wake_fd >= 0:
            c_close(self.wake_fd)
            self.wake_fd = self.q.wake_fd = -1
        return 0

    cdef int abandon(self) except -1:
        """In a forked child: close descriptors, tell the shared kernel objects nothing."""
        return self.close()

    # -- operations ---------------------------------------------------------

    cdef int completed(self, Op op, int result, uint32_t flags, bint last) except -1:
        """Hand a completion to its operation; `last` ends its time in flight."""
        cdef PyObject *owned
        self.n_completions += 1
        if not last:
            return op.complete(result, flags)
        owned = op_unlink(&op.link)
        try:
            op.done = True
            op.complete(result, flags)
            if op.handle is not None:
                ready_push(self.q, <HandleObject *><PyObject *>op.handle)
                op.handle = None
        finally:
            Py_DECREF(owned)
        return 0

    cdef int give_up_in_flight(self, bint submitted) except -1:
        """The loop closes, and what is in flight cannot be reaped.

        What never reached the kernel is cancelled here.  Of the rest the memory stays
        for good, for the kernel may still write to it, but not the callback and with it
        the loop.
        """
        cdef OpLink *link = self.q.in_flight.next
        cdef OpLink *after
        while link != &self.q.in_flight:
            after = link.next
            (<Op>link.op).handle = None
            if not submitted:
                self.completed(<Op>link.op, -ECANCELED, 0, True)
            link = after
        return 0

    cdef int finish_later(self, Op op, int result) except -1:
        """A result that is known now is delivered in the next turn, as all are."""
        self.finished.append((op, result))
        return 0

    cdef int deliver_finished(self) except -1:
        cdef list finished = self.finished
        self.finished = []
        for op, result in finished:
            self.completed(<Op>op, result, 0, True)
        return 0

    # -- readiness ----------------------------------------------------------

    cdef FdSlot *slot(self, int fd) except NULL:
        """The slot of an open descriptor; OSError (EBADF) if it is not open."""
        cdef size_t n
        cdef FdSlot *slots
        if fd >= self.q.n_slots:
            # Numbers in use are small; a wrong one must not size the table.
            if fcntl(fd, F_GETFD) < 0:
                raise os_error(errno, f"cannot watch file descriptor {fd}")
            n = max(64, self.q.n_slots)
            while n <= <size_t>fd:
                n *= 2
            slots = <FdSlot *>PyMem_Realloc(self.q.slots, n * sizeof(FdSlot))
            if slots == NULL:
                raise MemoryError
            memset(slots + self.q.n_slots, 0, (n - self.q.n_slots) * sizeof(FdSlot))
            self.q.slots = slots
            self.q.n_slots = <int>n
        return &self.q.slots[fd]

    cdef int arm(self, int fd) noexcept:
        """Tell the epoll set what the slot wants.  0 or a negated errno.

        Also called when nothing seems to change: if the descriptor was closed and
        its number belongs to another file now, the kernel has forgotten the old
        registration, answers ENOENT, and gets a new one.
        """
        cdef FdSlot *slot = &self.q.slots[fd]
        cdef epoll_event ev
        cdef uint32_t want = slot.op_events | slot.stream_events
        cdef int op
        if slot.watcher[WATCH_READER] != NULL:
            want |= EPOLLIN
        if slot.watcher[WATCH_WRITER] != NULL:
            want |= EPOLLOUT
        if slot.watcher[WATCH_PRIORITY] != NULL:
            want |= EPOLLPRI
        if want:
            want |= slot.call_waits & (EPOLLIN | EPOLLOUT)
        elif slot.call_events:
            want = slot.call_events | EDGE
        if want and not slot.armed:
            slot.generation += 1
        memset(&ev, 0, sizeof(ev))
        ev.events = want
        ev.data.u64 = <uint64_t>slot.generation << 32 | <uint32_t>fd
        op = (EPOLL_CTL_MOD if slot.armed else EPOLL_CTL_ADD) if want else EPOLL_CTL_DEL
        self.n_syscalls += 1
        if epoll_ctl(self.epfd, op, fd, &ev) < 0:
            if op == EPOLL_CTL_DEL:
                slot.armed = 0
                return 0  # closed before it was removed
            if errno == ENOENT and op == EPOLL_CTL_MOD:
                op = EPOLL_CTL_ADD
                slot.generation += 1
                ev.data.u64 = <uint64_t>slot.generation << 32 | <uint32_t>fd
            elif errno == EEXIST and op == EPOLL_CTL_ADD:
                op = EPOLL_CTL_MOD
            else:
                return -errno
            self.n_syscalls += 1
            if epoll_ctl(self.epfd, op, fd, &ev) < 0:
                return -errno
        slot.armed = want
        if want:
            self.look = True
        return 0

    cdef int watch(self, int fd, int kind, HandleObject *handle) except -1:
        """Run `handle` in every turn in which the descriptor is ready.

        Takes a new reference; an earlier watcher of the kind is cancelled.
        PermissionError for files that cannot be watched, OSError for bad ones.
        """
        cdef FdSlot *slot
        cdef HandleObject *old
        cdef int error
        if fd < 0:
            raise ValueError(f"Invalid file descriptor: {fd}")
        slot = self.slot(fd)
        old = slot.watcher[kind]
        slot.watcher[kind] = handle
        error = self.arm(fd)
        if error:
            slot.watcher[kind] = old
            raise os_error(-error, f"cannot watch file descriptor {fd}")
        Py_INCREF(<PyObject *>handle)
        if old != NULL:
            try:
                (<object><PyObject *>old).cancel()
            finally:
                Py_DECREF(<PyObject *>old)
        else:
            self.q.n_watched += 1
        return 0

    cdef int unwatch(self, int fd, int kind) except -1:
        """Undo watch().  1 if there was something to undo."""
        cdef FdSlot *slot
        cdef HandleObject *old
        if fd < 0 or fd >= self.q.n_slots:
            return 0
        slot = &self.q.slots[fd]
        old = slot.watcher[kind]
        if old == NULL:
            return 0
        slot.watcher[kind] = NULL
        self.q.n_watched -= 1
        self.arm(fd)
        try:
            (<object><PyObject *>old).cancel()
        finally:
            Py_DECREF(<PyObject *>old)
        return 1

    cdef HandleObject *watcher(self, int fd, int kind) noexcept:
        if fd < 0 or fd >= self.q.n_slots:
            return NULL
        return self.q.slots[fd].watcher[kind]

    # A native transport has its slot to itself, and others at most watch the descriptor.

    cdef int stream_open(self, int fd, Watched stream) except -1:
        """`stream` has the slot from now on.  The slot does not own the stream.

        RuntimeError if another stream has it and waits for something.
        """
        cdef FdSlot *slot = self.slot(fd)
        if slot.stream != NULL and slot.stream_refs:
            raise RuntimeError(
                f"File descriptor {fd!r} is used by transport {<object>slot.stream!r}"
            )
        slot.stream = <PyObject *>stream
        slot.stream_events = 0
        return self.calls_close(fd)

    cdef int stream_wait(self, int fd, Watched stream, uint32_t events) except -1:
        """Call stream.ready() when one of the events is there; 0 stops it.

        While it waits for something the slot keeps the stream alive.  Nothing happens if
        another stream has the slot by now.
        """
        cdef FdSlot *slot = &self.q.slots[fd]
        cdef uint32_t before = slot.stream_events
        cdef int error
        if before == events or self.closed or slot.stream != <PyObject *>stream:
            return 0
        slot.stream_events = events
        error = self.arm(fd)
        if error:
            slot.stream_events = before
            raise os_error(-error, f"cannot watch file descriptor {fd}")
        if events and not before:
            self.stream_hold(fd)
        elif before and not events:
            self.stream_release(fd)
        return 0

    cdef int stream_hold(self, int fd) noexcept:
        """One more thing in the kernel refers to the stream."""
        self.q.slots[fd].stream_refs += 1
        Py_INCREF(self.q.slots[fd].stream)
        return 0

    cdef int stream_release(self, int fd) noexcept:
        self.q.slots[fd].stream_refs -= 1
        Py_DECREF(self.q.slots[fd].stream)
        return 0

    cdef int stream_close(self, int fd, Watched stream, bint shared) noexcept:
        """The stream is about to close its descriptor; none of its operations is in flight.

        Closing removes it from the epoll set, unless the descriptor was handed out
        (`shared`) and may have been duplicated, or be watched by others as well.
        """
        cdef FdSlot *slot
        if fd >= self.q.n_slots:
            return 0
        slot = &self.q.slots[fd]
        if slot.stream != <PyObject *>stream:
            return 0
        slot.stream = NULL
        if not shared:
            slot.stream_events = slot.armed = 0
        elif slot.stream_events:
            slot.stream_events = 0
            if not self.closed:
                self.arm(fd)
        while slot.stream_refs:
            slot.stream_refs -= 1
            Py_DECREF(<PyObject *>stream)
        self.calls_close(fd)
        return 0

    # sock_recv() and its kin; see sock_calls.pyx.  What stands at a descriptor for them is
    # told edge by edge, and by one registration for all calls, as long as nothing
    # level-triggered is watched there too.

    cdef int calls_open(self, int fd, Watched calls) except -1:
        """`calls` stands at the descriptor from now on, and the slot owns it."""
        self.slot(fd)
        self.calls_close(fd)
        self.q.slots[fd].calls = <PyObject *>calls
        Py_INCREF(<PyObject *>calls)
        return 0

    cdef int calls_wait(self, int fd, uint32_t events, bint again) except -1:
        """Call calls.ready() when one of the events is there.

        The caller has just seen that it is not, or asks for the present state (`again`).
        """
        cdef FdSlot *slot = &self.q.slots[fd]
        cdef uint32_t waits = slot.call_waits, before = slot.call_events
        cdef int error
        slot.call_waits |= events
        slot.call_events |= events
        if slot.armed & EDGE and before == slot.call_events and not again:
            return 0
        error = self.arm(fd)
        if error:
            slot.call_waits = waits
            slot.call_events = before
            raise os_error(-error, f"cannot watch file descriptor {fd}")
        return 0

    cdef int calls_leave(self, int fd, uint32_t events) noexcept:
        """Nothing waits for these any more; the edge-triggered registration stays."""
        cdef FdSlot *slot = &self.q.slots[fd]
        if slot.call_waits & events:
            slot.call_waits &= ~events
            if slot.armed and not slot.armed & EDGE and not self.closed:
                self.arm(fd)
        return 0

    cdef int calls_rest(self, int fd) noexcept:
        """Events come that nothing waits for: out of the set, until the next wait."""
        cdef FdSlot *slot = &self.q.slots[fd]
        slot.call_events = slot.call_waits
        if slot.armed & EDGE:
            self.arm(fd)
        return 0

    cdef int calls_close(self, int fd) except -1:
        """The descriptor is another's now; whatever still waits is told."""
        cdef FdSlot *slot = &self.q.slots[fd]
        cdef Watched calls
        if slot.calls == NULL:
            return 0
        calls = <Watched>slot.calls
        slot.calls = NULL
        slot.call_waits = slot.call_events = 0
        Py_DECREF(<PyObject *>calls)
        if slot.armed:
            self.arm(fd)
        return calls.displaced()

    cdef bint receive_start(self, int fd, Watched stream) except -1:
        return False

    cdef int receive_stop(self, Watched stream) except -1:
        return 0

    cdef int give_back(self, int buffer) noexcept:
        return 0

    cdef Py_ssize_t send_start(self, int fd, Watched stream, char *data, Py_ssize_t n) except -1:
        """Send with the next submission; stream.sent() is called afterwards.

        The memory has to stay until then.  Returns a place for send_replace(), valid as
        long as `submissions` does not change.
        """
        raise NotImplementedError

    cdef int send_replace(self, Py_ssize_t place, char *data, Py_ssize_t n) noexcept:
        """Send this in place of what send_start() was given."""
        return 0

    cdef int tell_sent(self, Watched stream, int result) except -1:
        if (<sent_call>stream_sent)(stream, result) < 0:
            self.stream_raised(stream)
        return 0

    cdef int send_stop(self, Watched stream) except -1:
        return 0

    cdef bint worth_batching(self) noexcept:
        return False

    cdef int take_slot(self) noexcept:
        """A place in the ring's own table of files, -1 if there is none."""
        return -1

    cdef int free_slot(self, int slot) noexcept:
        """The place has no file any more."""
        return 0

    cdef int submit_sends(self) except -1:
        """Sends have waited long enough for the rest of the turn."""
        return 0

    cdef int stream_raised(self, Watched stream) except -1:
        """An exception left a call of the stream: not the loop's business, as a rule."""
        try:
            raise_pending()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            stream.failed(exc)
        return 0

    # -- bytes to receive into ------------------------------------------------

    cdef PyObject *bulk_take(self, Py_ssize_t size) except NULL:
        """A bytes object of at least `size` bytes that nobody else has."""
        cdef PyObject *found = self.bulk
        if found != NULL:
            self.bulk = NULL
            if bytes_size(found) >= size:
                return found
            Py_DECREF(found)
        return bytes_new(NULL, size)

    cdef int bulk_give(self, PyObject *found) noexcept:
        """Give it back for the next bulk receive; takes over the reference."""
        self.bulk_drop()
        self.bulk = found
        return 0

    cdef int bulk_drop(self) noexcept:
        cdef PyObject *found = self.bulk
        if found != NULL:
            self.bulk = NULL
            Py_DECREF(found)
        return 0

    cdef int dispatch(self, int n) except -1:
        """Turn n entries of self.events into ready handles."""
        cdef int i, fd, kind
        cdef uint64_t data
        cdef bint stale = False
        cdef uint32_t got, others
        cdef uint32_t[3] fires
        cdef FdSlot *slot
        cdef HandleObject *handle
        cdef bint taken
        cdef Watched stream, calls
        fires[WATCH_READER] = EPOLLIN | EPOLLHUP | EPOLLERR
        fires[WATCH_WRITER] = EPOLLOUT | EPOLLHUP | EPOLLERR
        fires[WATCH_PRIORITY] = EPOLLPRI | EPOLLHUP | EPOLLERR
        for i in range(n):
            data = self.events[i].data.u64
            got = self.events[i].events
            if data == WAKE_MARK:
                continue
            self.n_events += 1
            fd = <int>(data & 0x7fffffff)
            slot = &self.q.slots[fd]
            if slot.generation != data >> 32:
                stale = True  # of a registration that was replaced
                continue
            taken = False
            if slot.stream_events and got & (slot.stream_events | EPOLLHUP | EPOLLERR):
                others = slot.armed & ~slot.stream_events
                stream = <Watched>slot.stream  # holds it: its protocol may close it
                if (<ready_call>stream_ready)(stream, got) < 0:
                    self.stream_raised(stream)
                if self.closed:
                    return 0  # its protocol forked, and this is the child
                if self.q.unsent_ns and monotonic_ns() - self.q.unsent_ns > UNSENT_NS:
                    self.submit_sends()
                if not others:
                    continue
                taken = True
                slot = &self.q.slots[fd]  # any code has run: the table may have moved
                if slot.generation != data >> 32:
                    continue
            if slot.calls != NULL and (slot.armed & EDGE or slot.call_waits):
                calls = <Watched>slot.calls
                if not calls.valid():
                    self.calls_close(fd)
                    stale = True
                elif slot.armed & EDGE:
                    calls.ready(got)
                    continue
                elif got & (slot.call_waits | EPOLLHUP | EPOLLERR):
                    taken = True
                    calls.ready(got)
                slot = &self.q.slots[fd]
            for kind in range(WATCH_KINDS):
                handle = slot.watcher[kind]
                if handle == NULL or not got & fires[kind]:
                    continue
                taken = True
                if handle.flags & HANDLE_CANCELLED:
                    self.unwatch(fd, kind)  # frees it: any code may run, the table may move
                    slot = &self.q.slots[fd]
                else:
                    ready_push(self.q, handle)
            if slot.op_events & got or (slot.op_events and got & (EPOLLHUP | EPOLLERR)):
                taken = True
                self.ops_ready(fd, got)
            if self.closed:
                return 0
            if not taken:
                stale = True
        self.stale_run = self.stale_run + 1 if stale else 0
        if self.stale_run > self.q.n_slots // STALE_SHARE:
            self.stale_run = 0
            self.renew()
        return 0

    cdef int renew(self) except -1:
        """Replace the epoll set by one that has what the slots want and nothing else.

        An event that nobody wants comes from a registration that outlived its
        watcher: the descriptor was closed while a duplicate kept the file open.  Such
        a registration can no longer be named, so it cannot be removed, and being
        level-triggered it would come again for ever.  Once proves nothing: an event whose
        watcher was closed by the one before it, as proxies do, never comes again.  A new
        set costs a system call for each descriptor, so it is made when about as much
        has been spent on events in vain.
        """
        cdef int fd
        cdef FdSlot *slot
        self.make_set()
        for fd in range(self.q.n_slots):
            slot = &self.q.slots[fd]
            if slot.calls != NULL and not (<Watched>slot.calls).valid():
                slot.armed = 0
                self.calls_close(fd)
                slot = &self.q.slots[fd]
            if slot.armed:
                slot.armed = 0
                self.arm(fd)
        return 0

    # -- operations by readiness -------------------------------------------------

    cdef int submit_readiness(self, Op op) except -1:
        """Try it, and again whenever its descriptor is ready."""
        cdef int result, error
        if op.link.next != NULL or op.done:
            raise RuntimeError("an operation can be submitted once only")
        op_link(self.q, &op.link, <PyObject *>op)
        self.n_ops[op.opcode % OP_KINDS] += 1
        result = op.perform()
        if result != -EAGAIN or not op.readiness:
            return self.finish_later(op, result)
        (<list>self.waiting.setdefault(op.fd, [])).append(op)
        self.slot(op.fd)
        self.q.slots[op.fd].op_events |= op.readiness
        error = self.arm(op.fd)
        if error:
            self.leave(op)
            return self.finish_later(op, error)
        return 0

    cdef int leave(self, Op op) except -1:
        """The operation no longer waits for its descriptor."""
        cdef uint32_t wanted = 0
        cdef list ops = <list>self.waiting[op.fd]
        ops.remove(op)
        for other in ops:
            wanted |= (<Op>other).readiness
        if not ops:
            del self.waiting[op.fd]
        self.q.slots[op.fd].op_events = wanted
        self.arm(op.fd)
        return 0

    cdef int ops_ready(self, int fd, uint32_t events) except -1:
        cdef int result
        for op in list(self.waiting.get(fd, ())):
            if not (<Op>op).link.next or (<Op>op).cancel_asked:
                continue  # withdrawn by what the one before it woke
            (<Op>op).seen = events
            result = (<Op>op).perform()
            if result != -EAGAIN:
                self.leave(<Op>op)
                self.completed(<Op>op, result, 0, True)
        return 0

    cdef int cancel_readiness(self, Op op) except -1:
        if op in self.waiting.get(op.fd, ()):
            self.leave(op)
            self.finish_later(op, -ECANCELED)
        return 0
