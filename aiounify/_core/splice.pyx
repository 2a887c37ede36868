# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""splice(2) by steps that never hold the loop up: bytes from a descriptor to another.

Why it exists: splice() moves pages between a pipe and anything else without copying them to
the program.  `Splice` knows which of the two ends has to be waited for, and puts a pipe of
its own between ends of which neither is one.

What may block, and where it is done:

* Pipes do not with SPLICE_F_NONBLOCK, sockets and terminals if they are non-blocking,
  which is insisted on.  These are spliced in the loop's thread and waited for by readiness;
  between two sockets natively, see relay.pyx.
* A file that is read is looked at first, as in sendfile.pyx.
* A file that is written to may wait for its disk for long, and nothing tells beforehand.  So
  it is done by a `Move`: IORING_OP_SPLICE (Linux 5.7), which the kernel hands to a worker,
  or the same call in a thread.

Rules:

* A Splice has duplicates of both descriptors, and so never touches a file that got the number
  of one that was closed meanwhile.
* What was taken from the source is in the target or in the pipe between.  `Pipe.pending`
  bytes of a pipe that the program passed stay there when a call is cancelled, and go first in
  the next.  A pipe of its own is used only with a file as source, whose position is set back.
* A Move keeps its Splice, which keeps its descriptors; it is awaited even when cancelled, as it
  may have moved bytes.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close as c_close
from posix.unistd cimport write as c_write

import os
import stat

from aiounify._core.backlog cimport monotonic_ns
from aiounify._core.reactor cimport (
    EAGAIN,
    ECANCELED,
    EINTR,
    EPOLLIN,
    EPOLLOUT,
    SCRATCH,
    Op,
    errno,
)
from aiounify._core.sendfile cimport (
    CHUNK,
    STEP_BLOCKED,
    STEP_COLD,
    STEP_DONE,
    STEP_TURN,
    TURN_NS,
    Source,
    duplicate,
)
from aiounify._core.socket_transport cimport MSG_DONTWAIT, MSG_NOSIGNAL


cdef extern from "<fcntl.h>" nogil:
    enum:
        F_GETFL
        F_SETPIPE_SZ
        O_APPEND
        O_CLOEXEC
        O_NONBLOCK
        SPLICE_F_MOVE
        SPLICE_F_NONBLOCK
    int fcntl(int fd, int command, ...)
    int pipe2(int *fds, int flags)
    ssize_t c_splice "splice" (int fd_in, int64_t *off_in, int fd_out, int64_t *off_out,
                               size_t n, unsigned flags)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll" (pollfd *fds, unsigned long n, int timeout)

cdef extern from "uring_abi.h" nogil:
    enum:
        IORING_OP_POLL_ADD
        IORING_OP_SPLICE

cdef extern from "<errno.h>" nogil:
    enum:
        ENOMEM

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buf, size_t n, int flags)
    ssize_t send(int fd, const void *buf, size_t n, int flags)

cdef enum:
    BULK_FROM = 65_536       # bytes at a time from which splicing is cheaper than copying
    STEP_WRITE = 5           # the target is a file, to be written to elsewhere
    FLAGS = SPLICE_F_MOVE | SPLICE_F_NONBLOCK

cdef enum:
    # kinds of descriptors
    PIPE = 0
    DISK = 1
    SOCKET = 2
    OTHER = 3


WRITE = STEP_WRITE


cdef int kind_of(int fd, str which) except -1:
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode):
        return PIPE
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return DISK
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, f"{os.strerror(21)}: the {which} of splice()")
    if not fcntl(fd, F_GETFL) & O_NONBLOCK:
        raise ValueError(
            f"the {which} must be non-blocking: call setblocking(False) or os.set_blocking()"
        )
    return SOCKET if stat.S_ISSOCK(mode) else OTHER


cdef class Readiness(Op):
    """Wait until a descriptor is readable or writable, once."""

    def __cinit__(self, int fd, uint32_t events):
        self.fd = fd
        self.opcode = IORING_OP_POLL_ADD
        self.op_flags = self.readiness = events

    cdef int perform(self) noexcept:
        cdef pollfd p
        p.fd = self.fd
        p.events = <short>self.readiness
        cdef int n = c_poll(&p, 1, 0)
        return p.revents if n > 0 else -EAGAIN if n == 0 else -errno


cdef class Pipe:
    """A pipe that splice() uses between two ends of which neither is one.

    `size` is what it holds, in bytes, rounded up by the kernel; less where the kernel
    does not grant it (/proc/sys/fs/pipe-max-size and the pages a user may have in pipes).
    OSError if there are no descriptors left.  To be closed; use it with `with`.
    """

    def __cinit__(self, Py_ssize_t size=CHUNK):
        cdef int[2] fds
        cdef int granted
        self.reader = self.writer = -1
        if size <= 0 or size > 0x7fffffff:
            raise ValueError(f"size must be between 1 byte and 2 GiB, not {size}")
        if pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0:
            raise OSError(errno, os.strerror(errno))
        self.reader, self.writer = fds[0], fds[1]
        granted = fcntl(self.writer, F_SETPIPE_SZ, <int>size)
        self.size = granted if granted > 0 else 65536

    def __dealloc__(self):
        self.let_go()

    cdef int let_go(self) noexcept:
        if self.reader >= 0:
            c_close(self.reader)
            c_close(self.writer)
            self.reader = self.writer = -1
        self.pending = 0
        return 0

    def close(self):
        """Close it; what is pending is lost.  RuntimeError while a splice() uses it."""
        if self.busy:
            raise RuntimeError("the pipe is used by a splice() that goes on")
        self.let_go()

    @property
    def closed(self):
        """True after close()."""
        return self.reader < 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        state = "closed" if self.reader < 0 else f"{self.pending} of {self.size} bytes"
        return f"<aiounify.files.Pipe {state}>"


cdef class Splice(Source):
    """What is left to be moved from one descriptor to another."""

    def __cinit__(self, int fd, offset, int out, out_offset, count, Pipe through):
        cdef int source, target
        self.fd = self.out = -1  # whatever fails below, nothing is closed
        source = kind_of(fd, "source")
        target = kind_of(out, "target")
        if offset is None:
            self.by_position = source == DISK
            offset = os.lseek(fd, 0, os.SEEK_CUR) if source == DISK else -1
        elif source != DISK:
            raise ValueError("offset is for a source that is a file; this one has no positions")
        if out_offset is None:
            out_offset = -1
        elif target != DISK:
            raise ValueError(
                "target_offset is for a target that is a file; this one has no positions"
            )
        if target == DISK and fcntl(out, F_GETFL) & O_APPEND:
            raise ValueError(
                "splice(2) does not write to a file that was opened for appending; "
                "open it with another mode and pass target_offset"
            )
        if source != PIPE and target != PIPE:
            if through is None:
                if source != DISK:
                    raise ValueError(
                        "neither end is a pipe: pass through=Pipe(), which keeps what was taken "
                        "from the source when the call is cancelled"
                    )
                through = Pipe()
                self.private = True
            elif through.reader < 0:
                raise ValueError("the pipe passed as through is closed")
            elif through.busy:
                raise RuntimeError("the pipe passed as through is used by another splice()")
        elif through is not None:
            raise ValueError("through is for two ends of which neither is a pipe")
        self.source_kind, self.target_kind = source, target
        self.offset = offset
        self.out_offset = out_offset
        self.left = -1 if count is None else min(count, 1 << 62)
        self.fd = duplicate(fd)
        self.owned = True
        self.out = duplicate(out)
        self.between = through
        if through is not None:
            through.busy = True

    def __dealloc__(self):
        if self.out >= 0:
            c_close(self.out)

    @property
    def is_relay(self):
        """Whether it is between two sockets, and a Relay can go on with it."""
        return self.source_kind == self.target_kind == SOCKET

    def close(self):
        """Set the source's position, and give everything back.  Twice is allowed."""
        if self.fd >= 0 and self.by_position:
            if self.private:
                self.offset -= self.between.pending  # never reached the target
            os.lseek(self.fd, self.offset, os.SEEK_SET)
        if self.between is not None:
            self.between.busy = False
            if self.private:
                self.between.let_go()
        if self.out >= 0:
            c_close(self.out)
            self.out = -1
        self.let_go()

    cdef ssize_t once(self, int fd, int64_t *off, int out, int64_t *out_off,
                      size_t n) noexcept:
        """One system call: the bytes moved, or a negated errno."""
        cdef ssize_t done
        self.syscalls += 1
        with nogil:
            done = c_splice(fd, off, out, out_off, n, FLAGS)
            if done < 0:
                done = -errno
        return done

    cdef int blocked(self, int fd, int out, bint draining) noexcept:
        """EAGAIN: which of the two is it?"""
        cdef pollfd[2] p
        if self.between is not None and self.source_kind != DISK:
            # the pipe between is filled when it is empty, and emptied when it is not
            if draining:
                self.waits_for, self.waits_events = out, EPOLLOUT
            else:
                self.source_blocks()
            return STEP_BLOCKED
        p[0].fd = -1 if fd == self.fd and self.source_kind == DISK else fd
        p[0].events = EPOLLIN
        p[1].fd = out
        p[1].events = EPOLLOUT
        p[0].revents = p[1].revents = 0
        c_poll(p, 2, 0)
        if p[0].fd >= 0 and not p[0].revents:
            self.waits_for, self.waits_events = fd, EPOLLIN
            return STEP_BLOCKED
        if not p[1].revents:
            self.waits_for, self.waits_events = out, EPOLLOUT
            return STEP_BLOCKED
        return STEP_TURN

    cdef int source_blocks(self) noexcept:
        self.waits_for, self.waits_events = self.fd, EPOLLIN
        if self.run < BULK_FROM:
            self.bulk = False
        self.run = 0
        return STEP_BLOCKED

    cdef int readable(self, int fd) noexcept:
        cdef pollfd p
        p.fd = fd
        p.events = EPOLLIN
        return c_poll(&p, 1, 0)

    cdef int64_t wanted(self, int64_t limit) noexcept:
        return limit if self.left < 0 or self.left > limit else self.left

    def step(self):
        """One step: DONE, BLOCKED (by `waits_for`), COLD, TURN or WRITE."""
        return self.go()

    cdef int go(self) except -1:
        """step(), natively."""
        cdef int64_t began = monotonic_ns(), size
        cdef Pipe between = self.between
        cdef ssize_t n
        cdef int fd, out
        cdef bint draining
        while True:
            draining = between is not None and between.pending > 0
            size = self.wanted(between.pending if draining else
                               between.size if self.scratch != NULL else CHUNK)
            if size == 0 or self.error or (self.ended and not draining):
                return STEP_DONE
            if not draining and self.source_kind == DISK:
                size = self.within(size)
                if self.cold(size):
                    return STEP_COLD
            if self.scratch != NULL and not draining:
                if self.empty:
                    return self.source_blocks()
                if not self.bulk:
                    n = self.copy()
                    if n == -EAGAIN:
                        return self.source_blocks()
                    if n == -EINTR or monotonic_ns() - began >= TURN_NS:
                        return STEP_TURN
                    continue
            fd = between.reader if draining else self.fd
            out = self.out if draining or between is None else between.writer
            if out == self.out and self.target_kind == DISK:
                if not draining and not self.readable(fd):
                    self.waits_for, self.waits_events = fd, EPOLLIN
                    return STEP_BLOCKED
                return STEP_WRITE
            n = self.once(fd, &self.offset if fd == self.fd and self.offset >= 0 else NULL,
                          out, NULL, size)
            if n > 0:
                self.took(n, draining)
            elif n == 0:
                self.ended = True
            elif n == -EAGAIN:
                return self.blocked(fd, out, draining)
            elif n == -EINTR:
                return STEP_TURN  # signals are looked at there
            else:
                self.error = <int>-n
                return STEP_DONE
            if monotonic_ns() - began >= TURN_NS:
                return STEP_TURN

    cdef int copy(self) noexcept:
        """Receive and send once; what the target does not take goes into the pipe.

        0, or a negated errno if the source gave nothing now.
        """
        cdef int64_t size = self.wanted(min(<int64_t>SCRATCH, <int64_t>self.between.size))
        cdef ssize_t n, sent, kept
        self.syscalls += 2
        n = recv(self.fd, self.scratch, size, MSG_DONTWAIT)
        if n <= 0:
            if n == 0:
                self.ended = True
                return 0
            if errno == EAGAIN or errno == EINTR:
                return -errno
            self.error = errno
            return 0
        self.run += n
        if n == size:
            self.bulk = True
        else:
            self.empty = self.tells_empty
        sent = send(self.out, self.scratch, n, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                self.error = errno
            sent = 0
        self.moved += sent
        if self.left > 0:
            self.left -= sent
        if sent < n:
            # it is empty, and holds more than that
            self.syscalls += 1
            kept = c_write(self.between.writer, self.scratch + sent, n - sent)
            self.between.pending += max(kept, 0)
            if kept < n - sent and not self.error:
                self.error = ENOMEM
        return 0

    cdef int took(self, ssize_t n, bint draining) noexcept:
        if self.between is not None:
            if not draining:
                self.between.pending += n
                self.run += n
                return 0
            self.between.pending -= n
        self.moved += n
        if self.left > 0:
            self.left -= n
        return 0

    def write(self):
        """The operation that WRITE asks for; wrote() takes it back when it has finished."""
        cdef Pipe between = self.between
        cdef bint draining = between is not None
        return Move(self, between.reader if draining else self.fd, self.out, self.out_offset,
                    self.wanted(between.pending if draining else CHUNK))

    def wrote(self, Move move):
        cdef int n = move.result
        if n > 0:
            self.took(n, self.between is not None)
            if self.out_offset >= 0:
                self.out_offset += n
        elif n == 0:
            self.ended = True
        elif n != -EAGAIN and n != -EINTR and n != -ECANCELED:
            self.error = -n
            self.ended = True


cdef class Move(Op):
    """One splice() from a pipe to a file, by the ring or by run() in a thread."""

    cdef Splice splice           # has the descriptors

    def __cinit__(self, Splice splice, int fd, int out, int64_t offset, uint32_t size):
        self.splice = splice
        self.opcode = IORING_OP_SPLICE
        self.file_index = fd
        self.address = <uint64_t>-1
        self.fd = out
        self.offset = <uint64_t>offset
        self.length = size
        self.op_flags = FLAGS

    def run(self):
        """The same, blocking."""
        cdef int64_t at = <int64_t>self.offset
        self.result = <int>self.splice.once(
            self.file_index, NULL, self.fd, &at if at >= 0 else NULL, self.length
        )
