"""Asks the kernel for single system calls, by making them with harmless arguments."""

from __future__ import annotations

import errno
import os

from aiounify._kernel import ffi, lib
from aiounify.features import Feature


def _refusal(code: int, since: str) -> str:
    name = errno.errorcode.get(code, str(code))
    if code == errno.ENOSYS:
        return f"needs Linux {since} ({name})"
    return f"refused: {os.strerror(code)} ({name})"


def pidfd_offered() -> Feature:
    """pidfd_open(2): child processes are awaited by it."""
    fd = lib.aio_pidfd_open(os.getpid(), 0)
    if fd < 0:
        why = _refusal(ffi.errno, "5.3")
        return Feature(False, f"{why}; instead: a thread in waitpid for each child")
    os.close(fd)
    return Feature(True, "pidfd_open")


def futex_waitv_offered() -> Feature:
    """futex_waitv(2): many futexes awaited by one thread."""
    lib.aio_futex_waitv(ffi.NULL, 0, 0)  # no words to wait for: EINVAL where it exists
    if ffi.errno == errno.EINVAL:
        return Feature(True, "futex_waitv")
    return Feature(False, _refusal(ffi.errno, "5.16"))
