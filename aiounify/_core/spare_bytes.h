/* Bytes objects to receive into, used again once nobody else holds them.
 *
 * Why it exists: a received message is a bytes object that most protocols drop before
 * they return (a parser, a copy into a buffer) or once it is sent.  What the allocator
 * then does for each message, and for large ones the kernel with it, is more than all the
 * rest of the transport does.  So an object of which the transport holds the only
 * reference goes to a small stock, from which the next message of about its size is made.
 *
 * Rules:
 *
 * - Only exact bytes objects with a reference count of one are stocked: no program can
 *   see them any more.  They have no weak references and are not tracked by the collector.
 * - An object's size may only shrink here: `ob_size` never exceeds what was allocated.
 *   Its hash is forgotten.
 * - An object is used for messages of its size or an eighth less, so that a program that
 *   keeps what it receives holds hardly more memory than it asked for.
 * - The stock belongs to one reactor and is used with the GIL held.
 */
#ifndef AIOUNIFY_SPARE_BYTES_H
#define AIOUNIFY_SPARE_BYTES_H

#include <Python.h>

enum {
    SPARE_COUNT = 64,
    SPARE_MIN = 513,  /* Python's own allocator is as fast up to 512 bytes */
    SPARE_MAX = 4096, /* so the stock holds 256 KiB at most */
};

typedef struct {
    PyObject *item[SPARE_COUNT];
    int n;
} spare_bytes;

static inline void bytes_reuse(PyObject *b, Py_ssize_t n)
{
    Py_SET_SIZE((PyVarObject *)b, n);
    PyBytes_AS_STRING(b)[n] = 0;
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#endif
    ((PyBytesObject *)b)->ob_shash = -1;
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
}

/* A bytes object of n bytes to be written by the caller, who alone has it. */
static inline PyObject *spare_take(spare_bytes *s, Py_ssize_t n)
{
    if (n >= SPARE_MIN && s->n) {
        PyObject *b = s->item[--s->n];
        Py_ssize_t size = PyBytes_GET_SIZE(b);
        if (size >= n && size - n <= size >> 3) {
            bytes_reuse(b, n);
            return b;
        }
        Py_DECREF(b); /* the stock follows the sizes that come */
    }
    return PyBytes_FromStringAndSize(NULL, n);
}

/* Give up a reference to an exact bytes object. */
static inline void spare_give(spare_bytes *s, PyObject *b)
{
    if (Py_REFCNT(b) == 1 && PyBytes_GET_SIZE(b) >= SPARE_MIN && PyBytes_GET_SIZE(b) <= SPARE_MAX
        && s->n < SPARE_COUNT)
        s->item[s->n++] = b;
    else
        Py_DECREF(b);
}

static inline void spare_clear(spare_bytes *s)
{
    while (s->n)
        Py_DECREF(s->item[--s->n]);
}

#endif
