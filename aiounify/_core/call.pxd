"""Cython's view of call.h: the objects that socket calls return."""

from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport uint32_t


cdef extern from "call.h":
    ctypedef struct CallObject
    ctypedef struct CallKind:
        const char *name
        int (*attempt)(CallObject *, PyObject **) except -1
    ctypedef struct Buffer "Py_buffer":
        void *buf
        Py_ssize_t len
    ctypedef struct CallObject:
        const CallKind *kind
        PyObject *loop
        PyObject *sock
        PyObject *what
        PyObject *more
        PyObject *wait
        PyObject *endpoint
        PyObject *origin
        Buffer view
        const char *at
        Py_ssize_t left
        uint32_t awaits
        char begun
    PyTypeObject *Call_Type
    int (*call_begin)(CallObject *) except -1
    PyObject *(*call_suspend)(CallObject *) except NULL
    int (*call_withdraw)(CallObject *) except -1
    PyObject *call_unawaited
    CallObject *call_new(const CallKind *kind, PyObject *loop, PyObject *sock, PyObject *what,
                         PyObject *more) except NULL
    int call_init() except -1
