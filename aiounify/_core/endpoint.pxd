from cpython.object cimport PyObject
from libc.stdint cimport uint16_t, uint32_t

from aiounify._core.backlog cimport BacklogObject
from aiounify._core.reactor cimport EPOLLIN, EPOLLPRI, EPOLLRDHUP, Reactor, Watched
from aiounify._core.scheduler cimport Scheduler


cdef extern from *:
    """
    /* Whether a weak reference is one to this object, which is alive. */
    static inline int weak_is(PyObject *ref, PyObject *object)
    {
        return ((PyWeakReference *)ref)->wr_object == object;
    }

    /* What it refers to, borrowed; NULL if that is gone.  PyWeakref_GetRef() costs ten times
     * as much, and the functions before it are deprecated from 3.13 on. */
    static inline PyObject *weak_get(PyObject *ref)
    {
        PyObject *found = ((PyWeakReference *)ref)->wr_object;
        return found == Py_None || Py_REFCNT(found) == 0 ? NULL : found;
    }
    """
    bint weak_is(PyObject *ref, PyObject *object)
    PyObject *weak_get(PyObject *ref)


cdef enum:
    # what a wait for data asks for; urgent data and the end of the stream come with EPOLLIN
    READ = EPOLLIN | EPOLLRDHUP | EPOLLPRI


cdef class Endpoint(Watched):
    cdef object sock            # a weak reference
    cdef int fd
    cdef Reactor reactor
    cdef object reader, writer  # waits, or None
    cdef list more              # the others, which are rare: (wait, READ or EPOLLOUT)
    cdef bint empty             # nothing to read at the last look, and no edge since
    cdef bint eager             # something was reported that ends reads early: always try
    cdef unsigned idle          # events in a row that nobody waited for
    cdef uint32_t bulk          # size of the next bulk receive; 0: small reads
    cdef uint16_t small_run

    cdef int add(self, object wait, uint32_t events) except -1
    cdef bint remove(self, object wait, uint32_t events) except -1
    cdef bint wake(self, uint32_t events) except -1
    cdef int drained(self, PyObject *sock) except -1


cdef inline PyObject *endpoint_at(BacklogObject *q, int fd, PyObject *sock) noexcept:
    """The endpoint of this socket object, or NULL."""
    cdef PyObject *found
    if fd < 0 or fd >= q.n_slots:
        return NULL
    found = q.slots[fd].calls
    if found == NULL or not weak_is(<PyObject *>(<Endpoint>found).sock, sock):
        return NULL
    return found


cdef Endpoint endpoint_for(Reactor reactor, int fd, object sock)
cdef PyObject *endpoint_wait(Scheduler loop, PyObject *sock, uint32_t events, bint again,
                             PyObject **endpoint) except NULL
cdef int endpoint_leave(PyObject *endpoint, PyObject *wait, uint32_t events) except -1
cdef object wait_begin(Scheduler loop)
cdef int wait_end(object wait) except -1
