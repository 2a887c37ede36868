# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The floor of the rows of files: the same system calls from C, without Python and without a loop.

`pages`, `whole`, `stats`, `lines`, `writes` do one thing after the other and block; they need the
fewest system calls that the work can be done with.  `direct_ring` and `direct_aio` keep many reads
past the page cache in flight, by io_uring and by io_submit (libaio is a wrapper around these calls).

Nothing here holds the GIL while it works.  All memory is the function's own.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from posix.unistd cimport close

import os


cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/aio_abi.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #include "../_core/ring.h"

    #define BENCH_PAGE 4096
    #define BENCH_DEPTH 256

    /* 0, or a negated errno: so do all of these */
    static int bench_read(int fd, char *into, size_t n, int64_t offset)
    {
        ssize_t got = pread64(fd, into, n, offset);
        return got == (ssize_t)n ? 0 : got < 0 ? -errno : -EIO;
    }

    static int bench_whole(const char *path, char *into, size_t size)
    {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return -errno;
        /* One byte more than there is: less than that is the end of the file. */
        ssize_t got = read(fd, into, size + 1);
        close(fd);
        return got == (ssize_t)size ? 0 : -EIO;
    }

    static int bench_stat(const char *path)
    {
        struct stat st;
        return stat(path, &st) ? -errno : 0;
    }

    static int bench_write(int fd, const char *from, size_t n)
    {
        ssize_t done = write(fd, from, n);
        return done == (ssize_t)n ? 0 : done < 0 ? -errno : -EIO;
    }

    /* How many lines a file has; -1 if it cannot be read. */
    static long bench_lines(const char *path, char *into, size_t room)
    {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = -1;
        long found = 0;
        if (fd < 0)
            return -1;
        while ((n = read(fd, into, room)) > 0)
            for (char *p = into; (p = memchr(p, '\\n', into + n - p)); p++)
                found++;
        close(fd);
        return n < 0 ? -1 : found;
    }

    /* Both are made once: taking them down takes the kernel longer than a window of reads. */
    static struct ring bench_r = {.fd = -1};
    static aio_context_t bench_ctx;

    static int bench_ring_open(void)
    {
        if (bench_r.fd >= 0)
            return 0;
        int error = ring_open(&bench_r, BENCH_DEPTH, 2 * BENCH_DEPTH);
        if (!error)
            error = ring_enable(&bench_r);
        if (!error)
            ring_register_fd(&bench_r);
        return error;
    }

    static void bench_ask(struct ring *r, int fd, char *memory, uint64_t slot, int64_t offset)
    {
        struct au_sqe *s = ring_sqe(r); /* there is one: the ring is larger than the depth */
        s->opcode = IORING_OP_READ;
        s->fd = fd;
        s->addr = (uint64_t)(uintptr_t)(memory + slot * BENCH_PAGE);
        s->len = BENCH_PAGE;
        s->off = (uint64_t)offset;
        s->user_data = slot;
    }

    static int bench_ring(int fd, const int64_t *offsets, long length, long n, unsigned depth,
                          char *memory)
    {
        struct ring *r = &bench_r;
        long begun = 0, ended = 0;
        int error = bench_ring_open();
        for (; !error && begun < n && begun < (long)depth; begun++)
            bench_ask(r, fd, memory, (uint64_t)begun, offsets[begun % length]);
        while (!error && ended < n) {
            int entered = ring_wait(r, -1, 0);
            if (entered < 0 && entered != -EINTR)
                error = entered;
            while (ring_cq_ready(r)) {
                struct au_cqe *c = ring_cqe(r);
                uint64_t slot = c->user_data;
                if (c->res != BENCH_PAGE)
                    error = c->res < 0 ? c->res : -EIO;
                ring_cq_advance(r);
                ended++;
                if (begun < n && !error)
                    bench_ask(r, fd, memory, slot, offsets[begun++ % length]);
            }
        }
        /* Nothing may write into the memory any more. */
        while (ended < begun && ring_wait(r, -1, 0) >= 0)
            for (; ring_cq_ready(r); ended++)
                ring_cq_advance(r);
        if (error) {
            ring_unregister_fd(r);
            ring_close(r);
        }
        return error;
    }

    static int bench_aio(int fd, const int64_t *offsets, long length, long n, unsigned depth,
                         char *memory)
    {
        struct iocb blocks[BENCH_DEPTH], *list[BENCH_DEPTH];
        struct io_event events[BENCH_DEPTH];
        long begun = 0, ended = 0;
        int error = 0, count = 0;
        if (!bench_ctx && syscall(SYS_io_setup, BENCH_DEPTH, &bench_ctx) < 0)
            return -errno;
        memset(blocks, 0, sizeof blocks);
        for (unsigned i = 0; i < depth && begun < n; i++) {
            blocks[i].aio_lio_opcode = IOCB_CMD_PREAD;
            blocks[i].aio_fildes = (uint32_t)fd;
            blocks[i].aio_buf = (uint64_t)(uintptr_t)(memory + (size_t)i * BENCH_PAGE);
            blocks[i].aio_nbytes = BENCH_PAGE;
            blocks[i].aio_offset = offsets[begun++ % length];
            blocks[i].aio_data = i;
            list[count++] = &blocks[i];
        }
        while (!error && ended < n) {
            for (int at = 0; at < count;) {
                long done = syscall(SYS_io_submit, bench_ctx, (long)(count - at), list + at);
                if (done < 0) {
                    error = -errno;
                    break;
                }
                at += (int)done;
            }
            count = 0;
            long got = error ? 0 : syscall(SYS_io_getevents, bench_ctx, 1L, (long)BENCH_DEPTH, events,
                                           NULL);
            if (got < 0 && errno != EINTR)
                error = -errno;
            for (long i = 0; i < got; i++) {
                struct iocb *b = &blocks[events[i].data];
                if (events[i].res != BENCH_PAGE)
                    error = events[i].res < 0 ? (int)events[i].res : -EIO;
                ended++;
                if (begun < n) {
                    b->aio_offset = offsets[begun++ % length];
                    list[count++] = b;
                }
            }
        }
        if (error) {
            syscall(SYS_io_destroy, bench_ctx); /* waits for what is in flight */
            bench_ctx = 0;
        }
        return error;
    }
    """
    enum:
        BENCH_PAGE
        BENCH_DEPTH
    int bench_read(int fd, char *into, size_t n, int64_t offset) nogil
    int bench_whole(const char *path, char *into, size_t size) nogil
    int bench_stat(const char *path) nogil
    int bench_write(int fd, const char *source, size_t n) nogil
    long bench_lines(const char *path, char *into, size_t room) nogil
    int bench_ring(int fd, const int64_t *offsets, long length, long n, unsigned depth,
                   char *memory) nogil
    int bench_aio(int fd, const int64_t *offsets, long length, long n, unsigned depth,
                  char *memory) nogil
    int posix_memalign(void **memory, size_t alignment, size_t size) nogil

cdef enum:
    LINE_ROOM = 65536


cdef int check(int error) except -1:
    if error < 0:
        raise OSError(-error, os.strerror(-error))
    return 0


def pages(int fd, const int64_t[::1] offsets not None, long n):
    """n reads of 4 KiB, each waited for."""
    cdef char into[BENCH_PAGE]
    cdef int error = 0
    cdef long i
    with nogil:
        for i in range(n):
            error = bench_read(fd, into, BENCH_PAGE, offsets[i % offsets.shape[0]])
            if error:
                break
    check(error)


def whole(str path, Py_ssize_t size, long n):
    """Open, read and close a file of that size n times."""
    cdef char *into = <char *>malloc(size + 1)
    cdef int error = 0
    encoded = os.fsencode(path)
    cdef const char *name = encoded
    if into == NULL:
        raise MemoryError
    with nogil:
        for _ in range(n):
            error = bench_whole(name, into, size)
            if error:
                break
    free(into)
    check(error)


def stats(str path, long n):
    """stat() of a path n times."""
    cdef int error = 0
    encoded = os.fsencode(path)
    cdef const char *name = encoded
    with nogil:
        for _ in range(n):
            error = bench_stat(name)
            if error:
                break
    check(error)


def lines(str path):
    """Find all lines of a file; how many."""
    cdef char into[LINE_ROOM]
    cdef long found
    encoded = os.fsencode(path)
    cdef const char *name = encoded
    with nogil:
        found = bench_lines(name, into, LINE_ROOM)
    if found < 0:
        raise OSError(errno, os.strerror(errno), path)
    return found


def writes(str path, const unsigned char[::1] data not None, long n):
    """Write the data n times into a new file."""
    cdef int error = 0
    cdef int fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with nogil:
        for _ in range(n):
            error = bench_write(fd, <const char *>&data[0], data.shape[0])
            if error:
                break
    close(fd)
    check(error)


cdef int direct(int fd, const int64_t[::1] offsets, long n, unsigned depth, bint ring) except -1:
    cdef void *memory = NULL
    cdef int error
    if not 0 < depth <= BENCH_DEPTH:
        raise ValueError(f"from 1 to {BENCH_DEPTH} reads in flight, not {depth}")
    if posix_memalign(&memory, BENCH_PAGE, <size_t>depth * BENCH_PAGE):
        raise MemoryError
    with nogil:
        error = (bench_ring if ring else bench_aio)(
            fd, &offsets[0], offsets.shape[0], n, depth, <char *>memory)
    free(memory)  # nothing is in flight any more
    return check(error)


def direct_ring(int fd, const int64_t[::1] offsets not None, long n, unsigned depth):
    """n reads of 4 KiB of a file opened with O_DIRECT, so many in flight, by io_uring."""
    direct(fd, offsets, n, depth, True)


def direct_aio(int fd, const int64_t[::1] offsets not None, long n, unsigned depth):
    """The same by io_submit."""
    direct(fd, offsets, n, depth, False)
