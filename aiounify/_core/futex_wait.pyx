# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A wait for futexes as an operation of the loop.

Why it exists: a wait is the same thing whoever carries it out, the ring (FUTEX_WAIT and
FUTEX_WAITV, Linux 6.7), threads (futex_threads.pyx) or the loop itself (futex_near.pyx).

A task awaits a `FutexWait`, or the first of several (`FirstOf`), and asks it what it `found()`.
It is no asyncio.Future: that, and the wake-up of the task by way of it, cost more than all the
rest.

Rules:

* A wait holds its `Word`s, and these the memory, until its last completion.
* A wait that was woken and has nobody who still wants to know passes the wake on; one that
  requeue() may have moved, to both words, since nobody says whether it was.
* Whoever starts a wait takes what it found or calls give_up().
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

import os

from aiounify._core.endpoint cimport wait_begin, wait_end
from aiounify._core.futex cimport Word
from aiounify._core.reactor cimport EAGAIN, ECANCELED, EINTR, Op
from aiounify._core.words cimport AU_FUTEX2_U32, au_waitv, word_load, word_wake

cdef extern from "uring_abi.h" nogil:
    enum:
        IORING_OP_FUTEX_WAIT
        IORING_OP_FUTEX_WAITV

cdef extern from "robust.h" nogil:
    const uint32_t LOCK_OWNER
    const uint32_t LOCK_DIED

cdef uint32_t ALL = 0xffffffffu


cdef class FutexWait(Op):
    """A wait for one word or several.

    It found the index of the word that was woken, or -1 if there was nothing to wait for: a word
    had another value, or the wait was ended by the patrol.
    """

    def __cinit__(self):
        self.mask = ALL
        self.count = 1

    def __dealloc__(self):
        PyMem_Free(self.vector)

    cdef int prepare_one(self, Word word, uint32_t expected, uint32_t mask, Word moved) except -1:
        self.first = word.at()
        self.word = word
        self.moved = moved
        self.expected = expected
        self.mask = mask
        self.opcode = IORING_OP_FUTEX_WAIT
        self.fd = AU_FUTEX2_U32
        self.address = <uint64_t><uintptr_t>self.first
        self.offset = expected
        self.address3 = mask
        return 0

    cdef int prepare_many(self, tuple words, tuple values) except -1:
        cdef Py_ssize_t i, n = len(words)
        self.words = words
        self.count = n
        self.opcode = IORING_OP_FUTEX_WAITV
        self.fd = 0
        self.vector = <au_waitv *>PyMem_Malloc(n * sizeof(au_waitv))
        if self.vector == NULL:
            raise MemoryError
        for i in range(n):
            self.vector[i] = au_waitv(
                <uint32_t>values[i], <uint64_t><uintptr_t>(<Word>words[i]).at(), AU_FUTEX2_U32
            )
        self.address = <uint64_t><uintptr_t>self.vector
        self.length = n
        return 0

    cdef int pin(self, int change) except -1:
        """Keep the memory of its words, or no longer."""
        if self.word is not None:
            self.word.pins += change
            if self.word.word == NULL:
                self.word.let_go()
            if self.moved is not None:
                self.moved.pins += change
                if self.moved.word == NULL:
                    self.moved.let_go()
            return 0
        for word in self.words:
            (<Word>word).pins += change
            if (<Word>word).word == NULL:
                (<Word>word).let_go()
        return 0

    cdef int complete(self, int result, uint32_t flags) except -1:
        return self.over(result)

    cdef int over(self, int result) except -1:
        self.result = result
        if self.patrol:
            self.home.patrolled.pop(self, None)
        if self.brisk:
            self.home.loop.reactor.brisk -= 1
        if self.given_up and result >= 0:
            self.pass_on(result)
        self.pin(-1)
        if self.waiter is not None:
            wait_end(self.waiter)
        return 0

    cdef int pass_on(self, int index) except -1:
        cdef uint32_t *word = self.address_of(index)
        cdef uint32_t *moved = self.moved_to()
        if not self.home.pass_to(word, self.mask):
            word_wake(word, 1, self.mask)
        if moved != NULL:
            word_wake(moved, 1, self.mask)
        return 0

    cdef uint32_t *address_of(self, Py_ssize_t index) noexcept:
        if self.vector == NULL:
            return self.first
        return <uint32_t *><uintptr_t>self.vector[index].uaddr

    cdef uint32_t expected_at(self, Py_ssize_t index) noexcept:
        return self.expected if self.vector == NULL else <uint32_t>self.vector[index].val

    cdef uint32_t *moved_to(self) noexcept:
        return NULL if self.moved is None else self.moved.word

    cdef bint stale(self) noexcept:
        if self.patrol == UNTIL_FREE:
            return not word_load(self.first) & LOCK_OWNER or word_load(self.first) & LOCK_DIED
        return word_load(self.first) != self.expected

    def __await__(self):
        return self

    def __next__(self):
        if self.done or self.waiter is not None:
            raise StopIteration
        self.waiter = wait_begin(self.home.loop)
        return self.waiter

    def found(self):
        """After the end: the index of the word that was woken, or -1; OSError from the kernel."""
        if self.result >= 0:
            return self.result
        if self.result in (-EAGAIN, -ECANCELED, -EINTR):
            return -1
        raise OSError(-self.result, f"futex wait: {os.strerror(-self.result)}")

    def give_up(self):
        """Nobody waits any more: end it, and hand on a wake that came already."""
        if self.given_up:
            return
        self.given_up = True
        if not self.done:
            self.home.end(self)
        elif self.result >= 0:
            self.pass_on(self.result)


cdef class FirstOf:
    """An awaitable: until the first of some waits is over."""

    cdef tuple waits

    def __init__(self, tuple waits not None):
        self.waits = waits

    def __await__(self):
        cdef FutexWait op
        cdef object waiter = None
        for op in self.waits:
            if op.done:
                return
        for op in self.waits:
            if waiter is None:
                waiter = wait_begin(op.home.loop)
            op.waiter = waiter
        yield waiter


cdef class Home:
    def __cinit__(self, *args, **kwargs):
        self.patrolled = {}

    cdef bint pass_to(self, uint32_t *word, uint32_t mask) except -1:
        return False

    cdef int end(self, FutexWait op) except -1:
        return 0

    cdef int told(self) except -1:
        return 0
