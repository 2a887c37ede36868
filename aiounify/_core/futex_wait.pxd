from libc.stdint cimport uint32_t

from aiounify._core.futex cimport Word
from aiounify._core.reactor cimport Op
from aiounify._core.scheduler cimport Scheduler
from aiounify._core.words cimport au_waitv


cdef enum:
    WAITV_MAX = 128      # words in one FUTEX_WAITV, in the ring and outside it
    ANY = 0              # a wait the caller answers for
    UNTIL_CHANGED = 1    # patrol: over when the word is not what it was
    UNTIL_FREE = 2       # patrol: over when the lock word has no living owner


cdef class FutexWait(Op):
    cdef Word word            # of one word, else None
    cdef Word moved           # where requeue() may move it, or None
    cdef tuple words          # of several words, else None
    cdef uint32_t *first
    cdef uint32_t expected, mask
    cdef int patrol
    cdef Py_ssize_t count     # of words
    cdef au_waitv *vector     # of several words, else NULL
    cdef Home home
    cdef object waiter        # what the task that awaits it has yielded, or None
    cdef bint given_up        # nobody wants to know any more
    cdef dict groups          # of the threads' words: id -> (group, index)
    cdef bint brisk           # counted as such by the reactor
    cdef bint near            # the loop's own thread waits for it

    cdef int prepare_one(self, Word word, uint32_t expected, uint32_t mask, Word moved) except -1
    cdef int prepare_many(self, tuple words, tuple values) except -1
    cdef int pin(self, int change) except -1
    cdef int over(self, int result) except -1
    cdef int pass_on(self, int index) except -1
    cdef bint stale(self) noexcept
    cdef uint32_t *address_of(self, Py_ssize_t index) noexcept
    cdef uint32_t expected_at(self, Py_ssize_t index) noexcept
    cdef uint32_t *moved_to(self) noexcept


cdef class Home:
    """What a loop waits for futexes with."""
    cdef Scheduler loop
    cdef dict patrolled       # FutexWait -> None
    cdef bint pass_to(self, uint32_t *word, uint32_t mask) except -1  # to a wait of this loop
    cdef int end(self, FutexWait op) except -1
    cdef int told(self) except -1        # threads had results
