from libc.stdint cimport int64_t


cdef enum:
    NOWAIT_OFF
    NOWAIT_ON
    NOWAIT_MEMORY

cdef enum:
    WHOLE_MAX = 4194304  # bytes that are read in one go on the loop's thread, at the most


cdef ssize_t read_cached(int fd, char *into, Py_ssize_t n, int64_t offset, int *nowait) noexcept
cdef int64_t regular_size(int fd, int *nowait) noexcept
cdef int64_t size_to_read(int fd, int *nowait) noexcept
