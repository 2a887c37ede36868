/* The backlog's own code: the timer heap, running handles, and call_soon,
 * call_later and call_at as vectorcall functions.
 *
 * Time is int64 nanoseconds of CLOCK_MONOTONIC, which loop.time() shows as
 * seconds.  A time given as float is rounded up, and a timer fires only when
 * now >= when: never early, not by a nanosecond.  (asyncio lets timers fire one
 * clock resolution early.)
 *
 * A cancelled timer leaves the heap at once, by its index: the heap never holds
 * garbage, and a program that sets and cancels a timeout for each request pays
 * O(1), because a later deadline sits at the heap's end.
 *
 * This header is included by exactly one translation unit (scheduler).
 */
#ifndef AIOUNIFY_QUEUES_H
#define AIOUNIFY_QUEUES_H

#include <errno.h>
#include <math.h>
#include <unistd.h>

#include "handle.h"
#include "sleep_end.h"

static PyTypeObject *Backlog_Type;

/* ---- timer heap ---------------------------------------------------------- */

static inline int timer_before(const TimerEntry *a, const TimerEntry *b)
{
    return a->when_ns < b->when_ns || (a->when_ns == b->when_ns && a->order < b->order);
}

static inline void heap_put(BacklogObject *q, Py_ssize_t i, TimerEntry e)
{
    q->heap[i] = e;
    e.handle->index = i;
}

static void heap_up(BacklogObject *q, Py_ssize_t i, TimerEntry e)
{
    while (i > 0) {
        Py_ssize_t parent = (i - 1) / 4;
        if (!timer_before(&e, &q->heap[parent]))
            break;
        heap_put(q, i, q->heap[parent]);
        i = parent;
    }
    heap_put(q, i, e);
}

static void heap_down(BacklogObject *q, Py_ssize_t i, TimerEntry e)
{
    Py_ssize_t n = q->timers;
    for (;;) {
        Py_ssize_t first = 4 * i + 1, best = first;
        if (first >= n)
            break;
        Py_ssize_t end = first + 4 < n ? first + 4 : n;
        for (Py_ssize_t c = first + 1; c < end; c++)
            if (timer_before(&q->heap[c], &q->heap[best]))
                best = c;
        if (!timer_before(&q->heap[best], &e))
            break;
        heap_put(q, i, q->heap[best]);
        i = best;
    }
    heap_put(q, i, e);
}

/* Takes a reference to the handle.  -1 with MemoryError set. */
static int timer_heap_push(BacklogObject *q, HandleObject *h)
{
    if (q->timers == q->timers_allocated) {
        Py_ssize_t n = q->timers_allocated ? q->timers_allocated * 2 : 64;
        TimerEntry *heap = PyMem_Resize(q->heap, TimerEntry, n);
        if (!heap) {
            PyErr_NoMemory();
            return -1;
        }
        q->heap = heap;
        q->timers_allocated = n;
    }
    Py_INCREF(h);
    h->backlog = q;
    heap_up(q, q->timers++, (TimerEntry){h->when_ns, q->timer_order++, h});
    return 0;
}

/* Out of the heap; the heap's reference passes to the caller. */
static HandleObject *timer_heap_take(BacklogObject *q, Py_ssize_t i)
{
    HandleObject *h = q->heap[i].handle;
    TimerEntry last = q->heap[--q->timers];
    h->index = -1;
    if (i < q->timers) {
        if (i > 0 && timer_before(&last, &q->heap[(i - 1) / 4]))
            heap_up(q, i, last);
        else
            heap_down(q, i, last);
    }
    return h;
}

static void timer_heap_remove(BacklogObject *q, HandleObject *h)
{
    Py_DECREF(timer_heap_take(q, h->index));
}

/* Move what is due to the ready ring.  -1 with MemoryError set. */
static int timers_expire(BacklogObject *q)
{
    int64_t now = monotonic_ns();
    while (q->timers && q->heap[0].when_ns <= now) {
        q->n_timers_fired++;
        if (ready_push_steal(q, timer_heap_take(q, 0)) < 0)
            return -1;
    }
    return 0;
}

/* A crowd: so many timers due within so short a time that a wait for each would cost more
 * than what they do.  A hundred thousand sleeping tasks are one timer each ten
 * microseconds, and waking up for each of them is most of the work. */
#define CROWD_TIMERS 8
#define CROWD_SEEN 64
#define CROWD_NS 200000

/* When a loop that goes to sleep has to wake up for its timers; call with timers only.
 * That is the first one's time, and for a crowd the time of the last of those (that were
 * looked at) which are due within CROWD_NS of the first: a few timers never wait for
 * each other, and many of the same instant do not either. */
static int64_t timers_wake_ns(const BacklogObject *q)
{
    Py_ssize_t seen[CROWD_SEEN], n = 1;
    int64_t first = q->heap[0].when_ns, last = first;
    if (q->timers < CROWD_TIMERS)
        return first;
    /* the heap's top, as far as it is due in time: breadth first, without sorting it */
    seen[0] = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_ssize_t child = 4 * seen[i] + 1;
        for (Py_ssize_t end = child + 4; child < end && child < q->timers && n < CROWD_SEEN; child++)
            if (q->heap[child].when_ns - first <= CROWD_NS) {
                seen[n++] = child;
                if (q->heap[child].when_ns > last)
                    last = q->heap[child].when_ns;
            }
    }
    return n < CROWD_TIMERS ? first : last;
}

/* ---- running ------------------------------------------------------------- */

static PyObject *no_arguments; /* () */

/* Call a handle.  Returns the call's result, or NULL with the exception set.
 * The contents are moved to the stack first, for the callback may cancel its own
 * handle; `keep` leaves them in the handle as well.  After a failure they are in the
 * handle again, with the context it ran in, for the report. */
static PyObject *handle_call(HandleObject *h, int keep)
{
    PyObject *stack[HANDLE_INLINE_ARGS + 1];
    PyObject *callback = h->callback, *context = h->context, *work = context;
    PyObject *result = NULL;
    int32_t n = h->nargs, held = n < 0 ? 1 : n;
    int shared = (h->flags & HANDLE_SHARED) != 0;
    if (!callback)
        Py_RETURN_NONE; /* ran before, or its queue was cleared: it was queued twice */
    for (int i = 0; i < held; i++)
        stack[i + 1] = h->args[i];
    if (keep) {
        Py_INCREF(callback);
        Py_INCREF(context);
        for (int i = 0; i < held; i++)
            Py_INCREF(stack[i + 1]);
    } else {
        h->callback = h->context = NULL;
        h->nargs = 0;
        Py_CLEAR(h->loop);
    }
    if (sleep_ends(callback, stack + 1, n)) {
        if ((result = sleep_end(stack[1], stack[2])))
            shared = 0; /* nothing was borrowed */
        else if (shared)
            work = context_after_failure(context);
        goto called;
    }
    /* only now: it may free a context, and so run any code, which may cancel this handle */
    if (shared)
        work = context_borrow(context);
    if (work && PyContext_Enter(work) == 0) {
        PyObject *const *args = n < 0 ? &PyTuple_GET_ITEM(stack[1], 0) : stack + 1;
        size_t nargs = n < 0 ? (size_t)PyTuple_GET_SIZE(stack[1])
                             : (size_t)n | PY_VECTORCALL_ARGUMENTS_OFFSET;
        PyTypeObject *type = Py_TYPE(callback);
        vectorcallfunc call = NULL;
        if (PyType_HasFeature(type, Py_TPFLAGS_HAVE_VECTORCALL))
            memcpy(&call, (char *)callback + type->tp_vectorcall_offset, sizeof call);
        if (call)
            result = call(callback, args, nargs, NULL);
        else if (n == 0 && type->tp_call)
            /* the step of a C Task, most of all: no arguments, no vectorcall */
            result = type->tp_call(callback, no_arguments, NULL);
        else
            result = PyObject_Vectorcall(callback, args, nargs, NULL);
        if (PyContext_Exit(work) < 0)
            Py_CLEAR(result);
    }
called:
    if (!result) {
        if (shared && work)
            Py_SETREF(context, work); /* the handler sees what the callback set */
        h->flags &= ~HANDLE_SHARED;
        if (!h->context && !h->callback && !(h->flags & HANDLE_CANCELLED)) {
            h->callback = callback;
            h->context = context;
            h->nargs = n;
            for (int i = 0; i < held; i++)
                h->args[i] = stack[i + 1];
            return NULL;
        }
        if (h->context)
            Py_SETREF(h->context, Py_NewRef(context));
    } else if (shared) {
        context_return(work, context);
    }
    Py_DECREF(callback);
    for (int i = 0; i < held; i++)
        Py_DECREF(stack[i + 1]);
    Py_DECREF(context);
    return result;
}

/* reports an exception of a callback: report(loop, handle, exception) */
static PyObject *handle_report;

/* 0, or -1 when the exception must leave the loop (SystemExit, KeyboardInterrupt
 * or one raised by the report itself). */
static int handle_failed(PyObject *loop, HandleObject *h, int keep)
{
    if (PyErr_ExceptionMatches(PyExc_SystemExit)
        || PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        if (!keep)
            handle_drop(h);
        return -1;
    }
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb)
        PyException_SetTraceback(exc, tb);
    if (!h->loop)
        h->loop = Py_NewRef(loop); /* the report's repr asks it for its debug flag */
    PyObject *argv[] = {NULL, loop, (PyObject *)h, exc};
    PyObject *r = PyObject_Vectorcall(handle_report, argv + 1,
                                      3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(tb);
    if (!keep)
        handle_drop(h);
    if (!r)
        return -1;
    Py_DECREF(r);
    return 0;
}

static inline int handle_run(PyObject *loop, HandleObject *h)
{
    int keep = (h->flags & HANDLE_KEEP) != 0;
    PyObject *r = handle_call(h, keep);
    if (r) {
        Py_DECREF(r);
        return 0;
    }
    return handle_failed(loop, h, keep);
}

static PyObject *handle_run_method(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    HandleObject *h = (HandleObject *)self;
    if (h->callback) {
        PyObject *loop = Py_NewRef(h->loop ? h->loop : Py_None);
        Py_INCREF(h);
        PyObject *r = handle_call(h, 1);
        int failed = r ? 0 : handle_failed(loop, h, 1);
        Py_XDECREF(r);
        Py_DECREF(h);
        Py_DECREF(loop);
        if (failed)
            return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- scheduling ---------------------------------------------------------- */

/* The slow path, a Python function: check(loop, state, callback, name) raises when
 * the loop is closed or was forked, in debug mode also for a wrong thread or a
 * bad callback, and returns the source traceback for the handle, or None. */
static PyObject *schedule_check;

static PyObject *slow_check(BacklogObject *q, PyObject *loop, PyObject *callback,
                            const char *name)
{
    return PyObject_CallFunction(schedule_check, "OIOs", loop, q->state, callback, name);
}

/* The last tuple ("context",) seen as keyword names.  Each caller has a constant one;
 * the one that calls all the time, asyncio's Task, is recognised by its address. */
static PyObject *names_context;

/* The arguments of call_soon() and its kin, with `context=` taken out. */
struct schedule_args {
    PyObject *const *args;
    Py_ssize_t nargs;
    PyObject *context;
    PyObject *named[2]; /* for required arguments given by keyword */
};

/* Keywords other than context=: they may name required arguments, as in asyncio.
 * -1 with TypeError set. */
static int schedule_keywords(struct schedule_args *a, PyObject *kwnames, const char *name,
                             const char *const *required, Py_ssize_t n_required)
{
    PyObject *const *values = a->args + a->nargs;
    Py_ssize_t given = a->nargs;
    for (Py_ssize_t i = 0; i < given && i < n_required; i++)
        a->named[i] = a->args[i];
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *key = PyTuple_GET_ITEM(kwnames, i);
        Py_ssize_t r = 0;
        if (PyUnicode_CompareWithASCIIString(key, "context") == 0) {
            a->context = values[i];
            continue;
        }
        while (r < n_required && PyUnicode_CompareWithASCIIString(key, required[r]) != 0)
            r++;
        if (r == n_required || a->named[r]) {
            PyErr_Format(PyExc_TypeError,
                         r == n_required ? "%s() got an unexpected keyword argument '%U'"
                                         : "%s() got multiple values for argument '%U'",
                         name, key);
            return -1;
        }
        a->named[r] = values[i];
        given = n_required; /* what is missing shows as a NULL in named */
    }
    if (a->nargs < n_required && given == n_required) {
        a->args = a->named;
        a->nargs = n_required;
    }
    return 0;
}

/* -1 with TypeError set. */
static inline int schedule_args(struct schedule_args *a, PyObject *kwnames, const char *name,
                                const char *const *required, Py_ssize_t n_required)
{
    a->context = NULL;
    if (kwnames) {
        if (kwnames == names_context
            || (PyTuple_GET_SIZE(kwnames) == 1
                && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "context") == 0)) {
            a->context = a->args[a->nargs];
            if (kwnames != names_context)
                Py_XSETREF(names_context, Py_NewRef(kwnames));
        } else {
            a->named[0] = a->named[1] = NULL;
            if (schedule_keywords(a, kwnames, name, required, n_required) < 0)
                return -1;
        }
        if (a->context == Py_None)
            a->context = NULL;
        if (a->context && !PyContext_CheckExact(a->context)) {
            PyErr_Format(PyExc_TypeError, "%s() argument 'context' must be a "
                         "contextvars.Context, not %.200s", name,
                         Py_TYPE(a->context)->tp_name);
            return -1;
        }
    }
    for (Py_ssize_t r = 0; r < n_required; r++)
        if (r >= a->nargs || !a->args[r]) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument: '%s'", name,
                         required[r]);
            return -1;
        }
    return 0;
}

/* Wake a loop that sleeps in its wait; call with the GIL held, from any thread. */
static inline void backlog_wake(BacklogObject *q)
{
    if (q->sleeping == 1) {
        uint64_t one = 1;
        int saved = errno;
        q->sleeping = 2; /* one write is enough, whoever comes next */
        q->n_wakes++;
        /* The descriptor is non-blocking and is never read, only edges count; the
         * sole error is a full counter, after 2**64 wakes. */
        if (write(q->wake_fd, &one, sizeof one) < 0) {}
        errno = saved;
    }
}

/* the type of the step of asyncio's C Task, once one was seen */
static PyTypeObject *step_type;

static PyObject *backlog_call_soon(BacklogObject *q, PyObject *loop, PyObject *const *args,
                                   Py_ssize_t nargs, PyObject *kwnames, int threadsafe)
{
    static const char *const required[] = {"callback"};
    const char *name = threadsafe ? "call_soon_threadsafe" : "call_soon";
    struct schedule_args a = {args, nargs};
    PyObject *traceback = NULL;
    if (schedule_args(&a, kwnames, name, required, 1) < 0)
        return NULL;
    if (q->state && !(traceback = slow_check(q, loop, a.args[0], name)))
        return NULL;
    HandleObject *h = handle_new(0, loop, a.args[0], a.args + 1, a.nargs - 1, a.context);
    if (traceback) {
        if (h && handle_debug_set(h, 0, traceback) < 0)
            Py_CLEAR(h);
        Py_DECREF(traceback);
    }
    if (!h || ready_push(q, h) < 0) {
        Py_XDECREF(h);
        return NULL;
    }
    /* asyncio's C Task passes its step or wake-up, native objects, with context= and
     * drops the handle.  Others may keep it, and make a cycle of it. */
    if (!kwnames || !(Py_TYPE(a.args[0]) == step_type || PyCFunction_CheckExact(a.args[0]))) {
        if (kwnames && !step_type && strstr(Py_TYPE(a.args[0])->tp_name, "TaskStepMethWrapper"))
            step_type = Py_TYPE(a.args[0]);
        PyObject_GC_Track((PyObject *)h);
    }
    if (threadsafe)
        backlog_wake(q);
    return (PyObject *)h;
}

static PyObject *schedule_at(BacklogObject *q, PyObject *loop, struct schedule_args *a,
                             int64_t when_ns, double when, int given, const char *name)
{
    PyObject *traceback = NULL;
    if (q->state && !(traceback = slow_check(q, loop, a->args[1], name)))
        return NULL;
    HandleObject *h = handle_new(1, loop, a->args[1], a->args + 2, a->nargs - 2, a->context);
    if (h) {
        h->when_ns = when_ns;
        if (given) {
            h->when = when;
            h->flags |= HANDLE_WHEN_GIVEN;
        }
        PyObject_GC_Track((PyObject *)h);
        if ((traceback && handle_debug_set(h, 0, traceback) < 0) || timer_heap_push(q, h) < 0)
            Py_CLEAR(h);
    }
    Py_XDECREF(traceback);
    return (PyObject *)h;
}

/* A positive or negative number of seconds; NaN is refused. -1 with an exception set. */
static inline int seconds_of(PyObject *value, const char *what, double *seconds)
{
    if (PyFloat_CheckExact(value)) {
        *seconds = PyFloat_AS_DOUBLE(value);
    } else {
        *seconds = PyFloat_AsDouble(value);
        if (*seconds == -1.0 && PyErr_Occurred()) {
            if (value == Py_None)
                PyErr_Format(PyExc_TypeError, "%s must not be None", what);
            return -1;
        }
    }
    if (isnan(*seconds)) {
        PyErr_Format(PyExc_ValueError, "%s must not be NaN", what);
        return -1;
    }
    return 0;
}

/* Seconds in nanoseconds, rounded up; the far future (or past) stays in range. */
static inline int64_t nanoseconds_up(double seconds)
{
    if (seconds >= 4e9) /* 126 years */
        return INT64_MAX / 2;
    if (seconds <= -4e9)
        return INT64_MIN / 4;
    double whole = floor(seconds);
    return (int64_t)whole * 1000000000 + (int64_t)ceil((seconds - whole) * 1e9);
}

static PyObject *backlog_call_later(BacklogObject *q, PyObject *loop, PyObject *const *args,
                                    Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const required[] = {"delay", "callback"};
    struct schedule_args a = {args, nargs};
    double delay;
    if (schedule_args(&a, kwnames, "call_later", required, 2) < 0
        || seconds_of(a.args[0], "delay", &delay) < 0)
        return NULL;
    return schedule_at(q, loop, &a, monotonic_ns() + nanoseconds_up(delay), 0, 0, "call_later");
}

static PyObject *backlog_call_at(BacklogObject *q, PyObject *loop, PyObject *const *args,
                                 Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const required[] = {"when", "callback"};
    struct schedule_args a = {args, nargs};
    double when;
    if (schedule_args(&a, kwnames, "call_at", required, 2) < 0
        || seconds_of(a.args[0], "when", &when) < 0)
        return NULL;
    return schedule_at(q, loop, &a, nanoseconds_up(when), when, 1, "call_at");
}

static int queues_init(void)
{
    if (!(no_arguments = PyTuple_New(0)))
        return -1;
    return handle_types_init() < 0 ? -1 : context_probe();
}

/* ---- the object ---------------------------------------------------------- */

static int backlog_traverse(PyObject *self, visitproc visit, void *arg)
{
    BacklogObject *q = (BacklogObject *)self;
    Py_VISIT(Py_TYPE(self));
    for (size_t i = q->head; i != q->tail; i++) {
        PyObject *h = (PyObject *)q->ring[i & q->mask];
        int r = 0;
        if (PyObject_GC_IsTracked(h))
            Py_VISIT(h);
        else if (Py_REFCNT(h) == 1 && (r = handle_traverse(h, visit, arg)))
            return r;
    }
    for (Py_ssize_t i = 0; i < q->timers; i++)
        Py_VISIT(q->heap[i].handle);
    for (int fd = 0; fd < q->n_slots; fd++) {
        for (int k = 0; k < WATCH_KINDS; k++)
            Py_VISIT(q->slots[fd].watcher[k]);
        for (uint32_t n = q->slots[fd].stream_refs; n; n--)
            Py_VISIT(q->slots[fd].stream);
        Py_VISIT(q->slots[fd].calls);
    }
    for (OpLink *link = q->in_flight.next; link != &q->in_flight; link = link->next)
        Py_VISIT(link->op);
    return 0;
}

static void ready_clear(BacklogObject *q)
{
    while (q->head != q->tail) {
        HandleObject *h = q->ring[q->head++ & q->mask];
        if (!(h->flags & HANDLE_KEEP))
            handle_drop(h);
        Py_DECREF(h);
    }
}

static void timers_clear(BacklogObject *q)
{
    while (q->timers) {
        HandleObject *h = q->heap[--q->timers].handle;
        h->index = -1;
        handle_drop(h);
        Py_DECREF(h);
    }
}

static void watchers_clear(BacklogObject *q)
{
    for (int fd = 0; fd < q->n_slots; fd++) {
        for (int k = 0; k < WATCH_KINDS; k++) {
            HandleObject *h = q->slots[fd].watcher[k];
            if (h) {
                q->slots[fd].watcher[k] = NULL;
                handle_drop(h);
                Py_DECREF(h);
            }
        }
        PyObject *stream = q->slots[fd].stream;
        q->slots[fd].stream_events = 0;
        q->slots[fd].stream = NULL;
        for (; q->slots[fd].stream_refs; q->slots[fd].stream_refs--)
            Py_DECREF(stream);
        PyObject *calls = q->slots[fd].calls;
        q->slots[fd].calls = NULL;
        q->slots[fd].call_waits = q->slots[fd].call_events = 0;
        Py_XDECREF(calls);
    }
    q->n_watched = 0;
}

/* Operations in flight stay: the kernel may still write to their memory.  The
 * loop's close() cancels and reaps them. */
static int backlog_clear(PyObject *self)
{
    ready_clear((BacklogObject *)self);
    timers_clear((BacklogObject *)self);
    watchers_clear((BacklogObject *)self);
    return 0;
}

static void backlog_dealloc(PyObject *self)
{
    BacklogObject *q = (BacklogObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    backlog_clear(self);
    PyMem_Free(q->ring);
    PyMem_Free(q->heap);
    PyMem_Free(q->slots);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyType_Slot backlog_slots[] = {
    {Py_tp_dealloc, backlog_dealloc},
    {Py_tp_traverse, backlog_traverse},
    {Py_tp_clear, backlog_clear},
    {0, NULL},
};

static PyType_Spec backlog_spec = {
    "aiounify._core.scheduler.Backlog", sizeof(BacklogObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, backlog_slots};

static PyObject *backlog_new(void)
{
    if (!Backlog_Type && !(Backlog_Type = (PyTypeObject *)PyType_FromSpec(&backlog_spec)))
        return NULL;
    HandleObject **ring = PyMem_New(HandleObject *, 256);
    if (!ring)
        return PyErr_NoMemory();
    BacklogObject *q = PyObject_GC_New(BacklogObject, Backlog_Type);
    if (!q) {
        PyMem_Free(ring);
        return NULL;
    }
    memset((char *)q + sizeof(PyObject), 0, sizeof *q - sizeof(PyObject));
    q->ring = ring;
    q->mask = 255;
    q->wake_fd = -1;
    q->in_flight.next = q->in_flight.prev = &q->in_flight;
    PyObject_GC_Track((PyObject *)q);
    return (PyObject *)q;
}

#endif
