from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from aiounify._core.backlog cimport BacklogObject
from aiounify._core.reactor cimport Reactor


cdef class Scheduler:
    cdef object backlog
    cdef BacklogObject *q
    cdef Reactor reactor
    cdef dict attached            # name -> what is closed before the reactor
    cdef bint stopping
    cdef bint turning            # the reactor was started for a run that goes on
    cdef public object _current_handle
    cdef dict watched_objects    # fd -> the object that was given to watch it, if not its number
    cdef object thread_id
    cdef dict loop_keyword        # {"loop": self}, for the tasks and futures it makes
    cdef bint plain_tasks         # no task factory is set
    cdef object task_factory
    cdef uint64_t n_turns, n_inline

    cdef int turn(self) except -1
    cdef int run_last(self, size_t children) except -1
    cdef int run_handles(self, size_t todo) except -1
    cdef int run_handles_slowly(self, size_t todo) except -1
    cdef int schedule(self, PyObject *callback, PyObject *argument, PyObject *context) except -1
    cdef object timer_at(self, int64_t when_ns, object callback)
    cdef object add_watch(self, fileobj, int kind, object callback, tuple args)
    cdef bint remove_watch(self, fileobj, int kind) except -1
    cdef int watched_as(self, fileobj) except -2
