from aiounify._core.socket_transport cimport SocketTransport


cdef class StreamReceiver(SocketTransport):
    cdef object get_buffer      # the method of a BufferedProtocol
    cdef list stash             # received while it must not be delivered
    cdef int stash_error
    cdef bint stash_scheduled, stash_eof
    cdef bint buffered, paused, read_eof
    cdef bint stopping          # the receive in the ring was asked to end
    cdef bint by_readiness      # bulk, or a reactor that has nothing else

    cdef int receive_on(self) except -1
    cdef int back_to_small(self) except -1
    cdef int receive_into(self) except -1
    cdef int borrow(self, Py_buffer *view) noexcept
    cdef int tell_updated(self, Py_ssize_t n) except -1
    cdef int fill(self, const char *data, Py_ssize_t n, int buffer) except -1
    cdef int schedule_stash(self) except -1
    cdef int protocol_raised(self, str method) except -1
    cdef int receive_failed(self, int error) except -1
    cdef int in_context_eof(self) except -1
    cdef int received_eof(self) except -1
