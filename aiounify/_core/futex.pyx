# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Words in memory: atomic operations on them, and the calls that wake who waits for them.

Why it exists: looking at a word and changing it has to cost an instruction, not a call through
Python.  How the loop waits for words is in futex_wait.pyx and futex_loop.pyx, the locks built on
them are in robust.pyx.

Rules:

* A `Word` holds its buffer, and the buffer the memory, until it is released and the last wait
  for it is over (`pins`).
* Neighbours are never written to: each operation is one of the word's own four bytes.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBUF_WRITE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t

import os

from aiounify._core.words cimport (
    long_add,
    long_load,
    word_add,
    word_cas,
    word_exchange,
    word_load,
    word_requeue,
    word_store,
    word_wait,
    word_wake,
)

cdef uint32_t ALL = 0xffffffffu
cdef awake loops_awake = NULL


cdef void wake_also(awake loops) noexcept:
    global loops_awake
    loops_awake = loops


cdef class Word:
    """A 32-bit word in a writable buffer, and atomic operations on it.

    `buffer` is anything with a writable buffer; `offset` counts bytes and must be a multiple
    of four where the memory itself is aligned.  While the object lives the buffer cannot be
    closed or resized (BufferError); release() gives it up.  BufferError for a read-only
    buffer, ValueError for a bad offset or use after release().
    """

    def __cinit__(self, buffer, Py_ssize_t offset=0, *args, **kwargs):
        if buffer is None:
            raise ValueError(
                "a futex needs a buffer, not None: is it that of a SharedMemory that was closed?"
            )
        try:
            PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE)
        except BufferError:
            raise BufferError(
                f"a futex needs a writable, contiguous buffer, and this {type(buffer).__name__} "
                "is not one"
            ) from None
        self.viewed = True
        if offset < 0 or offset > self.view.len - 4:
            size = self.view.len
            self.let_go()
            raise ValueError(f"no 32-bit word at offset {offset} of a buffer of {size} bytes")
        if <uintptr_t>(<char *>self.view.buf + offset) % 4:
            self.let_go()
            raise ValueError(f"the word at offset {offset} is not aligned to 4 bytes")
        self.offset = offset
        self.word = <uint32_t *>(<char *>self.view.buf + offset)

    def __dealloc__(self):
        self.pins = 0
        self.let_go()

    cdef int let_go(self) except -1:
        if self.viewed and not self.pins:
            self.viewed = False
            PyBuffer_Release(&self.view)
        return 0

    cdef uint32_t *at(self) except NULL:
        if self.word == NULL:
            raise ValueError("operation on a released futex")
        return self.word

    def release(self):
        """Give the buffer up; waits that go on keep it until they are over."""
        self.word = NULL
        self.let_go()

    @property
    def released(self):
        return self.word == NULL

    @property
    def address(self):
        """Where the word is in this process."""
        return <uintptr_t>self.at()

    def load(self):
        """The value, 0 to 2**32 - 1."""
        return word_load(self.at())

    def store(self, uint32_t value):
        """Set the value; wakes nobody."""
        word_store(self.at(), value)

    def add(self, int64_t n):
        """Add n modulo 2**32 and return the value before."""
        return word_add(self.at(), <uint32_t>n)

    def exchange(self, uint32_t value):
        """Set the value and return the one before."""
        return word_exchange(self.at(), value)

    def compare_exchange(self, uint32_t expected, uint32_t value):
        """Set the value if it is `expected`; returns whether it was."""
        return word_cas(self.at(), expected, value) == expected

    def take(self):
        """Subtract one unless the value is 0; returns whether it was subtracted."""
        cdef uint32_t *word = self.at()
        cdef uint32_t now, seen = word_load(word)
        while seen:
            now = word_cas(word, seen, seen - 1)
            if now == seen:
                return True
            seen = now
        return False

    def wake(self, int n=1, *, uint32_t mask=ALL):
        """Wake up to n waiters, of those whose mask has a bit in common; how many it was.

        A system call (FUTEX_WAKE_BITSET, futex(2)), which never blocks.
        """
        cdef int r
        if n < 0 or not mask:
            raise ValueError("n must not be negative, mask not 0")
        if n == 0:
            return 0
        r = word_wake(self.at(), n, mask)
        if r < 0:
            raise OSError(-r, f"futex wake: {os.strerror(-r)}")
        if r < n and loops_awake != NULL:
            r += loops_awake(self.word, n - r)
        return r

    def requeue(self, Word to not None, uint32_t expected, int n=1, int move=0x7fffffff):
        """If the value is `expected`, wake n waiters and let up to `move` others wait for `to`.

        Returns how many were woken or moved; BlockingIOError if the value differs
        (FUTEX_CMP_REQUEUE, futex(2)).  Change the word first: a waiter that looks around goes
        back to it, and ends its wait then.  Coroutines say in wait(to=...) where they may be
        moved to.
        """
        cdef int r = word_requeue(self.at(), n, to.at(), move, expected)
        if r < 0:
            raise OSError(-r, f"futex requeue: {os.strerror(-r)}")
        return r

    def sleep(self, uint32_t expected, uint32_t mask, int64_t timeout_ns):
        """Block this thread: 0 when woken, or a negated errno.  The GIL is released."""
        cdef uint32_t *word = self.at()
        cdef int r
        with nogil:
            r = word_wait(word, expected, mask, timeout_ns)
        return r


# -- the C library's semaphores -----------------------------------------------------


def long_at(uintptr_t address):
    """A 64-bit word at an address; the caller answers for the memory."""
    return long_load(<uint64_t *>address)


def long_add_at(uintptr_t address, int64_t n):
    """Add to it, atomically."""
    return long_add(<uint64_t *>address, <uint64_t>n)


def memory_at(uintptr_t address, Py_ssize_t size):
    """Writable memory at an address; the caller answers for it."""
    return PyMemoryView_FromMemory(<char *>address, size, PyBUF_WRITE)
