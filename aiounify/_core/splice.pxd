from libc.stdint cimport int64_t, uint32_t, uint64_t

from aiounify._core.sendfile cimport Source


cdef class Pipe:
    cdef int reader, writer
    cdef bint busy
    cdef readonly Py_ssize_t pending
    cdef readonly Py_ssize_t size

    cdef int let_go(self) noexcept


cdef class Splice(Source):
    cdef int out, source_kind, target_kind
    cdef bint by_position        # the source's position is where it begins, and is set
    cdef bint ended              # the source gives nothing more
    cdef int64_t out_offset      # -1: the target's position
    cdef int64_t left            # bytes that are still to reach the target; -1: all
    cdef Pipe between
    cdef bint private            # that pipe is nobody else's
    cdef readonly uint64_t moved
    cdef readonly int error
    cdef readonly int waits_for  # the descriptor that blocks
    cdef readonly uint32_t waits_events

    # what a relay sets; see relay.pyx
    cdef char *scratch           # where small pieces are copied through; NULL: none are
    cdef bint tells_empty        # a short receive proves that nothing is left
    cdef bint empty              # it did, and no edge came since
    cdef bint bulk               # much comes at a time: splice
    cdef uint64_t run            # bytes since the source was last waited for

    cdef ssize_t once(self, int fd, int64_t *off, int out, int64_t *out_off,
                      size_t n) noexcept
    cdef int blocked(self, int fd, int out, bint draining) noexcept
    cdef int source_blocks(self) noexcept
    cdef int readable(self, int fd) noexcept
    cdef int64_t wanted(self, int64_t limit) noexcept
    cdef int go(self) except -1
    cdef int copy(self) noexcept
    cdef int took(self, ssize_t n, bint draining) noexcept
