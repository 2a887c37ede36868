# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False
"""Descriptor, offset and read buffer of a binary handle, and what they answer at once.

Why it exists: reads from the buffer and from the page cache are the hot path of every handle.  What
has to wait is in Python (aiounify/files/reading.py).

Rules:

* `position` is the offset behind the read buffer.  Nothing moves it but whoever holds the handle, or
  a hit, which does not wait.  So each of several users gets bytes of their own.
* The read buffer is the handle's, and no kernel operation that waits ever points into it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcpy, memmove

from aiounify._core.file_calls cimport (
    MISS,
    NEXT,
    PREAD,
    READ,
    READLINE,
    FileCall,
    Guarded,
    call_new,
)
from aiounify._core.page_cache cimport (
    NOWAIT_OFF,
    NOWAIT_ON,
    WHOLE_MAX,
    read_cached,
    regular_size,
)
from aiounify._core.reactor cimport EAGAIN


cdef extern from "Python.h":
    PyObject *bytes_new "PyBytes_FromStringAndSize" (const char *, Py_ssize_t) except NULL
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    void Py_DECREF(PyObject *)

cdef enum:
    CHUNK_MAX = 262144   # of the read buffer


cdef inline ssize_t inline_read(BinaryBase self, char *into, Py_ssize_t n, int64_t offset) noexcept:
    """Without waiting: a count, or a negated errno."""
    cdef ssize_t got = read_cached(self.fd, into, n, offset, &self.nowait)
    self.service.hit(got)
    return got


cdef inline bint free(BinaryBase self) noexcept:
    """Reading may be tried at once."""
    return not (self.held or self.shut or self.dirty) and self.can_read and self.regular \
        and self.nowait != NOWAIT_OFF


cdef class BinaryBase(Guarded):
    """Descriptor, offset and read buffer; what waits is in aiounify/files."""

    def __cinit__(self, *args, **kwargs):
        self.fd = -1
        self.nowait = NOWAIT_ON

    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef object at_once(self, FileCall call):
        cdef int kind = call.kind
        if kind == PREAD:
            return self.try_pread(call.a, call.b)
        if kind == NEXT:
            return self.try_next()
        if kind == READ:
            return self.try_read(call.a)
        return self.try_readline(call.a)

    cdef object awaited(self, FileCall call):
        cdef int kind = call.kind
        if kind == PREAD:
            return self._slow_pread(call.a, call.b)
        if kind == NEXT:
            return self._slow_next()
        if kind == READ:
            return self._slow_read(call.a)
        return self._slow_readline(call.a)

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

    cdef ssize_t fill(self) except? -2:
        """More of the file behind what is in the buffer: a count, or a negated errno."""
        cdef ssize_t n
        self.make_room(self.chunk)
        n = inline_read(self, self.data + self.end, self.chunk, self.position)
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
        if not free(self):
            return MISS
        if have == 0 and (n >= self.chunk or self.raw):
            if n > WHOLE_MAX:
                return MISS
            out = bytes_new(NULL, n)
            got = inline_read(self, bytes_data(out), n, self.position)
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
        if self.end != self.at or not free(self):
            return MISS
        left = regular_size(self.fd, NULL) - self.position
        if left <= 0 or left > WHOLE_MAX:
            return MISS
        # one byte more than there should be: less than that is the end of the file
        out = bytes_new(NULL, left + 1)
        got = inline_read(self, bytes_data(out), left + 1, self.position)
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
        if type(wanted) is not int or type(where) is not int or not free(self):
            return MISS
        n = wanted
        offset = where
        if n <= 0 or offset < 0 or n > WHOLE_MAX:
            return MISS
        out = bytes_new(NULL, n)
        got = inline_read(self, bytes_data(out), n, offset)
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
            if not free(self) or self.raw:
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
