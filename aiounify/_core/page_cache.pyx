# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False
"""Reads that cannot wait: of what the page cache has.

Why it exists: a page that is in memory is there in two microseconds, and a thread, a ring or even a
coroutine object costs several times that.  preadv2(RWF_NOWAIT) (Linux 4.14) reads it or says EAGAIN,
and never waits for a disk.

Rules: a file system without RWF_NOWAIT answers EOPNOTSUPP.  Then inline reads are given up, unless
its files live in memory (tmpfs, ramfs), where a plain pread() does not wait either.
"""

from libc.stdint cimport int64_t

from aiounify._core.reactor cimport EAGAIN, ENOSYS, errno


cdef extern from *:
    """
    #include <errno.h>
    #include <stdint.h>
    #include <sys/stat.h>
    #include <sys/uio.h>
    #include <sys/vfs.h>
    #include <unistd.h>

    #define AU_RWF_NOWAIT 0x8

    static ssize_t read_nowait(int fd, void *p, size_t n, int64_t offset)
    {
        struct iovec v = {p, n};
        return preadv2(fd, &v, 1, offset, AU_RWF_NOWAIT);
    }

    static ssize_t read_now(int fd, void *p, size_t n, int64_t offset)
    {
        return pread64(fd, p, n, offset);
    }

    /* the size of a regular file, -1 for anything else */
    static int64_t size_of(int fd)
    {
        struct stat st;
        return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : -1;
    }

    static int in_memory(int fd)
    {
        struct statfs s;
        return fstatfs(fd, &s) == 0 && (s.f_type == 0x01021994 || s.f_type == 0x858458f6);
    }
    """
    enum:
        EOPNOTSUPP
    ssize_t read_nowait(int fd, void *p, size_t n, int64_t offset) nogil
    ssize_t read_now(int fd, void *p, size_t n, int64_t offset) nogil
    int64_t size_of(int fd) nogil
    int in_memory(int fd) nogil


cdef ssize_t read_cached(int fd, char *into, Py_ssize_t n, int64_t offset, int *nowait) noexcept:
    """Without waiting: a count, or a negated errno; *nowait is kept for the next read."""
    cdef ssize_t got = -EAGAIN
    if nowait[0] == NOWAIT_ON:
        got = read_nowait(fd, into, n, offset)
        if got < 0:
            got = -errno
            if got == -EOPNOTSUPP or got == -ENOSYS:
                nowait[0] = NOWAIT_MEMORY if in_memory(fd) else NOWAIT_OFF
    if nowait[0] == NOWAIT_MEMORY:
        got = read_now(fd, into, n, offset)
        if got < 0:
            got = -errno
    return got


cdef int64_t regular_size(int fd) noexcept:
    """The size of a regular file, -1 for anything else."""
    return size_of(fd)
