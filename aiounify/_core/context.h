/* Contexts of callbacks, without a copy for each.
 *
 * asyncio runs every callback in a copy of the context in which it was scheduled.
 * Copying is O(1), but the copy is a garbage collected object: made, tracked and
 * freed for every call_soon() it is a third of the price of a bare callback.
 * Nearly all of these copies hold the same variables as the one before.
 *
 * So handles share a snapshot: a Context that nobody ever enters, and which hence
 * never changes.  To run, its variables are put into a work context, a copy of the
 * snapshot that the next callback uses too, unless this one changed a variable or
 * kept the context.  What a callback can observe is the same: a fresh context with
 * the variables of the moment it was scheduled.  A snapshot never leaves this file:
 * whoever asks a handle for its context gets a copy of its own.
 *
 * To see whether variables are the same without comparing them, one word of the
 * Context object is read: the pointer to its immutable map.  The word's place is not
 * public, so it is verified at import (context_probe); where it is not what it is
 * believed to be, every handle gets its own copy again.
 *
 * This header is included by exactly one translation unit (scheduler).
 */
#ifndef AIOUNIFY_CONTEXT_H
#define AIOUNIFY_CONTEXT_H

#include <Python.h>

/* struct _pycontextobject: head, ctx_prev, ctx_vars, ... (3.7 to 3.14) */
#define CONTEXT_VARS_OFFSET (sizeof(PyObject) + sizeof(void *))

static int context_sharing;          /* the probe succeeded */
static PyObject *context_snapshot;   /* owned; never entered */
static PyObject *context_work;       /* owned; entered only by handle_call() */

static inline void *context_vars(PyObject *context)
{
    return *(void **)((char *)context + CONTEXT_VARS_OFFSET);
}

static inline PyObject *context_current(void) { return PyThreadState_Get()->context; }

/* 0; sets context_sharing.  -1 with an exception set. */
static int context_probe(void)
{
    int ok = 0;
    PyObject *a = NULL, *b = NULL, *token = NULL;
    PyObject *var = PyContextVar_New("aiounify probe", NULL);
    if (!var || !(a = PyContext_CopyCurrent()) || !(b = PyContext_Copy(a)))
        goto done;
    if ((size_t)PyContext_Type.tp_basicsize < CONTEXT_VARS_OFFSET + sizeof(void *)) {
        ok = 1;
        goto done;
    }
    void *before = context_vars(a);
    int same = before && before == context_vars(b);
    if (PyContext_Enter(b) < 0)
        goto done;
    same = same && context_current() == b && context_vars(b) == before;
    token = PyContextVar_Set(var, Py_None);
    same = same && context_vars(b) != before && context_vars(a) == before;
    if (PyContext_Exit(b) < 0 || !token)
        goto done;
    context_sharing = same;
    ok = 1;
done:
    Py_XDECREF(var);
    Py_XDECREF(a);
    Py_XDECREF(b);
    Py_XDECREF(token);
    return ok ? 0 : -1;
}

/* The context for a callback scheduled now: a new reference.  *flags gets
 * HANDLE_SHARED if it is a snapshot. */
static inline PyObject *context_capture(uint32_t *flags)
{
    if (!context_sharing)
        return PyContext_CopyCurrent();
    *flags |= HANDLE_SHARED;
    PyObject *current = context_current();
    if (context_snapshot && current && context_vars(current) == context_vars(context_snapshot))
        return Py_NewRef(context_snapshot);
    PyObject *snapshot = PyContext_CopyCurrent();
    if (snapshot)
        Py_XSETREF(context_snapshot, Py_NewRef(snapshot));
    return snapshot;
}

/* A context to run in that holds a snapshot's variables: a new reference. */
static inline PyObject *context_borrow(PyObject *snapshot)
{
    PyObject *work = context_work;
    if (work) {
        context_work = NULL; /* in use until context_return() */
        if (Py_REFCNT(work) == 1 && context_vars(work) == context_vars(snapshot))
            return work;
        Py_DECREF(work); /* may run any code */
    }
    return PyContext_Copy(snapshot);
}

/* After the run: keep it for the next one, unless the callback changed or kept it, for
 * then it would only keep values alive.  Takes over the reference. */
static inline void context_return(PyObject *work, PyObject *snapshot)
{
    if (!context_work && Py_REFCNT(work) == 1 && context_vars(work) == context_vars(snapshot))
        context_work = work;
    else
        Py_DECREF(work);
}

/* A context to report a failure with, where none was entered; the exception stays set. */
static PyObject *context_after_failure(PyObject *snapshot)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyObject *copy = PyContext_Copy(snapshot);
    PyErr_Restore(type, error, traceback); /* also in place of a MemoryError */
    return copy;
}

/* Let go of the variables' values, when a loop stops or closes. */
static void context_forget(void)
{
    Py_CLEAR(context_snapshot);
    Py_CLEAR(context_work);
}

#endif
