/* The slots by which a FileCall is awaited, in place of those that Cython makes.
 *
 * Cython's __next__ raises StopIteration with a traceback, which costs more than the read itself.
 * Ownership: none; the type is static and lives as long as its module.
 */
#ifndef AIOUNIFY_FILE_CALL_H
#define AIOUNIFY_FILE_CALL_H

#include "returning.h"

/* Given once by the module: 1: *result is the result; 0: it is what is waited for; -1: an error. */
static int (*file_call_step)(PyObject *call, PyObject *value, PyObject **result);

static PySendResult file_call_send(PyObject *self, PyObject *value, PyObject **result)
{
    *result = NULL;
    int how = file_call_step(self, value ? value : Py_None, result);
    return how < 0 ? PYGEN_ERROR : how ? PYGEN_RETURN : PYGEN_NEXT;
}

static PyObject *file_call_next(PyObject *self)
{
    PyObject *result;
    PySendResult how = file_call_send(self, Py_None, &result);
    return return_from_next(how, result);
}

static int file_call_install(PyTypeObject *type)
{
    if (return_init("aiounify._core.file_calls.Return") < 0)
        return -1;
    type->tp_iternext = file_call_next;
    type->tp_as_async->am_send = file_call_send;
    PyType_Modified(type);
    return 0;
}

/* Let `type` be iterated as its base is.
 *
 * What Cython makes of __anext__ is a method, so a class derived in Python gets the slot that looks
 * the method up by its name and calls it, for each line.  Setting __anext__ later replaces this. */
static int file_lines_install(PyTypeObject *type, PyTypeObject *base)
{
    if (type->tp_as_async && base->tp_as_async) {
        type->tp_as_async->am_anext = base->tp_as_async->am_anext;
        PyType_Modified(type);
    }
    return 0;
}

#endif
