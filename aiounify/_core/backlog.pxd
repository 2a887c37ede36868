"""Cython's view of backlog.h: the structs that the native modules share."""

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef extern from "backlog.h" nogil:
    enum:
        HANDLE_CANCELLED
        HANDLE_KEEP
        STATE_CLOSED
        STATE_DEBUG
        STATE_FORKED
        WATCH_READER
        WATCH_WRITER
        WATCH_PRIORITY
        WATCH_KINDS
        UNSENT_NS

    ctypedef struct BacklogObject

    ctypedef struct HandleObject:
        PyObject *loop
        PyObject *callback
        PyObject *context
        uint32_t flags
        Py_ssize_t index
        int64_t when_ns

    ctypedef struct TimerEntry:
        int64_t when_ns
        HandleObject *handle

    ctypedef struct OpLink:
        OpLink *next
        OpLink *prev
        PyObject *op

    ctypedef struct FdSlot:
        HandleObject **watcher
        PyObject *stream
        uint32_t stream_events
        uint32_t stream_refs
        uint32_t op_events
        PyObject *calls
        uint32_t call_waits
        uint32_t call_events
        uint32_t armed
        uint32_t generation

    ctypedef struct BacklogObject:
        HandleObject **ring
        size_t head
        size_t tail
        size_t mask
        TimerEntry *heap
        Py_ssize_t timers
        FdSlot *slots
        int n_slots
        int n_watched
        OpLink in_flight
        uint32_t state
        int sleeping
        int wake_fd
        int64_t unsent_ns
        uint64_t n_callbacks
        uint64_t n_timers_fired
        uint64_t n_wakes

    int64_t monotonic_ns()

cdef extern from "backlog.h":
    int ready_push(BacklogObject *q, HandleObject *h) except -1
    int ready_push_steal(BacklogObject *q, HandleObject *h) except -1
    size_t ready_count(BacklogObject *q)
    void op_link(BacklogObject *q, OpLink *link, PyObject *op)
    PyObject *op_unlink(OpLink *link)
