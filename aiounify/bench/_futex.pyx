# cython: language_level=3
"""Ping-pong by blocking futex calls, in C: what the rows of futexes are compared with.

Both sides are loops without Python.  A round trip adds one to `there`, wakes, and sleeps until
`back` has changed; the other process does the same the other way round.
"""

from libc.stdint cimport int64_t, uint32_t

cdef extern from "../_core/words.h" nogil:
    uint32_t word_load(uint32_t *w)
    uint32_t word_add(uint32_t *w, uint32_t n)
    int word_wake(uint32_t *w, int n, uint32_t mask)
    int word_wait(uint32_t *w, uint32_t expected, uint32_t mask, int64_t timeout_ns)


cdef void answer(uint32_t *there, uint32_t *back) noexcept nogil:
    cdef uint32_t seen = 0
    while True:
        while word_load(there) == seen:
            word_wait(there, seen, 0xffffffffu, -1)
        seen += 1
        word_add(back, 1)
        word_wake(back, 1, 0xffffffffu)


def echo(unsigned char[::1] memory not None):
    """Answer for ever, in the process that is to die with the other."""
    cdef uint32_t *there = <uint32_t *>&memory[0]
    cdef uint32_t *back = <uint32_t *>&memory[128]
    with nogil:
        answer(there, back)


def ping(unsigned char[::1] memory not None, long n):
    """n round trips."""
    cdef uint32_t *there = <uint32_t *>&memory[0]
    cdef uint32_t *back = <uint32_t *>&memory[128]
    cdef uint32_t seen
    with nogil:
        for _ in range(n):
            seen = word_load(back)
            word_add(there, 1)
            word_wake(there, 1, 0xffffffffu)
            while word_load(back) == seen:
                word_wait(back, seen, 0xffffffffu, -1)
