/* os.stat_result of a descriptor, made without the detours of os.fstat().
 *
 * os.fstat() computes the nanoseconds by arithmetic on Python objects and releases the GIL; that
 * takes longer than fstat(2).  The layout of os.stat_result is the interpreter's own affair, so the
 * first results are compared with os.fstat()'s, and os.fstat() is used if they differ.
 */
#ifndef AIOUNIFY_FILE_STATUS_H
#define AIOUNIFY_FILE_STATUS_H

#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <sys/stat.h>

#define STATUS_FIELDS 19

/* NULL without an exception: this one is os.stat()'s. */
static PyObject *status_from(const struct stat *st, PyObject *type)
{
    if (st->st_uid == (uid_t)-1 || st->st_gid == (gid_t)-1)
        return NULL;
    const struct timespec *times[3] = {&st->st_atim, &st->st_mtim, &st->st_ctim};
    const unsigned long long numbers[7] = {st->st_mode, st->st_ino, st->st_dev, st->st_nlink,
                                           st->st_uid, st->st_gid,
                                           (unsigned long long)st->st_size};
    const unsigned long long rest[3] = {(unsigned long long)st->st_blksize,
                                        (unsigned long long)st->st_blocks, st->st_rdev};
    for (int i = 0; i < 3; i++)
        if (times[i]->tv_sec > INT64_C(9000000000) || times[i]->tv_sec < -INT64_C(9000000000))
            return NULL; /* its nanoseconds do not fit */
    PyObject *found = PyStructSequence_New((PyTypeObject *)type);
    if (!found)
        return NULL;
    for (int i = 0; i < 7; i++)
        PyStructSequence_SetItem(found, i, PyLong_FromUnsignedLongLong(numbers[i]));
    for (int i = 0; i < 3; i++) {
        long long s = times[i]->tv_sec, ns = times[i]->tv_nsec;
        PyStructSequence_SetItem(found, 7 + i, PyLong_FromLongLong(s));
        PyStructSequence_SetItem(found, 10 + i, PyFloat_FromDouble((double)s + 1e-9 * ns));
        PyStructSequence_SetItem(found, 13 + i, PyLong_FromLongLong(s * 1000000000 + ns));
    }
    for (int i = 0; i < 3; i++)
        PyStructSequence_SetItem(found, 16 + i, PyLong_FromUnsignedLongLong(rest[i]));
    if (PyErr_Occurred())
        Py_CLEAR(found);
    return found;
}

static PyObject *status_of(int fd, PyObject *type)
{
    struct stat st;
    return fstat(fd, &st) < 0 ? NULL : status_from(&st, type);
}

/* The same of a path; *error is what stat() said, or 0. */
static PyObject *status_at(const char *path, int follow, PyObject *type, int *error)
{
    struct stat st;
    int failed = follow ? stat(path, &st) : lstat(path, &st);
    *error = failed ? errno : 0;
    return failed ? NULL : status_from(&st, type);
}

#endif
