/* The backlog: callbacks that are ready, timers that are due later, descriptors
 * that are watched, operations in flight: all that a loop holds on to.
 *
 * One per loop.  This header has the structs and the few operations that every
 * native module needs (the reactors push readiness callbacks); the types and the
 * rest stand in handle.h and queues.h, which only the scheduler module includes.
 *
 * Rules: all of it is touched with the GIL held only, from any thread.  The ring
 * owns one reference to each handle in it, the heap one to each timer, a slot one
 * to each watcher, the in-flight list one to each operation.  The garbage
 * collector sees all of them through the Backlog object.
 */
#ifndef AIOUNIFY_BACKLOG_H
#define AIOUNIFY_BACKLOG_H

#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define HANDLE_INLINE_ARGS 3

enum {
    HANDLE_CANCELLED = 1,
    HANDLE_KEEP = 2, /* readiness watchers run many times: keep the contents */
    HANDLE_TIMER = 4,
    HANDLE_WHEN_GIVEN = 8, /* `when` is the float the caller passed to call_at() */
    HANDLE_SHARED = 16,    /* `context` is a snapshot others use too: see context.h */
};

struct BacklogObject;

typedef struct HandleObject {
    PyObject_HEAD
    PyObject *loop;
    PyObject *callback; /* NULL once run or cancelled */
    PyObject *context;
    PyObject *debug; /* NULL, or a list [source_traceback, repr]: debug mode only */
    PyObject *weakrefs;
    int32_t nargs; /* -1: more than fit inline, all of them in the tuple args[0] */
    uint32_t flags;
    PyObject *scratch; /* room before the arguments, for PY_VECTORCALL_ARGUMENTS_OFFSET */
    PyObject *args[HANDLE_INLINE_ARGS];
    /* timers only */
    struct BacklogObject *backlog; /* borrowed; valid while index >= 0 */
    Py_ssize_t index;          /* place in the heap, -1: not in it */
    int64_t when_ns;
    double when;
} HandleObject;

typedef struct {
    int64_t when_ns;
    uint64_t order; /* timers of one instant fire in the order they were set */
    HandleObject *handle;
} TimerEntry;

/* What is watched at one descriptor: index READER, WRITER or PRIORITY. */
enum { WATCH_READER = 0, WATCH_WRITER = 1, WATCH_PRIORITY = 2, WATCH_KINDS = 3 };

typedef struct OpLink {
    struct OpLink *next, *prev; /* NULL while the operation is not in flight */
    PyObject *op;               /* owned while linked */
} OpLink;

typedef struct {
    HandleObject *watcher[WATCH_KINDS]; /* owned */
    PyObject *stream;                   /* the stream transport that has this descriptor */
    uint32_t stream_events;             /* the readiness it waits for */
    uint32_t stream_refs;               /* references held on it, one for each thing it waits for */
    uint32_t op_events;                 /* epoll backend: events that operations wait for */
    PyObject *calls;                    /* owned: what stands here for sock_recv() and its kin */
    uint32_t call_waits;                /* the readiness that these calls wait for now */
    uint32_t call_events;               /* what they ever waited for, and may be left armed */
    uint32_t armed;                     /* events the epoll set was told */
    uint32_t generation;                /* of the registration; events carry it */
} FdSlot;

/* Why a call into the loop has to leave the fast path. */
enum {
    STATE_CLOSED = 1,
    STATE_DEBUG = 2,
    STATE_FORKED = 4, /* this process is a fork of the one that made the loop */
};

typedef struct BacklogObject {
    PyObject_HEAD
    /* ready: a ring of handles; head and tail only ever grow, the mask places them */
    HandleObject **ring;
    size_t head, tail, mask;
    /* timers: a 4-ary heap ordered by (when_ns, order) */
    TimerEntry *heap;
    Py_ssize_t timers, timers_allocated;
    uint64_t timer_order;
    /* descriptors watched, by number */
    FdSlot *slots;
    int n_slots, n_watched;
    OpLink in_flight; /* head of the ring of operations the kernel works on */
    uint32_t state;
    /* the loop is in (or about to enter) a wait that only an event ends */
    int sleeping;
    int wake_fd;
    int64_t unsent_ns; /* since when sends wait for being submitted; 0: none does */
    uint64_t n_callbacks, n_timers_fired, n_wakes;
} BacklogObject;

/* How long a send may wait for others to be submitted with it. */
#define UNSENT_NS 100000

static inline int64_t monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Double the ring.  Returns -1 with MemoryError set. */
static int ready_grow(BacklogObject *q)
{
    size_t size = q->mask + 1, n = q->tail - q->head;
    HandleObject **ring = PyMem_New(HandleObject *, size * 2);
    if (!ring) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < n; i++)
        ring[i] = q->ring[(q->head + i) & q->mask];
    PyMem_Free(q->ring);
    q->ring = ring;
    q->head = 0;
    q->tail = n;
    q->mask = size * 2 - 1;
    return 0;
}

/* Append; takes over the caller's reference, also on failure. */
static inline int ready_push_steal(BacklogObject *q, HandleObject *h)
{
    if (q->tail - q->head > q->mask && ready_grow(q) < 0) {
        Py_DECREF(h);
        return -1;
    }
    q->ring[q->tail++ & q->mask] = h;
    return 0;
}

static inline int ready_push(BacklogObject *q, HandleObject *h)
{
    return ready_push_steal(q, (HandleObject *)Py_NewRef((PyObject *)h));
}

static inline size_t ready_count(BacklogObject *q) { return q->tail - q->head; }

static inline void op_link(BacklogObject *q, OpLink *link, PyObject *op)
{
    link->op = Py_NewRef(op);
    link->next = &q->in_flight;
    link->prev = q->in_flight.prev;
    link->prev->next = link;
    q->in_flight.prev = link;
}

/* Out of the list; the list's reference passes to the caller. */
static inline PyObject *op_unlink(OpLink *link)
{
    PyObject *op = link->op;
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link->next = link->prev = NULL;
    link->op = NULL;
    return op;
}

#endif
