"""How a command-line tool ends when nobody reads its output any more: `... | head`.

CPython ignores SIGPIPE, so that a program finds out by a BrokenPipeError in whatever it writes
next; left alone that is a traceback, or a complaint and status 120 if it is the flush at the
interpreter's end.  A tool has nothing more to do then and nothing to say.  It ends as one that was
never told to ignore the signal: killed by SIGPIPE, which shells show as status 141.

Only after the fact, and only if it is this process's own output that broke: with the signal's
default action in force from the beginning, each lost connection of a benchmark would kill it.
Programs that are run with the loop installed are left alone; they end as under the interpreter.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_tool"]


def run_tool(tool: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Return tool(arguments), its exit status; does not return if its output has no reader."""
    try:
        try:
            return tool(arguments)
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
    except BrokenPipeError:
        if _unread():
            _end_by_sigpipe()
        raise  # of some other pipe or socket


def _unread() -> bool:
    """Whether the other end of the standard output or of the standard error is closed."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        try:
            poll.register(stream.fileno(), 0)  # POLLERR and POLLHUP are always reported
        except (AttributeError, OSError, ValueError):  # there is none, or it is no file
            continue
    return bool(poll.poll(0))


def _end_by_sigpipe() -> NoReturn:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPIPE])
    signal.raise_signal(signal.SIGPIPE)
    os._exit(128 + signal.SIGPIPE)  # a process that is traced may outlive it
