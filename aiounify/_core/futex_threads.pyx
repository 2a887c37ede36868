# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Waits for futexes that threads carry out, where the ring cannot.

Why it exists: on epoll, and before Linux 6.7, nothing in the kernel waits for a word in the
background.  The threads are C (futex_thread.h): they write their results' arrival to an eventfd,
and the reactor only knows that descriptor.

Ownership: a wait keeps its words as long as threads have them.  A wait that is ended has left
the threads, or its results are on their way and it is over when they came.
"""

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from posix.unistd cimport close as c_close

import os

from aiounify._core.futex_wait cimport FutexWait, Home
from aiounify._core.reactor cimport ECANCELED, EDGE, EPOLLIN, Reactor, Watched, errno
from aiounify._core.words cimport word_wake

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int initval, int flags)

cdef extern from "futex_thread.h" nogil:
    struct ft_group:
        pass
    struct ft_result:
        uint64_t id
        int result
    void ft_open(ft *f, int event_fd, int waitv)
    ft_group *ft_add(ft *f, uint64_t id, uint32_t *word, uint32_t expected, uint32_t mask,
                     uint32_t *moved)
    int ft_remove(ft *f, ft_group *g, uint64_t id)
    uint32_t *ft_take_stray(ft *f)
    size_t ft_take(ft *f, ft_result *to, size_t most)
    void ft_close(ft *f)

cdef uint32_t ALL = 0xffffffffu


cdef class ThreadWaits(Watched):
    """The threads of one loop; none before the first wait."""

    def __cinit__(self, Home home, Reactor reactor, bint has_waitv):
        self.home = home
        self.reactor = reactor
        self.has_waitv = has_waitv
        self.event_fd = -1
        self.by_id = {}
        self.pid = os.getpid()

    cdef int add(self, FutexWait op) except -1:
        cdef Py_ssize_t i
        cdef ft_group *group
        if self.event_fd < 0:
            self.open()
        op.groups = {}
        for i in range(op.count):
            self.last_id += 1
            group = ft_add(
                &self.threads, self.last_id, op.address_of(i), op.expected_at(i), op.mask,
                op.moved_to(),
            )
            if group == NULL:
                error = errno
                self.leave(op)
                raise OSError(error, f"a thread to wait for futexes: {os.strerror(error)}")
            op.groups[self.last_id] = (<uintptr_t>group, i)
            self.by_id[self.last_id] = op
        return 0

    cdef int open(self) except -1:
        cdef int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if fd < 0:
            raise OSError(errno, f"eventfd: {os.strerror(errno)}")
        try:
            self.reactor.stream_open(fd, self)
            # Each write is an edge, and nobody has to read it: see the reactor's own.
            self.reactor.stream_wait(fd, self, EPOLLIN | EDGE)
        except BaseException:
            c_close(fd)
            raise
        ft_open(&self.threads, fd, self.has_waitv)
        self.event_fd = fd
        return 0

    cdef int ready(self, uint32_t events) except -1:
        cdef ft_result[64] results
        cdef size_t i, n = 64
        cdef int result
        cdef FutexWait op
        cdef uint32_t *word = ft_take_stray(&self.threads)
        while word != NULL:
            if not self.home.pass_to(word, ALL):
                word_wake(word, 1, ALL)
            word = ft_take_stray(&self.threads)
        while n == 64:
            n = ft_take(&self.threads, results, 64)
            for i in range(n):
                op = <FutexWait>self.by_id.pop(results[i].id, None)
                if op is None:
                    continue
                result = results[i].result
                if result == 0:
                    result = op.groups[results[i].id][1]
                del op.groups[results[i].id]
                if op.done:  # a second word of one wait
                    if result >= 0:
                        op.pass_on(result)
                    continue
                op.done = True
                self.leave(op)
                op.over(result)
        return self.home.told()

    cdef bint pass_to(self, uint32_t *word, uint32_t mask) except -1:
        """Wake another wait for this word.

        The kernel may not know of it at this moment: a thread whose set of words
        grows leaves futex_waitv and enters it again.
        """
        cdef FutexWait op
        cdef Py_ssize_t i
        for id, found in list(self.by_id.items()):
            op = <FutexWait>found
            if op.done or op.given_up or not op.mask & mask or id not in op.groups:
                continue  # of several words, leave() has taken this one out already
            i = op.groups[id][1]
            if op.address_of(i) != word:
                continue
            self.leave(op)
            if op.groups:
                continue  # one of its words has a result already, which will be told
            op.done = True
            op.over(<int>i)
            return True
        return False

    cdef int leave(self, FutexWait op) except -1:
        """Take the words of a wait out of the threads; results that came stay to be taken."""
        for id, (group, _) in list(op.groups.items()):
            if ft_remove(&self.threads, <ft_group *><uintptr_t>group, id):
                del op.groups[id]
                self.by_id.pop(id, None)
        return 0

    cdef int end(self, FutexWait op) except -1:
        self.leave(op)
        if not op.groups:
            op.done = True
            op.over(-ECANCELED)
        return 0

    cdef int close(self) except -1:
        """End the threads; waits that go on are forgotten."""
        if self.event_fd < 0:
            return 0
        if self.pid == os.getpid():  # else there are no threads here
            with nogil:
                ft_close(&self.threads)
            self.reactor.stream_close(self.event_fd, self, False)
        c_close(self.event_fd)
        self.event_fd = -1
        self.by_id.clear()
        return 0

    def __dealloc__(self):
        if self.event_fd >= 0 and self.pid == os.getpid():
            with nogil:
                ft_close(&self.threads)
            c_close(self.event_fd)
