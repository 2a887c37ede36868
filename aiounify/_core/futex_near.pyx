# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Waits for futexes that an epoll loop carries out itself, in place of epoll_wait.

Why it exists: a wake reaches a thread in futex_waitv, that thread the eventfd, and the eventfd
the loop: two switches of threads.  A loop whose sleeps end by futexes mostly saves one by sleeping
in futex_waitv, and has a thread watch the epoll set meanwhile (futex_near.h).

The kernel knows of these waits only while the loop sleeps.  So `Word.wake()` in the loop's own
thread looks through `near_loops`, all the loops that do this.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

import os

from aiounify._core.epoll cimport EpollReactor, Sleeper
from aiounify._core.futex cimport wake_also
from aiounify._core.futex_threads cimport ThreadWaits
from aiounify._core.futex_wait cimport FutexWait
from aiounify._core.reactor cimport EAGAIN, ECANCELED, EINTR
from aiounify._core.words cimport AU_FUTEX2_U32, au_waitv, word_load

cdef extern from "futex_near.h" nogil:
    int near_start(near *s, int epfd)
    void near_stop(near *s)
    int near_sleep(near *s, au_waitv *v, unsigned n, int spins)

cdef extern from "<unistd.h>" nogil:
    int getpid()

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef enum:
    NEAR = 8             # words the loop's own thread waits for, at most
    WARM = 4             # results in a row that make it wait for them itself


cdef class NearWords(Sleeper):
    """The words that an epoll loop waits for in its own thread, the last few it was asked for.

    It does while its sleeps end by futexes mostly.  A word is looked at in every turn, so that
    a loop that never sleeps notices its change; a wake in that time finds nobody in the kernel,
    as one of a thread that is just about to sleep.
    """

    def __cinit__(self, ThreadWaits threads, EpollReactor reactor, bint always):
        self.threads = threads
        self.reactor = reactor
        self.always = always
        self.ops = []
        self.needed = WARM

    cdef int told(self) except -1:
        """Threads had results: begin, if that is what ends the loop's sleeps."""
        self.warm = self.warm + 1 if self.reactor.n_waits - self.waits <= 2 else 0
        self.waits = self.reactor.n_waits
        if not self.on and self.warm >= self.needed:
            self.begin()
        return 0

    cdef int begin(self) except -1:
        global near_loops
        if not self.watched:
            if near_start(&self.watch, self.reactor.epfd):
                self.needed = 1 << 30
                return 0
            self.watched = True
            self.pid = os.getpid()
            self.reactor.sleeper = self
            self.thread = PyThread_get_thread_ident()
            self.next = near_loops
            near_loops = <PyObject *>self
        self.on = True
        self.score = 16
        return 0

    cdef int cease(self) except -1:
        """What comes through the set ends most sleeps: wait in threads, as before."""
        cdef FutexWait op
        self.on = False
        self.warm = 0
        self.needed = min(self.needed * 2, 1024)
        while self.ops:
            op = <FutexWait>self.ops.pop(0)
            op.near = False
            try:
                self.threads.add(op)
            except OSError as exc:
                op.done = True
                op.over(-exc.errno)
        return 0

    cdef int add(self, FutexWait op) except -1:
        cdef FutexWait oldest
        if len(self.ops) >= NEAR:
            oldest = <FutexWait>self.ops[0]
            self.threads.add(oldest)
            oldest.near = False
            del self.ops[0]
        op.near = True
        self.ops.append(op)
        return 0

    cdef int finish(self, Py_ssize_t i, int result) except -1:
        cdef FutexWait op = <FutexWait>self.ops.pop(i)
        op.near = False
        op.done = True
        return op.over(result)

    cdef bint pass_to(self, uint32_t *word) except -1:
        """Wake one of the waits for this word."""
        cdef FutexWait op
        cdef Py_ssize_t i
        for i in range(len(self.ops)):
            op = <FutexWait>self.ops[i]
            if op.first == word and not op.given_up:
                self.finish(i, 0)
                return True
        return False

    cdef bint sleeps(self) noexcept:
        return len(self.ops) > 0

    cdef int look(self) except -1:
        cdef FutexWait op
        cdef Py_ssize_t i
        for i in range(len(self.ops) - 1, -1, -1):
            op = <FutexWait>self.ops[i]
            if word_load(op.first) != op.expected:
                self.finish(i, -EAGAIN)
        return 0

    cdef int sleep(self) except -1:
        cdef au_waitv[NEAR + 1] v
        cdef FutexWait op
        cdef int i, r, n = <int>len(self.ops)
        for i in range(n):
            op = <FutexWait>self.ops[i]
            v[i + 1] = au_waitv(op.expected, <uint64_t><uintptr_t>op.first, AU_FUTEX2_U32)
        with nogil:
            r = near_sleep(&self.watch, v, n + 1, self.reactor.spins)
        if r > 0:
            self.score = min(self.score + 2, 16)
            self.finish(r - 1, 0)
            return False
        if r == -EAGAIN:
            self.look()
            return True
        if r == 0:
            self.score -= 1
            if self.score <= 0 and not self.always:
                self.cease()
            return True
        if r != -EINTR:
            while self.ops:
                self.finish(0, r)
        return False

    cdef int renewed(self) except -1:
        """The epoll set is another one: it needs a thread of its own."""
        with nogil:
            near_stop(&self.watch)
        if near_start(&self.watch, self.reactor.epfd):
            self.forget()
            self.needed = 1 << 30
            self.cease()
        return 0

    cdef int forget(self) noexcept:
        """Not watched any more: out of the list, and of the reactor."""
        global near_loops
        cdef PyObject **at = &near_loops
        self.watched = False
        while at[0] != NULL and at[0] != <PyObject *>self:
            at = &(<NearWords>at[0]).next
        if at[0] != NULL:
            at[0] = self.next
        if self.reactor is not None:
            self.reactor.sleeper = None
        return 0

    cdef int end(self) noexcept:
        if self.watched:
            self.forget()
            if self.pid == os.getpid():  # else there is no thread here
                with nogil:
                    near_stop(&self.watch)
        return 0

    def __dealloc__(self):
        global near_loops
        cdef PyObject **at = &near_loops
        if not self.watched:
            return
        while at[0] != NULL and at[0] != <PyObject *>self:
            at = &(<NearWords>at[0]).next
        if at[0] != NULL:
            at[0] = self.next
        if self.pid == getpid():
            with nogil:
                near_stop(&self.watch)


cdef PyObject *near_loops = NULL


cdef int near_wake(uint32_t *word, int n) except -1:
    """Wake up to n waits of this thread's loop, which is awake and so not in the kernel."""
    cdef PyObject *at = near_loops
    cdef NearWords loop
    cdef FutexWait op
    cdef Py_ssize_t i = 0
    cdef int woken = 0
    while at != NULL:
        loop = <NearWords>at
        at = loop.next
        if loop.thread != PyThread_get_thread_ident() or loop.ops is None:
            continue
        i = 0
        while woken < n and i < len(loop.ops):
            op = <FutexWait>loop.ops[i]
            if op.first != word:
                i += 1
                continue
            if loop.pid != getpid():
                break  # a fork of the process that waits
            woken += not op.given_up
            loop.finish(i, 0 if not op.given_up else -ECANCELED)
    return woken


wake_also(near_wake)
