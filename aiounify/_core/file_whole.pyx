# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""All that is in a file, as one request: open, read and close.

Why it exists: as awaited operations they are three turns of the loop, and a coroutine between each.
In the ring they are one submission, a chain; in a thread, on epoll, they are one job.

The chain, for a path of which nothing is known:

    openat     into a place of the ring's own table of files (Linux 5.19): the read must know the
               descriptor before there is one
    fadvise    does nothing, but fails for a FIFO (ESPIPE) and so ends the chain: reading would
               take what is in it.  It gets a descriptor then (Linux 6.8), to be read like any
               other: closed and opened anew, it could lose what a writer put into it meanwhile
    read       up to ROOM bytes
    read       a little more: that there is nothing is the end of the file, also in /proc, where sizes
               are 0 and a short read is no end
    close

Reads and what follows them have IOSQE_IO_HARDLINK: a short read breaks a plain link, and the close
has to come in any case.

Rules:

* The first read is the operation that is awaited.  It is done when all five are, so that the place
  in the table is free and the file closed by then.
* `whole` says that `take()` has all of the file.  If it is False, and there is no error of openat,
  somebody has to read it in the ordinary way: it is longer than ROOM, or no regular file.
* `take_kept()` is the descriptor to do so with, if there is one.
* Cancelling asks for the end of each part.  What was opened is closed all the same.
"""

from cpython.object cimport PyObject
from libc.errno cimport ESPIPE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close as c_close

cimport cython

from aiounify._core.file_op cimport ChainPart, FileOp
from aiounify._core.file_service cimport FileService
from aiounify._core.reactor cimport ECANCELED, EINTR, Reactor, errno


cdef extern from "Python.h":
    PyObject *bytes_new "PyBytes_FromStringAndSize" (const char *, Py_ssize_t) except NULL
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)

cdef extern from "uring_abi.h" nogil:
    enum:
        IOSQE_FIXED_FILE
        IOSQE_IO_HARDLINK

cdef extern from *:
    """
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/stat.h>
    #include <unistd.h>

    #define PIECE (16 << 20) /* between two looks whether it was cancelled */

    static int whole_open(const char *path)
    {
        return open64(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    }

    /* the size of a regular file, -1 for anything else */
    static int64_t whole_size(int fd)
    {
        struct stat st;
        return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : -1;
    }

    static ssize_t whole_read(int fd, char *into, size_t n, int64_t offset)
    {
        return pread64(fd, into, n < PIECE ? n : PIECE, offset);
    }
    """
    enum:
        O_NONBLOCK
        AT_FDCWD
    int whole_open(const char *path) nogil
    int64_t whole_size(int fd) nogil
    ssize_t whole_read(int fd, char *into, size_t n, int64_t offset) nogil

cdef enum:
    OPENAT = 18
    CLOSE = 19
    READ = 22
    FADVISE = 24
    INSTALL = 54         # FIXED_FD_INSTALL, Linux 6.8
    PARTS = 5
    ROOM = 130048        # for a file of unknown size; from 128 KiB on malloc maps fresh pages
    THREAD_MOST = 1 << 30  # read by a thread in one job


@cython.final
cdef class WholeRead(FileOp):
    """Read the file at a path (bytes, as the kernel takes it)."""

    cdef ChainPart opening, advice, tail, closing, installing
    cdef char[64] beyond     # what the second read got
    cdef Reactor reactor     # of the chain
    cdef int slot
    cdef int parts
    cdef int kept            # the descriptor of what is no regular file, or -1
    cdef bint broken         # the chain ended before its last part
    cdef readonly int opened     # what openat gave: 0 or more, or a negated errno
    cdef readonly bint whole
    cdef bytes path

    def __cinit__(self, bytes path):
        self.kept = -1

    def __init__(self, bytes path):
        FileOp.__init__(self, READ)
        self.path = path
        self.slot = -1
        self.opened = -ECANCELED
        self.result = -ECANCELED

    def __dealloc__(self):
        if self.kept >= 0:
            c_close(self.kept)  # the loop was closed meanwhile

    cdef int make_room(self, Py_ssize_t n) except -1:
        self.out = bytes_new(NULL, n)
        self.address = <uint64_t><size_t>bytes_data(self.out)
        self.length = <uint32_t>n
        return 0

    cdef ChainPart part(self, int opcode, int fd):
        cdef ChainPart part = ChainPart(opcode, fd)
        part.owner = self
        return part

    cdef int chain(self, Reactor reactor) except -1:
        """Submit it; `slot` is ours."""
        self.reactor = reactor
        self.make_room(ROOM)
        self.fd = self.slot
        self.sqe_flags = IOSQE_FIXED_FILE | IOSQE_IO_HARDLINK
        self.opening = self.part(OPENAT, AT_FDCWD)
        self.opening.address = <uint64_t><size_t><char *>self.path
        self.opening.offset = 0
        self.opening.op_flags = O_NONBLOCK
        self.opening.file_index = self.slot + 1
        self.opening.linked = self.advice = self.part(FADVISE, self.slot)
        self.advice.sqe_flags = IOSQE_FIXED_FILE
        self.advice.offset = 0
        self.advice.linked = self
        self.linked = self.tail = self.part(READ, self.slot)
        self.tail.sqe_flags = self.sqe_flags
        self.tail.address = <uint64_t><size_t>self.beyond
        self.tail.length = sizeof(self.beyond)
        self.tail.linked = self.closing = self.close_slot()
        reactor.submit(self.opening)
        return 0

    cdef ChainPart close_slot(self):
        cdef ChainPart part = self.part(CLOSE, 0)
        part.offset = 0
        part.file_index = self.slot + 1
        return part

    cdef int complete(self, int result, uint32_t flags) except -1:
        self.linked = None
        self.result = result
        self.done = False  # not before all parts are
        return self.part_ended()

    cdef int part_ended(self) except -1:
        self.parts += 1
        if self.parts < PARTS:
            return 0
        if self.parts == PARTS:
            self.opened = self.opening.result
            self.broken = self.opened >= 0 and self.closing.result == -ECANCELED
        if self.broken and not self.reactor.shutting:  # a ring that closes closes its files
            if self.installing is None and self.advice.result == -ESPIPE:
                self.installing = self.part(INSTALL, self.slot)
                self.installing.sqe_flags = IOSQE_FIXED_FILE
                self.installing.offset = 0
                self.reactor.submit(self.installing)
                return 0
            self.broken = False
            self.closing = self.close_slot()
            self.reactor.submit(self.closing)
            return 0
        if self.installing is not None:
            self.kept = self.installing.result  # or an error, which opening it anew will tell
        self.whole = 0 <= self.result < ROOM and self.tail.result == 0
        self.reactor.free_slot(self.slot)
        self.deliver()
        return 0

    def take_kept(self):
        """The descriptor of what is no regular file, from now on the caller's; -1 without one."""
        cdef int fd = self.kept
        self.kept = -1
        return fd

    def more(self):
        """What came behind take(), of what can be read once only."""
        return self.beyond[:self.tail.result] if self.tail.result > 0 else b""

    def execute(self):
        """All of it, in a thread.  Returns and keeps the result."""
        cdef int fd = -1, error = EINTR
        cdef int64_t size = -1, done = 0
        cdef ssize_t n = 0
        cdef const char *path = self.path
        cdef char *into
        if self.cancel_asked:
            return self.result
        with nogil:
            while fd < 0 and error == EINTR:
                fd = whole_open(path)
                error = errno if fd < 0 else 0
            if fd >= 0:
                size = whole_size(fd)
        self.opened = fd if fd >= 0 else -error
        if fd < 0:
            return self.result
        try:
            if 0 <= size < THREAD_MOST:
                self.make_room(size + 1 if size else ROOM)
                into = bytes_data(self.out)
                with nogil:
                    while done < self.length and not self.cancel_asked:
                        n = whole_read(fd, into + done, self.length - done, done)
                        if n > 0:
                            done += n
                        elif n == 0 or errno != EINTR:
                            break
                self.result = -ECANCELED if self.cancel_asked else -errno if n < 0 else <int>done
                self.whole = self.result >= 0 and n == 0
        finally:
            if size < 0:
                self.kept = fd
            else:
                with nogil:
                    c_close(fd)
        return self.result


def start_whole(FileService files, WholeRead op):
    """Begin: a future, or None if the ring cannot and it has to go operation by operation."""
    cdef Reactor reactor = files.owner.reactor
    files.owner._check_closed()
    if not files.uses_ring or not (OPENAT in files.ops or READ in files.ops):
        op.waiter = waiter = files.owner.create_future()
        files.in_thread(op)
        return waiter
    if not (OPENAT in files.ops and READ in files.ops and CLOSE in files.ops
            and FADVISE in files.ops and INSTALL in files.ops):
        return None
    op.slot = reactor.take_slot()
    if op.slot < 0:
        return None
    op.waiter = waiter = files.owner.create_future()
    try:
        op.chain(reactor)
    except BaseException:
        reactor.free_slot(op.slot)
        raise
    return waiter


def stop_whole(FileService files, WholeRead op):
    """Ask for an end; `finished` and the results tell what came of it."""
    op.cancel_asked = True
    if op.reactor is None:
        return
    for part in (op.opening, op.tail, op):
        if (<FileOp>part).link.next != NULL:
            (<FileOp>part).cancel_asked = False
            op.reactor.cancel(<FileOp>part)
