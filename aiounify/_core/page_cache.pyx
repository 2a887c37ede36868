# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Reads that cannot wait: of what the page cache has.

Why it exists: a page that is in memory is there in two microseconds, and a thread, a ring or even a
coroutine object costs several times that.  preadv2(RWF_NOWAIT) (Linux 4.14) reads it or says EAGAIN,
and never waits for a disk.

Rules:

* A file system without RWF_NOWAIT answers EOPNOTSUPP.  Then inline reads are given up, unless its
  files live in memory (tmpfs, ramfs), where a plain pread() does not wait either.
* That is remembered for the file system, by the number of its device, so that the next file of it
  is not asked in vain.  Numbers are given again after a file system was unmounted, so whether files
  live in memory is asked of each: a read that waits would be wrong, one that is not tried is only
  slower.
* Of the process, under its lock (the GIL); a fork inherits it.
"""

from libc.stdint cimport int64_t, uint64_t

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

    /* the size of a regular file, -1 for anything else; and its file system */
    static int64_t size_of(int fd, uint64_t *device)
    {
        struct stat st;
        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
            return -1;
        *device = st.st_dev;
        return st.st_size;
    }

    static int64_t end_of(int fd) { return (int64_t)lseek64(fd, 0, SEEK_END); }

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
    int64_t size_of(int fd, uint64_t *device) nogil
    int64_t end_of(int fd) nogil
    int in_memory(int fd) nogil


cdef enum:
    LATCHES = 64         # file systems that are remembered

cdef uint64_t[LATCHES] _latched
cdef int _n_latched = 0


cdef ssize_t read_cached(int fd, char *into, Py_ssize_t n, int64_t offset, int *nowait) noexcept:
    """Without waiting: a count, or a negated errno; *nowait is kept for the next read."""
    cdef ssize_t got = -EAGAIN
    if nowait[0] == NOWAIT_ON:
        got = read_nowait(fd, into, n, offset)
        if got < 0:
            got = -errno
            if got == -EOPNOTSUPP or got == -ENOSYS:
                nowait[0] = not_offered(fd)
    if nowait[0] == NOWAIT_MEMORY:
        got = read_now(fd, into, n, offset)
        if got < 0:
            got = -errno
    return got


cdef int not_offered(int fd) noexcept:
    """This file is read in the other way, and so are those of its file system from now on."""
    cdef uint64_t device = 0
    if size_of(fd, &device) >= 0:
        latch_device(device)
    return NOWAIT_MEMORY if in_memory(fd) else NOWAIT_OFF


cdef int latch_device(uint64_t device) noexcept:
    global _n_latched
    if not is_latched(device) and _n_latched < LATCHES:
        _latched[_n_latched] = device
        _n_latched += 1
    return 0


cdef bint is_latched(uint64_t device) noexcept:
    cdef int i
    for i in range(_n_latched):
        if _latched[i] == device:
            return True
    return False


cdef int nowait_of(int fd, uint64_t device) noexcept:
    """How a file of this file system is read without waiting."""
    if not _n_latched or not is_latched(device):
        return NOWAIT_ON
    return NOWAIT_MEMORY if in_memory(fd) else NOWAIT_OFF


cdef int64_t regular_size(int fd, int *nowait) noexcept:
    """The size of a regular file, and how it is read; -1 for anything else."""
    cdef uint64_t device = 0
    cdef int64_t size = size_of(fd, &device)
    if size >= 0 and nowait != NULL:
        nowait[0] = nowait_of(fd, device)
    return size


cdef int64_t size_to_read(int fd, int *nowait) noexcept:
    """How much there is to read in a file that nobody else has; it moves the file's offset.

    Where every file system has RWF_NOWAIT, lseek(SEEK_END) tells it at half the price of fstat(2).
    """
    if not _n_latched:
        return end_of(fd)
    return regular_size(fd, nowait)


def how_to_read(int fd, uint64_t device):
    """`nowait` of a new handle on a regular file: 0 not at once, 1 by RWF_NOWAIT, 2 by pread()."""
    return nowait_of(fd, device)


def without_nowait():
    """The file systems (st_dev) that were found to have no RWF_NOWAIT."""
    return frozenset([_latched[i] for i in range(_n_latched)])


def latch(uint64_t device):
    """As if this file system had answered that it has none."""
    latch_device(device)


def forget():
    """Ask all of them again."""
    global _n_latched
    _n_latched = 0
