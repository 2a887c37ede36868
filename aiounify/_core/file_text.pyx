# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False
"""Decoded characters of a text handle, and the lines among them that are given at once.

Why it exists: `async for` over a text file asks for a line at a time, and a line that is decoded
already must cost no more than cutting it out.  Decoding, encoding and whatever waits is in Python
(aiounify/files/text.py).

Rules: `used` of `chars` were handed out.  Bytes are taken from the binary handle only by whoever
holds this one, or by a hit, which does not wait.
"""

from aiounify._core.file_binary cimport BinaryBase
from aiounify._core.file_calls cimport MISS, TEXT_LINE, TEXT_NEXT, FileCall, Guarded, call_new
from aiounify._core.page_cache cimport WHOLE_MAX


cdef extern from "Python.h":
    Py_ssize_t PyUnicode_FindChar(object, Py_UCS4, Py_ssize_t, Py_ssize_t, int) except -2
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    object PyUnicode_Substring(object, Py_ssize_t, Py_ssize_t)


cdef class TextBase(Guarded):
    """See the module's docstring."""

    cdef public str chars
    cdef public Py_ssize_t used
    cdef public bint plain       # every line ends in \n, and nothing is to be written
    cdef public bint ready       # lines may be served inline
    cdef public BinaryBase source

    def __cinit__(self, *args, **kwargs):
        self.chars = ""

    cdef object at_once(self, FileCall call):
        if call.kind == TEXT_NEXT:
            return self.try_next()
        if call.a is None or call.a == -1:
            return self.try_line()
        return MISS

    cdef object awaited(self, FileCall call):
        if call.kind == TEXT_NEXT:
            return self._slow_next()
        return self._slow_readline(call.a)

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
