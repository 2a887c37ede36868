# cython: language_level=3
"""Counters of instructions: the hardware's, from perf_event_open, and callgrind's.

The kernel's structure is declared here in its first published size (64 bytes), not taken from
linux/perf_event.h: build machines have headers older than the kernels this runs on, and the one
newer flag used (inherit_thread, Linux 5.13) lies inside those 64 bytes.  For the same reason the
requests to valgrind are written out: its headers are rarely installed, and the sequence of
instructions that it looks for, which does nothing on a processor, has not changed since 2005.
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

    /* A request without arguments; `otherwise` is the answer where valgrind does not run us. */
    static uint64_t bench_valgrind(uint64_t request, uint64_t otherwise)
    {
        volatile uint64_t block[6] = {request, 0, 0, 0, 0, 0};
        uint64_t answer = otherwise;
    #if defined(__x86_64__)
        __asm__ volatile(
            "rolq $3, %%rdi; rolq $13, %%rdi; rolq $61, %%rdi; rolq $51, %%rdi;"
            "xchgq %%rbx, %%rbx"
            : "=d"(answer) : "a"(block), "0"(otherwise) : "cc", "memory");
    #elif defined(__aarch64__)
        __asm__ volatile(
            "mov x3, %1; mov x4, %2;"
            "ror x12, x12, #3; ror x12, x12, #13; ror x12, x12, #51; ror x12, x12, #61;"
            "orr x10, x10, x10; mov %0, x3"
            : "=r"(answer) : "r"(otherwise), "r"(block) : "cc", "memory", "x3", "x4");
    #else
        (void)block;
    #endif
        return answer;
    }

    #define BENCH_RUNNING_ON_VALGRIND 0x1001u
    /* Callgrind's own: 'C' << 24 | 'T' << 16, and a number. */
    #define BENCH_CALLGRIND_DUMP 0x43540000u
    #define BENCH_CALLGRIND_START 0x43540004u

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
    const uint64_t BENCH_RUNNING_ON_VALGRIND
    const uint64_t BENCH_CALLGRIND_DUMP
    const uint64_t BENCH_CALLGRIND_START
    uint64_t bench_valgrind(uint64_t request, uint64_t otherwise)


def in_valgrind():
    """Whether valgrind runs this process."""
    return bench_valgrind(BENCH_RUNNING_ON_VALGRIND, 0) != 0


def callgrind_start():
    """Begin to count; before, the process runs a few times faster."""
    bench_valgrind(BENCH_CALLGRIND_START, 0)


def callgrind_dump():
    """Write what was counted since the last time to the next file, and begin at zero."""
    bench_valgrind(BENCH_CALLGRIND_DUMP, 0)


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
