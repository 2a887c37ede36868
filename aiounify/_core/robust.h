/* Robust locks and the bounded queue, in shared memory.
 *
 * The lock word is what the kernel expects of a robust futex: the owner's thread id, the
 * bit WAITERS, and the bit OWNER_DIED, which the kernel sets when the owner ends.  A held
 * lock stands in its thread's robust list.  A thread has one such list, and the C library
 * has it already, so locks are linked into that one, laid out as glibc lays out its own
 * robust mutexes on 64-bit systems: word, and 32 bytes behind it the link forward, with the
 * link back before it.  Where no list is registered (musl registers late) one of our own is.
 * Where one with another offset is, the lock cannot be robust, and robust_offered() says no.
 *
 * Links are addresses in the owner's process and mean nothing to the others.  While a lock
 * is held its memory must stay mapped.
 *
 * Invariants.  A lock: at most one thread has its id in the word; whoever sleeps on it has
 * seen WAITERS set, and whoever takes it after sleeping sets WAITERS again, as others may
 * sleep too.  A queue: all between head and tail is whole messages; a message is put by one
 * store of tail, and taken by one store of head, both under the lock, so an owner that dies
 * at any instruction leaves the queue as it was before or as it is after.
 */
#ifndef AIOUNIFY_ROBUST_H
#define AIOUNIFY_ROBUST_H

#include <pthread.h>
#include <stddef.h>
#include <string.h>

#include "spin.h"
#include "words.h"

#define LOCK_WAITERS 0x80000000u
#define LOCK_DIED 0x40000000u
#define LOCK_OWNER 0x3fffffffu
#define LOCK_LOOKS 64 /* some 2 us: less than sleeping costs, more than most hold it */

struct lock {
    uint32_t word;
    uint32_t inconsistent; /* written by the owner only */
    uint64_t unused[2];
    void *prev, *next; /* at 24 and 32, see above */
    uint64_t unused_too[3];
};

_Static_assert(sizeof(void *) == 8, "64-bit systems only");
_Static_assert(sizeof(struct lock) == 64, "lock");
_Static_assert(offsetof(struct lock, next) == 32, "link");

struct robust_head {
    void *list;
    long offset;
    void *pending;
};

static __thread struct {
    void *prev; /* right before the head, as in glibc */
    struct robust_head head;
} own_list;
static __thread struct robust_head *thread_list;
static __thread uint32_t thread_id;

static void robust_after_fork(void)
{
    thread_id = 0;
    thread_list = NULL;
}

static int looks; /* at a held lock before the caller sleeps; none with one CPU */

static int robust_init(void)
{
    looks = sysconf(_SC_NPROCESSORS_ONLN) == 1 ? 0 : LOCK_LOOKS;
    return pthread_atfork(NULL, NULL, robust_after_fork);
}

static int robust_enter(void)
{
    struct robust_head *head = NULL;
    size_t size = 0;
    if (syscall(SYS_get_robust_list, 0, &head, &size) < 0)
        return -errno;
    if (head == NULL) {
        own_list.head.list = &own_list.head;
        own_list.head.offset = -32;
        own_list.prev = &own_list.head;
        head = &own_list.head;
        if (syscall(SYS_set_robust_list, head, sizeof *head) < 0)
            return -errno;
    }
    if (head->offset != -32)
        return -ENOSYS;
    thread_list = head;
    thread_id = (uint32_t)syscall(SYS_gettid);
    return 0;
}

static inline int robust_ready(void)
{
    return thread_id ? 0 : robust_enter();
}

/* The compiler keeps the order; the kernel looks at this thread's stores only. */
#define in_order() atomic_signal_fence(memory_order_seq_cst)

static void lock_link(struct lock *l)
{
    void **next = (void **)((uintptr_t)thread_list->list & ~(uintptr_t)1);
    next[-1] = &l->next;
    l->next = thread_list->list;
    l->prev = &thread_list->list;
    in_order();
    thread_list->list = &l->next;
}

static void lock_unlink(struct lock *l)
{
    void **next = (void **)((uintptr_t)l->next & ~(uintptr_t)1);
    void **prev = (void **)((uintptr_t)l->prev & ~(uintptr_t)1);
    *prev = l->next;
    next[-1] = l->prev;
    in_order();
    l->prev = l->next = NULL;
}

/* 0: another has it.  1: taken.  2: taken, and an owner died with it.  Or a negated errno.
 * `bits` is LOCK_WAITERS if the caller has slept for it. */
static int lock_try(struct lock *l, uint32_t bits)
{
    int error = robust_ready();
    uint32_t seen;
    if (error)
        return error;
    seen = word_load(&l->word);
    if (seen & LOCK_OWNER && !(seen & LOCK_DIED))
        return 0;
    thread_list->pending = &l->next;
    in_order();
    for (;;) {
        uint32_t now = word_cas(&l->word, seen, thread_id | (seen & LOCK_WAITERS) | bits);
        if (now == seen)
            break;
        seen = now;
        if (seen & LOCK_OWNER && !(seen & LOCK_DIED)) {
            in_order();
            thread_list->pending = NULL;
            return 0;
        }
    }
    if (seen & LOCK_DIED)
        l->inconsistent = 1;
    lock_link(l);
    in_order();
    thread_list->pending = NULL;
    return l->inconsistent ? 2 : 1;
}

/* The same, looking again for a moment if another has it. */
static int lock_try_soon(struct lock *l, uint32_t bits)
{
    int r = lock_try(l, bits);
    for (int i = 0; r == 0 && i < looks; i++) {
        cpu_pause();
        r = lock_try(l, bits);
    }
    return r;
}

/* What to wait for while it stays so; 0: it is free, try again. */
static uint32_t lock_announce(struct lock *l)
{
    uint32_t seen = word_load(&l->word);
    for (;;) {
        if (!(seen & LOCK_OWNER) || seen & LOCK_DIED)
            return 0;
        if (seen & LOCK_WAITERS)
            return seen;
        uint32_t now = word_cas(&l->word, seen, seen | LOCK_WAITERS);
        if (now == seen)
            return seen | LOCK_WAITERS;
        seen = now;
    }
}

static inline int lock_mine(struct lock *l)
{
    return robust_ready() == 0 && (word_load(&l->word) & LOCK_OWNER) == thread_id;
}

/* by the owner only */
static void lock_release(struct lock *l)
{
    thread_list->pending = &l->next;
    in_order();
    lock_unlink(l);
    /* a death from here on wakes a waiter: the word is 0 and the operation pending */
    if (word_exchange(&l->word, 0) & LOCK_WAITERS)
        word_wake(&l->word, 1, 0xffffffffu);
    in_order();
    thread_list->pending = NULL;
}

/* -- the queue ------------------------------------------------------------------- */

/* head and tail: a position in bytes, modulo 2**40, and above it a number of messages
 * modulo 2**24, so that one store moves both */
#define POSITION 0xffffffffffull
#define MESSAGE (1ull << 40)

struct queue {
    struct lock lock;
    uint64_t head;
    uint32_t filled, getters; /* counts puts; how many wait for one */
    uint64_t pad[6];
    uint64_t tail;
    uint32_t emptied, putters;
    uint64_t pad_too[6];
    uint32_t capacity, maxsize; /* bytes, a power of two; messages, 0: any number */
    uint64_t pad_more[7];
    char bytes[];
};

_Static_assert(offsetof(struct queue, bytes) == 256, "queue");

enum { QUEUE_BUSY = -1, QUEUE_WAIT = -2 };

static inline uint32_t queue_size(struct queue *q)
{
    return (uint32_t)((long_load(&q->tail) - long_load(&q->head)) >> 40) & 0xffffff;
}

static inline uint32_t queue_used(struct queue *q)
{
    return (uint32_t)((q->tail - q->head) & POSITION);
}

static inline uint64_t queue_moved(uint64_t end, uint32_t bytes)
{
    return ((end + MESSAGE) & ~POSITION) | ((end + bytes) & POSITION);
}

static inline uint32_t queue_room(uint32_t n)
{
    return (n + 4 + 7) & ~7u;
}

static void queue_copy_in(struct queue *q, uint64_t at, const char *from, uint32_t n)
{
    uint32_t start = at & (q->capacity - 1), first = q->capacity - start;
    if (first > n)
        first = n;
    memcpy(q->bytes + start, from, first);
    memcpy(q->bytes, from + first, n - first);
}

static void queue_copy_out(struct queue *q, uint64_t at, char *to, uint32_t n)
{
    uint32_t start = at & (q->capacity - 1), first = q->capacity - start;
    if (first > n)
        first = n;
    memcpy(to, q->bytes + start, first);
    memcpy(to + first, q->bytes, n - first);
}

/* Lock it, or QUEUE_BUSY.  An owner that died left it whole: nothing to repair. */
static inline int queue_enter(struct queue *q, uint32_t bits)
{
    int i, got = 0;
    for (i = 0; i < 2 && !got; i++)
        got = lock_try_soon(&q->lock, bits);
    if (got < 0)
        return got - 1000;
    if (!got)
        return QUEUE_BUSY;
    q->lock.inconsistent = 0;
    return 0;
}

/* 0 when put.  QUEUE_WAIT: it is full, and *seen is what to wait for; the caller counts
 * as a waiter then if it wants to be. */
static int queue_put(struct queue *q, const char *data, uint32_t n, uint32_t bits, int wait,
                     uint32_t *seen)
{
    int r = queue_enter(q, bits);
    if (r)
        return r;
    uint64_t tail = q->tail;
    if (queue_used(q) + queue_room(n) > q->capacity
        || (q->maxsize && queue_size(q) >= q->maxsize)) {
        *seen = word_load(&q->emptied);
        if (wait)
            word_add(&q->putters, 1);
        lock_release(&q->lock);
        return QUEUE_WAIT;
    }
    queue_copy_in(q, tail, (const char *)&n, 4);
    if (n)
        queue_copy_in(q, tail + 4, data, n);
    /* first: if this dies in between, those who sleep look once in vain, and not never */
    word_add(&q->filled, 1);
    long_store(&q->tail, queue_moved(tail, queue_room(n)));
    lock_release(&q->lock);
    if (word_load(&q->getters))
        word_wake(&q->filled, 1, 0xffffffffu);
    return 0;
}

/* With the lock held afterwards when 0: *n bytes can be copied out with queue_take(). */
static int queue_look(struct queue *q, uint32_t bits, int wait, uint32_t *seen, uint32_t *n)
{
    int r = queue_enter(q, bits);
    if (r)
        return r;
    if (q->head == q->tail) {
        *seen = word_load(&q->filled);
        if (wait)
            word_add(&q->getters, 1);
        lock_release(&q->lock);
        return QUEUE_WAIT;
    }
    queue_copy_out(q, q->head, (char *)n, 4);
    return 0;
}

static void queue_take(struct queue *q, char *to, uint32_t n)
{
    queue_copy_out(q, q->head + 4, to, n);
    word_add(&q->emptied, 1);
    long_store(&q->head, queue_moved(q->head, queue_room(n)));
    lock_release(&q->lock);
    if (word_load(&q->putters))
        word_wake(&q->emptied, 0x7fffffff, 0xffffffffu); /* sizes differ: all may fit */
}

#endif
