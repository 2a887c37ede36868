# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""One operation on a file: a submission to the ring, or a system call in a thread.

Why it exists: whatever may wait for a disk is described once, in the fields of a submission, and
served by whatever the loop has: the ring; a thread that makes the same system call (`execute`); or,
for what can be polled on the epoll backend, readiness (`perform`).

Rules:

* The operation owns all memory the kernel may touch: paths, vectors, exported buffers and the bytes
  read into.  A caller's buffer is released when the operation has ended, not before.
* `waiter` is a future that is told the result.  Who is cancelled sets another one and goes on
  waiting: an operation is never left behind.
* A descriptor that was opened is the operation's until somebody takes it.
* Results are as the ring gives them: a count, or a negated errno.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close as c_close

from aiounify._core.reactor cimport (
    EAGAIN,
    ECANCELED,
    EINTR,
    EPOLLIN,
    EPOLLOUT,
    Op,
    errno,
)


cdef extern from "Python.h":
    PyObject *bytes_new "PyBytes_FromStringAndSize" (const char *, Py_ssize_t) except NULL
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    int PyObject_GetBuffer(object, Buffer *, int) except -1
    void PyBuffer_Release(Buffer *)
    void Py_DECREF(PyObject *)
    void Py_XDECREF(PyObject *)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll" (pollfd *fds, unsigned long n, int timeout)

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/types.h>
    #include <sys/uio.h>
    #include <unistd.h>

    /* the ring's numbers of what is served here */
    enum { AU_READV = 1, AU_WRITEV = 2, AU_FSYNC = 3, AU_POLL = 6, AU_FALLOCATE = 17, AU_OPEN = 18,
           AU_CLOSE = 19, AU_STATX = 21, AU_READ = 22, AU_WRITE = 23, AU_RENAME = 35,
           AU_UNLINK = 36, AU_MKDIR = 37, AU_SYMLINK = 38, AU_LINK = 39, AU_FTRUNCATE = 55 };

    static int64_t file_call(int op, int fd, uint64_t address, uint32_t length, uint64_t offset,
                             uint32_t flags)
    {
        void *p = (void *)(uintptr_t)address, *q = (void *)(uintptr_t)offset;
        switch (op) {
        case AU_READ:
            return offset == (uint64_t)-1 ? read(fd, p, length) : pread64(fd, p, length, offset);
        case AU_WRITE:
            return offset == (uint64_t)-1 ? write(fd, p, length) : pwrite64(fd, p, length, offset);
        case AU_READV:
            if (flags)
                return preadv2(fd, p, length, offset, flags);
            return offset == (uint64_t)-1 ? readv(fd, p, length)
                                          : preadv64(fd, p, length, offset);
        case AU_WRITEV:
            return offset == (uint64_t)-1 ? writev(fd, p, length)
                                          : pwritev64(fd, p, length, offset);
        case AU_FSYNC: return flags ? fdatasync(fd) : fsync(fd);
        case AU_FALLOCATE: return fallocate64(fd, length, offset, address);
        case AU_FTRUNCATE: return ftruncate64(fd, offset);
        case AU_OPEN: return openat64(fd, p, flags, length);
        case AU_CLOSE: return close(fd);
        case AU_STATX: return syscall(SYS_statx, fd, p, flags, length, q);
        case AU_RENAME:
            return flags ? syscall(SYS_renameat2, fd, p, (int)length, q, flags)
                         : renameat(fd, p, (int)length, q);
        case AU_LINK: return linkat(fd, p, (int)length, q, flags);
        case AU_SYMLINK: return symlinkat(p, fd, q);
        case AU_UNLINK: return unlinkat(fd, p, flags);
        case AU_MKDIR: return mkdirat(fd, p, length);
        }
        errno = ENOSYS;
        return -1;
    }
    """
    enum:
        AU_READV
        AU_WRITEV
        AU_POLL
        AU_OPEN
        AU_CLOSE
        AU_STATX
        AU_READ
        AU_WRITE
        AU_FALLOCATE
    int64_t file_call(int op, int fd, uint64_t address, uint32_t length, uint64_t offset,
                      uint32_t flags) nogil

cdef enum:
    PIPE_BUF = 4096      # a pipe that is writable takes this much without waiting


cdef class FileOp(Op):
    """See the module's docstring; `opcode` is a number of the ring's."""

    def __init__(self, int opcode, int fd=-1, uint32_t length=0, int64_t offset=-1,
                 uint32_t flags=0, bint polled=False):
        self.opcode = opcode
        self.fd = fd
        self.length = length
        self.offset = <uint64_t>offset
        self.op_flags = flags
        self.polled = polled

    def __dealloc__(self):
        if self.opens and self.result >= 0:
            c_close(self.result)  # the loop was closed meanwhile, and nobody has taken it
        self.release()
        Py_XDECREF(self.out)
        PyMem_Free(self.vectors)

    cdef int release(self) except -1:
        """The kernel has done with the caller's buffers."""
        if self.view.obj != NULL:
            PyBuffer_Release(&self.view)
        self.views = None
        return 0

    cdef int part_ended(self) except -1:
        """One of the chain that is awaited by this operation has completed."""
        return 0

    @property
    def waiter(self):
        return self.waiter

    @waiter.setter
    def waiter(self, value):
        self.waiter = value

    cdef int complete(self, int result, uint32_t flags) except -1:
        self.result = result
        self.deliver()
        return 0

    def deliver(self):
        """Tell the waiter, in the loop's thread, once `result` is known."""
        cdef object waiter = self.waiter
        self.done = True
        self.release()
        if waiter is not None:
            self.waiter = None
            # a loop that closes reaps what is in flight, and nobody can be woken any more
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(self.result)

    def execute(self):
        """The system call itself, in a thread; it may block.  Returns and keeps the result."""
        cdef int64_t n = -1
        cdef int error = EINTR
        if self.cancel_asked:
            self.result = -ECANCELED
            return self.result
        with nogil:
            while n < 0 and error == EINTR:
                n = file_call(self.opcode, self.fd, self.address, self.length, self.offset,
                              self.op_flags)
                error = errno if n < 0 else 0
                if self.opcode == AU_CLOSE:
                    break  # Linux has closed it, whatever it says
        self.result = -error if n < 0 else <int>n
        return self.result

    cdef int perform(self) noexcept:
        """Readiness first: the descriptor may be a blocking one."""
        cdef pollfd p
        cdef int64_t n
        cdef uint32_t length = self.length
        p.fd = self.fd
        p.events = <short>self.readiness
        p.revents = 0
        if c_poll(&p, 1, 0) == 0:
            return -EAGAIN
        if self.opcode == AU_POLL:
            return p.revents
        if self.opcode == AU_WRITE and length > PIPE_BUF:
            length = PIPE_BUF
        n = file_call(self.opcode, self.fd, self.address, length, self.offset, self.op_flags)
        if n < 0 and errno == EINTR:
            return -EAGAIN
        return -errno if n < 0 else <int>n

    def take_descriptor(self):
        """What was opened; from now on the caller's."""
        self.opens = False
        return self.result

    def take(self):
        """The bytes that were read; once."""
        cdef PyObject *out = self.out
        if out == NULL or self.result <= 0:
            return b""
        self.out = NULL
        _PyBytes_Resize(&out, self.result)
        found = <object>out
        Py_DECREF(out)
        return found


cdef class ChainPart(FileOp):
    """One of a chain of operations, of which another one, the owner, is awaited.

    The two own each other until this one has completed.
    """

    cdef int complete(self, int result, uint32_t flags) except -1:
        cdef FileOp owner = self.owner
        self.owner = None
        self.linked = None
        self.result = result
        self.done = True
        self.release()
        return owner.part_ended()


def read_op(int fd, Py_ssize_t size, int64_t offset, bint polled=False):
    """Read up to `size` bytes (at most 2 GiB - 4 KiB at a time) at an offset, or -1: at the
    descriptor's own."""
    cdef FileOp op = FileOp(AU_READ, fd, <uint32_t>min(size, 0x7ffff000), offset, 0, polled)
    op.out = bytes_new(NULL, op.length)
    op.address = <uint64_t><size_t>bytes_data(op.out)
    op.readiness = EPOLLIN
    return op


def readinto_op(int fd, buffer, int64_t offset, bint polled=False):
    """Read into a writable buffer, which stays exported until the operation has ended."""
    cdef FileOp op = FileOp(AU_READ, fd, 0, offset, 0, polled)
    PyObject_GetBuffer(buffer, &op.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    op.address = <uint64_t><size_t>op.view.buf
    op.length = <uint32_t>min(op.view.len, 0x7ffff000)
    op.readiness = EPOLLIN
    return op


cdef int set_vectors(FileOp op, buffers, int64_t skip, size_t most) except -1:
    cdef Py_ssize_t n = len(buffers), i, used = 0
    cdef const unsigned char[::1] view
    cdef size_t room = most
    op.vectors = <iovec *>PyMem_Malloc(max(n, 1) * sizeof(iovec))
    if op.vectors == NULL:
        raise MemoryError
    op.views = []
    for i in range(n):
        view = buffers[i]
        if view.shape[0] <= skip:
            skip -= view.shape[0]
            continue
        op.views.append(view)
        op.vectors[used].iov_base = <void *>&view[skip]
        op.vectors[used].iov_len = min(<size_t>(view.shape[0] - skip), room)
        room -= op.vectors[used].iov_len
        skip = 0
        used += 1
        if used == 1024 or not room:
            break
    op.address = <uint64_t><size_t>op.vectors
    op.length = <uint32_t>used
    return 0


def readv_op(int fd, buffers, int64_t offset, int flags=0):
    """preadv2(2) into writable buffers."""
    cdef FileOp op = FileOp(AU_READV, fd, 0, offset, flags)
    cdef Py_ssize_t i
    cdef unsigned char[::1] view
    cdef Py_ssize_t n = len(buffers)
    if n > 1024:
        raise ValueError(f"at most 1024 buffers in one call, not {n}")
    op.vectors = <iovec *>PyMem_Malloc(max(n, 1) * sizeof(iovec))
    if op.vectors == NULL:
        raise MemoryError
    op.views = []
    for i in range(n):
        view = memoryview(buffers[i]).cast("B")
        op.views.append(view)
        op.vectors[i].iov_base = <void *>&view[0] if view.shape[0] else NULL
        op.vectors[i].iov_len = view.shape[0]
    op.address = <uint64_t><size_t>op.vectors
    op.length = <uint32_t>n
    return op


def writev_op(int fd, buffers, int64_t offset, int64_t skip=0, bint polled=False):
    """Write the buffers, without the first `skip` bytes, in one call: at most 1024 of them."""
    cdef FileOp op = FileOp(AU_WRITEV, fd, 0, offset, 0, polled)
    op.readiness = EPOLLOUT
    set_writev(op, buffers, skip, PIPE_BUF if polled else 0x7ffff000)
    return op


cdef int set_writev(FileOp op, buffers, int64_t skip, size_t most) except -1:
    """Make the operation write these buffers: a single one by the simpler call."""
    op.opcode = AU_WRITEV
    set_vectors(op, buffers, skip, most)
    if op.length == 1:
        op.opcode = AU_WRITE
        op.address = <uint64_t><size_t>op.vectors[0].iov_base
        op.length = <uint32_t>op.vectors[0].iov_len
    return 0


def open_op(int dir_fd, bytes path, int flags, int mode):
    cdef FileOp op = FileOp(AU_OPEN, dir_fd, mode, 0, flags)
    op.opens = True
    op.result = -ECANCELED
    op.keep = path
    op.address = <uint64_t><size_t><char *>path
    return op


def path_op(int opcode, int dir_fd, bytes path, int length, int flags=0, bytes other=None):
    """What takes one or two paths; `length` is the second directory, or a mode."""
    cdef FileOp op = FileOp(opcode, dir_fd, <uint32_t>length, 0, flags)
    op.keep = (path, other)
    op.address = <uint64_t><size_t><char *>path
    if other is not None:
        op.offset = <uint64_t><size_t><char *>other
    return op


def statx_op(int dir_fd, bytes path, int flags, int mask, bytearray into):
    """statx(2) into a buffer of 256 bytes."""
    cdef FileOp op = FileOp(AU_STATX, dir_fd, mask, 0, flags)
    if len(into) != 256:
        raise ValueError("struct statx has 256 bytes")
    op.keep = path
    PyObject_GetBuffer(into, &op.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    op.address = <uint64_t><size_t><char *>path
    op.offset = <uint64_t><size_t>op.view.buf
    return op


def fallocate_op(int fd, int mode, int64_t offset, int64_t length):
    cdef FileOp op = FileOp(AU_FALLOCATE, fd, mode, offset, 0)
    op.address = <uint64_t>length
    return op


def poll_op(int fd, unsigned events):
    """Wait until one of the poll events is there."""
    cdef FileOp op = FileOp(AU_POLL, fd, 0, 0, events, True)
    op.readiness = events
    return op
