# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False
"""Questions about a path that are answered at once: what it is, and all that is in it.

Why it exists: stat() of a path and a whole small file are asked for more often than anything else.
When the path and the file are in the kernel's caches, opening, asking and closing are three system
calls on the loop's thread.  What has to wait is in Python (aiounify/files/status.py, whole.py).
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from libc.stdint cimport int64_t
from posix.unistd cimport close as c_close

import os

from aiounify._core.file_calls cimport MISS, STAT, WHOLE, Answers, FileCall, call_new
from aiounify._core.file_service cimport FileService
from aiounify._core.page_cache cimport NOWAIT_OFF, NOWAIT_ON, WHOLE_MAX, read_cached, regular_size
from aiounify._core.reactor cimport ENOENT


cdef extern from "Python.h":
    PyObject *bytes_new "PyBytes_FromStringAndSize" (const char *, Py_ssize_t) except NULL
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    void Py_DECREF(PyObject *)
    int PyUnicode_FSConverter(object, PyObject **) except 0

cdef extern from "file_status.h":
    enum:
        STATUS_FIELDS
    PyObject *status_of(int fd, object kind) except? NULL

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    """
    enum:
        ENOTDIR
        O_PATH
        O_NONBLOCK
        O_NOFOLLOW

cdef enum:
    ONE_READ = 1 << 30   # bytes of a file that is read in one operation, at the most

cdef object _os_fstat = os.fstat
cdef object _stat_result = os.stat_result
cdef bint _own_status = os.stat_result.n_fields == STATUS_FIELDS
cdef int _compared = 0


cdef object status(int fd):
    """os.fstat() of a descriptor."""
    global _own_status, _compared
    cdef PyObject *made
    if not _own_status:
        return _os_fstat(fd)
    made = status_of(fd, _stat_result)
    if made == NULL:
        return _os_fstat(fd)
    found = <object>made
    Py_DECREF(made)
    if _compared < 3:
        # Of what changes meanwhile the first results may differ; then it is os.fstat()'s for good.
        theirs = _os_fstat(fd)
        if found.__reduce__() != theirs.__reduce__():
            _own_status = False
        _compared += 1
        return theirs
    return found


cdef inline bytes encoded(path):
    """As the kernel takes it; TypeError, ValueError as of open()."""
    cdef PyObject *found = NULL
    PyUnicode_FSConverter(path, &found)
    result = <bytes>found
    Py_DECREF(found)
    return result


cdef object try_stat(FileService service, path, bint follow):
    cdef int fd
    cdef bytes name
    if not service.opens_cached:
        return MISS
    name = encoded(path)
    fd = service.open_at_once(PyBytes_AS_STRING(name), O_PATH | (0 if follow else O_NOFOLLOW))
    if fd < 0:
        if fd == -ENOENT or fd == -ENOTDIR:
            raise OSError(-fd, os.strerror(-fd), path)
        return MISS
    try:
        return status(fd)
    finally:
        c_close(fd)


cdef object try_whole(FileCall call):
    """The content, or MISS; what was found out on the way then goes to the coroutine that waits."""
    cdef FileService service = call.service
    cdef int fd, nowait = NOWAIT_ON
    cdef bytes name
    cdef int64_t size
    cdef ssize_t n = -1
    cdef PyObject *out
    if not service.opens_cached:
        return MISS
    name = encoded(call.a)
    fd = service.open_at_once(PyBytes_AS_STRING(name), O_NONBLOCK)
    if fd < 0:
        if fd == -ENOENT or fd == -ENOTDIR:
            raise OSError(-fd, os.strerror(-fd), os.fspath(call.a))
        return MISS
    try:
        size = regular_size(fd, &nowait)
        if 0 < size <= WHOLE_MAX and nowait != NOWAIT_OFF:
            # one byte more than there should be: less than that is the end of the file
            out = bytes_new(NULL, size + 1)
            n = read_cached(fd, bytes_data(out), size + 1, 0, &nowait)
            service.hit(n)
            if n == size:
                _PyBytes_Resize(&out, n)
                found = <object>out
                Py_DECREF(out)
                return found
            Py_DECREF(out)
        if 0 < size <= ONE_READ:
            call.inner = call.b(call.a, fd, size)
            fd = -1  # the coroutine's
        else:
            call.inner = call.b(call.a, -1, 0)
        return MISS
    finally:
        if fd >= 0:
            c_close(fd)


cdef class _Paths(Answers):
    """Answers for whoever has no handle: it knows nothing itself."""

    cdef object at_once(self, FileCall call):
        if call.kind == STAT:
            return try_stat(call.service, call.a, call.flag)
        return try_whole(call)

    cdef object awaited(self, FileCall call):
        return call.inner if call.inner is not None else call.b(call.a)


cdef _Paths _paths = _Paths()


def stat(FileService service, path, slow, bint follow):
    """os.stat(), awaited; slow(path) is the coroutine for what has to be waited for."""
    return call_new(STAT, service, _paths, path, slow, follow)


def read_bytes(FileService service, path, slow):
    """The content of a file, awaited.

    slow(path) is the coroutine for what has to be waited for; slow(path, fd, size) if the path was
    opened: the descriptor is the coroutine's, or -1 if it is no regular file, empty or very large.
    """
    return call_new(WHOLE, service, _paths, path, slow, False)
