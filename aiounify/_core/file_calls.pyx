# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False
"""Reads that the page cache answers: served on the loop's thread, without suspending the task.

Why it exists: a page that is in memory is there in two microseconds, and a thread, a ring or even a
coroutine object costs several times that.  A `FileCall` is a coroutine to whoever looks.  When it
is first sent to, it tries: from the handle's buffer, else by preadv2(RWF_NOWAIT) (Linux 4.14) or
openat2(RESOLVE_CACHED) (Linux 5.12), which never wait for a disk.  If that fails it becomes what
the handle's Python method is, a coroutine that waits (aiounify/files/binary.py).

Rules:

* Inline hits have a budget: a task that has had `share` of them without a turn of the loop yields
  once.  The share shrinks with the number of tasks that used theirs up in the turn before, so that
  a turn costs about BUDGET hits, however many tasks read.
* A handle that is `held` belongs to an operation that waits; everybody else queues behind it.
  `position` is the offset behind the read buffer.  Nothing moves it but whoever holds the handle, or
  a hit, which does not wait.  So each of several users gets bytes of their own.
* The read buffer is the handle's, and no kernel operation that waits ever points into it.
* A file system without RWF_NOWAIT answers EOPNOTSUPP: then the handle gives inline reads up, unless
  its files live in memory (tmpfs, ramfs), where a plain pread() does not wait either.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy, memmove
from posix.unistd cimport close as c_close

import os
import warnings
from collections import deque

cimport cython

from aiounify._core.backlog cimport BacklogObject
from aiounify._core.file_op cimport FileOp
from aiounify._core.reactor cimport EAGAIN, EINTR, ENOENT, Reactor, errno
from aiounify._core.scheduler cimport Scheduler

from aiounify._core.uring import probe


cdef extern from "Python.h":
    PyObject *bytes_new "PyBytes_FromStringAndSize" (const char *, Py_ssize_t) except NULL
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    void Py_INCREF(PyObject *)
    void Py_DECREF(PyObject *)
    enum:
        PYGEN_RETURN
        PYGEN_ERROR
    Py_ssize_t PyUnicode_FindChar(object, Py_UCS4, Py_ssize_t, Py_ssize_t, int) except -2
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    object PyUnicode_Substring(object, Py_ssize_t, Py_ssize_t)
    int PyUnicode_FSConverter(object, PyObject **) except 0
    int PyIter_Send(object, object, PyObject **)

cdef extern from "file_call.h":
    int (*file_call_step)(PyObject *, PyObject *, PyObject **) except -1
    int file_call_install(PyTypeObject *) except -1

cdef extern from "file_status.h":
    enum:
        STATUS_FIELDS
    PyObject *status_of(int fd, object kind) except? NULL

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <sys/vfs.h>
    #include <unistd.h>

    #define AU_RWF_NOWAIT 0x8
    #define AU_RESOLVE_CACHED 0x20
    #define AU_openat2 437

    static ssize_t read_nowait(int fd, void *p, size_t n, int64_t offset)
    {
        struct iovec v = {p, n};
        return preadv2(fd, &v, 1, offset, AU_RWF_NOWAIT);
    }

    static ssize_t read_now(int fd, void *p, size_t n, int64_t offset)
    {
        return pread64(fd, p, n, offset);
    }

    static int open_cached(const char *path, uint64_t flags)
    {
        struct { uint64_t flags, mode, resolve; } how = {flags, 0, AU_RESOLVE_CACHED};
        return (int)syscall(AU_openat2, AT_FDCWD, path, &how, sizeof(how));
    }

    /* the size of a regular file, -1 for anything else */
    static int64_t regular_size(int fd)
    {
        struct stat st;
        return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : -1;
    }

    static int in_memory(int fd)
    {
        struct statfs s;
        return fstatfs(fd, &s) == 0 && (s.f_type == 0x01021994 || s.f_type == 0x858458f6);
    }
    """
    enum:
        EOPNOTSUPP
        ENOSYS
        ENOTDIR
        EINVAL
        O_PATH
        O_CLOEXEC
        O_NONBLOCK
        O_NOFOLLOW
    ssize_t read_nowait(int fd, void *p, size_t n, int64_t offset)
    ssize_t read_now(int fd, void *p, size_t n, int64_t offset)
    int c_open_cached "open_cached" (const char *path, uint64_t flags)
    int64_t regular_size(int fd)
    int in_memory(int fd)

cdef enum:
    BUDGET = 64          # hits of 4 KiB in one turn of the loop, for all tasks together
    RUN = 32             # of one task
    CHUNK_MAX = 262144   # of the read buffer
    WHOLE_MAX = 4194304  # a whole file larger than this is not read in one go on the loop

cdef enum:
    NOWAIT_OFF
    NOWAIT_ON
    NOWAIT_MEMORY

cdef enum:
    READ
    READLINE
    NEXT
    PREAD
    TEXT_LINE
    TEXT_NEXT
    WHOLE
    STAT

cdef enum:
    CREATED
    YIELDED
    STARTED
    FINISHED

cdef object MISS = object()
cdef tuple _NAMES = ("read", "readline", "__anext__", "pread", "readline", "__anext__",
                     "read_bytes", "stat")
cdef object _os_fstat = os.fstat
cdef object _stat_result = os.stat_result
cdef bint _own_status = os.stat_result.n_fields == STATUS_FIELDS
cdef int _compared = 0


cdef object status(int fd):
    """os.fstat() of a descriptor."""
    global _own_status, _compared
    cdef PyObject *made
    if not _own_status:
        return _os_fstat(fd)
    made = status_of(fd, _stat_result)
    if made == NULL:
        return _os_fstat(fd)
    found = <object>made
    Py_DECREF(made)
    if _compared < 3:
        # Of what changes meanwhile the first results may differ; then it is os.fstat()'s for good.
        theirs = _os_fstat(fd)
        if found.__reduce__() != theirs.__reduce__():
            _own_status = False
        _compared += 1
        return theirs
    return found


cdef inline bytes encoded(path):
    """As the kernel takes it; TypeError, ValueError as of open()."""
    cdef PyObject *found = NULL
    PyUnicode_FSConverter(path, &found)
    result = <bytes>found
    Py_DECREF(found)
    return result


@cython.final
cdef class FileService:
    """What the files of one loop share: the way to the kernel, and the budget of inline hits."""

    cdef Scheduler owner
    cdef readonly object in_thread
    cdef public frozenset ops
    cdef public bint opens_cached
    cdef public bint closed
    cdef readonly bint uses_ring
    cdef uint64_t turn
    cdef size_t head
    cdef int run, share, tired, spent

    def __init__(self, loop, in_thread):
        self.owner = <Scheduler?>loop
        self.in_thread = in_thread
        self.uses_ring = loop.backend == "uring"
        self.ops = probe().ops if self.uses_ring else frozenset()
        self.opens_cached = True
        self.share = RUN

    @property
    def loop(self):
        return self.owner

    def start(self, FileOp op):
        """Begin an operation; the future has its result."""
        cdef object waiter
        self.owner._check_closed()
        waiter = self.owner.create_future()
        op.waiter = waiter
        if op.opcode in self.ops or (op.polled and op.readiness):
            self.owner.reactor.submit(op)
        else:
            self.in_thread(op)
        return waiter

    def cancel(self, FileOp op):
        """Ask for an end; the operation's result tells whether it came."""
        if op.link.next != NULL:
            self.owner.reactor.cancel(op)
        else:
            op.cancel_asked = True

    cdef inline bint over(self):
        """True if the task that runs has used up its share and has to yield."""
        cdef BacklogObject *q = self.owner.q
        if self.turn != self.owner.n_turns:
            self.turn = self.owner.n_turns
            self.share = RUN if self.tired <= BUDGET // RUN else max(1, BUDGET // self.tired)
            self.tired = self.spent = 0
        if self.head != q.head:  # another callback runs: another step of a task
            self.head = q.head
            self.run = 0
        # A turn in which all begin at once must not give each a full share.
        if self.run < (self.share if self.spent < BUDGET else 1):
            return False
        self.tired += 1
        return True

    cdef inline int hit(self, Py_ssize_t size) noexcept:
        """A system call was made inline, and so many bytes were copied."""
        cdef int cost = 1 + <int>min(size >> 14, 1024)
        self.run += cost
        self.spent += cost
        self.owner.reactor.n_syscalls += 1
        self.owner.n_inline += 1
        return 0

    def open_cached(self, bytes path, int flags):
        """openat2(RESOLVE_CACHED): a descriptor, or a negated errno; -EAGAIN: not cached."""
        cdef int fd
        if not self.opens_cached:
            return -EAGAIN
        fd = c_open_cached(PyBytes_AS_STRING(path), <uint64_t>(flags | O_CLOEXEC))
        self.hit(0)
        if fd < 0:
            if errno == ENOSYS or errno == EINVAL:
                self.opens_cached = False  # before Linux 5.12, or a filter that forbids it
                return -EAGAIN
            return -errno
        return fd

    def stat(self, path, slow, bint follow):
        return call_new(STAT, self, self, path, slow, follow)

    def read_bytes(self, path, slow):
        return call_new(WHOLE, self, self, path, slow, False)


cdef object try_stat(FileService service, path, bint follow):
    cdef int fd
    if not service.opens_cached:
        return MISS
    fd = service.open_cached(encoded(path), O_PATH | (0 if follow else O_NOFOLLOW))
    if fd < 0:
        if fd == -ENOENT or fd == -ENOTDIR:
            raise OSError(-fd, os.strerror(-fd), path)
        return MISS
    try:
        return status(fd)
    finally:
        c_close(fd)


cdef object try_whole(FileService service, path):
    cdef int fd
    cdef int64_t size
    cdef ssize_t n
    cdef PyObject *out
    if not service.opens_cached:
        return MISS
    fd = service.open_cached(encoded(path), O_NONBLOCK)
    if fd < 0:
        if fd == -ENOENT or fd == -ENOTDIR:
            raise OSError(-fd, os.strerror(-fd), path)
        return MISS
    try:
        size = regular_size(fd)
        if size <= 0 or size > WHOLE_MAX:
            return MISS
        # one byte more than there should be: less than that is the end of the file
        out = bytes_new(NULL, size + 1)
        n = read_nowait(fd, bytes_data(out), size + 1, 0)
        if n < 0 and errno == EOPNOTSUPP and in_memory(fd):
            n = read_now(fd, bytes_data(out), size + 1, 0)
        service.hit(n)
        if n != size:
            Py_DECREF(out)
            return MISS
        _PyBytes_Resize(&out, n)
        found = <object>out
        Py_DECREF(out)
        return found
    finally:
        c_close(fd)


cdef FileCall call_new(int kind, FileService service, object target, object a, object b,
                       bint flag):
    cdef FileCall c = FileCall.__new__(FileCall)
    c.kind = kind
    c.service = service
    c.target = target
    c.a = a
    c.b = b
    c.flag = flag
    return c


@cython.final
@cython.freelist(128)
cdef class FileCall:
    """A read, or a question, that is answered at once if the kernel has the answer in memory."""

    cdef object __weakref__
    cdef int kind
    cdef char state
    cdef bint flag
    cdef FileService service
    cdef object target, a, b, inner

    def __dealloc__(self):
        if self.state == CREATED and self.kind != NEXT and self.kind != TEXT_NEXT \
                and self.target is not None:
            warn_unawaited(_NAMES[self.kind])

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        # for who calls it by name; awaiting goes by the slots of file_call.h
        return self.send(None)

    cdef int step(self, object value, PyObject **result) except -1:
        """1: *result is the result; 0: it is what is waited for."""
        cdef int how
        if self.inner is None:
            if value is not None:
                raise TypeError("can't send non-None value to a just-started coroutine")
            if self.state == CREATED:
                if self.service.over():
                    self.state = YIELDED
                    Py_INCREF(<PyObject *>None)
                    result[0] = <PyObject *>None
                    return 0
            elif self.state != YIELDED:
                raise RuntimeError("cannot reuse already awaited coroutine")
            self.state = STARTED
            found = self.attempt()
            if found is not MISS:
                self.state = FINISHED
                Py_INCREF(<PyObject *>found)
                result[0] = <PyObject *>found
                return 1
            self.inner = self.slow()
        how = PyIter_Send(self.inner, value, result)
        return -1 if how == PYGEN_ERROR else how == PYGEN_RETURN

    cdef object attempt(self):
        cdef int kind = self.kind
        if kind == PREAD:
            return (<BinaryBase>self.target).try_pread(self.a, self.b)
        if kind == NEXT:
            return (<BinaryBase>self.target).try_next()
        if kind == TEXT_NEXT:
            return (<TextBase>self.target).try_next()
        if kind == READ:
            return (<BinaryBase>self.target).try_read(self.a)
        if kind == READLINE:
            return (<BinaryBase>self.target).try_readline(self.a)
        if kind == TEXT_LINE:
            if self.a is None or self.a == -1:
                return (<TextBase>self.target).try_line()
            return MISS
        if kind == STAT:
            return try_stat(self.service, self.a, self.flag)
        return try_whole(self.service, self.a)

    cdef object slow(self):
        cdef int kind = self.kind
        if kind == PREAD:
            return self.target._slow_pread(self.a, self.b)
        if kind == NEXT or kind == TEXT_NEXT:
            return self.target._slow_next()
        if kind == READ:
            return self.target._slow_read(self.a)
        if kind == READLINE or kind == TEXT_LINE:
            return self.target._slow_readline(self.a)
        return self.b(self.a)

    def send(self, value):
        cdef PyObject *result = NULL
        cdef int how = self.step(value, &result)
        found = <object>result
        Py_DECREF(result)
        if how == 1:
            raise StopIteration(found)
        return found

    def throw(self, kind, value=None, traceback=None):
        if self.inner is not None:
            if value is None and traceback is None:
                return self.inner.throw(kind)
            return self.inner.throw(kind, value, traceback)
        if self.state >= STARTED:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self.state = FINISHED
        raise value if value is not None else kind

    def close(self):
        self.state = FINISHED
        if self.inner is not None:
            self.inner.close()

    @property
    def __name__(self):
        return _NAMES[self.kind]

    @property
    def __qualname__(self):
        return _NAMES[self.kind]

    @property
    def cr_await(self):
        return self.inner.cr_await if self.inner is not None else None

    @property
    def cr_running(self):
        return False

    @property
    def cr_frame(self):
        return None

    @property
    def cr_code(self):
        return None


cdef int step_of(PyObject *call, PyObject *value, PyObject **result) except -1:
    return (<FileCall>call).step(<object>value, result)


file_call_step = step_of
file_call_install(<PyTypeObject *>FileCall)


cdef int warn_unawaited(str name) noexcept:
    try:
        warnings.warn(f"coroutine '{name}' was never awaited", RuntimeWarning, stacklevel=1)
    except BaseException:
        return 0  # an exception cannot leave a destructor
    return 0


cdef class Guarded:
    """A handle that one operation at a time may hold while it waits, in the order they came."""

    cdef readonly bint held
    cdef object queue        # a deque of futures, or None
    cdef public FileService service

    def _hold(self):
        """Take the handle if it is free."""
        if self.held:
            return False
        self.held = True
        return True

    def _wait(self):
        """A future that is done when the handle is the caller's."""
        waiter = self.service.owner.create_future()
        if self.queue is None:
            self.queue = deque()
        self.queue.append(waiter)
        return waiter

    def _waiting(self):
        return len(self.queue) if self.queue else 0

    def _let_go(self):
        """Free it, or hand it to the first who waits."""
        while self.queue:
            waiter = self.queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.held = False


cdef class BinaryBase(Guarded):
    """Descriptor, offset and read buffer; binary.py has everything that waits."""

    cdef public int fd
    cdef public int64_t position     # behind the read buffer; -1 never: see regular
    cdef public Py_ssize_t chunk     # how much the buffer is filled by
    cdef public bint regular         # seekable, read and written at `position`
    cdef public bint can_read, can_write
    cdef public bint raw             # no buffer at all
    cdef public bint shut            # closing or closed
    cdef public bint dirty           # data to be written is waiting
    cdef public int nowait
    cdef public int busy             # positional operations in flight
    cdef char *data
    cdef Py_ssize_t room, at, end

    def __cinit__(self, *args, **kwargs):
        self.fd = -1
        self.nowait = NOWAIT_ON

    def __dealloc__(self):
        PyMem_Free(self.data)

    # -- the buffer --------------------------------------------------------------

    def _have(self):
        return self.end - self.at

    def _give(self, Py_ssize_t n):
        """Up to n bytes out of the buffer."""
        return self.cut(min(n, self.end - self.at))

    def _peek(self):
        return PyBytes_FromStringAndSize(self.data + self.at, self.end - self.at)

    def _skip(self, Py_ssize_t n):
        """Go n bytes forward, or back, inside the buffer."""
        if not 0 <= self.at + n <= self.end:
            raise ValueError("outside the buffer")
        self.at += n

    cdef object cut(self, Py_ssize_t n):
        found = PyBytes_FromStringAndSize(self.data + self.at, n)
        self.at += n
        return found

    cdef int make_room(self, Py_ssize_t more) except -1:
        """Room for so many bytes behind what is in the buffer."""
        cdef char *data
        cdef Py_ssize_t room = self.room
        if self.at:
            memmove(self.data, self.data + self.at, self.end - self.at)
            self.end -= self.at
            self.at = 0
        if self.end + more > room:
            room = max(self.end + more, room * 2 if self.end else 0)
            data = <char *>PyMem_Realloc(self.data, room)
            if data == NULL:
                raise MemoryError
            self.data = data
            self.room = room
        return 0

    def _append(self, bytes more):
        """What was read at `position`."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(more)
        self.make_room(n)
        memcpy(self.data + self.end, PyBytes_AS_STRING(more), n)
        self.end += n
        if self.regular:
            self.position += n

    def _drop(self):
        """Forget what was read ahead: the offset is where the reader is."""
        if self.regular:
            self.position -= self.end - self.at
        self.at = self.end = 0

    def _find_newline(self, Py_ssize_t start):
        """How many bytes a line takes; 0 if its end is not in the buffer."""
        cdef const char *found
        cdef Py_ssize_t n = self.end - self.at - start
        if n <= 0:
            return 0
        found = <const char *>memchr(self.data + self.at + start, c"\n", n)
        return 0 if found == NULL else found - (self.data + self.at) + 1

    # -- hits --------------------------------------------------------------------

    cdef inline ssize_t inline_read(self, char *into, Py_ssize_t n, int64_t offset):
        """Without waiting: a count, or a negated errno."""
        cdef ssize_t got
        if self.nowait == NOWAIT_ON:
            got = read_nowait(self.fd, into, n, offset)
            if got < 0:
                got = -errno
                if got == -EOPNOTSUPP or got == -ENOSYS:
                    self.nowait = NOWAIT_MEMORY if in_memory(self.fd) else NOWAIT_OFF
        else:
            got = -EAGAIN
        if self.nowait == NOWAIT_MEMORY:
            got = read_now(self.fd, into, n, offset)
            if got < 0:
                got = -errno
        self.service.hit(got)
        return got

    cdef inline bint free(self) noexcept:
        return not (self.held or self.shut or self.dirty) and self.can_read and self.regular \
            and self.nowait != NOWAIT_OFF

    cdef ssize_t fill(self) except? -2:
        """More of the file behind what is in the buffer: a count, or a negated errno."""
        cdef ssize_t n
        self.make_room(self.chunk)
        n = self.inline_read(self.data + self.end, self.chunk, self.position)
        if n > 0:
            self.end += n
            self.position += n
            if n == self.chunk and self.chunk < CHUNK_MAX and not self.raw:
                self.chunk *= 2
        return n

    def _try_fill(self):
        """fill() for whoever holds the handle."""
        if not self.regular or self.nowait == NOWAIT_OFF:
            return -EAGAIN
        return self.fill()

    def _try_chunk(self):
        """What is in the buffer, or else can be had at once; None if that is nothing."""
        cdef ssize_t n
        if self.held or self.shut or self.dirty or not self.can_read:
            return None
        if self.end == self.at:
            if not self.regular or self.nowait == NOWAIT_OFF:
                return None
            n = self.fill()
            if n < 0:
                return None
        return self.cut(self.end - self.at)

    cdef object try_read(self, object wanted):
        cdef Py_ssize_t n, have = self.end - self.at
        cdef ssize_t got
        cdef PyObject *out
        if wanted is None:
            return self.try_rest()
        if type(wanted) is not int:
            return MISS
        n = wanted
        if n == -1:
            return self.try_rest()
        if n < 0 or self.held or self.shut or self.dirty or not self.can_read:
            return MISS
        if n <= have and n:
            return self.cut(n)
        if not self.free():
            return MISS
        if have == 0 and (n >= self.chunk or self.raw):
            if n > WHOLE_MAX:
                return MISS
            out = bytes_new(NULL, n)
            got = self.inline_read(bytes_data(out), n, self.position)
            if got == n or got == 0:
                self.position += got
                if not got:
                    Py_DECREF(out)
                    return b""
                found = <object>out
                Py_DECREF(out)
                return found
            Py_DECREF(out)
            return MISS
        got = self.fill()
        if got >= 0 and (have + got >= n or not got):
            return self.cut(min(n, have + got))
        return MISS

    cdef object try_rest(self):
        """All that is left, if it is not much and nothing of it is in the buffer."""
        cdef int64_t left
        cdef ssize_t got
        cdef PyObject *out
        if self.end != self.at or not self.free():
            return MISS
        left = regular_size(self.fd) - self.position
        if left <= 0 or left > WHOLE_MAX:
            return MISS
        # one byte more than there should be: less than that is the end of the file
        out = bytes_new(NULL, left + 1)
        got = self.inline_read(bytes_data(out), left + 1, self.position)
        if got != left:
            Py_DECREF(out)
            return MISS
        self.position += got
        _PyBytes_Resize(&out, got)
        found = <object>out
        Py_DECREF(out)
        return found

    cdef object try_pread(self, object wanted, object where):
        cdef Py_ssize_t n
        cdef int64_t offset
        cdef ssize_t got
        cdef PyObject *out
        if type(wanted) is not int or type(where) is not int or not self.free():
            return MISS
        n = wanted
        offset = where
        if n <= 0 or offset < 0 or n > WHOLE_MAX:
            return MISS
        out = bytes_new(NULL, n)
        got = self.inline_read(bytes_data(out), n, offset)
        if got != n:
            Py_DECREF(out)
            return b"" if got == 0 else MISS
        found = <object>out
        Py_DECREF(out)
        return found

    cdef object try_line(self):
        cdef Py_ssize_t n, searched = 0
        cdef ssize_t got
        if self.held or self.shut or self.dirty or not self.can_read:
            return MISS
        while True:
            n = self._find_newline(searched)
            if n:
                return self.cut(n)
            if not self.free() or self.raw:
                return MISS
            searched = self.end - self.at
            if searched > WHOLE_MAX:
                return MISS  # without a line end: with waiting now and then
            got = self.fill()
            if got < 0:
                return MISS
            if got == 0:
                return self.cut(self.end - self.at)

    cdef object try_readline(self, object limit):
        if limit is None or limit == -1:
            return self.try_line()
        return MISS

    cdef object try_next(self):
        cdef object line = self.try_line()
        if line is not MISS and PyBytes_GET_SIZE(line) == 0:
            raise StopAsyncIteration
        return line

    def read(self, size=-1, /):
        """Read up to `size` bytes, less only at the end of the file; all that is left for -1.

        In a handle without a buffer: one read(2), which may bring less.  A read that is cancelled
        loses nothing: the next one gets the same bytes.
        """
        return call_new(READ, self.service, self, size, None, False)

    def readline(self, size=-1, /):
        """The next line with its end, at most `size` bytes; empty at the end of the file."""
        return call_new(READLINE, self.service, self, size, None, False)

    def pread(self, size, offset, /):
        """Read up to `size` bytes at an offset; the handle's own offset does not move.

        Less only at the end of the file.  May run beside anything else.  pread(2).
        """
        return call_new(PREAD, self.service, self, size, offset, False)

    def __aiter__(self):
        return self

    def __anext__(self):
        return call_new(NEXT, self.service, self, None, None, False)


cdef class TextBase(Guarded):
    """Decoded characters and the way to a line of them; text.py has the rest."""

    cdef public str chars
    cdef public Py_ssize_t used
    cdef public bint plain       # every line ends in \n, and nothing is to be written
    cdef public bint ready       # lines may be served inline
    cdef public BinaryBase source

    def __cinit__(self, *args, **kwargs):
        self.chars = ""

    def _take(self, Py_ssize_t n):
        found = PyUnicode_Substring(self.chars, self.used, self.used + n)
        self.used += PyUnicode_GET_LENGTH(found)
        return found

    def _try_line(self):
        """The next line if it is among the characters that are there."""
        cdef Py_ssize_t i = PyUnicode_FindChar(self.chars, c"\n", self.used,
                                               PyUnicode_GET_LENGTH(self.chars), 1)
        if i < 0:
            return None
        line = PyUnicode_Substring(self.chars, self.used, i + 1)
        self.used = i + 1
        return line

    cdef object try_line(self):
        cdef Py_ssize_t i
        cdef object line
        if not self.ready or not self.plain or self.held or self.source.shut:
            return MISS
        while True:
            i = PyUnicode_FindChar(self.chars, c"\n", self.used,
                                   PyUnicode_GET_LENGTH(self.chars), 1)
            if i >= 0:
                line = PyUnicode_Substring(self.chars, self.used, i + 1)
                self.used = i + 1
                return line
            if PyUnicode_GET_LENGTH(self.chars) - self.used > WHOLE_MAX:
                return MISS
            data = self.source._try_chunk()
            if data is None:
                return MISS
            if not self._feed(data):
                return self._take(PyUnicode_GET_LENGTH(self.chars) - self.used)

    cdef object try_next(self):
        cdef object line = self.try_line()
        if line is not MISS and PyUnicode_GET_LENGTH(line) == 0:
            raise StopAsyncIteration
        return line

    def readline(self, size=-1, /):
        """The next line with its end, at most `size` characters; empty at the end of the file."""
        return call_new(TEXT_LINE, self.service, self, size, None, False)

    def __aiter__(self):
        return self

    def __anext__(self):
        return call_new(TEXT_NEXT, self.service, self, None, None, False)
