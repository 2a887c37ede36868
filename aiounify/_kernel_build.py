"""Builds aiounify._kernel: the declared kernel interface that is off the hot path.

cffi in API mode: the C compiler checks the declarations, system call numbers are our
own so that old headers do.  Run by setup.py; not imported at run time.
"""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
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

    #define NR_pidfd_open 434

    static int aio_pidfd_open(int pid, unsigned flags)
    {
        return (int)syscall(NR_pidfd_open, pid, flags);
    }
    """,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
