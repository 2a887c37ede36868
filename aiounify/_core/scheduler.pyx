# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: always_allow_keywords=False
"""The scheduler: the run loop and everything asyncio calls once per callback.

Why it exists: call_soon, call_later, the turn of the loop and the creation of
tasks and futures decide how fast an asyncio program runs; asyncio's C Task calls
call_soon, get_debug and is_running of its loop for every step.  `Scheduler` is the
native first base of the EventLoop class; everything it does not define comes from
asyncio.SelectorEventLoop behind it.

A turn:

1. If nothing is ready, wait in the reactor until something happens or the next timer is
   due; due timers move to the ready ring; everything in the ring runs.
2. If callbacks are ready, those that are in the ring now run, in order.  Then the reactor
   is polled, mostly without a system call, and due timers move to the ring.  What came
   of all that runs in the next turn.

So whatever the kernel brings is delivered behind the callbacks that were queued before,
as in asyncio, and no chain of callbacks can keep events away.  In the last turn of a run
what the kernel had ready still runs; what was scheduled in that turn does not.

Rules:

* One struct per loop (the Backlog object), no state beside it but type objects and
  freelists.  All of it is used with the GIL held; the GIL is released in waits only.
* Other threads use call_soon_threadsafe.  Under the GIL that is a push to the same
  ring, plus a write to the eventfd if, and only if, the loop is in its wait.
* Attributes that asyncio's base class assigns (_closed, _stopping, _debug, _ready,
  _scheduled, _thread_id) are properties here, so that both sides agree.
* After a fork the child's copy refuses to work (STATE_FORKED).
"""

from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int64_t, uint32_t

import asyncio
import socket

cimport cython

from aiounify._core.backlog cimport (
    HANDLE_CANCELLED,
    HANDLE_KEEP,
    STATE_CLOSED,
    STATE_DEBUG,
    STATE_FORKED,
    UNSENT_NS,
    WATCH_KINDS,
    WATCH_PRIORITY,
    WATCH_READER,
    WATCH_WRITER,
    BacklogObject,
    HandleObject,
    monotonic_ns,
    ready_count,
    ready_push,
    ready_push_steal,
)
from aiounify._core.reactor cimport NEVER, OP_KINDS, Op, Reactor


cdef extern from "queues.h":
    PyTypeObject *Handle_Type
    PyTypeObject *TimerHandle_Type
    PyObject *handle_asyncio_class[2]
    PyObject *handle_report
    PyObject *schedule_check
    int queues_init() except -1
    int sleep_end_init(PyObject *callback, PyObject *future) except -1
    void context_forget()
    int handle_own_context(HandleObject *h) except -1
    object backlog_new()
    PyObject *backlog_call_soon(BacklogObject *q, PyObject *loop, PyObject **args,
                                Py_ssize_t nargs, PyObject *kwnames, int threadsafe)
    PyObject *backlog_call_later(BacklogObject *q, PyObject *loop, PyObject **args,
                                 Py_ssize_t nargs, PyObject *kwnames)
    PyObject *backlog_call_at(BacklogObject *q, PyObject *loop, PyObject **args,
                              Py_ssize_t nargs, PyObject *kwnames)
    HandleObject *handle_new(int timer, PyObject *loop, PyObject *callback, PyObject **args,
                             Py_ssize_t nargs, PyObject *context) except NULL
    int handle_debug_set(HandleObject *h, Py_ssize_t i, PyObject *value) except -1
    int handle_run(PyObject *loop, HandleObject *h) except -1
    int timer_heap_push(BacklogObject *q, HandleObject *h) except -1
    int timers_expire(BacklogObject *q) except -1
    int64_t timers_wake_ns(const BacklogObject *q)
    void handle_drop(HandleObject *h)
    void ready_clear(BacklogObject *q)
    void timers_clear(BacklogObject *q)
    void watchers_clear(BacklogObject *q)
    void backlog_wake(BacklogObject *q)

cdef extern from "Python.h":
    ctypedef struct PyMethodDef:
        const char *ml_name
        void *ml_meth
        int ml_flags
        const char *ml_doc
    enum:
        METH_FASTCALL
        METH_KEYWORDS
    object PyDescr_NewMethod(PyTypeObject *type, PyMethodDef *method)
    void PyType_Modified(PyTypeObject *type)
    void PyObject_GC_Track(PyObject *)
    void Py_INCREF(PyObject *)
    void Py_DECREF(PyObject *)
    PyObject *PyTuple_GET_ITEM(object, Py_ssize_t)
    object PyObject_Call(object, object, object)
    bint PyCFunction_CheckExact(object)

cdef extern from *:
    """
    /* the real dictionary of a type, which a mapping proxy hides */
    #define type_set(type, name, value) \
        PyDict_SetItemString(((PyTypeObject *)(type))->tp_dict, name, value)
    """
    int type_set(object type, const char *name, object value) except -1


cdef object _Task = asyncio.Task
cdef object _Future = asyncio.Future
cdef tuple _NO_ARGS = ()


cdef class ReadyQueue:
    """loop._ready for those who look at it: length, truth, iteration, clear."""

    cdef object backlog

    def __init__(self, object backlog):
        self.backlog = backlog

    cdef inline BacklogObject *q(self):
        return <BacklogObject *><PyObject *>self.backlog

    def __len__(self):
        return ready_count(self.q())

    def __iter__(self):
        cdef BacklogObject *q = self.q()
        return iter([<object><PyObject *>q.ring[i & q.mask] for i in range(q.head, q.tail)])

    def __getitem__(self, Py_ssize_t index):
        return list(self)[index]

    def clear(self):
        ready_clear(self.q())


cdef class TimerQueue:
    """loop._scheduled for those who look at it: the timers, in no order but the first."""

    cdef object backlog

    def __init__(self, object backlog):
        self.backlog = backlog

    cdef inline BacklogObject *q(self):
        return <BacklogObject *><PyObject *>self.backlog

    def __len__(self):
        return self.q().timers

    def __iter__(self):
        cdef BacklogObject *q = self.q()
        return iter([<object><PyObject *>q.heap[i].handle for i in range(q.timers)])

    def __getitem__(self, Py_ssize_t index):
        return list(self)[index]

    def clear(self):
        timers_clear(self.q())


@cython.no_gc_clear  # methods use q and reactor unchecked; the Backlog breaks the cycles
cdef class Scheduler:
    """Native base of the event loop; see the module's docstring."""

    def __cinit__(self, *args, **kwargs):
        self.backlog = backlog_new()
        self.q = <BacklogObject *><PyObject *>self.backlog
        self.loop_keyword = {"loop": self}
        self.plain_tasks = True
        self.attached = {}
        self.watched_objects = {}
        # open for business once asyncio's constructor says so
        self.q.state = STATE_CLOSED

    # -- what asyncio's base class keeps in attributes ------------------------

    @property
    def _closed(self):
        return (self.q.state & STATE_CLOSED) != 0

    @_closed.setter
    def _closed(self, value):
        if value:
            self.q.state |= STATE_CLOSED
        else:
            self.q.state &= ~STATE_CLOSED

    @property
    def _debug(self):
        return (self.q.state & STATE_DEBUG) != 0

    @_debug.setter
    def _debug(self, value):
        if value:
            self.q.state |= STATE_DEBUG
        else:
            self.q.state &= ~STATE_DEBUG

    @property
    def _forked(self):
        return (self.q.state & STATE_FORKED) != 0

    @property
    def _stopping(self):
        return self.stopping

    @_stopping.setter
    def _stopping(self, value):
        self.stopping = bool(value)

    @property
    def _thread_id(self):
        return self.thread_id

    @_thread_id.setter
    def _thread_id(self, value):
        self.thread_id = value

    @property
    def _task_factory(self):
        return self.task_factory

    @_task_factory.setter
    def _task_factory(self, value):
        self.task_factory = value
        self.plain_tasks = value is None

    @property
    def _ready(self):
        return ReadyQueue(self.backlog)

    @_ready.setter
    def _ready(self, value):
        pass  # asyncio's constructor assigns an empty deque; the backlog is in its place

    @property
    def _scheduled(self):
        return TimerQueue(self.backlog)

    @_scheduled.setter
    def _scheduled(self, value):
        pass

    def get_debug(self):
        """True in debug mode."""
        return (self.q.state & STATE_DEBUG) != 0

    def is_closed(self):
        """True once close() was called."""
        return (self.q.state & STATE_CLOSED) != 0

    def is_running(self):
        """True between the start and the end of run_forever()."""
        return self.thread_id is not None

    def stop(self):
        """End run_forever() after this turn, in which what is ready still runs."""
        self.stopping = True

    def time(self):
        """The loop's clock: time.monotonic(), in seconds."""
        return <double>monotonic_ns() / 1e9

    # -- tasks and futures ----------------------------------------------------

    def create_future(self):
        """A new asyncio.Future of this loop."""
        if self.loop_keyword is None:  # closed
            return _Future(loop=self)
        return PyObject_Call(_Future, _NO_ARGS, self.loop_keyword)

    # -- turning --------------------------------------------------------------

    @property
    def _backlog(self):
        return self.backlog

    @property
    def _attached(self):
        """What lives as long as the loop, by name; each is closed before the reactor."""
        return self.attached

    def _attach(self, Reactor reactor):
        self.reactor = reactor

    def _detach(self):
        """Close the reactor.  Nothing may be submitted afterwards."""
        for attached in self.attached.values():
            attached.close()
        self.attached.clear()
        if self.reactor is not None:
            if self.q.state & STATE_FORKED:
                self.reactor.abandon()
            else:
                self.reactor.close()
            watchers_clear(self.q)
        self.watched_objects.clear()
        # completions reaped while closing queued what nobody runs any more
        ready_clear(self.q)
        self.loop_keyword = None
        context_forget()

    def _after_fork(self):
        self.q.state |= STATE_FORKED
        self.thread_id = None
        if self.reactor is not None:
            self.reactor.abandon()

    def _turns(self):
        """Run turns until stop() is called or a callback raises what must end the loop."""
        self.reactor.start()
        self.turning = True
        try:
            while True:
                self.turn()
                if self.stopping:
                    break
        finally:
            self.turning = False
            context_forget()
            if not self.q.state & STATE_FORKED:
                self.reactor.stop()

    def _run_once(self):
        """One turn, for those who drive the loop themselves."""
        self._check_closed()
        if self.turning:  # from a callback: the run around it started the reactor
            self.turn()
            return
        self.reactor.start()
        self.turning = True
        try:
            self.turn()
        finally:
            self.turning = False
            if not self.q.state & (STATE_FORKED | STATE_CLOSED):
                self.reactor.stop()

    cdef int turn(self) except -1:
        cdef BacklogObject *q = self.q
        cdef size_t children
        cdef bint looked
        self.n_turns += 1
        if q.state & (STATE_CLOSED | STATE_FORKED):
            self._check_closed()
        if q.head == q.tail and not self.stopping:
            # about to sleep, maybe for hours: keep nobody's values
            context_forget()
        if q.head == q.tail and not self.stopping:
            self.reactor.wait(timers_wake_ns(q) if q.timers else NEVER)
            if q.timers:
                timers_expire(q)
            return self.run_handles(q.tail - q.head)
        looked = self.reactor.looked
        self.run_handles(q.tail - q.head)
        if self.stopping:
            if looked:
                return 0  # what the kernel had ready when this turn began has just run
            self.reactor.look = True
        children = q.tail - q.head
        self.reactor.poll()
        if q.timers:
            timers_expire(q)
        if self.stopping and q.tail - q.head > children:
            return self.run_last(children)
        return 0

    cdef int run_last(self, size_t children) except -1:
        """In the last turn of a run, what the kernel had ready still runs, and nothing
        else: what this turn's callbacks scheduled waits for the next run."""
        cdef BacklogObject *q = self.q
        cdef size_t i, first = q.head + children
        cdef list behind = [
            <object><PyObject *>q.ring[i & q.mask] for i in range(q.head, first)
        ]
        cdef size_t late = q.tail - first
        for i in range(q.head, first):
            Py_DECREF(<PyObject *>q.ring[i & q.mask])
        q.head = first
        try:
            self.run_handles(late)
        finally:
            # back in front of what the last ones scheduled
            late = q.tail - q.head
            for i in range(late):
                behind.append(<object><PyObject *>q.ring[(q.head + i) & q.mask])
                Py_DECREF(<PyObject *>q.ring[(q.head + i) & q.mask])
            q.head = q.tail
            for handle in behind:
                ready_push(q, <HandleObject *><PyObject *>handle)
        return 0

    cdef int run_handles(self, size_t todo) except -1:
        """Run the first `todo` handles of the ring.

        The count was taken before the first of them runs; a callback may clear the ring.
        """
        cdef BacklogObject *q = self.q
        cdef HandleObject *handle
        q.n_callbacks += todo
        if todo and q.unsent_ns:
            # Protocols have written; nobody knows how long the callbacks take.
            self.reactor.submit_sends()
        if q.state:
            return self.run_handles_slowly(todo)
        while todo and q.head != q.tail and not q.state & STATE_FORKED:
            todo -= 1
            handle = q.ring[q.head & q.mask]
            q.head += 1
            if not handle.flags & HANDLE_CANCELLED:
                try:
                    handle_run(<PyObject *>self, handle)
                finally:
                    Py_DECREF(<PyObject *>handle)
            else:
                Py_DECREF(<PyObject *>handle)
            if q.unsent_ns and monotonic_ns() - q.unsent_ns > UNSENT_NS:
                self.reactor.submit_sends()
        if q.state & STATE_FORKED:
            self._check_forked()
        return 0

    cdef int run_handles_slowly(self, size_t todo) except -1:
        """Debug mode: time each callback; also where a forked child ends up."""
        cdef BacklogObject *q = self.q
        cdef HandleObject *handle
        cdef object held, kept
        cdef int64_t began
        cdef double took
        while todo and q.head != q.tail:
            if q.state & STATE_FORKED:
                self._check_forked()
            todo -= 1
            handle = q.ring[q.head & q.mask]
            q.head += 1
            held = <object><PyObject *>handle
            Py_DECREF(<PyObject *>handle)
            if handle.flags & HANDLE_CANCELLED:
                continue
            kept = handle.flags & HANDLE_KEEP
            handle.flags |= HANDLE_KEEP
            self._current_handle = held
            began = monotonic_ns()
            try:
                handle_run(<PyObject *>self, handle)
                took = (monotonic_ns() - began) / 1e9
                if took >= self.slow_callback_duration:
                    _report_slow(held, took)
            finally:
                self._current_handle = None
                if not kept:
                    handle.flags &= ~HANDLE_KEEP
                    handle_drop(handle)  # as it is without debug mode
        return 0

    cdef int schedule(self, PyObject *callback, PyObject *argument,
                      PyObject *context) except -1:
        """call_soon(callback, argument, context=context), for the wake-up of a task."""
        cdef HandleObject *handle
        if self.q.state:
            self.call_soon(<object>callback, <object>argument, context=<object>context)
            return 0
        handle = handle_new(0, <PyObject *>self, callback, &argument, 1, context)
        if not PyCFunction_CheckExact(<object>callback):
            PyObject_GC_Track(<PyObject *>handle)  # see backlog_call_soon()
        return ready_push_steal(self.q, handle)

    cdef object timer_at(self, int64_t when_ns, object callback):
        """call_at() without arguments and with the time in nanoseconds, for native callers."""
        cdef HandleObject *handle
        if self.q.state & (STATE_CLOSED | STATE_FORKED):
            self._check_closed()
        handle = handle_new(1, <PyObject *>self, <PyObject *>callback, NULL, 0, NULL)
        handle.when_ns = when_ns
        PyObject_GC_Track(<PyObject *>handle)
        try:
            timer_heap_push(self.q, handle)
            return <object><PyObject *>handle
        finally:
            Py_DECREF(<PyObject *>handle)

    # -- readiness ------------------------------------------------------------

    cdef object add_watch(self, fileobj, int kind, object callback, tuple args):
        cdef HandleObject *handle
        cdef int fd = _fileno(fileobj)
        if self.q.state & (STATE_CLOSED | STATE_FORKED):
            self._check_closed()
        handle = handle_new(
            0, <PyObject *>self, <PyObject *>callback,
            NULL if not args else _items(args), len(args), NULL,
        )
        handle.flags |= HANDLE_KEEP
        PyObject_GC_Track(<PyObject *>handle)
        try:
            # it runs many times, and keeps what it sets
            handle_own_context(handle)
            if self.q.state & STATE_DEBUG:
                traceback = _source_traceback()
                handle_debug_set(handle, 0, <PyObject *>traceback)
            self.reactor.watch(fd, kind, handle)
            if type(fileobj) is not int:
                self.watched_objects[fd] = fileobj
            return <object><PyObject *>handle
        finally:
            Py_DECREF(<PyObject *>handle)

    cdef bint remove_watch(self, fileobj, int kind) except -1:
        cdef bint removed
        cdef int fd, i
        if self.q.state & (STATE_CLOSED | STATE_FORKED):
            return False
        try:
            fd = _fileno(fileobj)
        except ValueError:
            # Closed first and then removed, which selectors allow.  Of a closed socket
            # whose number another one has and watches by now there is nothing left.
            fd = self.watched_as(fileobj)
            if fd < 0:
                if isinstance(fileobj, socket.socket):
                    return False
                raise
        removed = self.reactor.unwatch(fd, kind) == 1
        if self.watched_objects and fd in self.watched_objects:
            for i in range(WATCH_KINDS):
                if self.reactor.watcher(fd, i) != NULL:
                    break
            else:
                del self.watched_objects[fd]
        return removed

    cdef int watched_as(self, fileobj) except -2:
        """The number under which this very object was watched; -1 if it was not."""
        for fd, watched in self.watched_objects.items():
            if watched is fileobj:
                return fd
        return -1

    def _add_reader(self, fd, callback, *args):
        return self.add_watch(fd, WATCH_READER, callback, args)

    def _remove_reader(self, fd):
        return self.remove_watch(fd, WATCH_READER)

    def _add_writer(self, fd, callback, *args):
        return self.add_watch(fd, WATCH_WRITER, callback, args)

    def _remove_writer(self, fd):
        return self.remove_watch(fd, WATCH_WRITER)

    def _add_priority(self, fd, callback, *args):
        return self.add_watch(fd, WATCH_PRIORITY, callback, args)

    def _remove_priority(self, fd):
        return self.remove_watch(fd, WATCH_PRIORITY)

    def _watchers(self, int fd):
        """The handles at a descriptor: (reader, writer, priority), None where nothing is."""
        cdef HandleObject *h
        cdef list found = []
        for kind in range(3):
            h = self.reactor.watcher(fd, kind)
            found.append(None if h == NULL else <object><PyObject *>h)
        return tuple(found)

    def _watched(self):
        """The descriptors that have a watcher."""
        cdef int fd
        return [
            fd for fd in range(self.q.n_slots)
            if any(self.q.slots[fd].watcher[k] != NULL for k in range(3))
        ]

    def _add_callback(self, handle):
        """Queue a handle that exists: one of ours, or one asyncio made."""
        cdef HandleObject *h
        if (<PyObject *>handle).ob_type == <void *>Handle_Type:
            h = <HandleObject *><PyObject *>handle
            if not h.flags & HANDLE_CANCELLED:
                ready_push(self.q, h)
        elif not handle._cancelled:
            self.call_soon(_run_foreign, handle)

    def _write_to_self(self):
        """Wake the loop from another thread."""
        backlog_wake(self.q)

    # -- operations -----------------------------------------------------------

    def _submit(self, Op op, callback):
        """Start an operation; callback(op) is called in the loop when it has finished."""
        cdef HandleObject *handle
        cdef PyObject *argument = <PyObject *>op
        self._check_closed()
        if op.link.next != NULL or op.done:
            raise RuntimeError("an operation can be submitted once only")
        handle = handle_new(0, <PyObject *>self, <PyObject *>callback, &argument, 1, NULL)
        PyObject_GC_Track(<PyObject *>handle)
        op.handle = <object><PyObject *>handle
        Py_DECREF(<PyObject *>handle)
        try:
            self.reactor.submit(op)
        except BaseException:
            op.handle = None
            raise
        return op

    def _cancel(self, Op op):
        """Ask the kernel to give an operation up; its completion says whether it did."""
        if not self.q.state & (STATE_CLOSED | STATE_FORKED):
            self.reactor.cancel(op)

    # -- accounting -----------------------------------------------------------

    def _wakes_at(self):
        """When a wait that begins now ends for a timer, in nanoseconds; None without timers."""
        return timers_wake_ns(self.q) if self.q.timers else None

    def _counters(self):
        cdef Reactor r = self.reactor
        return {
            "turns": self.n_turns,
            "callbacks": self.q.n_callbacks,
            "timers_fired": self.q.n_timers_fired,
            "timers_pending": self.q.timers,
            "ready": ready_count(self.q),
            "watched": self.q.n_watched,
            "syscalls": r.n_syscalls + self.q.n_wakes,
            "polls": r.n_polls,
            "waits": r.n_waits,
            "wait_seconds": r.wait_ns / 1e9,
            "wakeups": self.q.n_wakes,
            "readiness_events": r.n_events,
            "completions": r.n_completions,
            "inline_hits": self.n_inline,
            "operations": {i: r.n_ops[i] for i in range(OP_KINDS) if r.n_ops[i]},
        }


cdef extern from *:
    """
    #define tuple_items(t) (((PyTupleObject *)(t))->ob_item)
    """
    PyObject **tuple_items(PyObject *t)


cdef inline PyObject **_items(tuple args):
    return tuple_items(<PyObject *>args)


cdef int _fileno(fileobj) except? -1:
    """The descriptor of an int or of anything with fileno(), as selectors does it."""
    cdef object fd
    if type(fileobj) is int:
        fd = fileobj
    else:
        try:
            fd = fileobj if isinstance(fileobj, int) else int(fileobj.fileno())
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"Invalid file object: {fileobj!r}") from None
    if fd < 0:
        raise ValueError(f"Invalid file descriptor: {fd}")
    return fd


def _run_foreign(handle):
    if not handle._cancelled:
        handle._run()


# -- the vectorcall methods ---------------------------------------------------
# Cython would build a tuple for *args; asyncio's C Task calls these for every step.

cdef PyObject *c_call_soon(PyObject *self, PyObject **args, Py_ssize_t nargs,
                           PyObject *kwnames) noexcept:
    return backlog_call_soon((<Scheduler>self).q, self, args, nargs, kwnames, 0)


cdef PyObject *c_call_soon_threadsafe(PyObject *self, PyObject **args, Py_ssize_t nargs,
                                      PyObject *kwnames) noexcept:
    return backlog_call_soon((<Scheduler>self).q, self, args, nargs, kwnames, 1)


cdef PyObject *c_call_later(PyObject *self, PyObject **args, Py_ssize_t nargs,
                            PyObject *kwnames) noexcept:
    return backlog_call_later((<Scheduler>self).q, self, args, nargs, kwnames)


cdef PyObject *c_call_at(PyObject *self, PyObject **args, Py_ssize_t nargs,
                         PyObject *kwnames) noexcept:
    return backlog_call_at((<Scheduler>self).q, self, args, nargs, kwnames)


cdef object create_task(Scheduler self, PyObject **args, Py_ssize_t nargs, PyObject *kwnames):
    cdef dict keywords
    cdef Py_ssize_t i
    cdef tuple names = <tuple>kwnames if kwnames != NULL else _NO_ARGS
    if nargs != 1:
        if nargs == 0 and "coro" in names:
            keywords = {names[i]: <object>args[i] for i in range(len(names))}
            return self.create_task(keywords.pop("coro"), **keywords)
        raise TypeError(
            f"create_task() takes exactly one positional argument, the coroutine ({nargs} given)"
        )
    if self.q.state & (STATE_CLOSED | STATE_FORKED):
        self._check_closed()
    if not self.plain_tasks:
        keywords = {names[i]: <object>args[nargs + i] for i in range(len(names))}
        return super(Scheduler, self).create_task(<object>args[0], **keywords)
    if not names:
        return PyObject_Call(_Task, (<object>args[0],), self.loop_keyword)
    keywords = {"loop": self}
    for i in range(len(names)):
        keywords[names[i]] = <object>args[nargs + i]
    return PyObject_Call(_Task, (<object>args[0],), keywords)


cdef PyObject *c_create_task(PyObject *self, PyObject **args, Py_ssize_t nargs,
                             PyObject *kwnames) except NULL:
    task = create_task(<Scheduler>self, args, nargs, kwnames)
    Py_INCREF(<PyObject *>task)
    return <PyObject *>task


cdef PyMethodDef[5] _methods
_methods[0] = PyMethodDef(
    b"call_soon", <void *>c_call_soon, METH_FASTCALL | METH_KEYWORDS,
    b"call_soon($self, callback, /, *args, context=None)\n--\n\n"
    b"Run callback(*args) in the next turn, in the order of the calls.\n\n"
    b"Returns a Handle.  Not thread-safe: see call_soon_threadsafe().",
)
_methods[1] = PyMethodDef(
    b"call_soon_threadsafe", <void *>c_call_soon_threadsafe, METH_FASTCALL | METH_KEYWORDS,
    b"call_soon_threadsafe($self, callback, /, *args, context=None)\n--\n\n"
    b"call_soon() for other threads and signal handlers: wakes the loop if it sleeps.\n\n"
    b"While the loop is awake this makes no system call.",
)
_methods[2] = PyMethodDef(
    b"call_later", <void *>c_call_later, METH_FASTCALL | METH_KEYWORDS,
    b"call_later($self, delay, callback, /, *args, context=None)\n--\n\n"
    b"Run callback(*args) once `delay` seconds have passed, never earlier.\n\n"
    b"The delay is counted in nanoseconds, rounded up.  Returns a TimerHandle.",
)
_methods[3] = PyMethodDef(
    b"call_at", <void *>c_call_at, METH_FASTCALL | METH_KEYWORDS,
    b"call_at($self, when, callback, /, *args, context=None)\n--\n\n"
    b"Run callback(*args) when loop.time() has reached `when`, never earlier.\n\n"
    b"Timers of the same instant run in the order they were set.  Returns a TimerHandle.",
)
_methods[4] = PyMethodDef(
    b"create_task", <void *>c_create_task, METH_FASTCALL | METH_KEYWORDS,
    b"create_task($self, coro, /, **kwargs)\n--\n\n"
    b"Schedule a coroutine and return its task; keywords go to the task (name, context, ...).",
)


def _install():
    cdef int i
    cdef dict names = {}
    cdef object ends_sleep = getattr(asyncio.futures, "_set_result_unless_cancelled", None)
    queues_init()
    sleep_end_init(<PyObject *>ends_sleep, <PyObject *>_Future)
    for i in range(5):
        type_set(Scheduler, _methods[i].ml_name,
                 PyDescr_NewMethod(<PyTypeObject *>Scheduler, &_methods[i]))
    PyType_Modified(<PyTypeObject *>Scheduler)


_install()
Handle = <object><PyObject *>Handle_Type
TimerHandle = <object><PyObject *>TimerHandle_Type
cdef object _report_slow, _source_traceback


def configure(handle_class, timer_handle_class, report, check, report_slow, source_traceback):
    """Give the native side what it needs of Python, once: see aiounify/_debug.py.

    The two asyncio classes lend their repr; report(loop, handle, exception) is called
    for an exception of a callback, check(loop, state, callback, name) when the loop is
    closed, forked or in debug mode, report_slow(handle, seconds) and source_traceback()
    in debug mode only.
    """
    global handle_report, schedule_check, _report_slow, _source_traceback
    Py_INCREF(<PyObject *>handle_class)
    Py_INCREF(<PyObject *>timer_handle_class)
    handle_asyncio_class[0] = <PyObject *>handle_class
    handle_asyncio_class[1] = <PyObject *>timer_handle_class
    for native, python in ((Handle, handle_class), (TimerHandle, timer_handle_class)):
        native.__repr__ = handle_class.__repr__
        native._repr_info = python._repr_info
    Py_INCREF(<PyObject *>report)
    Py_INCREF(<PyObject *>check)
    handle_report = <PyObject *>report
    schedule_check = <PyObject *>check
    _report_slow = report_slow
    _source_traceback = source_traceback
