# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The inotify instance of a loop: reading it, pairing renames, and what its events mean.

Why it exists: parsing, pairing and naming run once per event; a burst is tens of thousands of
events.  The trees they are told of are in watch_tree.pyx, what a program sees in
aiounify/watching.py.

The instance is read by readiness on both backends, once per turn and up to 64 KiB: small
batches cost several times as much per event, and `drain()` has to find everything that
was not delivered yet in the kernel or here, not in a completion that nobody took.
IN_NONBLOCK is a must: on a blocking instance the ring would keep a worker thread (6.18).

The two halves of a rename are queued while both directories are locked, but not in one
step: other events may come between, and the second half may be late.  A first half
without its second one is held, with all that follows, for at most 5 ms.

Memory: the buffer belongs to the instance and the kernel writes to it during read() only.
"""

from libc.errno cimport EINVAL, EMFILE, errno
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memmove
from posix.unistd cimport close as c_close
from posix.unistd cimport read as c_read

import os

cimport cython

from aiounify._core.backlog cimport monotonic_ns
from aiounify._core.inotify_abi cimport (
    IN_ACCESS,
    IN_ATTRIB,
    IN_CLOEXEC,
    IN_CLOSE_NOWRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_IGNORED,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_NONBLOCK,
    IN_OPEN,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
    aio_coarse_ns,
    c_fstatat,
    c_stat,
    decode_all,
    encode,
    inotify_event,
    inotify_init1,
)
from aiounify._core.reactor cimport EAGAIN, EINTR, EPOLLIN, Reactor
from aiounify._core.scheduler cimport Scheduler
from aiounify._core.watch_tree cimport Forest, Node, Tree, limit_of

cdef enum:
    ROOM = 262144          # the buffer: what is held, and what is read
    ONE_READ = 65536
    LARGEST = 4096         # more than an event can have (name of 255 bytes)
    PATIENCE_NS = 5_000_000  # for the second half of a rename
    READS = 16             # full ones in a row that count as an empty queue

# of directories these tell of our own reading, and are left out
cdef uint32_t OF_FILES = IN_ACCESS | IN_OPEN | IN_CLOSE_NOWRITE


def instance_of(loop not None):
    """The instance of a loop, made with the first watch."""
    cdef Inotify found = getattr(loop, "_inotify", None)
    if found is None or found.fd < 0:
        found = Inotify(loop)
    return found


@cython.no_gc_clear  # reactor is needed until the descriptor is closed
cdef class Inotify(Forest):
    """The instance of a loop; it lives as long as a tree is watched with it."""

    cdef Scheduler loop
    cdef Reactor reactor
    cdef char *buffer
    cdef Py_ssize_t held        # bytes at the buffer's begin that wait for the rest of a rename
    cdef Py_ssize_t patient     # of these, how many are waited for no longer at `deadline`
    cdef int64_t deadline
    cdef object timer
    cdef int full_reads
    cdef bint reading

    def __init__(self, Scheduler loop not None):
        cdef int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
        if fd < 0:
            if errno == EMFILE:
                raise OSError(EMFILE, f"no more inotify instances: {limit_of('instances')}; or no "
                              "more file descriptors: see ulimit -n")
            raise OSError(errno, f"inotify_init1: {os.strerror(errno)}")
        self.fd = fd
        self.buffer = <char *>malloc(ROOM)
        if self.buffer == NULL:
            raise MemoryError
        self.loop = loop
        self.reactor = <Reactor>(<object>loop)._reactor
        self.reactor.stream_open(fd, self)
        self.reactor.stream_wait(fd, self, EPOLLIN)
        (<object>loop)._inotify = self

    def __dealloc__(self):
        if self.fd >= 0:
            c_close(self.fd)
        free(self.buffer)

    cdef int stop(self) except -1:
        cdef int fd = self.fd
        if fd < 0:
            return 0
        self.reactor.stream_wait(fd, self, 0)
        self.reactor.stream_close(fd, self, False)
        self.fd = -1
        c_close(fd)
        self.held = 0
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.nodes.clear()
        self.suspects.clear()
        (<object>self.loop)._inotify = None
        return 0

    def _abandon(self):
        """After a fork, in the child: the instance and its watches are the parent's."""
        if self.fd >= 0:
            c_close(self.fd)
            self.fd = -1

    # -- reading ------------------------------------------------------------------------

    cdef int ready(self, uint32_t events) except -1:
        self.more()
        self.announce()
        return 0

    cdef int failed(self, exc) except -1:
        # a filter raised, or memory is gone: a watch that has lost something does not go on
        cdef list trees = list(self.trees)
        for tree in trees:
            (<Tree>tree).fail(exc)
        return 0

    cdef int announce(self) except -1:
        cdef list touched = self.touched
        if touched:
            self.touched = []
            for tree in touched:
                (<Tree>tree).touched = False
                (<Tree>tree)._fire()
        return 0

    cdef bint more(self) except -1:
        """Read once and handle it; whether there may be more."""
        cdef Py_ssize_t room, n
        cdef int64_t began = aio_coarse_ns()
        if self.fd < 0 or self.reading:
            return False
        room = min(<Py_ssize_t>ONE_READ, ROOM - self.held)
        while True:
            n = c_read(self.fd, self.buffer + self.held, room)
            if n >= 0 or errno != EINTR:
                break
        if n < 0:
            if errno == EINVAL:
                n = 0   # no room for an event: impossible with LARGEST kept free
            elif errno != EAGAIN:
                raise OSError(errno, f"read of inotify: {os.strerror(errno)}")
            n = 0
        self.reading = True
        try:
            self.handle(self.held + n)
            if self.fd < 0:
                return False
            if n > room - LARGEST:
                self.full_reads += 1
                if self.full_reads < READS:
                    return True
            self.full_reads = 0
            if not self.held:
                self.settle()
                if n <= room - LARGEST:
                    self.empty_ns = began
        finally:
            self.reading = False
        return n > room - LARGEST

    cdef int pull(self) except -1:
        while self.more():
            pass
        if self.held and self.fd >= 0:
            self.impatient()
        return self.announce()

    cdef int impatient(self) except -1:
        """No longer wait for what is held."""
        self.patient = self.held
        self.deadline = 0
        self.reading = True
        try:
            self.handle(self.held)
            if self.fd >= 0 and not self.held:
                self.settle()
        finally:
            self.reading = False
        return 0

    def _late(self):
        self.timer = None
        if self.fd < 0 or not self.held:
            return
        try:
            self.more()
            if self.held and self.fd >= 0 and monotonic_ns() >= self.deadline:
                self.reading = True
                try:
                    self.handle(self.held)
                    if self.fd >= 0 and not self.held:
                        self.settle()
                finally:
                    self.reading = False
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.failed(exc)
        self.announce()

    cdef int handle(self, Py_ssize_t size) except -1:
        """Handle `size` bytes of the buffer, or as many as need no further ones."""
        cdef Py_ssize_t at = 0, other
        cdef inotify_event *e
        cdef inotify_event *second
        cdef bint given_up = monotonic_ns() >= self.deadline if self.held else False
        cdef Py_ssize_t patient = self.patient
        self.held = 0
        while at < size:
            e = <inotify_event *>(self.buffer + at)
            if e.mask & IN_MOVED_FROM:
                second = NULL
                other = at + 16 + e.len
                while other < size:
                    second = <inotify_event *>(self.buffer + other)
                    if second.mask & IN_MOVED_TO and second.cookie == e.cookie:
                        break
                    other += 16 + second.len
                    second = NULL
                if (second == NULL and not (given_up and at < patient)
                        and size - at < ROOM - ONE_READ):
                    return self.hold(at, size)
                self.moved(e, second)
                if second != NULL:
                    second.mask = 0
            elif e.mask:
                self.event(e)
            if self.fd < 0:
                return 0
            at += 16 + e.len
        self.deadline = 0
        return 0

    cdef int hold(self, Py_ssize_t at, Py_ssize_t size) except -1:
        memmove(self.buffer, self.buffer + at, size - at)
        self.held = self.patient = size - at
        self.deadline = monotonic_ns() + PATIENCE_NS
        if self.timer is not None:
            self.timer.cancel()
        self.timer = (<object>self.loop).call_later(PATIENCE_NS * 1e-9, self._late)
        return 0

    # -- what an event means ------------------------------------------------------------

    cdef list nodes_of(self, int wd):
        found = self.nodes.get(wd)
        if found is None:
            return []
        return [found] if isinstance(found, Node) else list(found)

    cdef int event(self, inotify_event *e) except -1:
        cdef str name
        cdef Node node
        if e.mask & IN_Q_OVERFLOW:
            for tree in list(self.trees):
                (<Tree>tree).lost = True
                (<Tree>tree).tell(IN_Q_OVERFLOW, (<Tree>tree).root.path, None, False, False)
            return 0
        found = self.nodes.get(e.wd)
        if found is None:
            return 0
        name = decode_all(e.name) if e.len else None
        if isinstance(found, Node):
            return self.event_at(<Node>found, e.mask, name)
        for node in list(<list>found):
            if node.tree is not None:
                self.event_at(node, e.mask, name)
        return 0

    cdef int event_at(self, Node node, uint32_t mask, str name) except -1:
        cdef Tree tree = node.tree
        cdef uint32_t bit
        cdef bint is_dir = (mask & IN_ISDIR) != 0
        if name is None:
            return self.event_itself(node, mask)
        if mask & IN_CREATE:
            return self.appeared(node, name, is_dir, False)
        if mask & IN_MOVED_TO:
            return self.appeared(node, name, is_dir, True)
        if mask & IN_DELETE:
            return self.vanished(node, name, False)
        bit = mask & tree.mask
        if bit & OF_FILES and is_dir:
            return 0
        if bit and name in node.names:
            tree.tell(bit, node.prefix + name, None, is_dir, False)
        return 0

    cdef int event_itself(self, Node node, uint32_t mask) except -1:
        """Of the watched directory or file itself: what its parent tells matters at a root only."""
        cdef Tree tree = node.tree
        cdef uint32_t bit
        cdef c_stat s
        if node.parent is not None:
            if mask & IN_IGNORED:
                self.unlink(node, True)
                self.suspects.add(node)
            elif mask & IN_UNMOUNT:
                self.suspects.add(node)
            return 0
        if mask & IN_UNMOUNT:
            tree._end("unmounted")
        elif mask & IN_MOVE_SELF:
            tree._end("moved")
        elif mask & (IN_DELETE_SELF | IN_IGNORED):
            tree._end("deleted")
        else:
            if mask & IN_ATTRIB and not mask & IN_ISDIR:
                # a file that is still open tells of its removal only by its number of links
                if (c_fstatat(-100, encode(node.path), &s, 0) < 0 or s.st_ino != node.ino
                        or s.st_dev != node.dev):
                    tree._end("deleted")
                    return 0
            bit = mask & tree.mask
            if bit & OF_FILES and mask & IN_ISDIR:
                return 0
            if bit and not bit & (bit - 1):
                tree.tell(bit, node.path, None, (mask & IN_ISDIR) != 0, False)
        return 0

    cdef int appeared(self, Node node, str name, bint is_dir, bint moved) except -1:
        cdef Tree tree = node.tree
        cdef str path = node.prefix + name
        if name in node.names:
            if not moved:
                return 0   # it was found by reading the directory
            entry = node.names[name]
            if not is_dir and entry is None:
                # another file took its place
                return tree.tell(IN_MODIFY, path, None, False, False)
            if is_dir and isinstance(entry, Node):
                self.suspects.add(entry)
                return 0
            self.vanished(node, name, False)
        if tree.wanted is not None and not tree.wanted(path, is_dir):
            return 0
        tree.tell(IN_CREATE, path, None, is_dir, False)
        if is_dir and tree.recursive:
            self.enter(node, name)
        else:
            node.names[name] = True if is_dir else None
        return 0

    cdef int moved(self, inotify_event *a, inotify_event *b) except -1:
        """A rename: in all trees that see its source or its target."""
        cdef str old = decode_all(a.name)
        cdef str new = decode_all(b.name) if b != NULL else None
        cdef list sources = self.nodes_of(a.wd)
        cdef list targets = self.nodes_of(b.wd) if b != NULL else []
        cdef Node s, t, pair
        cdef bint is_dir = (a.mask & IN_ISDIR) != 0
        for s in sources:
            if s.tree is None:
                continue
            pair = None
            for t in targets:
                if t.tree is s.tree:
                    pair = t
                    break
            if pair is not None:
                targets.remove(pair)
                self.moved_within(s, old, pair, new, is_dir)
            elif targets and old in s.names:
                self.moved_out(s, old, (<Node>targets[0]).prefix + new)
            else:
                self.vanished(s, old, False)
        for t in targets:
            if t.tree is None:
                continue
            if sources and new not in t.names:
                self.moved_in(t, new, (<Node>sources[0]).prefix + old, is_dir)
            else:
                self.appeared(t, new, is_dir, True)
        return 0

    cdef int moved_out(self, Node node, str name, str path) except -1:
        """To a place that another tree watches."""
        cdef str old = node.prefix + name
        entry = node.names.pop(name)
        if isinstance(entry, Node):
            self.drop(<Node>entry)
        return node.tree.tell(IN_MOVED_FROM, path, old, entry is not None, False)

    cdef int moved_in(self, Node node, str name, str old, bint is_dir) except -1:
        cdef Tree tree = node.tree
        cdef str path = node.prefix + name
        if tree.wanted is not None and not tree.wanted(path, is_dir):
            return 0
        tree.tell(IN_MOVED_FROM, path, old, is_dir, False)
        if is_dir and tree.recursive:
            return self.enter(node, name)
        node.names[name] = True if is_dir else None
        return 0

    cdef int moved_within(self, Node s, str old, Node t, str new, bint is_dir) except -1:
        cdef Tree tree = s.tree
        cdef str path = t.prefix + new
        cdef str old_path = s.prefix + old
        if old not in s.names:
            # filtered out, or gone when its directory was read
            return self.appeared(t, new, is_dir, True)
        if tree.wanted is not None and not tree.wanted(path, is_dir):
            return self.vanished(s, old, False)
        entry = s.names.pop(old)
        replaced = t.names.pop(new, None)
        if isinstance(replaced, Node):
            self.drop(<Node>replaced)
        t.names[new] = entry
        if isinstance(entry, Node):
            (<Node>entry).place(t, new)
            self.suspects.add(entry)
        return tree.tell(IN_MOVED_FROM, path, old_path, is_dir, False)
