# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Changes of files as objects, and the queue of those that nobody has taken yet.

Why it exists: one of these is made for each event that a watch tells, and a burst is tens of
thousands of them.  Where they come from is the business of who derives from `Changes`: a tree of
inotify's (watch_tree.pyx) or a file system (aiounify/_filesystem.py).

A watch that ended keeps what it was told; after that take() says why there is no more.
"""

from libc.stdint cimport uint32_t
from cpython.object cimport PyObject

from collections import deque

cimport cython

from aiounify._core.sources cimport Source, empty


# members of aiounify.watching.Kind by the number of their bit; `kinds` holds them
cdef PyObject *kind_of[32]
cdef dict kinds_held = {}

cdef extern from *:
    int __builtin_ctz(unsigned)


def configure(kinds):
    """Tell the members of Kind by their bits."""
    cdef uint32_t bit
    kinds_held.update(kinds)
    for number, kind in kinds_held.items():
        bit = number
        kind_of[__builtin_ctz(bit)] = <PyObject *>kind


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Change:
    """One change; see aiounify.watching.Change."""
    cdef readonly object kind
    cdef readonly object path
    cdef readonly object old_path
    cdef readonly bint is_dir
    cdef readonly bint found

    def __init__(self, kind, str path not None, str old_path=None, bint is_dir=False, bint found=False):
        self.kind = kind
        self.path = path
        self.old_path = old_path
        self.is_dir = is_dir
        self.found = found

    def __eq__(self, other):
        cdef Change b
        if not isinstance(other, Change):
            return NotImplemented
        b = <Change>other
        return (self.kind is b.kind and self.path == b.path and self.old_path == b.old_path
                and self.is_dir == b.is_dir and self.found == b.found)

    def __hash__(self):
        return hash((self.kind, self.path, self.old_path))

    def __repr__(self):
        old = f" from {self.old_path!r}" if self.old_path is not None else ""
        marks = (" (directory)" if self.is_dir else "") + (" (found)" if self.found else "")
        return f"<Change {self.kind.name} {self.path!r}{old}{marks}>"


cdef inline Change change(object kind, str path, str old_path, bint is_dir, bint found):
    cdef Change c = Change.__new__(Change)
    c.kind = kind
    c.path = path
    c.old_path = old_path
    c.is_dir = is_dir
    c.found = found
    return c


cdef class Changes(Source):
    """What one watch() watches, and its changes that nobody has taken yet."""

    def __cinit__(self):
        self.queue = deque()
        self.skipped = []

    cdef int begin(self, uint32_t mask) except -1:
        if self.begun and not self.ended:
            raise RuntimeError("this watch has begun already")
        self.mask = mask
        self.begun = True
        self.ended = False
        self.error = self.reason = None
        self.queue.clear()
        self.skipped.clear()
        return 0

    cpdef object _end(self, reason):
        """Stop; what was read already can still be taken."""
        if not self.ended:
            self.ended = True
            self.reason = reason
            self._fire()

    cpdef object take(self):
        if self.queue:
            return self.queue.popleft()
        if self.error is not None:
            raise self.error
        if self.ended:
            raise StopAsyncIteration
        if not self.begun:
            raise RuntimeError("this watch has not begun: use it as `async with watch(...) as w`")
        return empty

    cpdef object _pull(self):
        """Read whatever the kernel has queued right now."""

    def __len__(self):
        return len(self.queue)

    def __bool__(self):
        return True

    cdef int tell(self, uint32_t bit, str path, str old, bint is_dir, bint found) except -1:
        if not self.mask & bit or self.ended or not self.begun:
            return 0
        self.queue.append(change(<object>kind_of[__builtin_ctz(bit)], path, old, is_dir, found))
        if not self.touched:
            self.touched = True
            self.touch()
        return 0

    def _tell(self, uint32_t bit, str path not None, str old, bint is_dir, bint found):
        """Tell whatever the mask, without a wake-up; for what is read in Python."""
        self.queue.append(change(<object>kind_of[__builtin_ctz(bit)], path, old, is_dir, found))

    def _fail(self, error not None):
        """It cannot go on."""
        self.fail(error)

    cdef int touch(self) except -1:
        """There is something new; _fire() has to follow before the loop waits again."""
        return 0

    cdef int fail(self, object error) except -1:
        self.error = error
        self._end("failed")
        return 0
