"""Builds aiounify._kernel_futex: C11 atomics on words in memory, and the futex calls.

cffi in API mode.  Numbers and structs are our own, so that old kernel headers do.  What runs for
each operation is in _core/words.h and _core/robust.h; this is for what blocks anyway, for asking
the kernel, and for tests, which compare the two.  Run by setup.py; not imported at run time.
"""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    /* C11's memory orders.  One that C11 does not allow for an operation (a load with RELEASE)
       is taken for SEQ_CST. */
    enum {
        FX_RELAXED, FX_ACQUIRE, FX_RELEASE, FX_ACQ_REL, FX_SEQ_CST
    };
    uint32_t fx_load(uint32_t *word, int order);
    void fx_store(uint32_t *word, uint32_t value, int order);
    /* these return the value before */
    uint32_t fx_add(uint32_t *word, uint32_t n, int order);
    uint32_t fx_or(uint32_t *word, uint32_t bits, int order);
    uint32_t fx_exchange(uint32_t *word, uint32_t value, int order);
    /* 1 if it took place; else 0, and *expected is what was there */
    int fx_compare_exchange(uint32_t *word, uint32_t *expected, uint32_t value, int success,
                            int failure);

    /* futex(2), shared between processes: -1 and errno.  Deadlines are nanoseconds of
       CLOCK_MONOTONIC, negative: none. */
    long fx_wait_bitset(uint32_t *word, uint32_t expected, int64_t deadline, uint32_t mask);
    long fx_wake_bitset(uint32_t *word, int n, uint32_t mask);
    long fx_cmp_requeue(uint32_t *word, int n, int move, uint32_t *to, uint32_t expected);
    /* change `other` by `operation`, wake n waiters of `word`, and m of `other` if its value
       before was as the operation says */
    long fx_wake_op(uint32_t *word, int n, uint32_t *other, int m, uint32_t operation);
    uint32_t fx_operation(int change, uint32_t by, int comparison, uint32_t with);
    enum {
        FUTEX_OP_SET, FUTEX_OP_ADD, FUTEX_OP_OR, FUTEX_OP_ANDN, FUTEX_OP_XOR
    };
    enum {
        FUTEX_OP_CMP_EQ, FUTEX_OP_CMP_NE, FUTEX_OP_CMP_LT, FUTEX_OP_CMP_LE, FUTEX_OP_CMP_GT,
        FUTEX_OP_CMP_GE
    };

    /* futex_waitv(2), Linux 5.16: wait for the first of up to 128 words */
    struct futex_waitv {
        uint64_t val;
        uint64_t uaddr;
        uint32_t flags;
        uint32_t reserved;
    };
    #define FUTEX2_SIZE_U32 2
    #define FUTEX_WAITV_MAX 128
    long fx_waitv(struct futex_waitv *words, unsigned n, int64_t deadline);

    /* get_robust_list(2): what the kernel does for a thread that ends holding locks */
    struct robust_list {
        struct robust_list *next;
    };
    struct robust_list_head {
        struct robust_list list;
        long futex_offset;
        struct robust_list *list_op_pending;
    };
    #define FUTEX_WAITERS 0x80000000u
    #define FUTEX_OWNER_DIED 0x40000000u
    #define FUTEX_TID_MASK 0x3fffffffu
    long fx_get_robust_list(int thread, struct robust_list_head **head, size_t *size);
    """
)

ffibuilder.set_source(
    "aiounify._kernel_futex",
    r"""
    #include <errno.h>
    #include <stdatomic.h>
    #include <stddef.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    enum { FX_RELAXED, FX_ACQUIRE, FX_RELEASE, FX_ACQ_REL, FX_SEQ_CST };

    enum { FUTEX_OP_SET, FUTEX_OP_ADD, FUTEX_OP_OR, FUTEX_OP_ANDN, FUTEX_OP_XOR };
    enum {
        FUTEX_OP_CMP_EQ, FUTEX_OP_CMP_NE, FUTEX_OP_CMP_LT, FUTEX_OP_CMP_LE, FUTEX_OP_CMP_GT,
        FUTEX_OP_CMP_GE
    };
    enum {
        CALL_CMP_REQUEUE = 4, CALL_WAKE_OP = 5, CALL_WAIT_BITSET = 9, CALL_WAKE_BITSET = 10,
        NR_waitv = 449
    };

    #define FUTEX2_SIZE_U32 2
    #define FUTEX_WAITV_MAX 128
    #define FUTEX_WAITERS 0x80000000u
    #define FUTEX_OWNER_DIED 0x40000000u
    #define FUTEX_TID_MASK 0x3fffffffu

    /* not those of <linux/futex.h>, which may be older or not there */
    #define futex_waitv aiounify_futex_waitv
    struct futex_waitv {
        uint64_t val, uaddr;
        uint32_t flags, reserved;
    };
    struct robust_list {
        struct robust_list *next;
    };
    struct robust_list_head {
        struct robust_list list;
        long futex_offset;
        struct robust_list *list_op_pending;
    };

    #define WORD(w) ((_Atomic uint32_t *)(w))

    /* an order has to be a constant for the compiler to use it */
    static uint32_t fx_load(uint32_t *w, int order)
    {
        switch (order) {
        case FX_RELAXED: return atomic_load_explicit(WORD(w), memory_order_relaxed);
        case FX_ACQUIRE: return atomic_load_explicit(WORD(w), memory_order_acquire);
        default: return atomic_load_explicit(WORD(w), memory_order_seq_cst);
        }
    }

    static void fx_store(uint32_t *w, uint32_t value, int order)
    {
        switch (order) {
        case FX_RELAXED: atomic_store_explicit(WORD(w), value, memory_order_relaxed); return;
        case FX_RELEASE: atomic_store_explicit(WORD(w), value, memory_order_release); return;
        default: atomic_store_explicit(WORD(w), value, memory_order_seq_cst);
        }
    }

    #define CHANGE(name, function)                                                       \
        static uint32_t name(uint32_t *w, uint32_t value, int order)                     \
        {                                                                                \
            switch (order) {                                                             \
            case FX_RELAXED: return function(WORD(w), value, memory_order_relaxed);      \
            case FX_ACQUIRE: return function(WORD(w), value, memory_order_acquire);      \
            case FX_RELEASE: return function(WORD(w), value, memory_order_release);      \
            case FX_ACQ_REL: return function(WORD(w), value, memory_order_acq_rel);      \
            default: return function(WORD(w), value, memory_order_seq_cst);              \
            }                                                                            \
        }
    CHANGE(fx_add, atomic_fetch_add_explicit)
    CHANGE(fx_or, atomic_fetch_or_explicit)
    CHANGE(fx_exchange, atomic_exchange_explicit)

    /* The order of a failure is that of a load, and no stronger than that of success. */
    #define SWAP(success, failure)                                                       \
        atomic_compare_exchange_strong_explicit(WORD(w), expected, value, success, failure)
    static int fx_compare_exchange(uint32_t *w, uint32_t *expected, uint32_t value, int success,
                                   int failure)
    {
        int relaxed = failure == FX_RELAXED;
        switch (success) {
        case FX_RELAXED:
            if (relaxed)
                return SWAP(memory_order_relaxed, memory_order_relaxed);
            break;
        case FX_RELEASE:
            if (relaxed)
                return SWAP(memory_order_release, memory_order_relaxed);
            break;
        case FX_ACQUIRE:
            if (relaxed)
                return SWAP(memory_order_acquire, memory_order_relaxed);
            if (failure == FX_ACQUIRE)
                return SWAP(memory_order_acquire, memory_order_acquire);
            break;
        case FX_ACQ_REL:
            if (relaxed)
                return SWAP(memory_order_acq_rel, memory_order_relaxed);
            if (failure == FX_ACQUIRE)
                return SWAP(memory_order_acq_rel, memory_order_acquire);
            break;
        }
        return SWAP(memory_order_seq_cst, memory_order_seq_cst);
    }

    static struct timespec *until(struct timespec *t, int64_t deadline)
    {
        if (deadline < 0)
            return NULL;
        t->tv_sec = deadline / 1000000000;
        t->tv_nsec = deadline % 1000000000;
        return t;
    }

    static long fx_wait_bitset(uint32_t *w, uint32_t expected, int64_t deadline, uint32_t mask)
    {
        struct timespec t;
        return syscall(SYS_futex, w, CALL_WAIT_BITSET, expected, until(&t, deadline), NULL, mask);
    }

    static long fx_wake_bitset(uint32_t *w, int n, uint32_t mask)
    {
        return syscall(SYS_futex, w, CALL_WAKE_BITSET, n, NULL, NULL, mask);
    }

    static long fx_cmp_requeue(uint32_t *w, int n, int move, uint32_t *to, uint32_t expected)
    {
        return syscall(SYS_futex, w, CALL_CMP_REQUEUE, n, (long)move, to, expected);
    }

    static long fx_wake_op(uint32_t *w, int n, uint32_t *other, int m, uint32_t operation)
    {
        return syscall(SYS_futex, w, CALL_WAKE_OP, n, (long)m, other, operation);
    }

    static uint32_t fx_operation(int change, uint32_t by, int comparison, uint32_t with)
    {
        return (uint32_t)(change & 15) << 28 | (uint32_t)(comparison & 15) << 24
               | (by & 0xfff) << 12 | (with & 0xfff);
    }

    static long fx_waitv(struct futex_waitv *words, unsigned n, int64_t deadline)
    {
        struct timespec t;
        return syscall(NR_waitv, words, n, 0, until(&t, deadline), CLOCK_MONOTONIC);
    }

    static long fx_get_robust_list(int thread, struct robust_list_head **head, size_t *size)
    {
        return syscall(SYS_get_robust_list, thread, head, size);
    }
    """,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
