# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Kernel AIO (io_submit) for O_DIRECT on the epoll backend.

Why it exists: it is the one way to have many direct reads and writes in flight without io_uring and
without threads.  Completions come as an eventfd in the loop's wait.  It is for O_DIRECT only: on the
page cache io_submit does the whole work before it returns, and blocks the loop.

Rules:

* An operation that was submitted is owned here until its event was taken, and cannot be cancelled (no
  block device's can).  close() waits for the kernel (io_destroy does), then forgets the operations
  without telling anybody: the loop is closed by then.
* Writes are submitted with RWF_NOWAIT (Linux 4.13): io_submit makes a write that makes the file
  longer, fills a hole or has to wait for a lock to its end before it returns (ext4), and would block
  the loop.  With the flag it answers EAGAIN, and the write is given to a thread.
"""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close as c_close
from posix.unistd cimport read as c_read

import os

from aiounify._core.file_op cimport FileOp
from aiounify._core.reactor cimport EAGAIN, EINTR, errno


cdef extern from "Python.h":
    void Py_DECREF(PyObject *)
    void Py_INCREF(PyObject *)

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int initval, int flags)

cdef extern from *:
    """
    #include <linux/aio_abi.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    static int aio_setup(unsigned n, aio_context_t *ctx)
    {
        return (int)syscall(SYS_io_setup, n, ctx);
    }

    /* aio_rw_flags, which headers before Linux 4.13 have not: the other half of a padded pair */
    static void aio_nowait(struct iocb *one)
    {
        uint32_t nowait = 0x8;
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        memcpy((char *)one + 12, &nowait, 4);
    #else
        memcpy((char *)one + 8, &nowait, 4);
    #endif
    }

    static int aio_submit(aio_context_t ctx, struct iocb **some, long n)
    {
        return (int)syscall(SYS_io_submit, ctx, n, some);
    }

    static int aio_take(aio_context_t ctx, struct io_event *events, long n)
    {
        struct timespec now = {0, 0};
        return (int)syscall(SYS_io_getevents, ctx, 0L, n, events, &now);
    }

    static int aio_end(aio_context_t ctx)
    {
        return (int)syscall(SYS_io_destroy, ctx);
    }
    """
    ctypedef unsigned long aio_context_t
    struct iocb:
        uint64_t aio_data
        unsigned short aio_lio_opcode
        unsigned int aio_fildes
        uint64_t aio_buf
        uint64_t aio_nbytes
        int64_t aio_offset
        unsigned int aio_flags
        unsigned int aio_resfd
    struct io_event:
        uint64_t data
        int64_t res
    enum:
        IOCB_CMD_PREAD
        IOCB_CMD_PWRITE
        IOCB_FLAG_RESFD
    int aio_setup(unsigned n, aio_context_t *ctx)
    void aio_nowait(iocb *one)
    int aio_submit(aio_context_t ctx, iocb **some, long n)
    int aio_take(aio_context_t ctx, io_event *events, long n)
    int aio_end(aio_context_t ctx) nogil

cdef enum:
    READ = 22            # the ring's numbers
    WRITE = 23
    TAKEN = 64           # events in one go
    TOGETHER = 8         # operations submitted by one system call


cdef class AioContext:
    """One context of the kernel's.  OSError where there is none (seccomp, fs.aio-max-nr)."""

    cdef aio_context_t ctx
    cdef int event_fd
    cdef set flight
    cdef object otherwise        # is given what the kernel cannot do without waiting
    cdef object soon             # the loop's call_soon()
    cdef iocb[TOGETHER] gathered
    cdef int n_gathered
    cdef bint coming             # a call of flush()
    cdef readonly uint64_t completed, refused

    def __cinit__(self):
        self.event_fd = -1
        self.flight = set()

    def __init__(self, otherwise, soon, unsigned entries=256):
        self.otherwise = otherwise
        self.soon = soon
        if aio_setup(entries, &self.ctx) < 0:
            raise OSError(errno, f"io_setup: {os.strerror(errno)}")
        self.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.event_fd < 0:
            raise OSError(errno, f"eventfd: {os.strerror(errno)}")

    def __dealloc__(self):
        self.end()

    cdef int end(self) noexcept:
        cdef aio_context_t ctx = self.ctx
        self.ctx = 0
        if ctx:
            with nogil:
                aio_end(ctx)  # waits for what is in flight
        if self.event_fd >= 0:
            c_close(self.event_fd)
            self.event_fd = -1
        return 0

    def fileno(self):
        """The eventfd that completions make readable."""
        return self.event_fd

    def submit(self, FileOp op):
        """Begin a read or a write; False if this has to be done in another way.

        The kernel is given several at a time, in this turn of the loop or at the start of the next.
        """
        cdef iocb *one = &self.gathered[self.n_gathered]
        memset(one, 0, sizeof(iocb))
        if op.opcode == READ:
            one.aio_lio_opcode = IOCB_CMD_PREAD
        elif op.opcode == WRITE and op.offset != <uint64_t>-1:
            one.aio_lio_opcode = IOCB_CMD_PWRITE
            aio_nowait(one)
        else:
            return False
        one.aio_data = <uint64_t><size_t><PyObject *>op
        one.aio_fildes = op.fd
        one.aio_buf = op.address
        one.aio_nbytes = op.length
        one.aio_offset = <int64_t>op.offset
        one.aio_flags = IOCB_FLAG_RESFD
        one.aio_resfd = self.event_fd
        self.flight.add(op)
        self.n_gathered += 1
        if self.n_gathered == TOGETHER:
            self.flush()
        elif not self.coming:
            self.coming = True
            self.soon(self._flush_soon)
        return True

    def _flush_soon(self):
        self.coming = False
        self.flush()

    cdef int flush(self) except -1:
        """Give the kernel what has gathered."""
        cdef iocb[TOGETHER] some
        cdef iocb *each[TOGETHER]
        cdef int n = self.n_gathered, at = 0, taken, i
        cdef FileOp op
        self.n_gathered = 0
        if not self.ctx:
            return 0
        memcpy(some, self.gathered, sizeof(some))
        for i in range(n):
            each[i] = &some[i]
        while at < n:
            taken = aio_submit(self.ctx, each + at, n - at)
            if taken <= 0:  # full, or an error, which the system call itself tells better
                op = <FileOp><PyObject *><size_t>some[at].aio_data
                self.flight.discard(op)
                self.otherwise(op)
                taken = 1
            at += taken
        return 0

    def reap(self):
        """Take what has completed."""
        cdef io_event[TAKEN] events
        cdef uint64_t count
        cdef int n = TAKEN, i
        cdef FileOp op
        c_read(self.event_fd, &count, 8)  # level-triggered: has to be emptied
        while n == TAKEN:
            n = aio_take(self.ctx, events, TAKEN)
            for i in range(n):
                op = <FileOp><PyObject *><size_t>events[i].data
                self.flight.discard(op)
                if events[i].res == -EAGAIN:
                    self.refused += 1
                    self.otherwise(op)
                    continue
                self.completed += 1
                op.result = <int>events[i].res
                op.deliver()

    def close(self):
        """Wait for the kernel and forget everything."""
        self.end()
        self.n_gathered = 0
        self.flight.clear()
