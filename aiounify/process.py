"""Await the end of a process: its status, and what it used.

    ended = await process.wait(pid)
    ended.returncode, ended.rusage.ru_maxrss

Why it exists: asyncio awaits the processes that it started itself, and tells a number.  A
program also has children by os.posix_spawn(), os.fork(), subprocess or multiprocessing, or has
been handed a pidfd, and wants to know what they cost.

* Waiting is WAITID in the ring (Linux 6.7) or readiness of a pidfd (pidfd_open(2), Linux 5.3).
  Both only look.  The child is reaped by waitid(2) when a task takes the result, so a wait that
  is cancelled, or loses a select(), leaves the child as it was.
* The result is kept: awaiting the same `Child` again, from any task, gives it again.
* Children that somebody else is going to reap are looked at and left to them: those of
  asyncio's subprocess functions under any loop of aiounify in this process, and objects of
  subprocess.Popen and multiprocessing.Process, which are asked to reap by themselves.
* No signal handler, and no thread but where the kernel or a seccomp filter refuses pidfds.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from aiounify import children
from aiounify._core.descriptors import ChildEnd
from aiounify._core.uring import probe
from aiounify._kernel_events import ffi, lib
from aiounify.sources import EMPTY, current_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiounify.sources import Nothing

__all__ = ["Child", "Exit", "HasPid", "wait"]

_WAITID = 50  # the ring's operation

_names = {os.CLD_EXITED: "exited", os.CLD_KILLED: "killed", os.CLD_DUMPED: "dumped core"}


class HasPid(Protocol):
    """subprocess.Popen, asyncio.subprocess.Process, multiprocessing.Process ..."""

    @property
    def pid(self) -> int | None:
        """The process's number; None: not started yet."""


class Exit(NamedTuple):
    """How a process ended."""

    pid: int
    code: int  #: os.CLD_EXITED, os.CLD_KILLED or os.CLD_DUMPED
    status: int  #: the exit status, or the number of the signal
    rusage: resource.struct_rusage  #: what it used, with its own children that it waited for

    @property
    def returncode(self) -> int:
        """As subprocess has it: the exit status, or the negated number of the signal."""
        return self.status if self.code == os.CLD_EXITED else -self.status

    @property
    def signal(self) -> signal.Signals | int | None:
        """The signal that ended it, if one did."""
        if self.code == os.CLD_EXITED:
            return None
        try:
            return signal.Signals(self.status)
        except ValueError:  # a real-time signal
            return self.status

    def __str__(self) -> str:
        how = _names.get(self.code, str(self.code))
        by = self.status if self.code == os.CLD_EXITED else self.signal
        return f"process {self.pid} {how} ({by!s})"


class Child(ChildEnd[Exit]):
    """The end of one process as a source; made by wait()."""

    def __init__(
        self,
        pid: int | None,
        pidfd: int | None,
        *,
        reap: bool,
        reaper: Callable[[], object] | None,
    ) -> None:
        loop = current_loop("aiounify.process.wait()")
        self.pid = pid
        self._reap = reap
        self._reaper = reaper
        self._result: Exit | None = None
        self._failure: OSError | None = None
        self._thread: threading.Thread | None = None
        in_ring = loop.backend == "uring" and _WAITID in probe().ops
        super().__init__(pidfd if pidfd is not None else -1, in_ring)
        if pid is not None and (others := children.reaped_by_a_loop(pid)) is not None:
            self._reap = False
            others.append(self._look)

    def take(self) -> Exit | Nothing:
        """How it ended, or EMPTY while it runs."""
        if self._result is None and self._failure is None:
            self._look()
        if self._failure is not None:
            raise self._failure
        return EMPTY if self._result is None else self._result

    def _look(self) -> None:
        """Ask the kernel; without waiting, and in any thread."""
        if self._result is not None or self._failure is not None:
            return
        found: Any = ffi.new("au_exit *")
        fd = self.fileno()
        peek = not self._reap or self._reaper is not None
        ended = lib.au_waitid(fd >= 0, fd if fd >= 0 else self.pid or 0, peek, found)
        if ended < 0:
            self._failure = self._explain(ffi.errno)
        elif ended:
            usage = (found.user_us / 1e6, found.system_us / 1e6, *found.counts)
            self._result = Exit(found.pid, found.code, found.status, resource.struct_rusage(usage))
            if self._reaper is not None:
                self._reaper()
        else:
            return
        if not self._is_armed:
            self._close()  # nobody needs the pidfd any more

    def _explain(self, code: int) -> OSError:
        named = f"process {self.pid}" if self.pid is not None else "the process of this pidfd"
        if code == errno.ECHILD:
            return ChildProcessError(
                code,
                f"{named} is not a child of this process, or its status was taken by somebody "
                "else; aiounify.events.readable(pidfd) tells the end of any process",
            )
        return OSError(code, f"waitid of {named}: {os.strerror(code)}")

    def _begin(self) -> None:
        if self.fileno() >= 0:
            super()._begin()
        elif self._thread is None:
            assert self.pid is not None
            self._thread = threading.Thread(
                target=self._wait_in_thread,
                args=(self.pid,),
                name=f"aiounify-waitid-{self.pid}",
                daemon=True,
            )
            self._thread.start()

    def _withdraw(self) -> None:
        if self.fileno() >= 0:
            super()._withdraw()  # a thread goes on, and finds nobody

    def _wait_in_thread(self, pid: int) -> None:
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass  # take() finds out
        finally:
            self._thread = None
        try:
            self._loop.call_soon_threadsafe(self._fire)
        except RuntimeError:  # the loop was closed meanwhile
            return

    def __repr__(self) -> str:
        return f"<Child pid={self.pid} {self._result or self._failure or 'running'!s}>"


def _reaper_of(process: HasPid) -> Callable[[], object] | None:
    """What makes an object of the standard library reap its own process."""
    found: Any = process
    if callable(getattr(type(process), "poll", None)):  # subprocess.Popen
        poll: Callable[[], object] = found.poll
        return poll
    if hasattr(type(process), "exitcode"):  # multiprocessing.Process
        return lambda: found.exitcode
    return None


def wait(
    process: int | HasPid | None = None, *, pidfd: int | None = None, reap: bool = True
) -> Child:
    """Wait until a process has ended: awaiting what this returns gives an `Exit`.

    `process` is the pid of a child of this process, or an object with one: subprocess.Popen,
    multiprocessing.Process, or what asyncio's create_subprocess functions return.  These
    learn the status as they always do.  `pidfd` is a descriptor of a child in place of that
    (os.pidfd_open(), clone3(2)); it stays the caller's.  The child is reaped, and its pid may be
    used again, unless `reap` is false.

    Any thread's loop can wait for any child, several tasks and selections for one.  Cancelling
    takes nothing: the child stays until somebody takes its status.

    ChildProcessError if it is no child of this process, or its status was taken by somebody
    else; ProcessLookupError if there is no such process.  Linux 5.3 for a pid, 5.4 for a pidfd.
    See waitid(2).
    """
    if (process is None) == (pidfd is None):
        raise TypeError("wait() takes a process or a pidfd")
    reaper = None
    pid: int | None = None
    if process is not None:
        if isinstance(process, int):
            pid = process
        else:
            pid = process.pid
            if getattr(process, "returncode", None) is not None:
                raise ChildProcessError(errno.ECHILD, f"{process!r} was waited for already")
            reaper = _reaper_of(process)
            if pid is None:
                raise ValueError(f"{process!r} was not started")
        if pid <= 0:
            raise ValueError(f"a pid is positive, and this is {pid}")
    if pidfd is not None:
        fd: int | None = os.dup(pidfd)  # close-on-exec
    else:
        assert pid is not None
        try:
            fd = os.pidfd_open(pid)
        except OSError as exc:
            if exc.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            fd = None
    try:
        return Child(pid, fd, reap=reap, reaper=reaper)
    except BaseException:
        if fd is not None:
            os.close(fd)
        raise
