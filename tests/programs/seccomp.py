"""Real seccomp filters, installed by prctl(2): the given system calls answer an errno.

A filter cannot be taken away again, and holds for all threads made afterwards and all
children, so it is for processes of their own.
"""

import ctypes
import os
import platform
import struct

if platform.machine() == "x86_64":
    ARCHITECTURE, PIDFD_OPEN = 0xC000003E, 434
elif platform.machine() == "aarch64":
    ARCHITECTURE, PIDFD_OPEN = 0xC00000B7, 434
else:
    raise SystemExit(f"no filters for {platform.machine()}")

# the same numbers on all architectures
IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427
IO_URING = (IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER)

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD, _EQUAL, _GREATER, _RETURN = 0x20, 0x15, 0x25, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _install(instructions: list[tuple[int, int, int, int]]) -> None:
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(instructions), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def refuse(calls: tuple[int, ...], error: int, *, first_argument_above: int = -1) -> None:
    """Answer `error` to the calls; with a limit, only if their first argument is above it."""
    instructions = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_EQUAL, 1, 0, ARCHITECTURE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for call in calls:
        instructions.append((_LOAD, 0, 0, 0))  # the number of the call
        if first_argument_above < 0:
            instructions.append((_EQUAL, 0, 1, call))
        else:
            instructions += [
                (_EQUAL, 0, 3, call),
                (_LOAD, 0, 0, 16),  # the low half of the first argument
                (_GREATER, 0, 1, first_argument_above),
            ]
        instructions.append((_RETURN, 0, 0, _ERRNO | error))
    instructions.append((_RETURN, 0, 0, _ALLOW))
    _install(instructions)
