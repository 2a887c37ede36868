/* The end of asyncio.sleep(), without running Python for it.
 *
 * sleep() asks for call_later(delay, futures._set_result_unless_cancelled, future, result).
 * That function is two method calls; as Python it is a third of what a sleep costs when its
 * time has come.  When the callback is that very function and the future is asyncio's own, the
 * result is set from here.  That calls nothing but call_soon(), which is given its
 * context, so none is entered either.
 *
 * The function is known by its address and its code: where somebody has replaced either,
 * where futures are not the C ones, and where the future is done, it is called like any other.
 *
 * This header is included by exactly one translation unit (scheduler).
 */
#ifndef AIOUNIFY_SLEEP_END_H
#define AIOUNIFY_SLEEP_END_H

#include <Python.h>

static PyObject *sleep_callback;     /* owned; NULL: always by Python */
static PyObject *sleep_code;         /* owned: what it is made of */
static PyTypeObject *sleep_future;   /* owned: asyncio.Future */
static PyCFunction sleep_done;       /* its method done() */
static PyObject *sleep_set_result;   /* owned: its method set_result() */

/* Tell what is to be recognised.  0; -1 with an exception set. */
static int sleep_end_init(PyObject *callback, PyObject *future)
{
    PyObject *done = NULL, *set_result = NULL;
    if (!PyFunction_Check(callback) || !PyType_Check(future))
        return 0;
    if (!(done = PyObject_GetAttrString(future, "done"))
        || !(set_result = PyObject_GetAttrString(future, "set_result"))) {
        Py_XDECREF(done);
        return -1;
    }
    if (Py_IS_TYPE(done, &PyMethodDescr_Type) && Py_IS_TYPE(set_result, &PyMethodDescr_Type)
        && ((PyMethodDescrObject *)done)->d_method->ml_flags == METH_NOARGS) {
        sleep_callback = Py_NewRef(callback);
        sleep_code = Py_NewRef(PyFunction_GET_CODE(callback));
        sleep_future = (PyTypeObject *)Py_NewRef(future);
        sleep_done = ((PyMethodDescrObject *)done)->d_method->ml_meth;
        sleep_set_result = Py_NewRef(set_result);
    }
    Py_DECREF(done); /* the type goes on owning the method */
    Py_DECREF(set_result);
    return 0;
}

/* Whether callback(*args) is the end of a sleep that goes on. */
static inline int sleep_ends(PyObject *callback, PyObject *const *args, int32_t nargs)
{
    if (callback != sleep_callback || nargs != 2 || !Py_IS_TYPE(args[0], sleep_future)
        || PyFunction_GET_CODE(callback) != sleep_code)
        return 0;
    PyObject *done = sleep_done(args[0], NULL); /* True or False; NULL is impossible */
    Py_XDECREF(done);
    return done == Py_False;
}

/* None, or NULL with an exception set. */
static PyObject *sleep_end(PyObject *future, PyObject *value)
{
    PyObject *args[] = {future, value};
    return PyObject_Vectorcall(sleep_set_result, args, 2, NULL);
}

#endif
