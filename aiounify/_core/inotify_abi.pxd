"""Cython's view of inotify_abi.h."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "inotify_abi.h":
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
    str decode_all "PyUnicode_DecodeFSDefault" (const char *)
    bytes encode "PyUnicode_EncodeFSDefault" (object)
