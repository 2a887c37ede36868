/* One io_uring: set up, mapped, filled, entered and reaped by hand.
 *
 * Why no liburing: what is needed is short, and the package must build with a C
 * compiler and Python's headers alone.
 *
 * Rules: one thread uses a ring (SINGLE_ISSUER); the kernel reads the submission
 * tail and writes the completion tail, so those four words are accessed with
 * acquire/release order.  All functions return 0 or a count, or a negated errno.
 *
 * Memory: both rings and the submission entries are shared mappings, which are not
 * inherited by fork (MADV_DONTFORK): a child must not touch a struct ring, and
 * ring_abandon() and buffers_abandon() are all it may call.
 */
#ifndef AIOUNIFY_RING_H
#define AIOUNIFY_RING_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "spin.h"
#include "uring_abi.h"

struct ring {
    int fd;
    int enter_fd;         /* fd, or its index once registered */
    unsigned enter_flags; /* IORING_ENTER_REGISTERED_RING, IORING_ENTER_NO_IOWAIT */
    unsigned setup_flags, features;
    int abs_timer; /* IORING_ENTER_ABS_TIMER is (still believed to be) known */
    /* submission */
    unsigned *sq_head, *sq_tail, *sq_flags, *sq_array;
    unsigned sq_mask, sq_entries, sq_local, sq_submitted;
    struct au_sqe *sqes;
    /* completion */
    unsigned *cq_head, *cq_tail;
    unsigned cq_mask, cq_entries;
    struct au_cqe *cqes;
    void *map, *sqe_map;
    size_t map_size, sqe_map_size;
};

/* Whether a time namespace moves this process's monotonic clock (time_namespaces(7)).  The
 * kernel takes the absolute timeout of io_uring_enter for a time of its own clock then, without
 * the namespace's offset (Linux 6.18), and a timer would come by that much too late. */
static int clock_shifted(void)
{
    char text[256], *line;
    int fd = open("/proc/self/timens_offsets", O_RDONLY | O_CLOEXEC), shifted = 0;
    if (fd < 0)
        return 0; /* before 5.6, or no /proc */
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    if ((line = strstr(text, "monotonic"))) {
        long long seconds = 0, nanoseconds = 0;
        if (sscanf(line, "monotonic %lld %lld", &seconds, &nanoseconds) == 2)
            shifted = seconds || nanoseconds;
    }
    return shifted;
}

static inline int ring_setup(unsigned entries, struct au_uring_params *p)
{
    long fd = syscall(NR_io_uring_setup, entries, p);
    return fd < 0 ? -errno : (int)fd;
}

static inline int ring_register(int fd, unsigned opcode, void *arg, unsigned n)
{
    long r = syscall(NR_io_uring_register, fd, opcode, arg, n);
    return r < 0 ? -errno : (int)r;
}

static void ring_unmap(struct ring *r)
{
    if (r->sqe_map)
        munmap(r->sqe_map, r->sqe_map_size);
    if (r->map)
        munmap(r->map, r->map_size);
    r->sqe_map = r->map = NULL;
}

static int ring_map(struct ring *r, struct au_uring_params *p)
{
    size_t sq = p->sq_off.array
                + (p->flags & IORING_SETUP_NO_SQARRAY ? 0 : p->sq_entries * sizeof(unsigned));
    size_t cq = p->cq_off.cqes + p->cq_entries * sizeof(struct au_cqe);
    r->map_size = sq > cq ? sq : cq;
    r->sqe_map_size = p->sq_entries * sizeof(struct au_sqe);
    void *m = mmap(NULL, r->map_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, 0);
    if (m == MAP_FAILED)
        return -errno;
    r->map = m;
    m = mmap(NULL, r->sqe_map_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd,
             0x10000000);
    if (m == MAP_FAILED)
        return -errno;
    r->sqe_map = m;
    madvise(r->map, r->map_size, MADV_DONTFORK);
    madvise(r->sqe_map, r->sqe_map_size, MADV_DONTFORK);
    char *base = r->map;
    r->sq_head = (unsigned *)(base + p->sq_off.head);
    r->sq_tail = (unsigned *)(base + p->sq_off.tail);
    r->sq_flags = (unsigned *)(base + p->sq_off.flags);
    r->sq_array = p->flags & IORING_SETUP_NO_SQARRAY ? NULL
                                                     : (unsigned *)(base + p->sq_off.array);
    r->sq_entries = p->sq_entries;
    r->sq_mask = p->sq_entries - 1;
    r->sqes = r->sqe_map;
    r->cq_head = (unsigned *)(base + p->cq_off.head);
    r->cq_tail = (unsigned *)(base + p->cq_off.tail);
    r->cq_entries = p->cq_entries;
    r->cq_mask = p->cq_entries - 1;
    r->cqes = (struct au_cqe *)(base + p->cq_off.cqes);
    for (unsigned i = 0; r->sq_array && i < p->sq_entries; i++)
        r->sq_array[i] = i;
    return 0;
}

/* Make a ring, disabled until ring_enable().  The best set of flags the kernel
 * knows, dropping the newest on EINVAL; half the size on ENOMEM, down to 8. */
static int ring_open(struct ring *r, unsigned entries, unsigned cq_entries)
{
    static const unsigned ladder[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG
            | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_NO_SQARRAY, /* 6.6 */
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG
            | IORING_SETUP_SUBMIT_ALL, /* 6.1 */
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL, /* 5.19 */
        IORING_SETUP_SUBMIT_ALL, /* 5.18 */
        0,
    };
    struct au_uring_params p;
    unsigned step = 0;
    int fd;
    memset(r, 0, sizeof *r);
    r->fd = -1;
    for (;;) {
        memset(&p, 0, sizeof p);
        p.flags = ladder[step] | IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE;
        p.cq_entries = cq_entries;
        fd = ring_setup(entries, &p);
        if (fd >= 0)
            break;
        if (fd == -EINVAL && step + 1 < sizeof ladder / sizeof *ladder) {
            step++;
        } else if (fd == -ENOMEM && entries > 8) {
            entries /= 2;
            if (cq_entries > 2 * entries)
                cq_entries /= 2;
        } else {
            return fd;
        }
    }
    r->fd = r->enter_fd = fd;
    r->setup_flags = p.flags;
    r->features = p.features;
    r->abs_timer = !clock_shifted();
    if (p.features & IORING_FEAT_NO_IOWAIT)
        r->enter_flags |= IORING_ENTER_NO_IOWAIT;
    unsigned needed = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;
    int error = (p.features & needed) == needed ? ring_map(r, &p) : -ENOSYS;
    if (error) {
        ring_unmap(r);
        close(fd);
        r->fd = -1;
    }
    return error;
}

/* Bind the ring to this thread. */
static int ring_enable(struct ring *r)
{
    return ring_register(r->fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

/* Registering the descriptor with this thread saves its look-up in each enter; a
 * kernel that cannot (before 5.18), or a thread with 16 of them, goes without. */
static int ring_register_fd(struct ring *r)
{
    struct au_rsrc_update up;
    memset(&up, 0, sizeof up);
    up.offset = -1U;
    up.data = (uint64_t)r->fd;
    int n = ring_register(r->fd, IORING_REGISTER_RING_FDS, &up, 1);
    if (n != 1)
        return n < 0 ? n : -EINVAL;
    r->enter_fd = (int)up.offset;
    r->enter_flags |= IORING_ENTER_REGISTERED_RING;
    return 0;
}

static void ring_unregister_fd(struct ring *r)
{
    if (!(r->enter_flags & IORING_ENTER_REGISTERED_RING))
        return;
    struct au_rsrc_update up;
    memset(&up, 0, sizeof up);
    up.offset = (uint32_t)r->enter_fd;
    ring_register(r->fd, IORING_UNREGISTER_RING_FDS, &up, 1);
    r->enter_fd = r->fd;
    r->enter_flags &= ~IORING_ENTER_REGISTERED_RING;
}

/* An empty table of so many files of the ring's own, which openat fills (Linux 5.19). */
static int ring_make_table(struct ring *r, unsigned count)
{
    struct au_rsrc_register table;
    memset(&table, 0, sizeof table);
    table.count = count;
    table.flags = IORING_RSRC_REGISTER_SPARSE;
    return ring_register(r->fd, IORING_REGISTER_FILES2, &table, sizeof table);
}

static void ring_close(struct ring *r)
{
    if (r->fd < 0)
        return;
    ring_unmap(r);
    close(r->fd);
    r->fd = -1;
}

/* ---- provided buffers: memory the kernel picks from when data has come ------- */

#define BUFFERS_FIRST 64

struct buffers {
    struct au_buf *ring; /* one mapping: the ring, then the buffers */
    char *memory;
    unsigned count, used, size, mask; /* the kernel was given `used` of them so far */
    uint16_t tail;
    size_t map_size;
};

static inline void buffers_add(struct buffers *b, unsigned bid)
{
    struct au_buf *e = &b->ring[b->tail & b->mask];
    e->addr = (uint64_t)(uintptr_t)(b->memory + (size_t)bid * b->size);
    e->len = b->size;
    e->bid = (uint16_t)bid;
    b->tail++;
    __atomic_store_n(&b->ring[0].tail, b->tail, __ATOMIC_RELEASE);
}

/* Give the kernel as many again as it has; 0 if all are in use already.
 *
 * The kernel takes them in turn, so each that it has is touched sooner or later: as few as
 * do keep the working set in the processor's cache. */
static inline unsigned buffers_more(struct buffers *b)
{
    unsigned more = b->used ? b->used : b->count < BUFFERS_FIRST ? b->count : BUFFERS_FIRST;
    if (more > b->count - b->used)
        more = b->count - b->used;
    for (unsigned i = 0; i < more; i++)
        buffers_add(b, b->used++);
    return more;
}

/* Room for `count` (a power of two) buffers of `size` bytes, group 0 of the ring. */
static int buffers_open(struct buffers *b, struct ring *r, unsigned count, unsigned size)
{
    struct au_buf_reg reg;
    size_t head = (count * sizeof(struct au_buf) + 4095) & ~(size_t)4095;
    memset(b, 0, sizeof *b);
    b->map_size = head + (size_t)count * size;
    void *m = mmap(NULL, b->map_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED)
        return -errno;
    madvise(m, b->map_size, MADV_DONTFORK);
    b->ring = m;
    b->memory = (char *)m + head;
    b->count = count;
    b->size = size;
    b->mask = count - 1;
    memset(&reg, 0, sizeof reg);
    reg.ring_addr = (uint64_t)(uintptr_t)m;
    reg.ring_entries = count;
    int error = ring_register(r->fd, IORING_REGISTER_PBUF_RING, &reg, 1);
    if (error < 0) {
        munmap(m, b->map_size);
        b->ring = NULL;
        return error;
    }
    buffers_more(b);
    return 0;
}

/* Only after the ring is closed: the kernel writes to these. */
static void buffers_close(struct buffers *b)
{
    if (b->ring)
        munmap(b->ring, b->map_size);
    b->ring = NULL;
}

/* In a forked child the mapping is not there, and its addresses may be others'. */
static void buffers_abandon(struct buffers *b) { b->ring = NULL; }

/* In a forked child: the mappings are not there, only the descriptor is. */
static void ring_abandon(struct ring *r)
{
    if (r->fd >= 0)
        close(r->fd);
    r->fd = -1;
    r->map = r->sqe_map = NULL;
}

/* The next free submission entry, zeroed, or NULL if the ring is full. */
static inline struct au_sqe *ring_sqe(struct ring *r)
{
    unsigned head = __atomic_load_n(r->sq_head, __ATOMIC_ACQUIRE);
    if (r->sq_local - head >= r->sq_entries)
        return NULL;
    struct au_sqe *sqe = &r->sqes[r->sq_local++ & r->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    return sqe;
}

static inline int ring_full(struct ring *r)
{
    return r->sq_local - __atomic_load_n(r->sq_head, __ATOMIC_ACQUIRE) >= r->sq_entries;
}

static inline unsigned ring_unsubmitted(struct ring *r) { return r->sq_local - r->sq_submitted; }

/* Does the kernel want to be entered: work to run, or overflown completions? */
static inline int ring_wants_enter(struct ring *r)
{
    return (__atomic_load_n(r->sq_flags, __ATOMIC_RELAXED)
            & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

/* Does the kernel keep completions for which the completion ring has no room? */
static inline int ring_overflown(struct ring *r)
{
    return (__atomic_load_n(r->sq_flags, __ATOMIC_RELAXED) & IORING_SQ_CQ_OVERFLOW) != 0;
}

static inline unsigned ring_cq_ready(struct ring *r)
{
    return __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE) - *r->cq_head;
}

static inline struct au_cqe *ring_cqe(struct ring *r)
{
    return &r->cqes[*r->cq_head & r->cq_mask];
}

static inline void ring_cq_advance(struct ring *r)
{
    __atomic_store_n(r->cq_head, *r->cq_head + 1, __ATOMIC_RELEASE);
}

static inline int ring_enter_raw(struct ring *r, unsigned min_complete, unsigned flags, void *arg,
                                 size_t size)
{
    unsigned n = ring_unsubmitted(r);
    __atomic_store_n(r->sq_tail, r->sq_local, __ATOMIC_RELEASE);
    long done = syscall(NR_io_uring_enter, r->enter_fd, n, min_complete, flags | r->enter_flags,
                        arg, size);
    if (done < 0)
        return -errno;
    r->sq_submitted += (unsigned)done;
    return (int)done;
}

/* Submit what is queued and run the ring's pending work; never blocks. */
static inline int ring_enter(struct ring *r)
{
    return ring_enter_raw(r, 0, IORING_ENTER_GETEVENTS, NULL, 0);
}

/* Submit and wait for one completion, or until the monotonic clock reaches
 * deadline_ns (negative: for ever).  -ETIME at the deadline, -EINTR on a signal.
 * now_ns is needed on kernels without absolute timeouts. */
static inline int ring_wait(struct ring *r, int64_t deadline_ns, int64_t now_ns)
{
    struct au_timespec ts;
    struct au_getevents_arg arg;
    unsigned flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    int64_t t = deadline_ns;
    memset(&arg, 0, sizeof arg);
    if (t >= 0) {
        if (r->abs_timer)
            flags |= IORING_ENTER_ABS_TIMER;
        else if ((t -= now_ns) < 1)
            t = 1;
        ts.tv_sec = t / 1000000000;
        ts.tv_nsec = t % 1000000000;
        arg.ts = (uint64_t)(uintptr_t)&ts;
    }
    int n = ring_enter_raw(r, 1, flags, &arg, sizeof arg);
    if (n == -EINVAL && flags & IORING_ENTER_ABS_TIMER) {
        r->abs_timer = 0; /* before 6.12 */
        return ring_wait(r, deadline_ns, now_ns);
    }
    return n;
}

/* Submit what is queued, and look for completions for a moment: whether there are some, or a
 * negated errno. */
static inline int ring_spin(struct ring *r, struct spin *s)
{
    int n = ring_enter(r);
    if (n < 0)
        return n;
    int64_t end = spin_end();
    while (!ring_cq_ready(r) && !ring_wants_enter(r))
        if (!spin_on(end))
            break;
    if (!ring_cq_ready(r) && ring_wants_enter(r) && (n = ring_enter(r)) < 0)
        return n;
    return spin_done(s, ring_cq_ready(r) != 0);
}

#endif
