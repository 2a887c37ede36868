from libc.stdint cimport uint32_t

from aiounify._core.transport cimport Transport


cdef class PipeTransport(Transport):
    cdef dict __dict__          # programs' own attributes, as asyncio's transports take them
    cdef public object _pipe    # the file object; None once closed
    cdef readonly int _fileno
    cdef bint reads             # the direction
    cdef bint device            # a character device
    cdef bint by_watcher        # the other direction has the slot
    cdef bint unheld            # in the slot and registered, but not kept alive by it
    cdef bint lost_asked        # connection_lost is scheduled

    cdef int open(self, loop, pipe, protocol, extra, str refused) except -1
    cdef int take_slot(self) except -1
    cdef int share(self) except -1
    cdef bint has_slot(self) noexcept
    cdef int wait_for(self, uint32_t events) except -1
    cdef int watch(self, uint32_t events) except -1
    cdef int drop_pending(self) except -1
    cdef int lose(self, exc) except -1
    cdef int close_pipe(self) except -1
    cdef int report(self, exc, message) except -1
    cdef list description(self, bint polling)
