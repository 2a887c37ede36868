"""What this kernel offers the loop, capability by capability, and why not where not."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from aiounify._core.uring import probe
from aiounify.backends import OPERATION_NAMES, requested_backend, why_not_uring


class Feature(NamedTuple):
    """One capability: whether it is on, and how, or why it is not."""

    on: bool
    detail: str


# capability -> (operation of the ring, first kernel, what stands in for it)
_RING_OPERATIONS = {
    "uring_epoll_wait": (59, "6.15", "poll of the epoll set, then epoll_wait"),
    "uring_read_multishot": (49, "6.7", "readiness and read"),
    "uring_waitid": (50, "6.7", "pidfd"),
    "uring_futex_wait": (51, "6.7", "a thread in futex_waitv"),
}


def features() -> dict[str, Feature]:
    """Per capability whether it is on and, if not, why.

    Keys: "io_uring", "epoll", "uring_..." for single operations and ring flags,
    "pidfd", "futex_waitv", "robust_locks", "multiprocessing_locks", "inotify", "fanotify" (a
    whole file system watched), "timerfd_realtime", "timerfd_boottime", "pressure"; of files
    "files_openat2", "files_nowait", "files_libaio", "files_statx".  Nothing is kept open.
    Values are (on, detail); detail says by which means, or the reason.
    """
    from aiounify._kernel_files_probe import files_offered
    from aiounify._kernel_probe import (
        fanotify_offered,
        futex_waitv_offered,
        inotify_offered,
        multiprocessing_locks,
        pidfd_offered,
        pressure_offered,
        robust_offered,
        timerfd_offered,
    )

    found = probe()
    reason = why_not_uring(found)
    table = {
        "io_uring": Feature(not reason, reason or "a ring was made and completed a no-op"),
        "epoll": Feature(True, "epoll, timerfd, eventfd"),
    }
    for name, (number, since, instead) in _RING_OPERATIONS.items():
        on = number in found.ops
        label = OPERATION_NAMES[number].upper()
        if on:
            detail = f"IORING_OP_{label}"
        elif reason:
            detail = f"no io_uring; instead: {instead}"
        else:
            detail = f"IORING_OP_{label} needs Linux {since}; instead: {instead}"
        table[name] = Feature(on, detail)
    for name, on, since in (
        ("uring_defer_taskrun", found.defer_taskrun, "6.1"),
        ("uring_no_iowait", found.no_iowait, "6.15"),
    ):
        detail = "used" if on else "no io_uring" if reason else f"needs Linux {since}"
        table[name] = Feature(on, detail)
    table["pidfd"] = pidfd_offered()
    table["futex_waitv"] = futex_waitv_offered()
    table["robust_locks"] = robust_offered()
    table["multiprocessing_locks"] = multiprocessing_locks()
    table["inotify"] = inotify_offered()
    table["fanotify"] = fanotify_offered()
    table["timerfd_realtime"] = timerfd_offered(time.CLOCK_REALTIME)
    table["timerfd_boottime"] = timerfd_offered(time.CLOCK_BOOTTIME)
    table["pressure"] = pressure_offered()
    table.update(files_offered())
    return table


def backend_line() -> str:
    """What "auto" chooses here, and why, in one line for a person."""
    wanted = requested_backend(None)
    reason = why_not_uring()
    release = os.uname().release
    forced = f" (AIOUNIFY_BACKEND={wanted})" if wanted != "auto" else ""
    if wanted == "epoll":
        return f"io_uring: {reason or 'available'}; using epoll{forced}"
    if reason:
        return f"io_uring: {reason}; using epoll{forced if wanted == 'auto' else ''}"
    return f"io_uring: available (Linux {release}); using io_uring{forced}"
