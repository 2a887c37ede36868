from aiounify._core.scheduler cimport Scheduler


cdef class Waker:
    cdef int wake(self) except -1


cdef class Source:
    cdef object __weakref__
    cdef Scheduler loop       # the loop it was armed in last
    cdef list armed           # what to call, in the order of arming; None: nobody waits

    cpdef object take(self)
    cpdef object arm(self, object ready)
    cpdef object disarm(self, object ready)
    cpdef object _begin(self)
    cpdef object _withdraw(self)
    cpdef object _fire(self)


cdef object empty
cdef Scheduler running_loop(object what)
