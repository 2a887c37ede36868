from libc.stdint cimport uint64_t

cimport cython

from aiounify._core.backlog cimport BacklogObject
from aiounify._core.scheduler cimport Scheduler


cdef enum:
    BUDGET = 64          # hits of 4 KiB in one turn of the loop, for all tasks together
    RUN = 32             # of one task, while few read
    QUOTA = 8            # of one task, while others wait for their turn
    MISS_COST = 8        # in hits, of a try that fails: what waits is begun then
    TOGETHER = 8         # operations past the page cache that are submitted by one system call

@cython.final
cdef class FileService:
    cdef Scheduler owner
    cdef readonly object in_thread
    cdef public frozenset ops
    cdef public bint opens_cached
    cdef public bint closed
    cdef readonly bint uses_ring
    cdef uint64_t turn
    cdef size_t head
    cdef int run, share, tired, spent, unsent
    cdef object waiting          # a deque of the futures of those who wait for their turn
    cdef bint admitting
    cdef object spare            # a FileCall that is over, to be used again

    cdef object turn_to_come(self)

    cdef int open_at_once(self, const char *path, int flags) noexcept
    cdef bint spent_up(self) noexcept

    cdef inline bint over(self) noexcept:
        """True if the task that runs has used up its share and has to yield."""
        cdef BacklogObject *q = self.owner.q
        if self.turn == self.owner.n_turns and self.head == q.head and self.run < self.share \
                and self.spent < BUDGET:
            return False
        return self.spent_up()

    cdef inline bint crowded(self) noexcept:
        """True if more want to go on than one turn has room for."""
        return self.admitting or self.tired > BUDGET // RUN

    cdef inline int hit(self, Py_ssize_t size) noexcept:
        """A system call was made inline, and so many bytes were copied; negative: it failed."""
        cdef int cost = MISS_COST if size < 0 else 1 + <int>min(size >> 14, 1024)
        self.run += cost
        self.spent += cost
        self.owner.reactor.n_syscalls += 1
        self.owner.n_inline += 1
        return 0
