# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A wait for futexes as an operation of the loop.

Why it exists: a wait is the same thing whoever carries it out, the ring (FUTEX_WAIT and
FUTEX_WAITV, Linux 6.7), threads (futex_threads.pyx) or the loop itself (futex_near.pyx).

Rules:

* A wait holds its `Word`s, and these the memory, until its last completion.
* A wait that was woken and has nobody who still wants to know passes the wake on.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

import os

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
    """A wait for one word or several, and the future that is told of its end.

    The future's result is the index of the word that was woken, or -1 if there was nothing to
    wait for: a word had another value, or the wait was ended by the patrol.
    """

    def __cinit__(self):
        self.mask = ALL

    def __dealloc__(self):
        PyMem_Free(self.vector)

    cdef int prepare_one(self, Word word, uint32_t expected, uint32_t mask) except -1:
        self.words = (word,)
        self.first = word.at()
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
        self.values = values
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

    cdef int complete(self, int result, uint32_t flags) except -1:
        self.result = result
        return self.over(result)

    cdef int over(self, int result) except -1:
        cdef object future = self.future
        self.home.patrolled.pop(self, None)
        for word in self.words:
            (<Word>word).pins -= 1
            if (<Word>word).word == NULL:
                (<Word>word).let_go()
        if future.done():
            if result >= 0:
                self.pass_on(result)
        elif result >= 0:
            future.set_result(result)
        elif result in (-EAGAIN, -ECANCELED, -EINTR):
            future.set_result(-1)
        else:
            future.set_exception(OSError(-result, f"futex wait: {os.strerror(-result)}"))
        return 0

    cdef int pass_on(self, int index) except -1:
        cdef uint32_t *word = self.address_of(index)
        if not self.home.pass_to(word, self.mask):
            word_wake(word, 1, self.mask)
        return 0

    cdef uint32_t *address_of(self, Py_ssize_t index) noexcept:
        if self.vector == NULL:
            return self.first
        return <uint32_t *><uintptr_t>self.vector[index].uaddr

    cdef uint32_t expected_at(self, Py_ssize_t index) noexcept:
        return self.expected if self.vector == NULL else <uint32_t>self.vector[index].val

    cdef bint stale(self) noexcept:
        if self.patrol == UNTIL_FREE:
            return not word_load(self.first) & LOCK_OWNER or word_load(self.first) & LOCK_DIED
        return word_load(self.first) != self.expected

    def give_up(self):
        """Nobody waits any more: end it, and hand on a wake that came already."""
        cdef object future = self.future
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None and future.result() >= 0:
            self.pass_on(future.result())
        self.home.end(self)


cdef class Home:
    def __cinit__(self, *args, **kwargs):
        self.patrolled = {}

    cdef bint pass_to(self, uint32_t *word, uint32_t mask) except -1:
        return False

    cdef int end(self, FutexWait op) except -1:
        return 0

    cdef int told(self) except -1:
        return 0
