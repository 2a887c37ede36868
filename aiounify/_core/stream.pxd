from libc.stdint cimport uint32_t, uint64_t

from aiounify._core.stream_receive cimport StreamReceiver


cdef class StreamTransport(StreamReceiver):
    cdef bytes in_flight        # what the reactor sends from; in front of `pending`
    cdef Py_ssize_t place       # of the send in the reactor ...
    cdef uint64_t submission    # ... until its next submission
    cdef uint64_t written_in    # the turn of the last write that was sent at once
    cdef int bursts             # above 0: writes come several in a turn
    cdef list pending           # bytes objects not sent yet
    cdef Py_ssize_t pending_offset   # into the first of them
    cdef object empty_waiter
    cdef bint eof
    cdef public object _sendfile_compatible

    cdef int handle_ready(self, uint32_t events) except -1
    cdef bint worth_waiting(self) noexcept
    cdef int send_with_others(self, bytes data) except -1
    cdef bint join(self, bytes data) except -1
    cdef Py_ssize_t send_now(self, const char *data, Py_ssize_t size) except -2
    cdef Py_ssize_t send_failed(self, int error) except -2
    cdef int queue(self, bytes data, Py_ssize_t sent) except -1
    cdef Py_ssize_t flush(self) except -2
    cdef int write_ready(self) except -1
    cdef int after_sending(self) except -1
    cdef int shut_down(self, bint late) except -1
