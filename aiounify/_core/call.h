/* A call: what loop.sock_recv() and its kin return, a coroutine to everybody who looks.
 *
 * asyncio's are coroutine functions written in Python.  A call is one object with the same
 * protocol: it begins when it is first sent to, is accepted by create_task(), gather() and
 * wait_for(), shows cr_await and the like to debuggers, and warns if it was never awaited.
 *
 * What it does is in its kind: attempt() tries without blocking.  Before it waits, and
 * after each wait, the same function is called, so a call that is cancelled while it waits
 * has taken nothing from the kernel and given nothing to it (apart from the part that
 * sock_sendall() has sent before).
 *
 * No StopIteration is made where the interpreter does not insist on one: tasks, and
 * coroutines up to 3.11, use am_send.  From 3.12 on a coroutine that awaits uses
 * tp_iternext, which can end without an exception if the result is None.
 *
 * Ownership: a call owns what it was given until it ends, and an exported buffer from its
 * first attempt to its end.  While it is suspended it owns its wait, and the endpoint in
 * which the wait stands.
 *
 * This header is included by exactly one translation unit (sock_calls).
 */
#ifndef AIOUNIFY_CALL_H
#define AIOUNIFY_CALL_H

#include <Python.h>
#include <stddef.h>
#include <structmember.h>

#include "returning.h"

#define CALL_FREELIST_MAX 256

enum { CALL_CREATED, CALL_RUNNING, CALL_SUSPENDED, CALL_FINISHED };

struct CallObject;

typedef struct {
    const char *name; /* of the loop's method */
    /* 1: *result is set.  0: it would block; `awaits` says on what.  -1: an exception. */
    int (*attempt)(struct CallObject *call, PyObject **result);
} CallKind;

typedef struct CallObject {
    PyObject_HEAD
    const CallKind *kind;
    PyObject *loop, *sock;
    PyObject *what;     /* a limit, a buffer, or the data */
    PyObject *more;     /* an address or a second limit, or NULL */
    PyObject *wait;     /* what was yielded, while suspended */
    PyObject *endpoint; /* where it stands */
    PyObject *origin;   /* debug mode: where it was made, as cr_origin */
    PyObject *weakrefs;
    Py_buffer view;     /* view.obj: exported until the end */
    const char *at;     /* data not sent yet */
    Py_ssize_t left;
    uint32_t awaits;
    char state, begun;
} CallObject;

static PyTypeObject *Call_Type;
static CallObject *call_free[CALL_FREELIST_MAX];
static int call_free_count;

/* Given once by the module: what precedes the first attempt (checks; -1 with an exception
 * set), a wait at the call's socket, its withdrawal (which takes wait and endpoint out of
 * the call), the warning of a call never awaited. */
static int (*call_begin)(CallObject *call);
static PyObject *(*call_suspend)(CallObject *call);
static int (*call_withdraw)(CallObject *call);
static PyObject *call_unawaited;

static CallObject *call_new(const CallKind *kind, PyObject *loop, PyObject *sock,
                            PyObject *what, PyObject *more)
{
    CallObject *c;
    if (call_free_count) {
        c = call_free[--call_free_count]; /* it kept its type, and the reference to it */
        Py_SET_REFCNT((PyObject *)c, 1);
    } else if (!(c = PyObject_GC_New(CallObject, Call_Type))) {
        return NULL;
    }
    c->kind = kind;
    c->loop = Py_NewRef(loop);
    c->sock = Py_NewRef(sock);
    c->what = Py_NewRef(what);
    c->more = Py_XNewRef(more);
    c->wait = c->endpoint = c->origin = c->weakrefs = NULL;
    c->view.obj = NULL;
    c->at = NULL;
    c->left = 0;
    c->awaits = 0;
    c->state = CALL_CREATED;
    c->begun = 0;
    PyObject_GC_Track(c);
    return c;
}

static int call_traverse(PyObject *self, visitproc visit, void *arg)
{
    CallObject *c = (CallObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(c->loop);
    Py_VISIT(c->sock);
    Py_VISIT(c->what);
    Py_VISIT(c->more);
    Py_VISIT(c->wait);
    Py_VISIT(c->endpoint);
    Py_VISIT(c->origin);
    Py_VISIT(c->view.obj);
    return 0;
}

/* It is over, or nobody will go on with it. */
static void call_drop(CallObject *c)
{
    int suspended = c->state == CALL_SUSPENDED;
    c->state = CALL_FINISHED;
    if (suspended) {
        PyObject *type, *error, *traceback; /* of whatever it is that ends the call */
        PyErr_Fetch(&type, &error, &traceback);
        if (call_withdraw(c) < 0)
            PyErr_WriteUnraisable(NULL);
        PyErr_Restore(type, error, traceback);
    }
    if (c->view.obj)
        PyBuffer_Release(&c->view);
    Py_CLEAR(c->what);
    Py_CLEAR(c->more);
    Py_CLEAR(c->sock);
}

static void call_warn(CallObject *c)
{
    PyObject *type, *error, *traceback;
    if (!call_unawaited)
        return;
    PyErr_Fetch(&type, &error, &traceback);
    PyObject *done = PyObject_CallFunction(call_unawaited, "sO", c->kind->name,
                                           c->origin ? c->origin : Py_None);
    if (!done)
        PyErr_WriteUnraisable(NULL);
    Py_XDECREF(done);
    PyErr_Restore(type, error, traceback);
}

static int call_clear(PyObject *self)
{
    CallObject *c = (CallObject *)self;
    if (c->state == CALL_CREATED)
        call_warn(c);
    call_drop(c);
    Py_CLEAR(c->origin);
    Py_CLEAR(c->loop);
    return 0;
}

static void call_dealloc(PyObject *self)
{
    CallObject *c = (CallObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (c->weakrefs)
        PyObject_ClearWeakRefs(self);
    call_clear(self);
    if (call_free_count < CALL_FREELIST_MAX) {
        call_free[call_free_count++] = c;
        return;
    }
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* ---- going on --------------------------------------------------------------- */

static PySendResult call_send(PyObject *self, PyObject *value, PyObject **result)
{
    CallObject *c = (CallObject *)self;
    *result = NULL;
    switch (c->state) {
    case CALL_CREATED:
        if (value && value != Py_None) {
            PyErr_SetString(PyExc_TypeError,
                            "can't send non-None value to a just-started coroutine");
            return PYGEN_ERROR;
        }
        break;
    case CALL_SUSPENDED:
        c->state = CALL_RUNNING;
        if (call_withdraw(c) < 0) {
            call_drop(c);
            return PYGEN_ERROR;
        }
        break;
    case CALL_RUNNING:
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return PYGEN_ERROR;
    default:
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
    int first = c->state == CALL_CREATED, done;
    c->state = CALL_RUNNING;
    Py_INCREF(self); /* what an attempt calls may drop it */
    done = first && call_begin(c) < 0 ? -1 : c->kind->attempt(c, result);
    if (done == 0 && (*result = call_suspend(c))) {
        c->state = CALL_SUSPENDED;
        Py_DECREF(self);
        return PYGEN_NEXT;
    }
    if (done > 0) {
        call_drop(c);
        Py_DECREF(self);
        return PYGEN_RETURN;
    }
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    call_drop(c);
    Py_DECREF(self);
    PyErr_Restore(type, error, traceback);
    return PYGEN_ERROR;
}

static PyObject *call_iternext(PyObject *self)
{
    PyObject *result;
    PySendResult how = call_send(self, Py_None, &result);
    return return_from_next(how, result);
}

static PyObject *call_send_method(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult how = call_send(self, value, &result);
    if (how == PYGEN_RETURN) {
        return_seen(result);
        return NULL;
    }
    return result;
}

static PyObject *call_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    CallObject *c = (CallObject *)self;
    if (nargs < 1 || nargs > 3)
        return PyErr_Format(PyExc_TypeError, "throw() takes one to three arguments (%zd given)",
                            nargs);
    PyObject *type = args[0], *value = nargs > 1 && args[1] != Py_None ? args[1] : NULL;
    PyObject *traceback = nargs > 2 && args[2] != Py_None ? args[2] : NULL;
    if (traceback && !PyTraceBack_Check(traceback)) {
        PyErr_SetString(PyExc_TypeError, "throw() third argument must be a traceback object");
        return NULL;
    }
    Py_XINCREF(value);
    if (PyExceptionClass_Check(type)) {
        Py_INCREF(type);
        Py_XINCREF(traceback);
        PyErr_NormalizeException(&type, &value, &traceback);
    } else if (PyExceptionInstance_Check(type) && !value) {
        value = Py_NewRef(type);
        type = Py_NewRef(PyExceptionInstance_Class(value));
        traceback = traceback ? Py_NewRef(traceback) : PyException_GetTraceback(value);
    } else {
        if (value)
            PyErr_SetString(PyExc_TypeError,
                            "instance exception may not have a separate value");
        else
            PyErr_Format(PyExc_TypeError, "exceptions must be classes or instances deriving "
                         "from BaseException, not %s", Py_TYPE(type)->tp_name);
        Py_XDECREF(value);
        return NULL;
    }
    if (c->state == CALL_RUNNING || c->state == CALL_FINISHED) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
        if (c->state == CALL_RUNNING)
            PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        else
            PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return NULL;
    }
    call_drop(c);
    PyErr_Restore(type, value, traceback);
    return NULL;
}

static PyObject *call_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    CallObject *c = (CallObject *)self;
    if (c->state == CALL_RUNNING) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return NULL;
    }
    call_drop(c);
    Py_RETURN_NONE;
}

static PyObject *call_await(PyObject *self)
{
    if (((CallObject *)self)->state == CALL_SUSPENDED) {
        PyErr_SetString(PyExc_RuntimeError, "coroutine is being awaited already");
        return NULL;
    }
    return Py_NewRef(self);
}

/* ---- what a debugger asks ----------------------------------------------------- */

static PyObject *call_get_name(PyObject *self, void *qualified)
{
    return PyUnicode_FromFormat(qualified ? "EventLoop.%s" : "%s",
                                ((CallObject *)self)->kind->name);
}

static PyObject *call_get_await(PyObject *self, void *Py_UNUSED(closure))
{
    CallObject *c = (CallObject *)self;
    return Py_NewRef(c->wait ? c->wait : Py_None);
}

static PyObject *call_get_origin(PyObject *self, void *Py_UNUSED(closure))
{
    CallObject *c = (CallObject *)self;
    return Py_NewRef(c->origin ? c->origin : Py_None);
}

/* cr_running, cr_suspended: whether it is in the state that `closure` points to. */
static PyObject *call_in_state(PyObject *self, void *closure)
{
    return PyBool_FromLong(((CallObject *)self)->state == (char)(intptr_t)closure);
}

static PyObject *call_get_none(PyObject *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    Py_RETURN_NONE; /* neither frame nor code */
}

static PyObject *call_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<coroutine object EventLoop.%s at %p>",
                                ((CallObject *)self)->kind->name, self);
}

static PyMethodDef call_methods[] = {
    {"send", call_send_method, METH_O,
     "Go on: the wait that follows, or StopIteration with the result."},
    {"throw", (PyCFunction)(void (*)(void))call_throw, METH_FASTCALL,
     "End the call by an exception, which is raised."},
    {"close", call_close, METH_NOARGS, "End the call; nothing if it has ended."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef call_getset[] = {
    {"__name__", call_get_name, NULL, NULL, NULL},
    {"__qualname__", call_get_name, NULL, NULL, (void *)1},
    {"cr_await", call_get_await, NULL, NULL, NULL},
    {"cr_origin", call_get_origin, NULL, NULL, NULL},
    {"cr_running", call_in_state, NULL, NULL, (void *)CALL_RUNNING},
    {"cr_suspended", call_in_state, NULL, NULL, (void *)CALL_SUSPENDED},
    {"cr_frame", call_get_none, NULL, NULL, NULL},
    {"cr_code", call_get_none, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef call_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(CallObject, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot call_slots[] = {
    {Py_tp_doc, "What sock_recv() and its kin return: a coroutine to whoever looks."},
    {Py_tp_dealloc, call_dealloc},
    {Py_tp_traverse, call_traverse},
    {Py_tp_clear, call_clear},
    {Py_tp_repr, call_repr},
    /* __iter__ for `yield from call.__await__()` */
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, call_iternext},
    {Py_am_await, call_await},
    {Py_am_send, call_send},
    {Py_tp_methods, call_methods},
    {Py_tp_getset, call_getset},
    {Py_tp_members, call_members},
    {0, NULL},
};

static PyType_Spec call_spec = {
    "aiounify._core.sock_calls.Call", sizeof(CallObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, call_slots};

static int call_init(void)
{
    if (return_init("aiounify._core.sock_calls.Return") < 0)
        return -1;
    if (!(Call_Type = (PyTypeObject *)PyType_FromSpec(&call_spec)))
        return -1;
    return 0;
}

#endif
