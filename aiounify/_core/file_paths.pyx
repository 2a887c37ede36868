# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False
"""Questions about a path that are answered at once: what it is, and all that is in it.

Why it exists: stat() of a path and a whole small file are asked for more often than anything else.
When the path and the file are in the kernel's caches, opening, asking and closing are three system
calls on the loop's thread.  What has to wait is in Python (aiounify/files/status.py, whole.py).

Rules:

* A path that openat2(RESOLVE_CACHED) found in memory less than KNOWN_NS ago, on a file system that
  asks nobody else, is given to stat(2) as it is: one system call in place of three.  The answer is the
  kernel's of now, whatever happened to the path; only that it is still in memory is assumed.
* Whether a file is a regular one is asked only where its bytes were not had at once.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject, PyObject_Hash
from libc.stdint cimport int64_t
from libc.string cimport strlen
from posix.unistd cimport close as c_close

import os

from aiounify._core.file_calls cimport MISS, STAT, WHOLE, Answers, FileCall, call_new
from aiounify._core.file_service cimport FileService
from aiounify._core.page_cache cimport NOWAIT_OFF, NOWAIT_ON, WHOLE_MAX, read_cached, regular_size, size_to_read
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
    PyObject *status_at(const char *path, int follow, object kind, int *error) except? NULL

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/vfs.h>
    #include <time.h>
    #include <unistd.h>

    static void to_start(int fd) { lseek64(fd, 0, SEEK_SET); }

    static int64_t coarse_now(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }

    /* Whether looking up a path never asks another machine or process. */
    static int answers_itself(int fd)
    {
        struct statfs s;
        if (fstatfs(fd, &s) < 0)
            return 0;
        switch ((uint32_t)s.f_type) {
        case 0xef53:     /* ext2, ext3, ext4 */
        case 0x58465342: /* xfs */
        case 0x9123683e: /* btrfs */
        case 0xf2f52010: /* f2fs */
        case 0x01021994: /* tmpfs */
        case 0x858458f6: /* ramfs */
            return 1;
        }
        return 0;
    }
    """
    enum:
        ENOTDIR
        O_PATH
        O_NONBLOCK
        O_NOFOLLOW
    void to_start(int fd)
    int64_t coarse_now()
    int answers_itself(int fd)

cdef extern from "Python.h":
    int PyUnicode_CheckExact(object)
    int PyUnicode_IS_COMPACT_ASCII(object)
    const char *ascii_data "(const char *)PyUnicode_1BYTE_DATA" (object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)

cdef enum:
    KNOWN = 64               # paths
    KNOWN_NS = 100000000     # how long one is taken to stay in memory

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


cdef class _Known:
    """Paths that were found in memory a moment ago, of all loops: each a fact of the kernel's."""

    cdef list paths
    cdef int64_t until[KNOWN]
    cdef bint followed[KNOWN]

    def __cinit__(self):
        self.paths = [None] * KNOWN

    cdef inline Py_ssize_t slot(self, path, bint follow) except -1:
        return (PyObject_Hash(path) ^ follow) & (KNOWN - 1)

    cdef inline bint has(self, path, bint follow, Py_ssize_t i) except -1:
        known = self.paths[i]
        return (known is path or known == path) and self.followed[i] == follow \
            and coarse_now() < self.until[i]

    cdef int add(self, path, bint follow, Py_ssize_t i) except -1:
        self.paths[i] = path
        self.followed[i] = follow
        self.until[i] = coarse_now() + KNOWN_NS
        return 0


cdef _Known _known = _Known()


cdef inline const char *plain_name(path) noexcept:
    """A path as the kernel takes it, if that is what it is made of; else NULL."""
    cdef const char *name
    if PyUnicode_CheckExact(path) and PyUnicode_IS_COMPACT_ASCII(path):
        name = ascii_data(path)
        if <Py_ssize_t>strlen(name) == PyUnicode_GET_LENGTH(path):
            return name
    return NULL


cdef object failed(int error, path):
    raise OSError(error, os.strerror(error), path)


cdef object try_stat(FileService service, path, bint follow):
    cdef int fd, error = 0
    cdef bytes kept
    cdef Py_ssize_t i = -1
    cdef const char *name = plain_name(path)
    cdef PyObject *made
    if not service.opens_cached:
        return MISS
    if name == NULL:
        kept = encoded(path)
        name = PyBytes_AS_STRING(kept)
    elif _own_status and _compared == 3:
        i = _known.slot(path, follow)
        if _known.has(path, follow, i):
            made = status_at(name, follow, _stat_result, &error)
            service.hit(0)
            if made != NULL:
                found = <object>made
                Py_DECREF(made)
                return found
            return failed(error, path) if error == ENOENT or error == ENOTDIR else MISS
    fd = service.open_at_once(name, O_PATH | (0 if follow else O_NOFOLLOW))
    if fd < 0:
        return failed(-fd, path) if fd == -ENOENT or fd == -ENOTDIR else MISS
    try:
        if i >= 0 and answers_itself(fd):
            _known.add(path, follow, i)
        return status(fd)
    finally:
        c_close(fd)


cdef object try_whole(FileCall call):
    """The content, or MISS; what was found out on the way then goes to the coroutine that waits."""
    cdef FileService service = call.service
    cdef int fd, nowait = NOWAIT_ON
    cdef bytes kept
    cdef const char *name = plain_name(call.a)
    cdef int64_t size
    cdef ssize_t n = -1
    cdef PyObject *out
    if not service.opens_cached:
        return MISS
    if name == NULL:
        kept = encoded(call.a)
        name = PyBytes_AS_STRING(kept)
    fd = service.open_at_once(name, O_NONBLOCK)
    if fd < 0:
        return failed(-fd, os.fspath(call.a)) if fd == -ENOENT or fd == -ENOTDIR else MISS
    try:
        size = size_to_read(fd, &nowait)
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
        to_start(fd)  # size_to_read() moved it
        size = regular_size(fd, NULL)
        call.inner = call.b(call.a, fd, size if 0 < size <= ONE_READ else -1)
        fd = -1  # the coroutine's
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
    opened: the descriptor is the coroutine's, and size -1 if it is no regular file, empty or very
    large.
    """
    return call_new(WHOLE, service, _paths, path, slow, False)
