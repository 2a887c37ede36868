"""From a path to what it depends on: each name it leads through, and what is at its end.

A name is an absolute path without links in front of its last part.  `/site/a/b`, where `a` is a
link to `c`, leads through `/site/a`, `/site/c` and `/site/c/b`: a change of any of these may change
what the path means, and no other change does.  The names above a root are not looked at.

A listing, and the state of a directory, depend on the directory's entries too: its name with a
slash behind it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiounify.cache.changes import Changes

__all__ = ["Signature", "Trace", "signature", "trace"]

#: what tells one state of a file from another: device, inode, size, mtime and ctime in nanoseconds
Signature = tuple[int, int, int, int, int]

_LINKS = 40  # as the kernel: path_resolution(7)
# Two ticks of the slowest kernel clock (100 Hz), by which file systems stamp files; a file that was
# changed so recently may change again and keep its times.
_TICK_NS = 20_000_000
_COARSE = 5  # CLOCK_REALTIME_COARSE, by which files are stamped: clock_gettime(2)
#: there is nothing at a path
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def signature(found: os.stat_result) -> Signature:
    """The state of a file."""
    size = found.st_size if stat.S_ISREG(found.st_mode) else 0
    return found.st_dev, found.st_ino, size, found.st_mtime_ns, found.st_ctime_ns


@dataclass(frozen=True, slots=True)
class Trace:
    """A path at one moment."""

    kind: str  # "file", "stat" or "names"
    path: str
    #: where it ends, without links; the name that is not there if there is nothing
    real: str
    names: tuple[str, ...]
    #: None if there is nothing
    state: Signature | None
    #: each change of it is told
    watched: bool
    #: another change would also change the state
    steady: bool

    def same(self, other: Trace) -> bool:
        """Whether nothing happened between two traces of a path, as far as states can tell."""
        return self.steady and self.names == other.names and self.state == other.state


def trace(changes: Changes, kind: str, path: str) -> Trace:
    """Follow a path.  OSError if it cannot be followed; that there is nothing is an answer."""
    names: list[str] = []
    at, rest = changes.start(path)
    found: os.stat_result | None = None
    absent = False
    links = 0
    parts = deque(rest.split("/"))
    while parts:
        part = parts.popleft()
        if part in ("", "."):
            continue
        if part == "..":
            at, found = os.path.dirname(at), None  # noqa: PTH120 - a string, for speed
            continue
        name = f"{at.rstrip('/')}/{part}"
        if not changes.is_above(name):
            names.append(name)
        try:
            found = os.lstat(name)
        except OSError as exc:
            if exc.errno not in _ABSENT:
                raise
            at, absent = name, True
            break
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(name)  # noqa: PTH115
            if target.startswith("/"):
                at, target = changes.start(target)
            parts.extendleft(reversed(target.split("/")))
            found = None
            continue
        at = name
    if absent:
        return Trace(kind, path, at, tuple(names), None, changes.watches(names, None), True)
    if found is None:
        found = os.lstat(at)
    if kind == "names" or (kind == "stat" and stat.S_ISDIR(found.st_mode)):
        names.append(f"{at.rstrip('/')}/")
    elif not names:
        names.append(at)  # a root, whose own changes are not told
    now = time.clock_gettime_ns(_COARSE)
    steady = now - max(found.st_mtime_ns, found.st_ctime_ns) > _TICK_NS
    watched = changes.watches(names, found)
    return Trace(kind, path, at, tuple(names), signature(found), watched, steady)
