/* Handles: one scheduled callback each.
 *
 * Why C: a handle is made, run and freed for every callback of the program, and
 * both its layout (inline arguments) and its life (freelists, contents that move to
 * the stack to run) are what make that cheap.
 *
 * Two types share one struct:
 *   Handle       what call_soon() and add_reader() return.
 *   TimerHandle  what call_later() and call_at() return.
 *
 * Both are garbage collected types, since programs keep handles in the objects whose
 * methods they call; a handle drops all its references once it has run or was
 * cancelled, so no cycle outlives the callback.  A handle that nobody but the ready
 * ring will ever hold, that of a step of a C Task, is not tracked: the ring's owner
 * visits its contents (see backlog_traverse).
 *
 * Both answer asyncio.Handle / asyncio.TimerHandle to isinstance() by their
 * __class__, and carry asyncio's private names (_callback, _args, _cancelled,
 * _context, _source_traceback ...) because debuggers and asyncio itself read them.
 *
 * Ownership: a handle owns its callback, arguments, context and (until it ran or
 * was cancelled) its loop.  The ready queue and the timer heap own a reference
 * to the handle.  Everything here runs with the GIL held.
 *
 * This header is included by exactly one translation unit (scheduler).
 */
#ifndef AIOUNIFY_HANDLE_H
#define AIOUNIFY_HANDLE_H

#include <structmember.h>

#include "backlog.h"
#include "context.h"

#define HANDLE_FREELIST_MAX 2048

static PyTypeObject *Handle_Type;
static PyTypeObject *TimerHandle_Type;
/* asyncio.Handle and asyncio.TimerHandle, given once by the scheduler module */
static PyObject *handle_asyncio_class[2];

static HandleObject *handle_free[2][HANDLE_FREELIST_MAX];
static int handle_free_count[2];

static void timer_heap_remove(struct BacklogObject *backlog, HandleObject *handle);

static inline HandleObject *handle_alloc(int timer)
{
    PyTypeObject *type = timer ? TimerHandle_Type : Handle_Type;
    HandleObject *h;
    if (handle_free_count[timer]) {
        /* dead but whole: it kept its type, and the reference to it */
        h = handle_free[timer][--handle_free_count[timer]];
        Py_SET_REFCNT((PyObject *)h, 1);
    } else {
        h = PyObject_GC_New(HandleObject, type);
    }
    return h;
}

/* A new handle, not tracked yet; context NULL means a copy of the current one. */
static inline HandleObject *handle_new(int timer, PyObject *loop, PyObject *callback,
                                       PyObject *const *args, Py_ssize_t nargs,
                                       PyObject *context)
{
    uint32_t flags = timer ? HANDLE_TIMER : 0;
    if (context)
        Py_INCREF(context);
    else if (!(context = context_capture(&flags)))
        return NULL;
    PyObject *overflow = NULL;
    if (nargs > HANDLE_INLINE_ARGS) {
        overflow = PyTuple_New(nargs);
        if (!overflow) {
            Py_DECREF(context);
            return NULL;
        }
        for (Py_ssize_t i = 0; i < nargs; i++)
            PyTuple_SET_ITEM(overflow, i, Py_NewRef(args[i]));
    }
    HandleObject *h = handle_alloc(timer);
    if (!h) {
        Py_DECREF(context);
        Py_XDECREF(overflow);
        return NULL;
    }
    h->loop = Py_NewRef(loop);
    h->callback = Py_NewRef(callback);
    h->context = context;
    h->debug = NULL;
    h->weakrefs = NULL;
    h->flags = flags;
    h->index = -1;
    h->backlog = NULL;
    if (overflow) {
        h->nargs = -1;
        h->args[0] = overflow;
    } else {
        h->nargs = (int32_t)nargs;
        for (Py_ssize_t i = 0; i < nargs; i++)
            h->args[i] = Py_NewRef(args[i]);
    }
    return h;
}

/* Drop callback, arguments, context and loop. */
static void handle_drop(HandleObject *h)
{
    PyObject *callback = h->callback, *context = h->context, *loop = h->loop;
    int n = h->nargs < 0 ? 1 : h->nargs;
    PyObject *args[HANDLE_INLINE_ARGS];
    for (int i = 0; i < n; i++)
        args[i] = h->args[i];
    h->callback = h->context = h->loop = NULL;
    h->nargs = 0;
    /* only now: freeing may run any code, which may look at this handle */
    Py_XDECREF(callback);
    for (int i = 0; i < n; i++)
        Py_DECREF(args[i]);
    Py_XDECREF(context);
    Py_XDECREF(loop);
}

static int handle_traverse(PyObject *self, visitproc visit, void *arg)
{
    HandleObject *h = (HandleObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(h->loop);
    Py_VISIT(h->callback);
    Py_VISIT(h->context);
    Py_VISIT(h->debug);
    int n = h->nargs < 0 ? 1 : h->nargs;
    for (int i = 0; i < n; i++)
        Py_VISIT(h->args[i]);
    return 0;
}

static int handle_clear(PyObject *self)
{
    handle_drop((HandleObject *)self);
    Py_CLEAR(((HandleObject *)self)->debug);
    return 0;
}

static void handle_dealloc(PyObject *self)
{
    HandleObject *h = (HandleObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    int timer = type == TimerHandle_Type;
    PyObject_GC_UnTrack(self);
    if (h->weakrefs)
        PyObject_ClearWeakRefs(self);
    if (h->loop || h->callback)
        handle_drop(h);
    if (h->debug)
        Py_CLEAR(h->debug);
    if (handle_free_count[timer] < HANDLE_FREELIST_MAX) {
        handle_free[timer][handle_free_count[timer]++] = h;
        return;
    }
    PyObject_GC_Del(h);
    Py_DECREF(type);
}

static PyObject *handle_args_tuple(HandleObject *h)
{
    if (!h->callback)
        Py_RETURN_NONE;
    if (h->nargs < 0)
        return Py_NewRef(h->args[0]);
    int32_t n = h->nargs;
    PyObject *t = PyTuple_New(n);
    if (t && h->nargs != n) { /* cancelled by the collector, which the allocation ran */
        Py_DECREF(t);
        Py_RETURN_NONE;
    }
    for (int32_t i = 0; t && i < n; i++)
        PyTuple_SET_ITEM(t, i, Py_NewRef(h->args[i]));
    return t;
}

/* debug list: [source_traceback, repr] */
static int handle_debug_set(HandleObject *h, Py_ssize_t i, PyObject *value)
{
    if (!h->debug && !(h->debug = Py_BuildValue("[OO]", Py_None, Py_None)))
        return -1;
    return PyList_SetItem(h->debug, i, Py_NewRef(value));
}

static PyObject *handle_debug_get(HandleObject *h, Py_ssize_t i)
{
    return Py_NewRef(h->debug ? PyList_GET_ITEM(h->debug, i) : Py_None);
}

static int handle_cancel_c(HandleObject *h)
{
    if (h->flags & HANDLE_CANCELLED)
        return 0;
    h->flags |= HANDLE_CANCELLED;
    if (h->debug) { /* keep what it was, for the reports of debug mode */
        PyObject *r = PyObject_Repr((PyObject *)h);
        if (!r || handle_debug_set(h, 1, r) < 0) {
            Py_XDECREF(r);
            return -1;
        }
        Py_DECREF(r);
    }
    Py_INCREF(h);
    if (h->index >= 0)
        timer_heap_remove(h->backlog, h);
    handle_drop(h);
    Py_DECREF(h);
    return 0;
}

static PyObject *handle_cancel(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (handle_cancel_c((HandleObject *)self) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *handle_cancelled(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((HandleObject *)self)->flags & HANDLE_CANCELLED);
}

/* Give the handle a context of its own.  -1 with MemoryError set. */
static int handle_own_context(HandleObject *h)
{
    if (h->context && h->flags & HANDLE_SHARED) {
        PyObject *snapshot = Py_NewRef(h->context), *own = PyContext_Copy(snapshot);
        if (own && h->context == snapshot) { /* making it may have cancelled the handle */
            h->flags &= ~HANDLE_SHARED;
            h->context = own;
            Py_DECREF(snapshot);
        } else {
            Py_XDECREF(own);
        }
        Py_DECREF(snapshot);
        if (!own)
            return -1;
    }
    return 0;
}

static PyObject *handle_get_context(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    HandleObject *h = (HandleObject *)self;
    if (handle_own_context(h) < 0)
        return NULL;
    return Py_NewRef(h->context ? h->context : Py_None);
}

static PyObject *handle_get_class(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *cls = handle_asyncio_class[(((HandleObject *)self)->flags & HANDLE_TIMER) != 0];
    return Py_NewRef(cls ? cls : (PyObject *)Py_TYPE(self));
}

static PyObject *handle_get_callback(PyObject *self, void *Py_UNUSED(closure))
{
    HandleObject *h = (HandleObject *)self;
    return Py_NewRef(h->callback ? h->callback : Py_None);
}

static PyObject *handle_get_args(PyObject *self, void *Py_UNUSED(closure))
{
    return handle_args_tuple((HandleObject *)self);
}

static PyObject *handle_get_is_cancelled(PyObject *self, void *Py_UNUSED(closure))
{
    return handle_cancelled(self, NULL);
}

static PyObject *handle_get_ctx(PyObject *self, void *Py_UNUSED(closure))
{
    return handle_get_context(self, NULL);
}

static PyObject *handle_get_loop(PyObject *self, void *Py_UNUSED(closure))
{
    HandleObject *h = (HandleObject *)self;
    return Py_NewRef(h->loop ? h->loop : Py_None);
}

static PyObject *handle_get_debug(PyObject *self, void *closure)
{
    return handle_debug_get((HandleObject *)self, (Py_ssize_t)(intptr_t)closure);
}

static int handle_set_debug(PyObject *self, PyObject *value, void *closure)
{
    return handle_debug_set((HandleObject *)self, (Py_ssize_t)(intptr_t)closure,
                            value ? value : Py_None);
}

static double timer_when(HandleObject *h)
{
    return h->flags & HANDLE_WHEN_GIVEN ? h->when : (double)h->when_ns / 1e9;
}

static PyObject *timer_handle_when(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyFloat_FromDouble(timer_when((HandleObject *)self));
}

static PyObject *timer_handle_get_when(PyObject *self, void *Py_UNUSED(closure))
{
    return timer_handle_when(self, NULL);
}

static PyObject *timer_handle_get_scheduled(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((HandleObject *)self)->index >= 0);
}

static Py_hash_t timer_handle_hash(PyObject *self)
{
    PyObject *when = timer_handle_when(self, NULL);
    if (!when)
        return -1;
    Py_hash_t hash = PyObject_Hash(when);
    Py_DECREF(when);
    return hash;
}

/* asyncio orders timers by time; equality also asks for the same callback */
static PyObject *timer_handle_richcompare(PyObject *a, PyObject *b, int op)
{
    if (Py_TYPE(a) != TimerHandle_Type || Py_TYPE(b) != TimerHandle_Type)
        Py_RETURN_NOTIMPLEMENTED;
    HandleObject *x = (HandleObject *)a, *y = (HandleObject *)b;
    double p = timer_when(x), q = timer_when(y);
    int same = 0;
    if (op != Py_LT && op != Py_GT) {
        same = a == b;
        if (!same && p == q && x->callback && y->callback
            && ((x->flags ^ y->flags) & HANDLE_CANCELLED) == 0) {
            PyObject *f = Py_NewRef(x->callback), *g = Py_NewRef(y->callback);
            same = PyObject_RichCompareBool(f, g, Py_EQ); /* may cancel either */
            Py_DECREF(f);
            Py_DECREF(g);
            if (same < 0)
                return NULL;
            if (same) {
                PyObject *s = handle_args_tuple(x), *t = handle_args_tuple(y);
                same = s && t ? PyObject_RichCompareBool(s, t, Py_EQ) : -1;
                Py_XDECREF(s);
                Py_XDECREF(t);
                if (same < 0)
                    return NULL;
            }
        }
    }
    switch (op) {
    case Py_LT: return PyBool_FromLong(p < q);
    case Py_LE: return PyBool_FromLong(p < q || same);
    case Py_GT: return PyBool_FromLong(p > q);
    case Py_GE: return PyBool_FromLong(p > q || same);
    case Py_EQ: return PyBool_FromLong(same);
    default: return PyBool_FromLong(!same);
    }
}

/* asyncio calls handle._run() nowhere on this loop, but other code may. */
static PyObject *handle_run_method(PyObject *self, PyObject *Py_UNUSED(ignored));

static PyMethodDef handle_methods[] = {
    {"cancel", handle_cancel, METH_NOARGS,
     "Withdraw the callback; nothing happens if it ran or was cancelled before."},
    {"cancelled", handle_cancelled, METH_NOARGS, "True if cancel() was called."},
    {"get_context", handle_get_context, METH_NOARGS,
     "The contextvars.Context the callback runs in."},
    {"_run", handle_run_method, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef timer_handle_methods[] = {
    {"cancel", handle_cancel, METH_NOARGS,
     "Withdraw the callback; nothing happens if it ran or was cancelled before."},
    {"cancelled", handle_cancelled, METH_NOARGS, "True if cancel() was called."},
    {"get_context", handle_get_context, METH_NOARGS,
     "The contextvars.Context the callback runs in."},
    {"when", timer_handle_when, METH_NOARGS,
     "The time the callback is due, in seconds of loop.time()."},
    {"_run", handle_run_method, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

#define HANDLE_GETSET                                                         \
    {"__class__", handle_get_class, NULL, NULL, NULL},                        \
    {"_callback", handle_get_callback, NULL, NULL, NULL},                     \
    {"_args", handle_get_args, NULL, NULL, NULL},                             \
    {"_cancelled", handle_get_is_cancelled, NULL, NULL, NULL},                \
    {"_context", handle_get_ctx, NULL, NULL, NULL},                           \
    {"_loop", handle_get_loop, NULL, NULL, NULL},                             \
    {"_source_traceback", handle_get_debug, handle_set_debug, NULL, (void *)0}, \
    {"_repr", handle_get_debug, handle_set_debug, NULL, (void *)1}

static PyGetSetDef handle_getset[] = {HANDLE_GETSET, {NULL, NULL, NULL, NULL, NULL}};

static PyGetSetDef timer_handle_getset[] = {
    HANDLE_GETSET,
    {"_when", timer_handle_get_when, NULL, NULL, NULL},
    {"_scheduled", timer_handle_get_scheduled, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef handle_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(HandleObject, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_doc, "A callback scheduled by call_soon(); an asyncio.Handle to isinstance()."},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_methods, handle_methods},
    {Py_tp_getset, handle_getset},
    {Py_tp_members, handle_members},
    {0, NULL},
};

static PyType_Slot timer_handle_slots[] = {
    {Py_tp_doc,
     "A callback scheduled by call_later() or call_at(); an asyncio.TimerHandle to isinstance()."},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_methods, timer_handle_methods},
    {Py_tp_getset, timer_handle_getset},
    {Py_tp_members, handle_members},
    {Py_tp_hash, timer_handle_hash},
    {Py_tp_richcompare, timer_handle_richcompare},
    {0, NULL},
};

static PyType_Spec handle_spec = {
    "aiounify._core.scheduler.Handle", sizeof(HandleObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, handle_slots};

static PyType_Spec timer_handle_spec = {
    "aiounify._core.scheduler.TimerHandle", sizeof(HandleObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    timer_handle_slots};

static int handle_types_init(void)
{
    if (!(Handle_Type = (PyTypeObject *)PyType_FromSpec(&handle_spec)))
        return -1;
    if (!(TimerHandle_Type = (PyTypeObject *)PyType_FromSpec(&timer_handle_spec)))
        return -1;
    return 0;
}

#endif
