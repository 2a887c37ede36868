from libc.stdint cimport int64_t, uint32_t, uint64_t

from aiounify._core.changes cimport Changes
from aiounify._core.inotify_abi cimport c_stat
from aiounify._core.reactor cimport Watched


cdef class Node:
    cdef Tree tree             # None once it is out of the tree
    cdef Node parent
    cdef str name, path, prefix
    cdef dict names
    cdef int wd                # -1: not watched
    cdef uint64_t dev, ino

    cdef int place(self, Node parent, str name) except -1


cdef class Tree(Changes):
    cdef Forest forest         # None before and after
    cdef Node root
    cdef bint recursive
    cdef object wanted         # filter(path, is_dir), or None
    cdef bint lost             # an overflow: to be read again


cdef class Forest(Watched):
    cdef int fd                # the inotify instance
    cdef char *listing
    cdef dict nodes            # watch number -> node, or list of nodes
    cdef list trees
    cdef list touched          # trees that were told something since they woke their waiters last
    cdef set suspects
    cdef int64_t empty_ns      # when the queue was empty last, by the clock of ctime

    cdef int stop(self) except -1
    cdef int pull(self) except -1
    cdef int add(self, Node node, int fd, c_stat *s) except -1
    cdef int unlink(self, Node node, bint gone) except -1
    cdef int drop(self, Node node) except -1
    cdef int vanished(self, Node node, str name, bint found) except -1
    cdef int open_verified(self, Node node, int flags) except -2
    cdef int enter(self, Node parent, str name) except -1
    cdef int descend(self, Node node, int parent_fd, bytes name, bint tell) except -1
    cdef int scan(self, Node node, int fd, bint tell, bint deep) except -1
    cdef bint rescan(self, Node node, int parent_fd, bytes name) except -1
    cdef bint still_watched(self, Node node, int fd) noexcept
    cdef int settle(self) except -1
    cdef int again(self, Node node, int parent_fd) except -1
    cdef int unlink_all(self, Node node) except -1
    cdef int descend_again(self, Node node, int parent_fd, bytes name) except -1
    cdef int modified_root(self, Tree tree) except -1


cdef str limit_of(str what)
