"""Words in memory, as words.h has them: atomics, and the futex calls."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "words.h" nogil:
    enum:
        AU_FUTEX2_U32
    struct au_waitv:
        uint64_t val
        uint64_t uaddr
        uint32_t flags
    uint32_t word_load(uint32_t *w)
    void word_store(uint32_t *w, uint32_t value)
    uint32_t word_add(uint32_t *w, uint32_t n)
    uint32_t word_exchange(uint32_t *w, uint32_t value)
    uint32_t word_cas(uint32_t *w, uint32_t expected, uint32_t value)
    int word_wake(uint32_t *w, int n, uint32_t mask)
    int word_wait(uint32_t *w, uint32_t expected, uint32_t mask, int64_t timeout_ns)
    int word_requeue(uint32_t *w, int n, uint32_t *to, int move, uint32_t expected)
    uint64_t long_load(uint64_t *w)
    uint64_t long_add(uint64_t *w, uint64_t n)
