/* What a socket object holds, read without a method call.
 *
 * sock.fileno() and sock.family cost several hundred instructions for each packet; the
 * four ints they answer with stand behind the object's head in every version of CPython
 * so far.  Their place is not public, so each module that includes this header verifies it
 * when it is imported, with sockets of different kinds (sock_verify).  Where it is not what
 * it is believed to be, the attributes are asked for.
 *
 * "Socket" means socket.socket here, or a subclass that overrides none of the four.
 */
#ifndef AIOUNIFY_SOCK_OBJECT_H
#define AIOUNIFY_SOCK_OBJECT_H

#include <Python.h>
#include <sys/socket.h>

typedef struct {
    PyObject_HEAD
    int fd, family, type, proto;
} SockObject;

enum { SOCK_FD, SOCK_FAMILY, SOCK_TYPE, SOCK_PROTO };

static int sock_readable;       /* the verification succeeded */
static PyObject *sock_names[4]; /* what to ask for otherwise */

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
 * exception set. */
static inline int sock_get(PyObject *sock, int what)
{
    if (sock_readable)
        return (&((SockObject *)sock)->fd)[what];
    return sock_ask(sock, what);
}

/* The descriptor, -1 also where it cannot be had. */
static inline int sock_fd(PyObject *sock)
{
    if (sock_readable)
        return ((SockObject *)sock)->fd;
    int fd = sock_ask(sock, SOCK_FD);
    if (fd == -2)
        PyErr_Clear();
    return fd < 0 ? -1 : fd;
}

/* 1 if the object answers what its memory says, 0 if not; -1 with an exception set. */
static int sock_agrees(PyObject *sock)
{
    if (Py_TYPE(sock)->tp_basicsize < (Py_ssize_t)sizeof(SockObject))
        return 0;
    for (int i = 0; i < 4; i++) {
        int value = sock_ask(sock, i);
        if (value == -2)
            return -1;
        if ((&((SockObject *)sock)->fd)[i] != value)
            return 0;
    }
    return 1;
}

/* Look at sockets of the given type, socket.socket.  0; -1 with an exception set. */
static int sock_verify(PyObject *type)
{
    static const char *const names[4] = {"fileno", "family", "type", "proto"};
    static const int kinds[][3] = {{AF_UNIX, SOCK_STREAM, 0}, {AF_INET, SOCK_DGRAM, 17}};
    int agrees = 1;
    for (int i = 0; i < 4; i++)
        if (!sock_names[i] && !(sock_names[i] = PyUnicode_InternFromString(names[i])))
            return -1;
    for (int i = 0; i < 2 && agrees > 0; i++) {
        PyObject *sock = PyObject_CallFunction(type, "iii", kinds[i][0], kinds[i][1],
                                               kinds[i][2]);
        if (!sock) { /* none can be made now: ask */
            if (!PyErr_ExceptionMatches(PyExc_OSError))
                return -1;
            PyErr_Clear();
            return 0;
        }
        agrees = sock_agrees(sock);
        PyObject *closed = agrees < 0 ? NULL : PyObject_CallMethod(sock, "close", NULL);
        if (agrees > 0 && closed)
            agrees = sock_agrees(sock);
        Py_DECREF(sock);
        Py_XDECREF(closed);
        if (agrees < 0 || !closed)
            return -1;
    }
    sock_readable = agrees;
    return 0;
}

#endif
