# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""sendfile(2) by steps that never hold the loop up for long.

Why it exists: the kernel copies from the page cache to a socket without a detour through
the program, and does not wait if the socket's buffer is full.  But sendfile() has no flag
against waiting for the disk, and with a reader that keeps up it goes on until all is sent.
So it is called for a MiB at a time, a step ends after half a millisecond, and before each
call the loop's thread makes sure that the bytes are in memory.

How it is made sure: `preadv2(RWF_NOWAIT)` (Linux 4.14) of one byte in every 64 KiB, half
of what the kernel reads ahead by default; it tells pages that are still on their way as well,
which mincore(2) and cachestat(2) take for resident.  If one is missing, a `ReadAhead` reads
the next MiB through the ring or, on epoll, in a thread, and the step goes on when it has
finished.  File systems without RWF_NOWAIT are taken to be in memory if they are (tmpfs,
ramfs, hugetlbfs); all others are read ahead always.

Rules:

* What is left to chance: pages that the kernel drops between the look and the call, or a
  hole of less than 64 KiB.  Then the thread waits for the disk, for a MiB at most.
* The first step uses the caller's descriptor, and if it does everything no other is made.
  Before anything else can run the descriptor is duplicated, so that a file which is closed
  meanwhile is sent to its end, and never that of another which got the number.
* The socket's descriptor is asked for before each step and never kept.
* The kernel reads ahead into memory that nobody looks at and that is never freed, so that
  an operation in flight needs no buffer of its own.  It owns its descriptor.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close as c_close

import os
import stat

from aiounify._core.backlog cimport monotonic_ns
from aiounify._core.reactor cimport EAGAIN, EINTR, Op, errno


cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <sys/sendfile.h>
    #include <sys/uio.h>
    #include <sys/vfs.h>

    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 8
    #endif

    /* Where the kernel puts what is read ahead.  Several may write to it at once. */
    #define AHEAD (1 << 20)
    static char ahead_sink[AHEAD];

    /* 1: in memory.  0: not.  Else a negated errno.  Beyond the end nothing is missing. */
    static int byte_resident(int fd, off_t offset)
    {
        char byte;
        struct iovec v = {&byte, 1};
        ssize_t n = preadv2(fd, &v, 1, offset, RWF_NOWAIT);
        if (n >= 0)
            return 1;
        return errno == EAGAIN ? 0 : -errno;
    }

    static int writable(int fd)
    {
        struct pollfd p = {fd, POLLOUT, 0};
        return poll(&p, 1, 0) != 0;
    }

    /* File systems that have no other place than memory. */
    static int in_memory(int fd)
    {
        struct statfs s;
        if (fstatfs(fd, &s) < 0)
            return 0;
        switch ((unsigned)s.f_type) {
        case 0x01021994u: /* tmpfs */
        case 0x858458f6u: /* ramfs */
        case 0x958458f6u: /* hugetlbfs */
            return 1;
        }
        return 0;
    }
    """
    enum:
        AHEAD
        F_DUPFD_CLOEXEC
    char *ahead_sink
    ctypedef long off_t
    int fcntl(int fd, int command, ...) nogil
    int byte_resident(int fd, off_t offset) nogil
    bint in_memory(int fd) nogil
    bint writable(int fd) nogil
    ssize_t c_sendfile "sendfile" (int out, int fd, off_t *offset, size_t n) nogil
    ssize_t c_pread "pread" (int fd, void *buf, size_t n, off_t offset) nogil

cdef extern from "uring_abi.h" nogil:
    enum:
        IORING_OP_READ

cdef enum:
    SAMPLE = 65_536          # one byte in so many is looked at
    PROBE = 0
    NEVER_COLD = 1           # the file system is in memory
    ALWAYS_COLD = 2          # nothing tells


cdef int _probing = PROBE


def distrust_memory(bint on):
    """Take every file to be out of memory: for tests of what is done then."""
    global _probing
    _probing = ALWAYS_COLD if on else PROBE


DONE = STEP_DONE
BLOCKED = STEP_BLOCKED
COLD = STEP_COLD
TURN = STEP_TURN


cdef int duplicate(int fd) except -1:
    cdef int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0)
    if copy < 0:
        raise OSError(errno, os.strerror(errno))
    return copy


cdef class Source:
    """A file from which bytes are taken in the loop's thread, if they are in memory."""

    def __cinit__(self, int fd, offset, *args):
        self.fd = fd
        self.offset = -1 if offset is None else offset
        self.probing = _probing

    def __dealloc__(self):
        self.let_go()

    def close(self):
        """Give the duplicate back.  Twice is allowed."""
        self.let_go()

    cdef int let_go(self) noexcept:
        if self.owned:
            self.owned = False
            c_close(self.fd)
        self.fd = -1
        return 0

    def keep(self):
        """Other code is about to run: the caller's descriptor is not to be relied on."""
        self.own()

    cdef int own(self) except -1:
        """keep(), natively."""
        if not self.owned:
            self.fd = duplicate(self.fd)
            self.owned = True
        return 0

    cdef int64_t within(self, int64_t size) noexcept:
        """What of so many bytes was just read ahead, or all if nothing was."""
        return min(size, self.warm_until - self.offset) if self.offset < self.warm_until else size

    cdef bint cold(self, int64_t size) noexcept:
        """Whether the next bytes have to be waited for."""
        cdef int64_t at = self.offset, end = self.offset + size
        cdef int found
        if end <= self.warm_until or self.probing == NEVER_COLD:
            return False
        if self.probing == ALWAYS_COLD:
            return True
        while at < end:
            self.syscalls += 1
            found = byte_resident(self.fd, at)
            if found == 0:
                return True
            if found < 0:
                if found == -EINTR:
                    continue
                self.probing = NEVER_COLD if in_memory(self.fd) else ALWAYS_COLD
                return self.probing == ALWAYS_COLD
            at += SAMPLE
        return False

    def read_ahead(self):
        """An operation that brings the next bytes into memory; `warmed()` takes it back."""
        return ReadAhead(self.fd, self.offset)

    def warmed(self, ReadAhead reading):
        """The operation has finished, with or without an error, which the next step finds."""
        self.warm_until = max(reading.end, self.offset + CHUNK)


cdef class ReadAhead(Op):
    """Read a MiB of a file for the sake of the page cache.

    Submitted to a ring, or run() in a thread; owns its descriptor.
    """

    def __cinit__(self, int fd, int64_t offset):
        self.fd = duplicate(fd)
        self.opcode = IORING_OP_READ
        self.address = <uint64_t><size_t>ahead_sink
        self.length = AHEAD
        self.offset = <uint64_t>offset
        self.end = offset

    def __dealloc__(self):
        if self.fd >= 0:
            c_close(self.fd)

    cdef int complete(self, int result, uint32_t flags) except -1:
        self.result = result
        if result > 0:
            self.end += result
        c_close(self.fd)
        self.fd = -1
        return 0

    def run(self):
        """The same, blocking."""
        cdef off_t at = <off_t>self.offset, end = at + AHEAD
        cdef ssize_t n
        with nogil:
            while at < end:
                n = c_pread(self.fd, ahead_sink, end - at, at)
                if n <= 0:
                    break
                at += n
        self.end = at


cdef class Transfer(Source):
    """What is left of a file to be sent to one socket."""

    def __cinit__(self, int fd, int64_t offset, count):
        self.left = -1 if count is None else min(count, 1 << 62)

    cdef int go(self, int out) except -1:
        """Send until the socket blocks, the file is not in memory or the time is over."""
        cdef int64_t began = monotonic_ns()
        cdef size_t size
        cdef ssize_t n
        cdef off_t at
        cdef int code
        while True:
            size = CHUNK
            if self.left >= 0 and <uint64_t>self.left < size:
                size = <size_t>self.left
                if size == 0:
                    return STEP_DONE
            size = self.within(size)
            if self.cold(size):
                self.own()
                return STEP_COLD
            at = self.offset
            self.syscalls += 1
            with nogil:
                n = c_sendfile(out, self.fd, &at, size)
                code = errno
            if n > 0:
                self.offset += n
                self.sent += n
                if self.left > 0:
                    self.left -= n
                    if self.left == 0:
                        return STEP_DONE
                if <size_t>n < size and not writable(out):
                    # The file does not end here, or not yet.  Sending what little room comes
                    # at once costs more than waiting until a third of the buffer is free.
                    self.own()
                    return STEP_BLOCKED
                if monotonic_ns() - began >= TURN_NS:
                    self.own()
                    return STEP_TURN
            elif n == 0:
                return STEP_DONE
            elif code == EAGAIN:
                self.own()
                return STEP_BLOCKED
            elif code == EINTR:
                PyErr_CheckSignals()
            else:
                self.error = code
                return STEP_DONE

    def step(self, int out):
        """One step to a descriptor that does not block: DONE, BLOCKED, COLD or TURN."""
        return self.go(out)


def is_sendable(int fd):
    """True for regular files and block devices: what sendfile(2) reads from."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)
