"""Builds aiounify._kernel: the declared kernel interface that is off the hot path.

cffi in API mode: the C compiler checks the declarations, system call numbers are our
own so that old headers do.  Run by setup.py; not imported at run time.
"""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    /* futex_waitv(2), Linux 5.16: wait for the first of many words */
    struct futex_waitv {
        uint64_t val;
        uint64_t uaddr;
        uint32_t flags;
        uint32_t reserved;
    };
    int aio_futex_waitv(struct futex_waitv *waiters, unsigned count, unsigned flags);
    /* pidfd_open(2), Linux 5.3 */
    int aio_pidfd_open(int pid, unsigned flags);
    """
)

ffibuilder.set_source(
    "aiounify._kernel",
    """
    #include <errno.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #define NR_futex_waitv 449
    #define NR_pidfd_open 434

    /* declared here because <linux/futex.h> may be older than the kernel */
    #define futex_waitv aiounify_futex_waitv
    struct futex_waitv {
        uint64_t val;
        uint64_t uaddr;
        uint32_t flags;
        uint32_t reserved;
    };

    static int aio_futex_waitv(struct futex_waitv *waiters, unsigned count, unsigned flags)
    {
        return (int)syscall(NR_futex_waitv, waiters, count, flags, (void *)0, 1);
    }

    static int aio_pidfd_open(int pid, unsigned flags)
    {
        return (int)syscall(NR_pidfd_open, pid, flags);
    }
    """,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
