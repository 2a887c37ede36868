# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False
"""What the files of one loop share: the way to the kernel, and the budget of what is answered at once.

Why it exists: operations that wait go to the ring or to a thread, and somebody has to know which.
What the kernel has in memory is answered inline, on the loop's thread, and somebody has to see that
the loop is not starved by it.

Rules:

* Inline hits have a budget: a task that has had `share` of them without a turn of the loop yields
  once, and a turn costs about BUDGET hits, however many tasks read.  If more tasks read than a turn
  has room for, they wait in a queue, and so many go on in each turn as fill the budget: tasks that
  each did one read a turn would pay for a step of the task each.
* Who comes new into a turn has one try free, up to twice the budget: one read now and then does not
  queue behind those who read all the time.
* A step of a task is known by the head of the ready ring, which every callback moves.
* What goes past the page cache is not kept for the end of the turn: the device would have nothing to
  do while the loop handles what it has done before.
* A path is opened inline only if nothing has to be waited for: openat2(RESOLVE_CACHED) (Linux 5.12).
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint64_t

from collections import deque

cimport cython

from aiounify._core.backlog cimport BacklogObject
from aiounify._core.file_op cimport FileOp
from aiounify._core.page_cache cimport WHOLE_MAX
from aiounify._core.reactor cimport EAGAIN, ENOSYS, errno
from aiounify._core.scheduler cimport Scheduler

from aiounify._core.uring import probe


cdef extern from "uring_abi.h" nogil:
    enum:
        IOSQE_ASYNC

cdef enum:
    READ = 22
    WRITE = 23

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #define AU_RESOLVE_CACHED 0x20
    #define AU_openat2 437

    static int open_cached(const char *path, uint64_t flags)
    {
        struct { uint64_t flags, mode, resolve; } how = {flags, 0, AU_RESOLVE_CACHED};
        return (int)syscall(AU_openat2, AT_FDCWD, path, &how, sizeof(how));
    }
    """
    enum:
        EINVAL
        O_CLOEXEC
    int c_open_cached "open_cached" (const char *path, uint64_t flags)


@cython.final
cdef class FileService:
    """See the module's docstring; one for each loop that has files."""

    def __init__(self, loop, in_thread):
        self.owner = <Scheduler?>loop
        self.in_thread = in_thread
        self.uses_ring = loop.backend == "uring"
        self.ops = probe().ops if self.uses_ring else frozenset()
        self.opens_cached = True
        self.share = RUN
        self.waiting = deque()

    @property
    def loop(self):
        return self.owner

    def start(self, FileOp op):
        """Begin an operation; the future has its result."""
        cdef object waiter
        self.owner._check_closed()
        waiter = self.owner.create_future()
        op.waiter = waiter
        if op.length > WHOLE_MAX and not op.polled and not op.direct \
                and (op.opcode == READ or op.opcode == WRITE):
            # Copying that much from or to the page cache would hold the loop up: the ring makes
            # it in the submission, unless told to leave it to a thread of its own.
            op.sqe_flags |= IOSQE_ASYNC
        if op.opcode in self.ops or (op.polled and op.readiness):
            self.owner.reactor.submit(op)
            if op.direct and self.uses_ring:
                self.unsent += 1
                if self.unsent >= TOGETHER and self.owner.reactor.running:
                    self.unsent = 0
                    self.owner.reactor.submit_sends()
        else:
            self.in_thread(op)
        return waiter

    def cancel(self, FileOp op):
        """Ask for an end; the operation's result tells whether it came."""
        if op.link.next != NULL:
            self.owner.reactor.cancel(op)
        else:
            op.cancel_asked = True

    cdef bint spent_up(self) noexcept:
        """over(), where it is not plain that the task may go on."""
        cdef BacklogObject *q = self.owner.q
        if self.turn != self.owner.n_turns:
            self.turn = self.owner.n_turns
            self.share = QUOTA if self.crowded() else RUN
            self.tired = self.spent = 0
        if self.head != q.head:  # another callback runs: another step of a task
            self.head = q.head
            self.run = 0
        # The queue fills a turn; those who come new may not take from those it let in.
        if self.spent < 2 * BUDGET and self.run < (
                self.share if self.spent < BUDGET or self.admitting else 1):
            return False
        self.tired += 1
        return True

    cdef object turn_to_come(self):
        """A future that is done when the task may go on; it is to be handed to the task."""
        cdef object waiter = self.owner.create_future()
        waiter._asyncio_future_blocking = True  # as Future.__await__ says that it is waited for
        self.waiting.append(waiter)
        if not self.admitting:
            self.admitting = True
            self.owner.call_soon(self._admit)
        return waiter

    def _admit(self):
        """Let as many go on as the next turn has room for; once in each turn."""
        cdef int room = BUDGET // QUOTA
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():  # else its task was cancelled
                waiter.set_result(None)
                room -= 1
                if room == 0:
                    break
        if self.waiting:
            self.owner.call_soon(self._admit)
        else:
            self.admitting = False

    cdef int open_at_once(self, const char *path, int flags) noexcept:
        """A descriptor, or a negated errno; -EAGAIN: not cached."""
        cdef int fd
        if not self.opens_cached:
            return -EAGAIN
        fd = c_open_cached(path, <uint64_t>(flags | O_CLOEXEC))
        self.hit(0)
        if fd < 0:
            if errno == ENOSYS or errno == EINVAL:
                self.opens_cached = False  # before Linux 5.12, or a filter that forbids it
                return -EAGAIN
            return -errno
        return fd

    def open_cached(self, bytes path, int flags):
        """openat2(RESOLVE_CACHED): a descriptor, or a negated errno; -EAGAIN: not cached."""
        return self.open_at_once(PyBytes_AS_STRING(path), flags)
