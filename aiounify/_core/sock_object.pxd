"""Cython's view of sock_object.h: what a socket object holds."""

from cpython.object cimport PyObject


cdef extern from "sock_object.h":
    enum:
        SOCK_FD
        SOCK_FAMILY
        SOCK_TYPE
        SOCK_PROTO
        SOCK_STREAM
    int sock_get(PyObject *sock, int what) except -2
    int sock_fd(PyObject *sock)
    int sock_verify(PyObject *type) except -1
