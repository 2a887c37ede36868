/* How a native awaitable hands its result to the interpreter without making an exception.
 *
 * Tasks, and coroutines up to Python 3.11, ask am_send, which returns the result.  From 3.12 on a
 * coroutine that awaits asks tp_iternext, whose only way to return anything but None is a
 * StopIteration.
 *
 * Included by each translation unit that defines such a type; each has a kind of its own.
 */
#ifndef AIOUNIFY_RETURNING_H
#define AIOUNIFY_RETURNING_H

#include <Python.h>

/* Raise a StopIteration that somebody may look at; takes the value's reference over. */
static void return_seen(PyObject *value)
{
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
    Py_DECREF(value);
    if (stop) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
}

#if PY_VERSION_HEX >= 0x030c0000
/* The exception by which a result leaves tp_iternext.  Nobody sees it: whoever uses
 * tp_iternext takes the value and drops the exception at once.  Making a StopIteration and
 * freeing it costs as much as a small system call, so this kind of it is kept for the next
 * time. */
static PyTypeObject *Return_Type;
static PyObject *return_free;
static PyObject *return_no_args; /* () */

static void return_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    type->tp_clear(self);
    if (!return_free) {
        return_free = self;
        return;
    }
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static int return_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return ((PyTypeObject *)PyExc_StopIteration)->tp_traverse(self, visit, arg);
}

static int return_clear(PyObject *self)
{
    return ((PyTypeObject *)PyExc_StopIteration)->tp_clear(self);
}

static PyType_Slot return_slots[] = {
    {Py_tp_doc, "StopIteration, from a native call."},
    {Py_tp_dealloc, return_dealloc},
    {Py_tp_traverse, return_traverse},
    {Py_tp_clear, return_clear},
    {0, NULL},
};

static PyType_Spec return_spec = {
    NULL, sizeof(PyStopIterationObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, return_slots};

static int return_init(const char *name)
{
    return_spec.name = name;
    return_no_args = PyTuple_New(0);
    PyObject *bases = PyTuple_Pack(1, PyExc_StopIteration);
    if (!return_no_args || !bases)
        return -1;
    Return_Type = (PyTypeObject *)PyType_FromSpecWithBases(&return_spec, bases);
    Py_DECREF(bases);
    return Return_Type ? 0 : -1;
}

/* Raise it with a value, whose reference is taken over. */
static void return_value(PyObject *value)
{
    PyObject *stop = return_free;
    if (stop) {
        return_free = NULL;
        Py_SET_REFCNT(stop, 1);
        ((PyBaseExceptionObject *)stop)->args = Py_NewRef(return_no_args);
        PyObject_GC_Track(stop);
    } else if (!(stop = Return_Type->tp_new(Return_Type, return_no_args, NULL))) {
        Py_DECREF(value);
        return;
    }
    Py_XSETREF(((PyStopIterationObject *)stop)->value, value);
    PyErr_SetRaisedException(stop);
}
#else
static int return_init(const char *name) { return 0; }

static void return_value(PyObject *value) { return_seen(value); }
#endif

/* What tp_iternext returns after a step. */
static inline PyObject *return_from_next(PySendResult how, PyObject *result)
{
    if (how != PYGEN_RETURN)
        return result;
    if (result == Py_None)
        Py_DECREF(result); /* no exception means None */
    else
        return_value(result);
    return NULL;
}

#endif
