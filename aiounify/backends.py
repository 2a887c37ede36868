"""Which backend a loop gets, and why the other one is not to be had.

io_uring is asked for by making a real ring and completing a real no-op in it, not
by a version number: containers refuse it by seccomp, administrators by sysctl.
"""

from __future__ import annotations

import errno
import os

from aiounify._core.uring import Probe, probe

BACKENDS = ("auto", "uring", "epoll")

OPERATION_NAMES = {
    0: "nop",
    1: "readv",
    2: "writev",
    3: "fsync",
    6: "poll_add",
    13: "accept",
    14: "async_cancel",
    17: "fallocate",
    18: "openat",
    19: "close",
    21: "statx",
    22: "read",
    23: "write",
    24: "fadvise",
    26: "send",
    27: "recv",
    30: "splice",
    35: "renameat",
    36: "unlinkat",
    37: "mkdirat",
    38: "symlinkat",
    39: "linkat",
    49: "read_multishot",
    50: "waitid",
    51: "futex_wait",
    53: "futex_waitv",
    55: "ftruncate",
    59: "epoll_wait",
}


def _sysctl() -> int:
    try:
        with open("/proc/sys/kernel/io_uring_disabled") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _seccomp_filtered() -> bool:
    try:
        with open("/proc/self/status") as file:
            return "\nSeccomp:\t2" in file.read()
    except OSError:
        return False


def why_not_uring(found: Probe | None = None) -> str:
    """Why io_uring cannot be had, in a few words; empty if it can."""
    found = found or probe()
    if not found.error:
        return ""
    name = errno.errorcode.get(found.error, str(found.error))
    if found.error == errno.EPERM and _sysctl():
        return f"disabled by the sysctl kernel.io_uring_disabled={_sysctl()} ({name})"
    if found.error in (errno.EPERM, errno.EACCES, errno.ENOSYS) and _seccomp_filtered():
        return f"refused by seccomp ({name})"
    if found.error == errno.ENOSYS:
        return f"not offered by this kernel ({name})"
    return f"{found.step} failed: {os.strerror(found.error)} ({name})"


def requested_backend(backend: str | None) -> str:
    """The argument, or AIOUNIFY_BACKEND, or "auto".  ValueError for another name."""
    source = "backend"
    if backend is None or backend == "auto":
        backend = os.environ.get("AIOUNIFY_BACKEND") or "auto"
        source = "AIOUNIFY_BACKEND"
    if backend not in BACKENDS:
        raise ValueError(
            f"{source} must be one of {', '.join(map(repr, BACKENDS))}, not {backend!r}"
        )
    return backend


def choose_backend(backend: str | None) -> str:
    """ "uring" or "epoll".  OSError if "uring" was forced and cannot be had."""
    wanted = requested_backend(backend)
    if wanted == "epoll":
        return "epoll"
    reason = why_not_uring()
    if not reason:
        return "uring"
    if wanted == "auto":
        return "epoll"
    raise OSError(
        probe().error,
        f"the io_uring backend cannot be had: {reason}; use backend='auto' or 'epoll'",
    )


def explain_forced(backend: str | None) -> bool:
    """True if the caller insists on one backend."""
    return requested_backend(backend) != "auto"
