from aiounify._core.scheduler cimport Scheduler


cdef class Waker:
    cdef int wake(self) except -1


cdef class Source:
    cdef object __weakref__
    cdef Scheduler loop       # the loop it was armed in last
    cdef object armed         # what to call, or a list of them in their order; None: nobody waits
    cdef unsigned overridden  # which methods a subclass in Python has replaced

    cpdef object take(self)
    cpdef object arm(self, object ready)
    cpdef object disarm(self, object ready)
    cpdef object _begin(self)
    cpdef object _withdraw(self)
    cpdef object _fire(self)
    cdef int fire(self) except -1
    cdef int call(self, object ready) except -1


cdef object empty
cdef Scheduler running_loop(object what)
