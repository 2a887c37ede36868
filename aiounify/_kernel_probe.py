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
    from aiounify._kernel_futex import ffi, lib

    lib.fx_waitv(ffi.NULL, 0, -1)  # no words to wait for: EINVAL where it exists
    if ffi.errno == errno.EINVAL:
        return Feature(True, "futex_waitv")
    return Feature(False, _refusal(ffi.errno, "5.16"))


def robust_offered() -> Feature:
    """A list of robust futexes in this thread: locks tell that their owner died."""
    from aiounify._core import robust

    code = robust.robust_offered()
    if not code:
        return Feature(True, "robust futexes (get_robust_list)")
    return Feature(False, f"refused: {os.strerror(code)} ({errno.errorcode.get(code, code)})")


def multiprocessing_locks() -> Feature:
    """How aiounify.sync.acquire() awaits the locks of multiprocessing."""
    from aiounify._semaphore_layout import why_not

    reason = why_not()
    if reason:
        return Feature(False, f"{reason}; instead: asked every 1 to 20 ms")
    return Feature(True, "the futex word of the C library's semaphore")


def inotify_offered() -> Feature:
    """inotify_init1(2): aiounify.watch()."""
    from aiounify._kernel_events import ffi, lib

    fd = lib.au_inotify_init()
    if fd < 0:
        return Feature(False, _refusal(ffi.errno, "2.6.27"))
    os.close(fd)
    return Feature(True, "inotify")


def fanotify_offered() -> Feature:
    """fanotify_init(2) with names and renames: aiounify.watch(filesystem=True)."""
    from aiounify._kernel_fanotify import ffi, lib

    fd = lib.au_fan_init()
    if fd >= 0:
        os.close(fd)
        return Feature(True, "fanotify")
    if ffi.errno == errno.EPERM:
        return Feature(False, "refused: needs CAP_SYS_ADMIN (EPERM)")
    if ffi.errno in (errno.EINVAL, errno.ENOSYS):
        return Feature(False, f"needs Linux 5.17 ({errno.errorcode[ffi.errno]})")
    return Feature(False, _refusal(ffi.errno, "5.17"))


def timerfd_offered(clock: int) -> Feature:
    """timerfd_create(2): sleep_until() and every() on CLOCK_REALTIME and CLOCK_BOOTTIME."""
    from aiounify._kernel_events import ffi, lib

    fd = lib.au_timerfd_create(clock)
    if fd < 0:
        return Feature(False, _refusal(ffi.errno, "3.15"))
    os.close(fd)
    return Feature(True, "timerfd")


def pressure_offered() -> Feature:
    """/proc/pressure: triggers awaited by aiounify.events.priority()."""
    try:
        with open("/proc/pressure/cpu") as f:
            f.read()
    except OSError as exc:
        why = f"{exc.strerror} ({errno.errorcode.get(exc.errno or 0, exc.errno)})"
        return Feature(False, f"/proc/pressure: {why}")
    return Feature(True, "/proc/pressure")
