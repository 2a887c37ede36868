# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The fast paths of robust locks and of the queue; the algorithms are in robust.h.

Why it exists: taking a free lock and passing a message on have to cost a compare-and-exchange and
a copy.  What coroutines and threads do when they have to wait is in `aiounify/sync/`.

A lock that is held keeps its memory mapped: the kernel walks through it when the thread ends.
Both are in one module because a thread's robust list, which robust.h keeps, is one.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

import os

from aiounify._core.futex cimport Word
from aiounify._core.words cimport word_add, word_load

cdef extern from "robust.h" nogil:
    enum:
        QUEUE_BUSY
        QUEUE_WAIT
    struct lock:
        uint32_t word
        uint32_t inconsistent
    struct queue:
        lock lock
        uint32_t getters
        uint32_t putters
        uint32_t capacity
        uint32_t maxsize
    const uint32_t LOCK_OWNER
    const uint32_t LOCK_DIED
    const uint32_t LOCK_WAITERS
    int robust_init()
    int robust_ready()
    int lock_try_soon(lock *l, uint32_t bits)
    uint32_t lock_announce(lock *l)
    bint lock_mine(lock *l)
    void lock_release(lock *l)
    uint32_t queue_size(queue *q)
    uint32_t queue_room(uint32_t n)
    int queue_put(queue *q, const char *data, uint32_t n, uint32_t bits, int wait, uint32_t *seen)
    int queue_look(queue *q, uint32_t bits, int wait, uint32_t *seen, uint32_t *n)
    void queue_take(queue *q, char *to, uint32_t n)

cdef extern from "Python.h":
    void Py_INCREF(object)
    void Py_DECREF(object)

if robust_init():
    raise MemoryError("pthread_atfork")


cdef class LockWord(Word):
    """A robust lock in 64 bytes of shared memory; see robust.h.

    It belongs to the thread that took it.
    """

    cdef lock *lock_at(self) except NULL:
        return <lock *>self.at()

    def __init__(self, buffer, Py_ssize_t offset=0):
        if offset > self.view.len - 64 or <uintptr_t>self.word % 8:
            raise ValueError(f"no room for a lock at offset {offset}, aligned to 8 bytes")

    def try_lock(self, bint waited=False):
        """0: another has it; 1: taken; 2: taken, and an owner had died with it.

        `waited` says that the caller has slept for it.
        """
        cdef int r = lock_try_soon(self.lock_at(), LOCK_WAITERS if waited else 0)
        if r < 0:
            raise OSError(-r, f"robust list: {os.strerror(-r)}")
        if r:
            Py_INCREF(self)  # mapped as long as it is held
        return r

    def announce(self):
        """What to wait for while the word stays so; 0 if the lock is free."""
        return lock_announce(self.lock_at())

    @property
    def mine(self):
        """Whether this thread holds it."""
        return lock_mine(self.lock_at())

    @property
    def held(self):
        """Whether anybody alive holds it."""
        cdef uint32_t word = word_load(self.at())
        return (word & LOCK_OWNER) != 0 and not word & LOCK_DIED

    @property
    def owner(self):
        """The thread id of the owner, 0 without one."""
        return word_load(self.at()) & LOCK_OWNER

    @property
    def inconsistent(self):
        return self.lock_at().inconsistent != 0

    def make_consistent(self):
        self.lock_at().inconsistent = 0

    def unlock(self):
        """False, and nothing done, if this thread does not hold it."""
        cdef lock *found = self.lock_at()
        if not lock_mine(found):
            return False
        lock_release(found)
        Py_DECREF(self)
        return True

    def release(self):
        if self.word != NULL and lock_mine(self.lock_at()):
            raise RuntimeError("this lock is held by the thread that closes it: release it first")
        Word.release(self)


cdef class QueueMemory(Word):
    """A bounded queue of byte messages; see robust.h.

    put() and get() answer None or bytes when done, BUSY when the queue's own lock is held by
    another, and an int to wait for when it is full or empty.
    """

    cdef queue *queue_at(self) except NULL:
        return <queue *>self.at()

    def __init__(self, buffer, Py_ssize_t offset=0):
        if offset > self.view.len - 256 or <uintptr_t>self.word % 8:
            raise ValueError(f"no room for a queue at offset {offset}, aligned to 8 bytes")

    def create(self, uint32_t capacity, uint32_t maxsize):
        self.queue_at().capacity = capacity
        self.queue_at().maxsize = maxsize

    def check(self):
        """Whether the sizes it says fit this memory."""
        cdef uint32_t n = self.queue_at().capacity
        return n >= 64 and n & (n - 1) == 0 and self.offset + 256 + n <= self.view.len

    @property
    def capacity(self):
        return self.queue_at().capacity

    @property
    def maxsize(self):
        return self.queue_at().maxsize

    @property
    def size(self):
        return queue_size(self.queue_at())

    @property
    def getters(self):
        return word_load(&self.queue_at().getters)

    @property
    def putters(self):
        return word_load(&self.queue_at().putters)

    def not_waiting_put(self):
        word_add(&self.queue_at().putters, <uint32_t>-1)

    def not_waiting_get(self):
        word_add(&self.queue_at().getters, <uint32_t>-1)

    def fits(self, size_t n):
        return n < 0x7ffffff0 and queue_room(<uint32_t>n) <= self.queue_at().capacity

    cdef object answer(self, int r, uint32_t seen):
        if r == QUEUE_BUSY:
            return BUSY
        if r == QUEUE_WAIT:
            return seen
        raise OSError(-r - 1000, f"robust list: {os.strerror(-r - 1000)}")

    def put(self, const unsigned char[::1] data, bint wait, bint waited):
        cdef uint32_t seen = 0
        cdef queue *q = self.queue_at()
        cdef Py_ssize_t n = data.shape[0]
        cdef const char *bytes = NULL
        cdef int r
        if n:
            bytes = <const char *>&data[0]
        r = queue_put(q, bytes, <uint32_t>n, LOCK_WAITERS if waited else 0, wait, &seen)
        return None if r == 0 else self.answer(r, seen)

    def get(self, bint wait, bint waited):
        cdef uint32_t seen = 0, n = 0
        cdef queue *q = self.queue_at()
        cdef int r = queue_look(q, LOCK_WAITERS if waited else 0, wait, &seen, &n)
        if r:
            return self.answer(r, seen)
        if n > q.capacity:
            lock_release(&q.lock)
            raise ValueError("the queue's memory was overwritten by something else")
        try:
            data = PyBytes_FromStringAndSize(NULL, n)
        except BaseException:
            lock_release(&q.lock)
            raise
        queue_take(q, PyBytes_AS_STRING(data), n)
        return data


class _Busy:
    """Another process is inside the queue."""


BUSY = _Busy()


cdef class Done:
    """An awaitable that is over: what `async with` awaits where nobody has to wait."""

    def __await__(self):
        return self

    def __next__(self):
        raise StopIteration


DONE = Done()


def robust_offered():
    """0 if locks are robust in this thread, else an errno."""
    return -robust_ready()
