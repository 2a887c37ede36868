from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from aiounify._core.backlog cimport BacklogObject, FdSlot, HandleObject, OpLink


cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EAGAIN
        EBADF
        EBUSY
        ECANCELED
        EEXIST
        EINTR
        ENOBUFS
        ENOENT
        ENOSYS
        ETIME

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLLIN
        EPOLLPRI
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLLRDHUP
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CTL_DEL
    ctypedef union epoll_data_t:
        int fd
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)


cdef extern from "spare_bytes.h":
    ctypedef struct spare_bytes:
        int n
    PyObject *spare_take(spare_bytes *s, Py_ssize_t n) except NULL
    void spare_give(spare_bytes *s, PyObject *b)
    void spare_clear(spare_bytes *s)
    void bytes_reuse(PyObject *b, Py_ssize_t n)


cdef extern from *:
    """
    /* a call through this fails with the exception that is set already */
    #define raise_pending() (-1)
    """
    int raise_pending() except -1


cdef extern from *:
    """
    /* what stands in an event's data for the reactor's own descriptors */
    #define WAKE_MARK UINT64_MAX
    """
    const uint64_t WAKE_MARK
    const uint32_t EDGE "(uint32_t)EPOLLET"   # an enum would be negative


cdef enum:
    MAX_EVENTS = 256     # readiness events taken in one turn
    NEVER = 0x3fffffffffffffff   # a deadline that does not come, in nanoseconds
    OP_KINDS = 64
    SCRATCH = 65536


cdef class Op:
    cdef OpLink link
    cdef readonly int fd
    cdef readonly int opcode
    cdef uint8_t sqe_flags
    cdef uint16_t ioprio
    cdef uint32_t length
    cdef uint32_t op_flags
    cdef uint64_t address
    cdef uint64_t offset
    cdef int file_index       # in a submission the same word as the descriptor a splice takes from
    cdef uint64_t address3
    cdef uint32_t readiness
    cdef bint by_readiness    # the ring cannot do it, so that it goes as on the epoll backend
    cdef uint32_t seen        # the readiness for which it is tried again
    cdef readonly int result
    cdef bint done
    cdef bint cancel_asked
    cdef object handle
    cdef Op linked            # begins when this one has succeeded in full; only in the ring

    cdef int perform(self) noexcept
    cdef int complete(self, int result, uint32_t flags) except -1


cdef class NopOp(Op):
    pass


cdef class ReadOp(Op):
    cdef bytearray buffer


cdef class Watched:
    """What owns a descriptor and takes its readiness directly, without a handle."""
    cdef object __weakref__
    cdef int ready(self, uint32_t events) except -1
    cdef int received_in(self, char *data, int n, int buffer) except -1
    cdef int receive_ended(self, int result) except -1
    cdef int sent(self, int result) except -1
    cdef int receive_again(self) except -1
    cdef int failed(self, exc) except -1
    cdef bint valid(self) noexcept
    cdef int displaced(self) except -1


cdef class Reactor:
    cdef object backlog
    cdef BacklogObject *q
    cdef int epfd
    cdef int wake_fd
    cdef bint closed, shutting, running
    cdef bint look       # the next poll asks the kernel, however recent the last answer is
    cdef bint looked     # the last poll of this run did ask it
    cdef unsigned brisk  # what is in flight for which it looks before it sleeps: see spin.h
    cdef int spins       # 0: never, 1: while it is worth it, 2: always
    cdef epoll_event events[MAX_EVENTS]
    cdef int stale_run       # sets of events in a row with one that nobody wanted
    cdef list finished
    cdef dict waiting        # descriptor -> operations that wait for its readiness
    cdef char *scratch       # SCRATCH bytes for small receives
    cdef spare_bytes spares  # objects for received messages, used again
    cdef PyObject *bulk      # one for bulk receives, of the size of its allocation, or NULL
    # counters: plain increments on paths that make a system call anyway
    cdef uint64_t submissions   # how often what gathered was submitted
    cdef uint64_t n_syscalls, n_waits, n_polls, n_events, n_completions
    cdef int64_t wait_ns
    cdef int64_t breathed_ns
    cdef uint64_t n_ops[OP_KINDS]

    cdef int start(self) except -1
    cdef int stop(self) except -1
    cdef int poll(self) except -1
    cdef int breathe(self) except -1
    cdef int wait(self, int64_t deadline) except -1
    cdef int submit(self, Op op) except -1
    cdef int cancel(self, Op op) except -1
    cdef int close(self) except -1
    cdef int abandon(self) except -1
    cdef str name(self)

    cdef FdSlot *slot(self, int fd) except NULL
    cdef int watch(self, int fd, int kind, HandleObject *handle) except -1
    cdef int unwatch(self, int fd, int kind) except -1
    cdef HandleObject *watcher(self, int fd, int kind) noexcept
    cdef int arm(self, int fd) noexcept
    cdef int make_set(self) except -1
    cdef int add_internal(self, int fd, uint64_t mark) except -1
    cdef int renew(self) except -1
    cdef int stream_open(self, int fd, Watched stream) except -1
    cdef int stream_wait(self, int fd, Watched stream, uint32_t events) except -1
    cdef int stream_close(self, int fd, Watched stream, bint shared) noexcept
    cdef int stream_hold(self, int fd) noexcept
    cdef int stream_release(self, int fd) noexcept
    cdef int calls_open(self, int fd, Watched calls) except -1
    cdef int calls_wait(self, int fd, uint32_t events, bint again) except -1
    cdef int calls_leave(self, int fd, uint32_t events) noexcept
    cdef int calls_rest(self, int fd) noexcept
    cdef int calls_close(self, int fd) except -1
    # what only the ring has; the base answers "not offered"
    cdef bint receive_start(self, int fd, Watched stream) except -1
    cdef int receive_stop(self, Watched stream) except -1
    cdef int give_back(self, int buffer) noexcept
    cdef Py_ssize_t send_start(self, int fd, Watched stream, char *data, Py_ssize_t n) except -1
    cdef int send_replace(self, Py_ssize_t place, char *data, Py_ssize_t n) noexcept
    cdef int tell_sent(self, Watched stream, int result) except -1
    cdef int send_stop(self, Watched stream) except -1
    cdef bint worth_batching(self) noexcept
    cdef int submit_sends(self) except -1
    cdef int stream_raised(self, Watched stream) except -1
    cdef int take_slot(self) noexcept
    cdef int free_slot(self, int slot) noexcept
    cdef PyObject *bulk_take(self, Py_ssize_t size) except NULL
    cdef int bulk_give(self, PyObject *found) noexcept
    cdef int bulk_drop(self) noexcept
    cdef int dispatch(self, int n) except -1
    cdef int submit_readiness(self, Op op) except -1
    cdef int cancel_readiness(self, Op op) except -1
    cdef int leave(self, Op op) except -1
    cdef int ops_ready(self, int fd, uint32_t events) except -1
    cdef int finish_later(self, Op op, int result) except -1
    cdef int deliver_finished(self) except -1
    cdef int give_up_in_flight(self, bint submitted) except -1
    cdef int completed(self, Op op, int result, uint32_t flags, bint last) except -1
