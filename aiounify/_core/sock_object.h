/* What a socket object holds, read without a method call.
 *
 * sock.fileno() and sock.family cost several hundred instructions for each packet; the
 * four ints they answer with stand behind the object's head in every version of CPython
 * so far.  Their place is not public, so it is verified when the module is imported, with
 * sockets of different kinds (sock_probe).  Where it is not what it is believed to be, the
 * methods are called.
 *
 * This header is included by exactly one translation unit (sock_calls).
 */
#ifndef AIOUNIFY_SOCK_OBJECT_H
#define AIOUNIFY_SOCK_OBJECT_H

#include <Python.h>

typedef struct {
    PyObject_HEAD
    int fd, family, type, proto;
} SockObject;

static int sock_readable;       /* the probe succeeded */
static PyObject *sock_names[4]; /* what to ask for otherwise */

enum { SOCK_FD, SOCK_FAMILY, SOCK_TYPE, SOCK_PROTO };

/* The slow way.  -2 with an exception set. */
static int sock_ask(PyObject *sock, int what)
{
    PyObject *found = what == SOCK_FD ? PyObject_CallMethodNoArgs(sock, sock_names[what])
                                      : PyObject_GetAttr(sock, sock_names[what]);
    if (!found)
        return -2;
    long value = PyLong_AsLong(found);
    Py_DECREF(found);
    return value == -1 && PyErr_Occurred() ? -2 : (int)value;
}

/* Its descriptor, -1 once it is closed; its family, type and protocol.  -2 with an
 * exception set.  `sock` is a socket.socket that overrides none of them. */
static inline int sock_get(PyObject *sock, int what)
{
    if (sock_readable)
        return (&((SockObject *)sock)->fd)[what];
    return sock_ask(sock, what);
}

/* 0; -1 with an exception set.  `sock` is an open socket: one that disagrees switches the
 * fast way off. */
static int sock_probe(PyObject *sock)
{
    static const char *const names[4] = {"fileno", "family", "type", "proto"};
    Py_ssize_t needed = sizeof(SockObject);
    for (int i = 0; i < 4; i++) {
        if (!sock_names[i] && !(sock_names[i] = PyUnicode_InternFromString(names[i])))
            return -1;
        int value = sock_ask(sock, i);
        if (value == -2)
            return -1;
        if (Py_TYPE(sock)->tp_basicsize < needed || (&((SockObject *)sock)->fd)[i] != value) {
            sock_readable = 0;
            return 0;
        }
    }
    return 0;
}

#endif
