# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False
"""What is answered at once if it can be, and else is a coroutine that waits.

Why it exists: most reads find their bytes in memory, and then a coroutine object costs more than
the read.  A `FileCall` is a coroutine to whoever looks.  When it is first sent to, it asks its
target for an answer at once; if there is none it becomes what the target's Python method is, a
coroutine that waits (aiounify/files/reading.py, text.py).

Rules:

* Answers at once have a budget (file_service.pyx): over it, the call waits for its turn before it
  asks.
* A call that was answered at once is kept by the service, and made again by call_new() if nobody
  else has a reference to it.
* A handle that is `held` belongs to an operation that waits; everybody else queues behind it.
"""

from cpython.object cimport PyObject, PyTypeObject

import warnings
from collections import deque

cimport cython

from aiounify._core.file_service cimport FileService


cdef extern from "Python.h":
    void Py_INCREF(PyObject *)
    void Py_DECREF(PyObject *)
    Py_ssize_t Py_REFCNT(PyObject *)
    unsigned long Py_TPFLAGS_HEAPTYPE
    unsigned long type_flags "PyType_GetFlags" (PyTypeObject *)
    enum:
        PYGEN_RETURN
        PYGEN_ERROR
    int PyIter_Send(object, object, PyObject **)

cdef extern from "file_call.h":
    int (*file_call_step)(PyObject *, PyObject *, PyObject **) except -1
    int file_call_install(PyTypeObject *) except -1
    int file_lines_install(PyTypeObject *, PyTypeObject *) except -1

cdef enum:
    CREATED
    YIELDED
    STARTED
    FINISHED

MISS = object()
cdef tuple _NAMES = ("read", "readline", "__anext__", "pread", "readline", "__anext__",
                     "read_bytes", "stat")


cdef class Answers:
    """Who is asked by a FileCall."""

    cdef object at_once(self, FileCall call):
        """The answer, or MISS if it has to be waited for."""
        return MISS

    cdef object awaited(self, FileCall call):
        """The coroutine that waits for it."""
        raise NotImplementedError


cdef FileCall call_new(int kind, FileService service, Answers target, object a, object b,
                       bint flag):
    cdef FileCall c
    if service.spare is not None and Py_REFCNT(<PyObject *>service.spare) == 1:
        c = <FileCall>service.spare
        service.spare = None
        c.state = CREATED
    else:
        c = FileCall.__new__(FileCall)
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
                    found = self.service.turn_to_come() if self.service.crowded() else None
                    Py_INCREF(<PyObject *>found)
                    result[0] = <PyObject *>found
                    return 0
            elif self.state != YIELDED:
                raise RuntimeError("cannot reuse already awaited coroutine")
            self.state = STARTED
            found = self.target.at_once(self)
            if found is not MISS:
                self.state = FINISHED
                Py_INCREF(<PyObject *>found)
                result[0] = <PyObject *>found
                # It refers to nothing any more, and is used again if nobody keeps it.
                self.target = None
                self.a = self.b = None
                self.service.spare = self
                self.service = None
                return 1
            self.inner = self.target.awaited(self)
        how = PyIter_Send(self.inner, value, result)
        return -1 if how == PYGEN_ERROR else how == PYGEN_RETURN

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


def iterated_in_c(cls):
    """A decorator of a handle's class: iterating it costs no more than iterating its base."""
    for base in cls.__mro__:
        if "__anext__" in base.__dict__:
            # Not if it has its own way, in Python.
            if not type_flags(<PyTypeObject *>base) & Py_TPFLAGS_HEAPTYPE:
                file_lines_install(<PyTypeObject *>cls, <PyTypeObject *>base)
            break
    return cls


cdef class Guarded(Answers):
    """A handle that one operation at a time may hold while it waits, in the order they came."""

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
