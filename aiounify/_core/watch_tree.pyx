# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Trees that are watched: which directory has which watch, and what is in it as far as is known.

Why it exists: inotify watches single directories.  Here they are found, watched, read, moved,
forgotten and read again; walking is done once per directory, so it is native.  What
the kernel tells of them is read and given its meaning in inotify.pyx.

Facts of the kernel that decide the rest:

* A watch belongs to an inode.  Adding one for an inode that has one gives the same number;
  so the table leads from a number to one node or several: of several trees, or of one tree
  that shows a directory twice by a bind mount.  Numbers are not used again.
* A directory that appears may be filled before it is watched.  So it is watched, then
  read, and what reading finds is told; what is told twice by that is known by its name.
* Events are older than the tree they speak of.  A path may lead elsewhere by the time a
  directory is opened, so its parent is compared with the device and inode it was
  watched as, and what does not fit is looked at again once the queue is empty (`suspects`).
* A queue that was full has lost events.  Then the trees are read again once it is empty and
  told are the differences; a file counts as modified if its ctime is not before the time
  at which the queue was seen empty last.

Memory: the loop holds the instance, the instance (a `Forest`) its trees and nodes, a node its
tree; a tree that ended holds no node.
"""

from libc.errno cimport EACCES, ELOOP, EMFILE, ENOENT, ENOSPC, ENOTDIR, EPERM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from posix.unistd cimport close as c_close

import os

cimport cython

from aiounify._core.changes cimport Changes
from aiounify._core.inotify_abi cimport (
    AT_SYMLINK_NOFOLLOW,
    DT_DIR,
    DT_UNKNOWN,
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_EXCL_UNLINK,
    IN_MASK_ADD,
    IN_MODIFY,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_PATH,
    O_RDONLY,
    S_ISDIR,
    aio_coarse_ns,
    aio_ctime_ns,
    aio_dirent,
    aio_getdents,
    aio_set_errno,
    c_fstat,
    c_fstatat,
    c_open,
    c_openat,
    c_stat,
    decode_all,
    encode,
    inotify_add_watch,
    inotify_rm_watch,
)
from aiounify._core.reactor cimport Watched

cdef enum:
    LISTING = 32768

cdef uint32_t NEEDED = (IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
                        | IN_DELETE_SELF | IN_MOVE_SELF)
cdef int OPEN_DIRECTORY = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC


@cython.final
cdef class Node:
    """A directory that is watched, or a tree's root of any type.

    `names` has its entries: the node of a directory that is looked into, True for another
    directory, None for anything else.
    """

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


cdef class Tree(Changes):
    """A watch of one file, directory, or tree of directories."""

    def _open(self, Forest forest not None, str path not None, uint32_t mask, bint recursive, wanted):
        """Begin: from here on every change is told; without a mask only the end of path."""
        self.begin(mask)
        self.forest = forest
        self.recursive = recursive
        self.wanted = wanted
        self.lost = False
        forest.trees.append(self)
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
            error = forest.add(root, fd, &s)
            if error:
                raise watch_error(error, path)
            if mask and S_ISDIR(s.st_mode):
                c_close(fd)
                fd = c_open(encoded, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
                if fd < 0:
                    raise OSError(errno, os.strerror(errno), path)
                forest.scan(root, fd, False, False)
        except BaseException:
            self._end("closed")
            raise
        finally:
            if fd >= 0:
                c_close(fd)
        if self.error is not None:
            raise self.error

    cpdef object _end(self, reason):
        cdef Forest forest = self.forest
        cdef Node root = self.root
        if self.ended:
            return
        self.root = None
        self.forest = None
        if forest is not None:
            forest.trees.remove(self)
            if not forest.trees:
                forest.stop()  # which ends all watches at once
            if root is not None:
                forest.drop(root)
        Changes._end(self, reason)

    cpdef object _pull(self):
        cdef Forest forest = self.forest  # a reference: the end of the last tree lets go of it
        if forest is not None:
            forest.pull()

    cdef int touch(self) except -1:
        self.forest.touched.append(self)
        return 0

    @property
    def _directories(self):
        """How many directories are watched (and the root, if it is a file)."""
        return count(self.root) if self.root is not None else 0


cdef uint32_t watch_mask(Node node) noexcept:
    cdef uint32_t mask = (node.tree.mask & 0x3f) | NEEDED | IN_MASK_ADD | IN_EXCL_UNLINK
    if not node.tree.mask:
        return IN_DELETE_SELF | IN_MOVE_SELF | IN_MASK_ADD
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


cdef class Forest(Watched):
    """The trees of one inotify instance."""

    def __cinit__(self):
        self.fd = -1
        self.nodes = {}
        self.trees = []
        self.touched = []
        self.suspects = set()
        self.empty_ns = aio_coarse_ns()
        self.listing = <char *>malloc(LISTING)
        if self.listing == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.listing)

    cdef int stop(self) except -1:
        """No tree is left."""
        return 0

    cdef int pull(self) except -1:
        """Read whatever the kernel has queued, and tell it."""
        return 0

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

    cdef int vanished(self, Node node, str name, bint found) except -1:
        if name not in node.names:
            return 0
        entry = node.names.pop(name)
        if isinstance(entry, Node):
            self.drop(<Node>entry)
        node.tree.tell(IN_DELETE, node.prefix + name, None, entry is not None, found)
        return 0

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
                            tree.tell(IN_MODIFY, node.prefix + name, None, False, True)
                        continue
                self.vanished(node, name, True)
            if not plain and not tree.wanted(node.prefix + name, is_dir):
                continue
            if tell:
                tree.tell(IN_CREATE, node.prefix + name, None, is_dir, True)
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
            tree.tell(IN_MODIFY, tree.root.path, None, False, True)
        return 0
