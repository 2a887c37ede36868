/* A wait: what a native call yields to the task that awaits it.
 *
 * asyncio's Task wants a future: something with _asyncio_future_blocking, get_loop(),
 * add_done_callback(), cancel() and result().  A real asyncio.Future costs more than all
 * the rest of a socket call: it asks its loop for debug mode when it is made, wakes the task
 * by way of loop.call_soon(), and takes 2000 instructions.  A wait takes some 300:
 *
 * - It comes from a freelist and puts the wake-up straight into the ready ring.
 * - The four attributes that a task asks for before it suspends are answered without a
 *   look-up, and without making method objects: the wait itself is its get_loop (called
 *   without arguments) and its add_done_callback.
 * - The wake-up of a C Task is called with a future that is done, of which it takes the
 *   result without calling a method by name.
 *
 * A wait has no value: the call that yielded it tries again when the task goes on, so
 * nothing is taken from the kernel for a task that is cancelled in between.
 *
 * It is not awaitable and never leaves the task that got it, apart from debuggers and
 * asyncio's repr of tasks, which read task._fut_waiter.
 *
 * Ownership: a wait owns its loop, callbacks and contexts, and drops them when it is done.
 * What wakes it (an endpoint) owns a reference while it may do so.
 *
 * This header is included by exactly one translation unit (endpoint).
 */
#ifndef AIOUNIFY_WAIT_H
#define AIOUNIFY_WAIT_H

#include <Python.h>
#include <stddef.h>
#include <string.h>
#include <structmember.h>

#define WAIT_FREELIST_MAX 256

enum { WAIT_PENDING, WAIT_DONE, WAIT_CANCELLED };

typedef struct {
    PyObject_HEAD
    PyObject *loop;
    PyObject *callback, *context; /* the first, mostly the only one */
    PyObject *more;               /* NULL, or a list of pairs (callback, context) */
    PyObject *message;            /* given to cancel() */
    vectorcallfunc vectorcall;    /* wait_called() */
    char state, blocking;
} WaitObject;

static PyTypeObject *Wait_Type;
static WaitObject *wait_free[WAIT_FREELIST_MAX];
static int wait_free_count;

/* given once by the module: queue callback(wait) in a context; CancelledError; the
 * function of asyncio that describes callbacks */
static int (*wait_schedule)(PyObject *loop, PyObject *callback, PyObject *wait,
                            PyObject *context);
static PyObject *wait_cancelled_error;
static PyObject *wait_describe;
/* a future that is done, with None */
static PyObject *wait_over;
/* names that a task looks up */
static PyObject *wait_str_blocking, *wait_str_get_loop, *wait_str_add;

static PyObject *wait_called(PyObject *self, PyObject *const *args, size_t nargsf,
                             PyObject *kwnames);

static WaitObject *wait_new(PyObject *loop)
{
    WaitObject *w;
    if (wait_free_count) {
        w = wait_free[--wait_free_count]; /* it kept its type, and the reference to it */
        Py_SET_REFCNT((PyObject *)w, 1);
    } else if (!(w = PyObject_GC_New(WaitObject, Wait_Type))) {
        return NULL;
    }
    w->loop = Py_NewRef(loop);
    w->callback = w->context = w->more = w->message = NULL;
    w->state = WAIT_PENDING;
    w->blocking = 1; /* as if just awaited: it is made to be yielded */
    w->vectorcall = wait_called;
    PyObject_GC_Track(w);
    return w;
}

static int wait_traverse(PyObject *self, visitproc visit, void *arg)
{
    WaitObject *w = (WaitObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(w->loop);
    Py_VISIT(w->callback);
    Py_VISIT(w->context);
    Py_VISIT(w->more);
    Py_VISIT(w->message);
    return 0;
}

static int wait_clear(PyObject *self)
{
    WaitObject *w = (WaitObject *)self;
    Py_CLEAR(w->callback);
    Py_CLEAR(w->context);
    Py_CLEAR(w->more);
    Py_CLEAR(w->message);
    Py_CLEAR(w->loop);
    return 0;
}

static void wait_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    wait_clear(self);
    if (wait_free_count < WAIT_FREELIST_MAX) {
        wait_free[wait_free_count++] = (WaitObject *)self;
        return;
    }
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* The wake-up of asyncio's C Task, known by its definition. */
static inline int wait_is_wakeup(PyObject *callback)
{
    static PyMethodDef *wakeup;
    if (!PyCFunction_CheckExact(callback))
        return 0;
    PyMethodDef *method = ((PyCFunctionObject *)callback)->m_ml;
    if (method == wakeup)
        return 1;
    if (wakeup || strcmp(method->ml_name, "task_wakeup"))
        return 0;
    wakeup = method;
    return 1;
}

/* It is done: queue what was to be called.  Nothing if it is already, by a cancellation that
 * its task has not seen yet.  -1 with an exception set. */
static int wait_finish(WaitObject *w, char state)
{
    PyObject *callback = w->callback, *context = w->context, *more = w->more;
    int failed = 0;
    if (w->state != WAIT_PENDING)
        return 0;
    w->state = state;
    w->callback = w->context = w->more = NULL;
    if (callback && w->loop) { /* it has none once the collector has cleared it */
        int fast = state == WAIT_DONE && wait_is_wakeup(callback);
        failed = wait_schedule(w->loop, callback, fast ? wait_over : (PyObject *)w, context);
    }
    for (Py_ssize_t i = 0; more && w->loop && !failed && i < PyList_GET_SIZE(more); i++) {
        PyObject *pair = PyList_GET_ITEM(more, i);
        failed = wait_schedule(w->loop, PyTuple_GET_ITEM(pair, 0), (PyObject *)w,
                               PyTuple_GET_ITEM(pair, 1));
    }
    Py_XDECREF(callback);
    Py_XDECREF(context);
    Py_XDECREF(more);
    return failed;
}

/* ---- what a task calls ---------------------------------------------------- */

/* get_loop() and add_done_callback(callback, *, context=None) */
static PyObject *wait_called(PyObject *self, PyObject *const *args, size_t nargsf,
                             PyObject *kwnames)
{
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    static PyObject *expected; /* ("context",) of the caller that calls all the time */
    WaitObject *w = (WaitObject *)self;
    PyObject *context = NULL;
    if (!nargs && !kwnames)
        return Py_NewRef(w->loop ? w->loop : Py_None);
    if (kwnames && PyTuple_GET_SIZE(kwnames)) {
        if (kwnames != expected) {
            if (PyTuple_GET_SIZE(kwnames) != 1
                || PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "context"))
                return PyErr_Format(PyExc_TypeError, "add_done_callback() got an unexpected "
                                    "keyword argument");
            Py_XSETREF(expected, Py_NewRef(kwnames));
        }
        context = args[nargs];
    }
    if (nargs != 1)
        return PyErr_Format(PyExc_TypeError, "add_done_callback() takes exactly one positional "
                            "argument (%zd given)", nargs);
    context = context && context != Py_None ? Py_NewRef(context) : PyContext_CopyCurrent();
    if (!context)
        return NULL;
    int failed = 0;
    if (w->state != WAIT_PENDING && w->loop) {
        failed = wait_schedule(w->loop, args[0], self, context);
    } else if (!w->callback) {
        w->callback = Py_NewRef(args[0]);
        w->context = Py_NewRef(context);
    } else {
        PyObject *pair = PyTuple_Pack(2, args[0], context);
        failed = !pair || (!w->more && !(w->more = PyList_New(0)))
                 || PyList_Append(w->more, pair) < 0;
        Py_XDECREF(pair);
    }
    Py_DECREF(context);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

/* The number of callbacks removed. */
static PyObject *wait_remove_done_callback(PyObject *self, PyObject *callback)
{
    WaitObject *w = (WaitObject *)self;
    long removed = 0;
    PyObject *kept = NULL, *all = w->more;
    if (all) {
        if (!(kept = PyList_New(0)))
            return NULL;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(all); i++) {
            PyObject *pair = Py_NewRef(PyList_GET_ITEM(all, i));
            int same = PyObject_RichCompareBool(PyTuple_GET_ITEM(pair, 0), callback, Py_EQ);
            int failed = same < 0 || (!same && PyList_Append(kept, pair) < 0);
            Py_DECREF(pair);
            if (failed) {
                Py_DECREF(kept);
                return NULL;
            }
            removed += same;
        }
        if (w->state == WAIT_PENDING) /* else the comparison made it done */
            Py_XSETREF(w->more, Py_NewRef(kept));
        Py_DECREF(kept);
    }
    if (w->callback) {
        PyObject *first = Py_NewRef(w->callback);
        int same = PyObject_RichCompareBool(first, callback, Py_EQ);
        Py_DECREF(first);
        if (same < 0)
            return NULL;
        if (same && w->callback) {
            removed++;
            Py_CLEAR(w->callback);
            Py_CLEAR(w->context);
        }
    }
    return PyLong_FromLong(removed);
}

static PyObject *wait_cancel(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    WaitObject *w = (WaitObject *)self;
    Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    if (nargs + named > 1
        || (named && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "msg")))
        return PyErr_Format(PyExc_TypeError, "cancel() takes one argument at most, msg");
    if (w->state != WAIT_PENDING)
        Py_RETURN_FALSE;
    if (nargs + named)
        w->message = Py_NewRef(args[0]);
    if (wait_finish(w, WAIT_CANCELLED) < 0)
        return NULL;
    Py_RETURN_TRUE;
}

static PyObject *wait_result(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    WaitObject *w = (WaitObject *)self;
    if (w->state == WAIT_DONE)
        Py_RETURN_NONE;
    if (w->state == WAIT_PENDING) {
        PyErr_SetString(PyExc_RuntimeError, "the wait is not over");
        return NULL;
    }
    PyObject *error = w->message && w->message != Py_None
                          ? PyObject_CallOneArg(wait_cancelled_error, w->message)
                          : PyObject_CallNoArgs(wait_cancelled_error);
    if (error) {
        PyErr_SetObject(wait_cancelled_error, error);
        Py_DECREF(error);
    }
    return NULL;
}

static PyObject *wait_done(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((WaitObject *)self)->state != WAIT_PENDING);
}

static PyObject *wait_cancelled(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((WaitObject *)self)->state == WAIT_CANCELLED);
}

static PyObject *wait_getattro(PyObject *self, PyObject *name)
{
    if (name == wait_str_blocking)
        return PyBool_FromLong(((WaitObject *)self)->blocking);
    if (name == wait_str_add || name == wait_str_get_loop)
        return Py_NewRef(self);
    return PyObject_GenericGetAttr(self, name);
}

static int wait_setattro(PyObject *self, PyObject *name, PyObject *value)
{
    if (name == wait_str_blocking && value) {
        int truth = PyObject_IsTrue(value);
        if (truth >= 0)
            ((WaitObject *)self)->blocking = (char)truth;
        return truth < 0 ? -1 : 0;
    }
    return PyObject_GenericSetAttr(self, name, value);
}

static PyObject *wait_get_blocking(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((WaitObject *)self)->blocking);
}

/* As a future's, for the repr of tasks: <Wait pending cb=[...]>. */
static PyObject *wait_repr(PyObject *self)
{
    static const char *const states[] = {"pending", "finished", "cancelled"};
    WaitObject *w = (WaitObject *)self;
    if (!w->callback || !wait_describe)
        return PyUnicode_FromFormat("<Wait %s>", states[(int)w->state]);
    PyObject *shown = PyObject_CallFunction(wait_describe, "O()", w->callback);
    if (!shown)
        return NULL;
    PyObject *text = PyUnicode_FromFormat("<Wait %s cb=[%S]>", states[(int)w->state], shown);
    Py_DECREF(shown);
    return text;
}

static PyMethodDef wait_methods[] = {
    {"remove_done_callback", wait_remove_done_callback, METH_O, NULL},
    {"cancel", (PyCFunction)(void (*)(void))wait_cancel, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"cancelled", wait_cancelled, METH_NOARGS, NULL},
    {"done", wait_done, METH_NOARGS, NULL},
    {"result", wait_result, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef wait_getset[] = {
    /* so that hasattr(type(wait), ...) finds it, as asyncio.isfuture() asks */
    {"_asyncio_future_blocking", wait_get_blocking, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef wait_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(WaitObject, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot wait_slots[] = {
    {Py_tp_doc, "What a native call yields to the task that awaits it."},
    {Py_tp_dealloc, wait_dealloc},
    {Py_tp_traverse, wait_traverse},
    {Py_tp_clear, wait_clear},
    {Py_tp_repr, wait_repr},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_getattro, wait_getattro},
    {Py_tp_setattro, wait_setattro},
    {Py_tp_members, wait_members},
    {Py_tp_methods, wait_methods},
    {Py_tp_getset, wait_getset},
    {0, NULL},
};

static PyType_Spec wait_spec = {
    "aiounify._core.endpoint.Wait", sizeof(WaitObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION
        | Py_TPFLAGS_HAVE_VECTORCALL,
    wait_slots};

/* 0; -1 with an exception set.  `over` is a future that is done, with None. */
static int wait_init(PyObject *over)
{
    wait_over = Py_NewRef(over);
    if (!(wait_str_blocking = PyUnicode_InternFromString("_asyncio_future_blocking"))
        || !(wait_str_get_loop = PyUnicode_InternFromString("get_loop"))
        || !(wait_str_add = PyUnicode_InternFromString("add_done_callback")))
        return -1;
    Wait_Type = (PyTypeObject *)PyType_FromSpec(&wait_spec);
    return Wait_Type ? 0 : -1;
}

#endif
