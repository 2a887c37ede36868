# cython: language_level=3
"""One hardware counter: the instructions of this process, from perf_event_open.

The kernel's structure is declared here in its first published size (64 bytes), not taken from
linux/perf_event.h: build machines have headers older than the kernels this runs on, and the one
newer flag used (inherit_thread, Linux 5.13) lies inside those 64 bytes.
"""

from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EINVAL, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport close, read

cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    struct bench_perf_attr {
        uint32_t type;
        uint32_t size;
        uint64_t config;
        uint64_t sample_period;
        uint64_t sample_type;
        uint64_t read_format;
        uint64_t flags;
        uint32_t wakeup_events;
        uint32_t bp_type;
        uint64_t bp_addr;
    };

    #define BENCH_TYPE_HARDWARE 0u
    #define BENCH_INSTRUCTIONS 1u
    #define BENCH_FORMAT_TIMES (1u | 2u) /* time enabled, time running */
    #define BENCH_INHERIT (1ull << 1)
    #define BENCH_EXCLUDE_KERNEL (1ull << 5)
    #define BENCH_EXCLUDE_HV (1ull << 6)
    #define BENCH_INHERIT_THREAD (1ull << 35)
    #define BENCH_FD_CLOEXEC 8ul

    static int bench_perf_open(struct bench_perf_attr *attr)
    {
        return (int)syscall(SYS_perf_event_open, attr, 0, -1, -1, BENCH_FD_CLOEXEC);
    }
    """
    struct bench_perf_attr:
        uint32_t type
        uint32_t size
        uint64_t config
        uint64_t read_format
        uint64_t flags
    const uint32_t BENCH_TYPE_HARDWARE
    const uint64_t BENCH_INSTRUCTIONS
    const uint64_t BENCH_FORMAT_TIMES
    const uint64_t BENCH_INHERIT
    const uint64_t BENCH_EXCLUDE_KERNEL
    const uint64_t BENCH_EXCLUDE_HV
    const uint64_t BENCH_INHERIT_THREAD
    int bench_perf_open(bench_perf_attr *attr)


cdef class Counter:
    """Instructions of the calling thread and of every thread it starts from now on."""

    cdef int _fd

    def __cinit__(self):
        self._fd = -1

    def __init__(self, bint user_only):
        cdef bench_perf_attr attr
        memset(&attr, 0, sizeof(attr))
        attr.type = BENCH_TYPE_HARDWARE
        attr.size = sizeof(attr)
        attr.config = BENCH_INSTRUCTIONS
        attr.read_format = BENCH_FORMAT_TIMES
        attr.flags = BENCH_EXCLUDE_HV | BENCH_INHERIT | BENCH_INHERIT_THREAD
        if user_only:
            attr.flags |= BENCH_EXCLUDE_KERNEL
        self._fd = bench_perf_open(&attr)
        if self._fd < 0 and errno == EINVAL:
            # Before Linux 5.13: child processes are then counted too.
            attr.flags &= ~BENCH_INHERIT_THREAD
            self._fd = bench_perf_open(&attr)
        if self._fd < 0:
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        if self._fd >= 0:
            close(self._fd)

    def read(self):
        """The count so far, scaled up if the counter was shared; None if it never ran."""
        cdef uint64_t values[3]
        if read(self._fd, values, sizeof(values)) != sizeof(values):
            PyErr_SetFromErrno(OSError)
        if values[2] == 0:
            return None
        if values[2] == values[1]:
            return values[0]
        return values[0] * int(values[1]) // values[2]
