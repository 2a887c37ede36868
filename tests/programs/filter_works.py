"""The filters do what they say."""

import ctypes
import errno

import seccomp

libc = ctypes.CDLL(None, use_errno=True)
parameters = ctypes.create_string_buffer(120)


def setup(entries):
    ctypes.set_errno(0)
    return libc.syscall(seccomp.IO_URING_SETUP, entries, parameters), ctypes.get_errno()


seccomp.refuse((seccomp.IO_URING_SETUP,), errno.EXDEV, first_argument_above=64)
assert setup(65) == (-1, errno.EXDEV)
assert setup(64)[1] != errno.EXDEV
seccomp.refuse((seccomp.IO_URING_SETUP,), errno.EBADMSG)
assert setup(64) == (-1, errno.EBADMSG)
assert setup(65)[0] == -1
