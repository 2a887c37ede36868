# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Changes of files: one inotify instance for a loop, and the trees that are watched with it.

Why it exists: parsing, pairing and naming run once per event, walking once per directory;
a burst is tens of thousands of events.  What a program sees is in aiounify/watching.py.

The instance is read by readiness on both backends, once per turn and up to 64 KiB: small
batches cost several times as much per event, and `drain()` has to find everything that
was not delivered yet in the kernel or here, not in a completion that nobody took.
IN_NONBLOCK is a must: on a blocking instance the ring would keep a worker thread (6.18).

Facts of the kernel that decide the rest:

* A watch belongs to an inode.  Adding one for an inode that has one gives the same number;
  so the table leads from a number to one node or several: of several trees, or of one tree
  that shows a directory twice by a bind mount.  Numbers are not used again.
* The two halves of a rename are queued while both directories are locked, but not in one
  step: other events may come between, and the second half may be late.  A first half
  without its second one is held, with all that follows, for at most 5 ms.
* A directory that appears may be filled before it is watched.  So it is watched, then
  read, and what reading finds is told; what is told twice by that is known by its name.
* Events are older than the tree they speak of.  A path may lead elsewhere by the time a
  directory is opened, so its parent is compared with the device and inode it was
  watched as, and what does not fit is looked at again once the queue is empty (`suspects`).
* A full queue loses events (IN_Q_OVERFLOW).  Then the trees are read again once the queue is empty and
  told are the differences; a file counts as modified if its ctime is not before the time
  at which the queue was seen empty last.

Memory: the buffer belongs to the instance and the kernel writes to it during read() only.  The loop holds the
instance, the instance its nodes, a node its tree; a tree that ended holds no node.
"""

from cpython.object cimport PyObject
from libc.errno cimport EACCES, EINVAL, ELOOP, EMFILE, ENOENT, ENOSPC, ENOTDIR, EPERM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove
from posix.unistd cimport close as c_close
from posix.unistd cimport read as c_read

import os
from collections import deque

cimport cython

from aiounify._core.backlog cimport monotonic_ns
from aiounify._core.reactor cimport EAGAIN, EINTR, EPOLLIN, Reactor, Watched
from aiounify._core.scheduler cimport Scheduler
from aiounify._core.sources cimport Source

from aiounify._core import sources as _sources


cdef extern from *:
    """
    #include <dirent.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/inotify.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    struct aio_dirent {
        uint64_t d_ino;
        int64_t d_off;
        unsigned short d_reclen;
        unsigned char d_type;
        char d_name[];
    };
    static long aio_getdents(int fd, void *buffer, unsigned long size)
    {
        return syscall(SYS_getdents64, fd, buffer, size);
    }
    static int64_t aio_coarse_ns(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME_COARSE, &t);   /* what ctime is taken from */
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    #define aio_set_errno(value) (errno = (value))
    static int64_t aio_ctime_ns(const struct stat *s)
    {
        return (int64_t)s->st_ctim.tv_sec * 1000000000 + s->st_ctim.tv_nsec;
    }
    """
    ctypedef struct inotify_event "struct inotify_event":
        int wd
        uint32_t mask
        uint32_t cookie
        uint32_t len
        char name[1]
    ctypedef struct c_stat "struct stat":
        uint64_t st_dev
        uint64_t st_ino
        unsigned st_mode
    ctypedef struct aio_dirent "struct aio_dirent":
        unsigned short d_reclen
        unsigned char d_type
        char d_name[1]
    const uint32_t IN_ATTRIB, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE
    const uint32_t IN_DELETE_SELF, IN_MOVE_SELF, IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED
    const uint32_t IN_ISDIR, IN_MASK_ADD, IN_EXCL_UNLINK
    const uint32_t IN_MODIFY, IN_ACCESS, IN_OPEN, IN_CLOSE_NOWRITE
    const int IN_NONBLOCK, IN_CLOEXEC
    const int O_RDONLY, O_PATH, O_DIRECTORY, O_NOFOLLOW, O_CLOEXEC
    const int AT_SYMLINK_NOFOLLOW
    const unsigned char DT_DIR, DT_UNKNOWN
    int inotify_init1(int flags)
    int inotify_add_watch(int fd, const char *path, uint32_t mask)
    int inotify_rm_watch(int fd, int wd)
    int c_open "open" (const char *path, int flags)
    int c_openat "openat" (int fd, const char *path, int flags)
    int c_fstat "fstat" (int fd, c_stat *s)
    int c_fstatat "fstatat" (int fd, const char *path, c_stat *s, int flags)
    bint S_ISDIR(unsigned mode)
    void aio_set_errno(int value)
    long aio_getdents(int fd, void *buffer, unsigned long size)
    int64_t aio_coarse_ns()
    int64_t aio_ctime_ns(const c_stat *s)

cdef extern from "Python.h":
    str decode "PyUnicode_DecodeFSDefaultAndSize" (const char *, Py_ssize_t)
    str decode_all "PyUnicode_DecodeFSDefault" (const char *)
    bytes encode "PyUnicode_EncodeFSDefault" (object)

cdef enum:
    ROOM = 262144          # the buffer: what is held, and what is read
    ONE_READ = 65536
    LARGEST = 4096         # more than an event can have (name of 255 bytes)
    LISTING = 32768
    PATIENCE_NS = 5_000_000  # for the second half of a rename
    READS = 16             # full ones in a row that count as an empty queue

cdef uint32_t NEEDED = (IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
                        | IN_DELETE_SELF | IN_MOVE_SELF)
# of directories these tell of our own reading, and are left out
cdef uint32_t OF_FILES = IN_ACCESS | IN_OPEN | IN_CLOSE_NOWRITE
cdef int OPEN_DIRECTORY = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC

# members of aiounify.watching.Kind, told by configure()
cdef object CREATED = None
cdef object DELETED = None
cdef object MOVED = None
cdef object MODIFIED = None
cdef object OVERFLOW = None
cdef dict by_bit = {}
cdef object nothing = None     # aiounify.sources.EMPTY


def configure(kinds, empty):
    """Tell the members of Kind by their bits, and EMPTY."""
    global CREATED, DELETED, MOVED, MODIFIED, OVERFLOW, nothing
    by_bit.update(kinds)
    CREATED, DELETED, MOVED = kinds[IN_CREATE], kinds[IN_DELETE], kinds[IN_MOVED_FROM]
    MODIFIED, OVERFLOW = kinds[IN_MODIFY], kinds[IN_Q_OVERFLOW]
    nothing = empty


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


@cython.final
cdef class Node:
    """A directory that is watched, or a tree's root of any type.

    `names` has its entries: the node of a directory that is looked into, True for another
    directory, None for anything else.
    """
    cdef Tree tree             # None once it is out of the tree
    cdef Node parent
    cdef str name, path, prefix
    cdef dict names
    cdef int wd                # -1: not watched
    cdef uint64_t dev, ino

    cdef int place(self, Node parent, str name) except -1:
        """Put it, and what is below it, at another path."""
        cdef Node below
        self.parent = parent
        self.name = name
        self.path = parent.prefix + name
        self.prefix = self.path + "/"
        for entry in self.names.values():
            if isinstance(entry, Node):
                below = <Node>entry
                below.place(self, below.name)
        return 0


cdef Node new_node(Tree tree, Node parent, str name, str path):
    cdef Node node = Node.__new__(Node)
    node.tree = tree
    node.parent = parent
    node.name = name
    node.path = path
    node.prefix = path if path.endswith("/") else path + "/"
    node.names = {}
    node.wd = -1
    return node


cdef class Tree(Source):
    """What one watch() watches, and its changes that nobody has taken yet."""

    cdef Inotify inotify
    cdef Node root
    cdef object queue
    cdef uint32_t mask          # what is told
    cdef bint recursive
    cdef object wanted          # filter(path, is_dir), or None
    cdef bint touched           # in the instance's list of trees with something new
    cdef bint lost              # an overflow: to be read again
    cdef bint ended
    cdef object error
    cdef readonly object reason
    cdef readonly list skipped

    def __cinit__(self):
        self.queue = deque()
        self.skipped = []

    def _open(self, Scheduler loop not None, str path not None, uint32_t mask, bint recursive, wanted):
        """Begin: from here on every change is told."""
        cdef Inotify inotify
        if self.root is not None:
            raise RuntimeError("this watch has begun already")
        inotify = getattr(loop, "_inotify", None)
        if inotify is None or inotify.fd < 0:
            inotify = Inotify(loop)
        self.inotify = inotify
        self.mask = mask
        self.recursive = recursive
        self.wanted = wanted
        self.ended = self.lost = False
        self.error = self.reason = None
        self.queue.clear()
        self.skipped.clear()
        inotify.trees.append(self)
        cdef Node root = new_node(self, None, "", path)
        self.root = root
        cdef bytes encoded = encode(path)
        # a root is followed if it is a symbolic link, and may be a file
        cdef int fd = c_open(encoded, O_PATH | O_CLOEXEC)
        cdef int error = errno
        cdef c_stat s
        try:
            if fd < 0:
                raise OSError(error, os.strerror(error), path)
            if c_fstat(fd, &s) < 0:
                raise OSError(errno, os.strerror(errno), path)
            error = inotify.add(root, fd, &s)
            if error:
                raise watch_error(error, path)
            if S_ISDIR(s.st_mode):
                c_close(fd)
                fd = c_open(encoded, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
                if fd < 0:
                    raise OSError(errno, os.strerror(errno), path)
                inotify.scan(root, fd, False, False)
        except BaseException:
            self._end("closed")
            raise
        finally:
            if fd >= 0:
                c_close(fd)
        if self.error is not None:
            raise self.error

    def _end(self, reason):
        """Stop; what was read already can still be taken."""
        cdef Inotify inotify = self.inotify
        cdef Node root = self.root
        if self.ended:
            return
        self.ended = True
        self.reason = reason
        self.root = None
        self.inotify = None
        if inotify is None:
            return
        inotify.trees.remove(self)
        if not inotify.trees:
            inotify.stop()  # which ends all watches at once
        if root is not None:
            inotify.drop(root)
        self._fire()

    cpdef object take(self):
        if self.queue:
            return self.queue.popleft()
        if self.error is not None:
            raise self.error
        if self.ended:
            raise StopAsyncIteration
        if self.inotify is None:
            raise RuntimeError("this watch has not begun: use it as `async with watch(...) as w`")
        return nothing

    def _pull(self):
        """Read whatever the kernel has queued right now."""
        cdef Inotify inotify = self.inotify  # a reference: the end of the last tree lets go of it
        if inotify is not None:
            inotify.pull()

    def __len__(self):
        return len(self.queue)

    def __bool__(self):
        return True

    @property
    def _directories(self):
        """How many directories are watched (and the root, if it is a file)."""
        return count(self.root) if self.root is not None else 0

    cdef int tell(self, object kind, uint32_t bit, str path, str old, bint is_dir, bint found) except -1:
        if not self.mask & bit or self.inotify is None:
            return 0
        self.queue.append(change(kind, path, old, is_dir, found))
        if not self.touched:
            self.touched = True
            self.inotify.touched.append(self)
        return 0

    cdef int fail(self, object error) except -1:
        self.error = error
        self._end("failed")
        return 0


cdef uint32_t watch_mask(Node node) noexcept:
    cdef uint32_t mask = (node.tree.mask & 0x3f) | NEEDED | IN_MASK_ADD | IN_EXCL_UNLINK
    return mask | IN_ATTRIB if node.parent is None else mask


cdef Py_ssize_t count(Node node):
    cdef Py_ssize_t n = 1
    for entry in node.names.values():
        if isinstance(entry, Node):
            n += count(<Node>entry)
    return n


cdef str limit_of(str what):
    """The limit that holds, with its value: a user namespace has one of its own."""
    cdef str lowest = f"fs.inotify.max_user_{what} is unknown"
    cdef object value = None, found
    for name in (f"fs.inotify.max_user_{what}", f"user.max_inotify_{what}"):
        try:
            with open("/proc/sys/" + name.replace(".", "/")) as f:
                found = int(f.read())
        except (OSError, ValueError):
            continue
        if value is None or found < value:
            value, lowest = found, f"{name} is {found}"
    return lowest


cdef object watch_error(int error, str path):
    if error == ENOSPC:
        what = (f"no more inotify watches: {limit_of('watches')}; raise it with sysctl, or watch fewer directories")
        return OSError(error, what, path)
    return OSError(error, os.strerror(error), path)


@cython.no_gc_clear  # reactor is needed until the descriptor is closed
cdef class Inotify(Watched):
    """The instance of a loop; it lives as long as a tree is watched with it."""

    cdef Scheduler loop
    cdef Reactor reactor
    cdef int fd
    cdef char *buffer
    cdef Py_ssize_t held        # bytes at the buffer's begin that wait for the rest of a rename
    cdef Py_ssize_t patient     # of these, how many are waited for no longer at `deadline`
    cdef int64_t deadline
    cdef object timer
    cdef char *listing
    cdef dict nodes             # watch number -> node, or list of nodes
    cdef list trees
    cdef list touched
    cdef set suspects
    cdef int full_reads
    cdef int64_t empty_ns       # when the queue was empty last, by the clock of ctime
    cdef int64_t read_ns
    cdef bint reading

    def __cinit__(self):
        self.fd = -1

    def __init__(self, Scheduler loop not None):
        cdef int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
        if fd < 0:
            if errno == EMFILE:
                raise OSError(EMFILE, f"no more inotify instances: {limit_of('instances')}; or no "
                              "more file descriptors: see ulimit -n")
            raise OSError(errno, f"inotify_init1: {os.strerror(errno)}")
        self.fd = fd
        self.buffer = <char *>malloc(ROOM)
        self.listing = <char *>malloc(LISTING)
        if self.buffer == NULL or self.listing == NULL:
            raise MemoryError
        self.loop = loop
        self.reactor = <Reactor>(<object>loop)._reactor
        self.nodes = {}
        self.trees = []
        self.touched = []
        self.suspects = set()
        self.empty_ns = self.read_ns = aio_coarse_ns()
        self.reactor.stream_open(fd, self)
        self.reactor.stream_wait(fd, self, EPOLLIN)
        (<object>loop)._inotify = self

    def __dealloc__(self):
        if self.fd >= 0:
            c_close(self.fd)
        free(self.buffer)
        free(self.listing)

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
                (<Tree>tree).tell(OVERFLOW, IN_Q_OVERFLOW, (<Tree>tree).root.path, None, False, False)
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
            tree.tell(by_bit[bit], bit, node.prefix + name, None, is_dir, False)
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
            if bit in by_bit:
                tree.tell(by_bit[bit], bit, node.path, None, (mask & IN_ISDIR) != 0, False)
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
                return tree.tell(MODIFIED, IN_MODIFY, path, None, False, False)
            if is_dir and isinstance(entry, Node):
                self.suspects.add(entry)
                return 0
            self.vanished(node, name, False)
        if tree.wanted is not None and not tree.wanted(path, is_dir):
            return 0
        tree.tell(CREATED, IN_CREATE, path, None, is_dir, False)
        if is_dir and tree.recursive:
            self.enter(node, name)
        else:
            node.names[name] = True if is_dir else None
        return 0

    cdef int vanished(self, Node node, str name, bint found) except -1:
        if name not in node.names:
            return 0
        entry = node.names.pop(name)
        if isinstance(entry, Node):
            self.drop(<Node>entry)
        node.tree.tell(DELETED, IN_DELETE, node.prefix + name, None, entry is not None, found)
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
        return node.tree.tell(MOVED, IN_MOVED_FROM, path, old, entry is not None, False)

    cdef int moved_in(self, Node node, str name, str old, bint is_dir) except -1:
        cdef Tree tree = node.tree
        cdef str path = node.prefix + name
        if tree.wanted is not None and not tree.wanted(path, is_dir):
            return 0
        tree.tell(MOVED, IN_MOVED_FROM, path, old, is_dir, False)
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
        return tree.tell(MOVED, IN_MOVED_FROM, path, old_path, is_dir, False)

    # -- watching -----------------------------------------------------------------------

    cdef int add(self, Node node, int fd, c_stat *s) except -1:
        """Watch what fd is open at; an errno, or 0."""
        cdef char path[32]
        cdef uint32_t mask = watch_mask(node)
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd)
        cdef int wd = inotify_add_watch(self.fd, path, mask)
        if wd < 0 and errno == ENOENT:  # no /proc here
            wd = inotify_add_watch(self.fd, encode(node.path), mask)
        if wd < 0:
            return errno
        node.dev = s.st_dev
        node.ino = s.st_ino
        node.wd = wd
        there = self.nodes.get(wd)
        if there is None:
            self.nodes[wd] = node
        elif isinstance(there, Node):
            if there is not node:
                self.nodes[wd] = [there, node]
        else:
            (<list>there).append(node)
        return 0

    cdef int unlink(self, Node node, bint gone) except -1:
        """Take the node off its watch, which is removed with the last one."""
        cdef int wd = node.wd
        node.wd = -1
        if wd < 0:
            return 0
        there = self.nodes.get(wd)
        if isinstance(there, list):
            (<list>there).remove(node)
            if there:
                return 0
        elif there is not node:
            return 0
        del self.nodes[wd]
        if not gone and self.fd >= 0:
            inotify_rm_watch(self.fd, wd)
        return 0

    cdef int drop(self, Node node) except -1:
        """Out of the tree, with all that is below."""
        self.unlink(node, False)
        self.suspects.discard(node)
        node.tree = None
        for entry in node.names.values():
            if isinstance(entry, Node):
                self.drop(<Node>entry)
        node.names.clear()
        return 0

    cdef int open_verified(self, Node node, int flags) except -2:
        """The directory of a node, if it is still at its path; else -1."""
        cdef c_stat s
        cdef int fd = c_open(encode(node.path), flags if node.parent is not None
                             else flags & ~O_NOFOLLOW)
        if fd >= 0 and (c_fstat(fd, &s) < 0 or s.st_ino != node.ino or s.st_dev != node.dev):
            c_close(fd)
            aio_set_errno(ENOENT)
            return -1
        return fd

    cdef int enter(self, Node parent, str name) except -1:
        """A directory has appeared: watch it, and tell what is in it already."""
        cdef Node node = new_node(parent.tree, parent, name, parent.prefix + name)
        cdef int fd
        parent.names[name] = node
        fd = self.open_verified(parent, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        if fd < 0:
            self.suspects.add(node)
            return 0
        try:
            return self.descend(node, fd, encode(name), True)
        finally:
            c_close(fd)

    cdef int descend(self, Node node, int parent_fd, bytes name, bint tell) except -1:
        """Watch the directory `name` in parent_fd as `node`, and read it."""
        cdef c_stat s
        cdef int fd = c_openat(parent_fd, name, OPEN_DIRECTORY)
        cdef int error = errno if fd < 0 else 0
        if fd >= 0:
            if c_fstat(fd, &s) < 0:
                error = errno
            else:
                error = self.add(node, fd, &s)
        try:
            if error == ENOSPC or error == EMFILE:
                if node.tree is not None:
                    node.tree.fail(watch_error(error, node.path))
            elif error == EACCES or error == EPERM:
                node.tree.skipped.append((node.path, os.strerror(error)))
            elif error:
                self.suspects.add(node)  # it is gone by now: an event will say so
            else:
                self.scan(node, fd, tell, False)
        finally:
            if fd >= 0:
                c_close(fd)
        return 0

    cdef int scan(self, Node node, int fd, bint tell, bint deep) except -1:
        """Make `names` what is in the directory.

        tell: differences are told.  deep: known directories are read too, and
        known files looked at.
        """
        cdef Tree tree = node.tree
        cdef dict names = node.names
        cdef dict seen = {}
        cdef long n, at
        cdef aio_dirent *d
        cdef c_stat s
        cdef bint is_dir, plain = tree.wanted is None
        cdef str name
        cdef list below = None
        while True:
            n = aio_getdents(fd, self.listing, LISTING)
            if n <= 0:
                break
            at = 0
            while at < n:
                d = <aio_dirent *>(self.listing + at)
                at += d.d_reclen
                if d.d_name[0] == b"." and (d.d_name[1] == 0
                                            or (d.d_name[1] == b"." and d.d_name[2] == 0)):
                    continue
                is_dir = d.d_type == DT_DIR
                if d.d_type == DT_UNKNOWN:
                    if c_fstatat(fd, d.d_name, &s, AT_SYMLINK_NOFOLLOW) < 0:
                        continue
                    is_dir = S_ISDIR(s.st_mode)
                seen[decode_all(d.d_name)] = is_dir
        if names:
            for name in [name for name in names if name not in seen]:
                self.vanished(node, name, True)
        for name, is_dir in seen.items():
            if name in names:
                entry = names[name]
                if (entry is not None) == is_dir:
                    if not deep:
                        continue
                    if isinstance(entry, Node):
                        if self.rescan(<Node>entry, fd, encode(name)):
                            continue
                    else:
                        if (not is_dir and c_fstatat(fd, encode(name), &s, AT_SYMLINK_NOFOLLOW) == 0
                                and aio_ctime_ns(&s) >= self.empty_ns):
                            tree.tell(MODIFIED, IN_MODIFY, node.prefix + name, None, False, True)
                        continue
                self.vanished(node, name, True)
            if not plain and not tree.wanted(node.prefix + name, is_dir):
                continue
            if tell:
                tree.tell(CREATED, IN_CREATE, node.prefix + name, None, is_dir, True)
            if is_dir and tree.recursive:
                child = new_node(tree, node, name, node.prefix + name)
                names[name] = child
                self.descend(child, fd, encode(name), tell)
                if tree.ended:
                    return 0
            else:
                names[name] = True if is_dir else None
        return 0

    cdef bint rescan(self, Node node, int parent_fd, bytes name) except -1:
        """A known directory again; False if it is another one by now."""
        cdef c_stat s
        cdef int fd = c_openat(parent_fd, name, OPEN_DIRECTORY)
        if fd < 0:
            # not readable: nothing is known of it, as before
            return errno == EACCES or errno == EPERM
        try:
            if (node.wd < 0 or c_fstat(fd, &s) < 0 or s.st_ino != node.ino
                    or s.st_dev != node.dev or not self.still_watched(node, fd)):
                return False
            self.scan(node, fd, True, True)
            return True
        finally:
            c_close(fd)

    cdef bint still_watched(self, Node node, int fd) noexcept:
        """Whether the node's watch is that of what fd is open at.

        A new directory often gets the inode number of one just deleted, and that the old one's
        watch is gone may be among what was lost.
        """
        cdef char path[32]
        cdef int wd
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd)
        wd = inotify_add_watch(self.fd, path, watch_mask(node))
        if wd < 0 or wd == node.wd:
            return True
        if wd not in self.nodes:
            inotify_rm_watch(self.fd, wd)
        return False

    cdef int settle(self) except -1:
        """The queue is empty, so paths are right: read again what has to be."""
        cdef Node node, parent
        cdef Tree tree
        cdef int fd
        for tree in list(self.trees):
            if not tree.lost:
                continue
            tree.lost = False
            fd = self.open_verified(tree.root, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
            if fd < 0:
                if errno == ENOTDIR:
                    self.modified_root(tree)
                else:  # the event that says so was lost
                    tree._end("deleted")
                continue
            try:
                if self.still_watched(tree.root, fd):
                    self.scan(tree.root, fd, True, True)
                else:
                    tree._end("deleted")
            finally:
                c_close(fd)
        if not self.suspects:
            return 0
        suspects, self.suspects = self.suspects, set()
        for node in suspects:
            tree = node.tree
            if tree is None:
                continue
            parent = node.parent
            if node.wd >= 0:
                fd = self.open_verified(node, OPEN_DIRECTORY)
                if fd >= 0:
                    c_close(fd)
                    continue
            fd = self.open_verified(parent, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
            if fd < 0:
                # an event that is on its way puts the parent right, and this one with it
                self.suspects.add(node)
                continue
            try:
                self.unlink(node, False)
                self.again(node, fd)
            finally:
                c_close(fd)
        return 0

    cdef int again(self, Node node, int parent_fd) except -1:
        """Watch what is at a node's place by now; told is the difference."""
        cdef list below = [entry for entry in node.names.values() if isinstance(entry, Node)]
        for entry in below:
            self.unlink_all(<Node>entry)
        cdef c_stat s
        cdef bytes name = encode(node.name)
        if (c_fstatat(parent_fd, name, &s, AT_SYMLINK_NOFOLLOW) < 0 or not S_ISDIR(s.st_mode)):
            # gone: the event that says so is on its way
            self.suspects.add(node)
            return 0
        return self.descend_again(node, parent_fd, name)

    cdef int unlink_all(self, Node node) except -1:
        self.unlink(node, False)
        for entry in node.names.values():
            if isinstance(entry, Node):
                self.unlink_all(<Node>entry)
        return 0

    cdef int descend_again(self, Node node, int parent_fd, bytes name) except -1:
        # scan() compares with what was known; directories in it count as new ones
        # where their watch was taken away
        cdef c_stat s
        cdef int fd = c_openat(parent_fd, name, OPEN_DIRECTORY)
        cdef int error
        if fd < 0:
            if errno == ENOENT or errno == ENOTDIR or errno == ELOOP:
                self.suspects.add(node)
            return 0
        try:
            if c_fstat(fd, &s) < 0:
                return 0
            error = self.add(node, fd, &s)
            if error:
                if error == ENOSPC:
                    node.tree.fail(watch_error(error, node.path))
                return 0
            return self.scan(node, fd, True, True)
        finally:
            c_close(fd)

    cdef int modified_root(self, Tree tree) except -1:
        cdef c_stat s
        if (c_fstatat(-100, encode(tree.root.path), &s, 0) < 0 or s.st_ino != tree.root.ino
                or s.st_dev != tree.root.dev):
            tree._end("deleted")
        elif aio_ctime_ns(&s) >= self.empty_ns:
            tree.tell(MODIFIED, IN_MODIFY, tree.root.path, None, False, True)
        return 0
