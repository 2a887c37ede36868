# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Sources of events, the wait for one of them and the wait for the first of many.

Why it exists: `await source` and `select()` are the same three steps, done once per event:
try to take, arm, take again after the wake-up.  What a source has to promise stands in
aiounify/sources.py; this is the native half of it.

Rules:

* Nothing is taken before the task that awaits it runs.  A wake-up says that something may
  be there, never what; so a task that is cancelled after its wake-up has lost nothing.
* All of it happens in the loop's thread.
* A source owns what is armed at it; a selection owns its entries, and these their sources.
  An entry only borrows its selection, so that a selection which nobody holds any more goes
  away at once and withdraws.
"""

from cpython.object cimport PyObject

import asyncio
import types as _types
from collections import deque

cimport cython

from aiounify._core.endpoint cimport wait_begin, wait_end
from aiounify._core.scheduler cimport Scheduler


cdef object _get_running_loop = asyncio._get_running_loop
cdef object _CancelledError = asyncio.CancelledError
cdef object empty = None
cdef object _native_method = None   # the type of a method of a native class

cdef enum:
    STREAK = 64    # values given in a row before the loop gets a turn
    FEW = 16       # sources in a selection that are searched one by one


def configure(value):
    """Tell the object that stands for "nothing there"; see aiounify/sources.py."""
    global empty
    empty = value


cdef Scheduler running_loop(object what):
    """The loop that runs in this thread; RuntimeError if that is none of ours."""
    cdef object loop = _get_running_loop()
    if isinstance(loop, Scheduler):
        return <Scheduler>loop
    name = what if isinstance(what, str) else f"{type(what).__module__}.{type(what).__qualname__}"
    if loop is None:
        raise RuntimeError(f"{name} needs a running event loop of aiounify: use aiounify.run()")
    raise RuntimeError(
        f"{name} needs an event loop of aiounify, and this is {loop!r}: use aiounify.run(), or "
        "asyncio.Runner(loop_factory=aiounify.new_event_loop)"
    )


def current_loop(what):
    """The running loop; RuntimeError, naming `what`, if it is not aiounify's."""
    return running_loop(what)


cdef class Waker:
    """What a native waiter arms; to others it is a callable without arguments."""

    cdef int wake(self) except -1:
        return 0

    def __call__(self):
        self.wake()


@cython.final
cdef class TaskWaker(Waker):
    """Lets the task go on that awaits one source."""
    cdef object wait

    cdef int wake(self) except -1:
        return wait_end(self.wait)


cdef extern from *:
    """
    /* the type's attribute, borrowed, without an exception if there is none */
    #define type_attribute(type, name) _PyType_Lookup((PyTypeObject *)(type), name)
    #define is_static(type) (!PyType_HasFeature((PyTypeObject *)(type), Py_TPFLAGS_HEAPTYPE))

    /* What Cython makes of a cpdef method looks for a replacement in Python each time it is
     * called on an object of a Python class.  Its second argument says not to. */
    #define native_take(s) ((s)->__pyx_vtab->take((s), 1))
    #define native_arm(s, ready) ((s)->__pyx_vtab->arm((s), (ready), 1))
    #define native_disarm(s, ready) ((s)->__pyx_vtab->disarm((s), (ready), 1))
    #define native_begin(s) ((s)->__pyx_vtab->_begin((s), 1))
    #define native_withdraw(s) ((s)->__pyx_vtab->_withdraw((s), 1))
    #define native_fire(s) ((s)->__pyx_vtab->_fire((s), 1))
    """
    PyObject *type_attribute(object type, object name)
    bint is_static(object type)
    object native_take(Source s)
    object native_arm(Source s, object ready)
    object native_disarm(Source s, object ready)
    object native_begin(Source s)
    object native_withdraw(Source s)
    object native_fire(Source s)

cdef tuple _NAMES = ("take", "arm", "disarm", "_begin", "_withdraw", "_fire")

cdef enum:
    TAKE = 1
    ARM = 2
    DISARM = 4
    BEGIN = 8
    WITHDRAW = 16
    FIRE = 32


cdef unsigned replaced_in(object kind):
    """Which of the methods a class in Python has in place of the native ones."""
    cdef unsigned i, found = 0
    cdef PyObject *method
    for i in range(6):
        method = type_attribute(kind, _NAMES[i])
        if method == NULL or type(<object>method) is not _native_method:
            found |= 1 << i
    return found


cdef object source_take(Source source):
    return source.take() if source.overridden & TAKE else native_take(source)


cdef int source_arm(Source source, object ready) except -1:
    if source.overridden & ARM:
        source.arm(ready)
    else:
        native_arm(source, ready)
    return 0


cdef int source_disarm(Source source, object ready) except -1:
    if source.overridden & DISARM:
        source.disarm(ready)
    else:
        native_disarm(source, ready)
    return 0


cdef class Source:
    """Base of what can be awaited; see aiounify.sources.Source."""

    once = False
    __class_getitem__ = classmethod(_types.GenericAlias)

    def __cinit__(self, *args, **kwargs):
        if not is_static(type(self)):
            self.overridden = replaced_in(type(self))

    cpdef object take(self):
        raise NotImplementedError(f"{type(self).__qualname__}.take()")

    cpdef object _begin(self):
        """Somebody waits: make sure that _fire() is called when there may be something."""

    cpdef object _withdraw(self):
        """Nobody waits any more."""

    cpdef object arm(self, object ready):
        cdef Scheduler loop = running_loop(self)
        if self.loop is not loop:
            if self.armed is not None and not self.loop.is_closed():
                raise RuntimeError(f"{self!r} is awaited in another event loop")
            self.armed = None
            self.loop = loop
        if self.armed is not None:
            if type(self.armed) is list:
                (<list>self.armed).append(ready)
            else:
                self.armed = [self.armed, ready]
            return
        self.armed = ready
        try:
            if self.overridden & BEGIN:
                self._begin()
            else:
                native_begin(self)
        except BaseException:
            if self.armed is ready:
                self.armed = None
            raise

    cpdef object disarm(self, object ready):
        cdef Py_ssize_t i
        cdef list armed
        if self.armed is not ready:
            if type(self.armed) is not list:
                return
            armed = <list>self.armed
            for i in range(len(armed)):
                if armed[i] is ready:
                    del armed[i]
                    break
            else:
                return
            if armed:
                return
        self.armed = None
        if self.overridden & WITHDRAW:
            self._withdraw()
        else:
            native_withdraw(self)

    cpdef object _fire(self):
        cdef object armed = self.armed
        self.armed = None
        if armed is None:
            return
        if type(armed) is list:
            for ready in <list>armed:
                self.call(ready)
        else:
            self.call(armed)

    cdef int fire(self) except -1:
        """_fire(), for native callers."""
        if self.overridden & FIRE:
            self._fire()
        else:
            native_fire(self)
        return 0

    cdef int call(self, object ready) except -1:
        if isinstance(ready, Waker):
            return (<Waker>ready).wake()
        try:
            ready()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            (<object>self.loop).call_exception_handler({
                "message": f"Exception in what was armed at {self!r}",
                "exception": exc,
            })
        return 0

    @property
    def _loop(self):
        return self.loop

    @property
    def _is_armed(self):
        return self.armed is not None

    def __await__(self):
        return _take_from(self)

    async def wait(self):
        return await self


_native_method = type(Source.__dict__["take"])


def _take_from(source):
    cdef Source native = <Source>source if isinstance(source, Source) else None
    cdef TaskWaker waker
    cdef Scheduler loop = running_loop(source)
    cdef object value = source_take(native) if native is not None else source.take()
    while value is empty:
        waker = TaskWaker.__new__(TaskWaker)
        waker.wait = wait_begin(loop)
        if native is not None:
            source_arm(native, waker)
        else:
            source.arm(waker)
        try:
            yield waker.wait
        finally:
            if native is not None:
                source_disarm(native, waker)
            else:
                source.disarm(waker)
        value = source_take(native) if native is not None else source.take()
    return value


@cython.final
cdef class Taking:
    """An awaitable: the next value of a source, or of a selection."""
    cdef object of

    def __await__(self):
        if isinstance(self.of, Selection):
            return _next_of(<Selection>self.of, StopAsyncIteration)
        return _take_from(self.of)


def taking(source):
    """An awaitable that takes the next value of a source."""
    cdef Taking made = Taking.__new__(Taking)
    made.of = source
    return made


cdef class Arrivals(Source):
    """A source of values that were brought to it; see aiounify.sources.Arrivals."""

    cdef object values
    cdef object reason        # raised once the values are used up; None: there may be more

    def __cinit__(self):
        self.values = deque()

    cpdef object take(self):
        if self.values:
            return self.values.popleft()
        if self.reason is None:
            return empty
        raise self.reason

    cpdef object put(self, object value):
        if self.reason is not None:
            raise RuntimeError(f"{self!r} has ended")
        self.values.append(value)
        if self.armed is not None:
            self.fire()

    cpdef object end(self, object reason=None):
        if self.reason is None:
            self.reason = reason if reason is not None else StopAsyncIteration()
            if self.armed is not None:
                self.fire()

    @property
    def ended(self):
        return self.reason is not None

    def __len__(self):
        return len(self.values)

    def __bool__(self):
        return True

    def __aiter__(self):
        return self

    def __anext__(self):
        return taking(self)


@cython.final
cdef class Entry(Waker):
    """One source in a selection."""
    cdef PyObject *selection       # borrowed; NULL once it left
    cdef object given              # what the program named it by
    cdef object source
    cdef Source native             # the same, if it is one of ours
    cdef Entry after               # in the queue of those to try
    cdef bint waits                # armed, and not called yet

    cdef int wake(self) except -1:
        cdef Selection selection
        if self.waits and self.selection != NULL:
            self.waits = False
            selection = <Selection>self.selection
            selection.push(self)
            if selection.wait is not None:
                wait_end(selection.wait)
        return 0

    cdef int withdraw(self) except -1:
        """It leaves its selection."""
        cdef object source = self.source
        cdef Source native = self.native
        self.selection = NULL
        self.given = self.source = self.native = None
        if self.waits:
            self.waits = False
            if native is not None:
                source_disarm(native, self)
            else:
                source.disarm(self)
        return 0


cdef class Selection:
    """The first of many sources, again and again; see aiounify.selection.Selection."""

    __class_getitem__ = classmethod(_types.GenericAlias)
    cdef object __weakref__
    cdef list entries              # in the order of adding, also those that left
    cdef Py_ssize_t present        # how many have not
    cdef dict index                # id of what was given -> Entry; None: few, and searched
    cdef Entry head, tail          # those that may have something, in the order they said so
    cdef object wait               # what the task that awaits it has yielded
    cdef bint busy, return_exceptions
    cdef unsigned streak
    cdef readonly dict _tasks      # those it made, by the id of what was given; None: none yet

    def __cinit__(self):
        self.entries = []

    def __init__(self, tuple sources not None, *, bint return_exceptions=False):
        self.return_exceptions = return_exceptions
        running_loop("aiounify.select()")
        try:
            for source in sources:
                if isinstance(source, Source):
                    self.put(source, source)
                else:
                    self.add(source)
        except BaseException:
            self.close()
            raise

    def __del__(self):
        if self._tasks is not None:
            for task in self._tasks.values():
                if not task.get_loop().is_closed():
                    task.cancel()
        self.clear()

    cdef int push(self, Entry entry) except -1:
        if self.tail is None:
            self.head = entry
        else:
            self.tail.after = entry
        self.tail = entry
        return 0

    cdef Entry find(self, object given):
        cdef Entry entry
        if self.index is not None:
            return <Entry>self.index.get(id(given))
        for entry in self.entries:
            if entry.given is given and entry.selection != NULL:
                return entry
        return None

    cdef int put(self, object given, object source) except -1:
        """Add a source, under the name of what was given for it."""
        cdef Entry entry
        if self.find(given) is not None:
            raise ValueError(f"{given!r} is in this selection already")
        entry = Entry.__new__(Entry)
        entry.selection = <PyObject *>self
        entry.given = given
        entry.source = source
        entry.native = <Source>source if isinstance(source, Source) else None
        self.entries.append(entry)
        self.present += 1
        if self.index is not None:
            self.index[id(given)] = entry
        elif self.present > FEW:
            self.tidy()
        self.push(entry)
        if self.wait is not None:  # another task adds to what this one awaits
            wait_end(self.wait)
        return 0

    cdef int tidy(self) except -1:
        """Forget those that left, and index the others if they are many."""
        cdef Entry entry
        self.entries = [each for each in self.entries if (<Entry>each).selection != NULL]
        self.index = None
        if self.present > FEW:
            self.index = {id((<Entry>each).given): each for each in self.entries}
        return 0

    def _put(self, given, source):
        self.put(given, source)

    def _pop(self, given):
        """Withdraw; returns the source.  KeyError if it is not here."""
        cdef Entry entry = self.find(given)
        cdef object source
        if entry is None:
            raise KeyError(given)
        source = entry.source
        self.leave(entry)
        if not self.present and self.wait is not None:
            wait_end(self.wait)
        return source

    cdef int leave(self, Entry entry) except -1:
        if entry.selection == NULL:
            return 0
        if self.index is not None:
            self.index.pop(id(entry.given), None)
        self.present -= 1
        entry.selection = NULL
        if len(self.entries) > 2 * self.present + FEW:
            self.tidy()
        return entry.withdraw()

    cdef int clear(self) except -1:
        """Withdraw all."""
        cdef list entries = self.entries
        cdef Entry entry, after
        if entries:
            self.entries = []
            self.index = None
            self.present = 0
            for entry in entries:
                entry.selection = NULL  # also if one of them raises
            for entry in entries:
                entry.withdraw()
        # link by link: a long chain that goes at once is a deep recursion
        entry, self.head, self.tail = self.head, None, None
        while entry is not None:
            after, entry.after = entry.after, None
            entry = after
        if self.wait is not None:
            wait_end(self.wait)
        return 0

    def _clear(self):
        self.clear()

    def _own(self, given, task):
        """A task was made for what was given, and goes with the selection."""
        if self._tasks is None:
            self._tasks = {}
        tasks = self._tasks
        tasks[id(given)] = task
        task.add_done_callback(lambda _: tasks.pop(id(given), None))

    def _given(self):
        """What was put in and has not ended."""
        return [
            (<Entry>entry).given for entry in self.entries if (<Entry>entry).selection != NULL
        ]

    def __len__(self):
        return self.present

    def __contains__(self, given):
        return self.find(given) is not None

    cdef object probe(self):
        """(given, value) of the first that has something, or None; the others are armed."""
        cdef Entry entry
        cdef Source native
        cdef object value, given, source
        while self.head is not None:
            entry = self.head
            self.head = entry.after
            entry.after = None
            if self.head is None:
                self.tail = None
            if entry.selection == NULL:
                continue  # it was taken out meanwhile
            given, source, native = entry.given, entry.source, entry.native
            try:
                value = source_take(native) if native is not None else source.take()
                if value is empty:
                    if entry.selection == NULL:
                        continue  # it was taken out by what take() ran
                    entry.waits = True
                    if native is not None:
                        source_arm(native, entry)
                    else:
                        source.arm(entry)
                    continue
            except StopAsyncIteration:
                entry.waits = False
                self.leave(entry)
                continue
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                entry.waits = False
                self.leave(entry)
                if not self.return_exceptions:
                    raise
                return given, exc
            if getattr(source, "once", False):
                self.leave(entry)
            elif entry.selection != NULL:
                self.push(entry)
            return given, value
        return None

    def __await__(self):
        return _next_of(self, EOFError)

    def __aiter__(self):
        return self

    def __anext__(self):
        return taking(self)


def _next_of(Selection selection, ended):
    cdef Scheduler loop = running_loop("aiounify.select()")
    cdef object found
    if selection.busy:
        raise RuntimeError("another task awaits this selection")
    selection.busy = True
    try:
        selection.streak += 1
        if selection.streak >= STREAK:
            # sources that always have something must not keep the loop from its turn
            selection.streak = 0
            yield None
        while True:
            found = selection.probe()
            if found is not None:
                return found
            if not selection.present:
                if ended is StopAsyncIteration:
                    raise StopAsyncIteration
                raise ended("no source is left in this selection: all have ended")
            selection.streak = 0
            selection.wait = wait_begin(loop)
            try:
                yield selection.wait
            finally:
                selection.wait = None
    finally:
        selection.busy = False
