# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The floor of the rows of `watch`: what plain C that blocks in read() needs.

Nothing here holds the GIL while it works, and nothing is made for an event but its time.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport atoll
from posix.unistd cimport close, read

import os


cdef extern from *:
    """
    #include <dirent.h>
    #include <string.h>
    #include <sys/inotify.h>
    #include <time.h>

    static int64_t bench_now(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }

    /* Watch a directory and all below it; how many watches, or -1. */
    static int bench_walk(int fd, char *path, size_t length, unsigned mask)
    {
        int n, total = 1;
        struct dirent *d;
        DIR *dir;
        if (inotify_add_watch(fd, path, mask) < 0 || !(dir = opendir(path)))
            return -1;
        while ((d = readdir(dir))) {
            size_t more = strlen(d->d_name);
            if (d->d_type != DT_DIR || !strcmp(d->d_name, ".") || !strcmp(d->d_name, ".."))
                continue;
            if (length + more + 2 > 4096) {
                total = -1;
                break;
            }
            path[length] = '/';
            memcpy(path + length + 1, d->d_name, more + 1);
            n = bench_walk(fd, path, length + 1 + more, mask);
            path[length] = 0;
            if (n < 0) {
                total = -1;
                break;
            }
            total += n;
        }
        closedir(dir);
        return total;
    }
    """
    ctypedef struct inotify_event "struct inotify_event":
        uint32_t mask
        uint32_t len
        char name[1]
    const uint32_t IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO, IN_ONLYDIR
    int inotify_init1(int flags)
    int inotify_add_watch(int fd, const char *path, uint32_t mask)
    int64_t bench_now() nogil
    int bench_walk(int fd, char *path, size_t length, unsigned mask) nogil


def start(str path, int flags):
    """An inotify instance that watches creating and deleting in a directory."""
    cdef int fd = inotify_init1(flags)
    if fd < 0 or inotify_add_watch(fd, os.fsencode(path), IN_CREATE | IN_DELETE) < 0:
        raise OSError(errno, os.strerror(errno))
    return fd


def drain(int fd, Py_ssize_t count):
    """Read until `count` events came."""
    cdef char buffer[65536]
    cdef Py_ssize_t n, at
    with nogil:
        while count > 0:
            n = read(fd, buffer, sizeof(buffer))
            if n <= 0:
                break
            at = 0
            while at < n:
                at += 16 + (<inotify_event *>(buffer + at)).len
                count -= 1
    if count > 0:
        raise OSError(errno, os.strerror(errno))


def latencies(int fd, Py_ssize_t count):
    """Of `count` files that are created: now less the time that is their name."""
    cdef char buffer[65536]
    cdef Py_ssize_t n, at
    cdef inotify_event *e
    cdef int64_t now
    found = []
    while len(found) < count:
        with nogil:
            n = read(fd, buffer, sizeof(buffer))
            now = bench_now()
        if n <= 0:
            raise OSError(errno, os.strerror(errno))
        at = 0
        while at < n:
            e = <inotify_event *>(buffer + at)
            at += 16 + e.len
            if e.mask & IN_CREATE:
                found.append(now - <int64_t>atoll(e.name))
    return found


def walk(str path):
    """Watch a tree with a new instance, which is closed again; how many watches."""
    cdef char name[4097]
    cdef int fd = inotify_init1(0)
    cdef int n
    encoded = os.fsencode(path)
    n = snprintf(name, sizeof(name), "%s", <const char *>encoded)
    with nogil:
        n = bench_walk(fd, name, n, IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO)
    close(fd)
    if n < 0:
        raise OSError(errno, os.strerror(errno))
    return n
