/* 32-bit words that several processes share: C11 atomics and the futex calls.
 *
 * Numbers and structs are our own, so that old kernel headers do.  No call here uses the
 * "private" variant: the kernel finds a waiter by the page and not by the address, so that
 * a word in shared memory may be mapped anywhere.  For memory of one process it costs a
 * look at the page table.  See futex(2), futex_waitv(2), get_robust_list(2).
 */
#ifndef AIOUNIFY_WORDS_H
#define AIOUNIFY_WORDS_H

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    AU_FUTEX_WAKE = 1,
    AU_FUTEX_CMP_REQUEUE = 4,
    AU_FUTEX_WAIT_BITSET = 9,
    AU_FUTEX_WAKE_BITSET = 10,
    AU_FUTEX_PRIVATE = 128,
    AU_FUTEX2_U32 = 2,
    AU_NR_futex_waitv = 449,
};

struct au_waitv {
    uint64_t val, uaddr;
    uint32_t flags, reserved;
};

static inline uint32_t word_load(uint32_t *w)
{
    return atomic_load_explicit((_Atomic uint32_t *)w, memory_order_seq_cst);
}

static inline void word_store(uint32_t *w, uint32_t value)
{
    atomic_store_explicit((_Atomic uint32_t *)w, value, memory_order_seq_cst);
}

static inline uint32_t word_add(uint32_t *w, uint32_t n)
{
    return atomic_fetch_add_explicit((_Atomic uint32_t *)w, n, memory_order_seq_cst);
}

static inline uint32_t word_or(uint32_t *w, uint32_t bits)
{
    return atomic_fetch_or_explicit((_Atomic uint32_t *)w, bits, memory_order_seq_cst);
}

static inline uint32_t word_exchange(uint32_t *w, uint32_t value)
{
    return atomic_exchange_explicit((_Atomic uint32_t *)w, value, memory_order_seq_cst);
}

/* what was there; equal to `expected` if and only if the exchange took place */
static inline uint32_t word_cas(uint32_t *w, uint32_t expected, uint32_t value)
{
    atomic_compare_exchange_strong((_Atomic uint32_t *)w, &expected, value);
    return expected;
}

static inline uint64_t long_load(uint64_t *w)
{
    return atomic_load_explicit((_Atomic uint64_t *)w, memory_order_seq_cst);
}

static inline void long_store(uint64_t *w, uint64_t value)
{
    atomic_store_explicit((_Atomic uint64_t *)w, value, memory_order_seq_cst);
}

static inline uint64_t long_add(uint64_t *w, uint64_t n)
{
    return atomic_fetch_add_explicit((_Atomic uint64_t *)w, n, memory_order_seq_cst);
}

static inline uint64_t long_cas(uint64_t *w, uint64_t expected, uint64_t value)
{
    atomic_compare_exchange_strong((_Atomic uint64_t *)w, &expected, value);
    return expected;
}

/* how many were woken, or a negated errno */
static inline int word_wake(uint32_t *w, int n, uint32_t mask)
{
    long r = syscall(SYS_futex, w, AU_FUTEX_WAKE_BITSET, n, (void *)0, (void *)0, mask);
    return r < 0 ? -errno : (int)r;
}

/* until woken, at most so many nanoseconds (negative: for ever); 0 or a negated errno */
static inline int word_wait(uint32_t *w, uint32_t expected, uint32_t mask, int64_t timeout_ns)
{
    struct timespec t, *limit = 0;
    if (timeout_ns >= 0) {
        clock_gettime(CLOCK_MONOTONIC, &t); /* WAIT_BITSET takes an absolute time */
        int64_t ns = t.tv_nsec + timeout_ns % 1000000000;
        t.tv_sec += timeout_ns / 1000000000 + ns / 1000000000;
        t.tv_nsec = ns % 1000000000;
        limit = &t;
    }
    long r = syscall(SYS_futex, w, AU_FUTEX_WAIT_BITSET, expected, limit, (void *)0, mask);
    return r < 0 ? -errno : 0;
}

/* wake n, move up to `move` others to another word; their number, or a negated errno */
static inline int word_requeue(uint32_t *w, int n, uint32_t *to, int move, uint32_t expected)
{
    long r = syscall(SYS_futex, w, AU_FUTEX_CMP_REQUEUE, n, (long)move, to, expected);
    return r < 0 ? -errno : (int)r;
}

static inline int words_waitv(struct au_waitv *v, unsigned n, struct timespec *limit)
{
    long r = syscall(AU_NR_futex_waitv, v, n, 0, limit, CLOCK_MONOTONIC);
    return r < 0 ? -errno : (int)r;
}

#endif
