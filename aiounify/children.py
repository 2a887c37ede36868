"""Child processes: one pidfd each in the loop's wait, no thread, no SIGCHLD handler.

A pidfd becomes readable when its process ends (pidfd_open(2), Linux 5.3).  The
status is then there for waitpid() without blocking.  Where the kernel or a seccomp
filter refuses pidfds, a thread that blocks in waitpid() stands in for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import warnings
from asyncio.log import logger
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiounify.loop import EventLoop


def _reap(pid: int) -> int:
    """The child's return code as subprocess has it (negative: killed by that signal)."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        # Somebody else waited for it: there is no way to learn the status.
        logger.warning(
            "child process pid %d exit status already read: will report returncode 255", pid
        )
        return 255
    return os.waitstatus_to_exitcode(status)


# What looks at a child before it is reaped here, by its pid; see process.py.  An entry for
# each child that a loop of this process will reap.
_reaped_here: dict[int, list[Callable[[], object]]] = {}


def reaped_by_a_loop(pid: int) -> list[Callable[[], object]] | None:
    """Whether a loop reaps this child itself: where to add what looks at it before."""
    return _reaped_here.get(pid)


def not_reaped(pid: int) -> None:
    """The loop that would have reaped it was closed."""
    _reaped_here.pop(pid, None)


def _reap_seen(pid: int) -> int:
    for look in _reaped_here.pop(pid, ()):
        look()
    return _reap(pid)


def watch_child(loop: EventLoop, pid: int, exited: Callable[[int], object]) -> None:
    """Call exited(returncode) in the loop once the child has ended."""
    _reaped_here[pid] = []
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        _watch_by_thread(loop, pid, exited)
        return

    def ended() -> None:
        loop._remove_reader(fd)
        loop._pidfds.pop(fd, None)
        os.close(fd)
        exited(_reap_seen(pid))

    loop._pidfds[fd] = pid  # close() closes those whose children outlive the loop
    loop._add_reader(fd, ended)


def foreign_watcher() -> object | None:
    """The child watcher that the program set with asyncio.set_child_watcher(), if any.

    That interface is deprecated since Python 3.12 and gone in 3.14.  asyncio's default
    watchers do not count: what they do is done here without a thread.
    """
    if sys.version_info >= (3, 14):
        return None
    watcher: object = getattr(asyncio.get_event_loop_policy(), "_watcher", None)
    if watcher is None or type(watcher) in _default_watchers:
        return None
    return watcher


def _names_of_default_watchers() -> set[type]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = (
            getattr(asyncio.unix_events, name, None)
            for name in ("ThreadedChildWatcher", "PidfdChildWatcher")
        )
        return {watcher for watcher in found if watcher is not None}


_default_watchers = _names_of_default_watchers() if sys.version_info < (3, 14) else set()


def _watch_by_thread(loop: EventLoop, pid: int, exited: Callable[[int], object]) -> None:
    def wait() -> None:
        # The child stays until the loop has been told, so that others can look at it.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        code = _reap_seen(pid)
        try:
            loop.call_soon_threadsafe(exited, code)
        except RuntimeError:  # the loop was closed meanwhile
            logger.warning("Loop %r that handles pid %r is closed", loop, pid)

    threading.Thread(target=wait, name=f"aiounify-waitpid-{pid}", daemon=True).start()
