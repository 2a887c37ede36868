"""`watch()`: changes of files and directories, awaited.

Why it exists: inotify tells what happened in single directories, in halves of renames and
with gaps; this tells what happened in a tree.  The native half is `_core/inotify.pyx`, which
reads, and `_core/watch_tree.pyx`, which knows what is watched.

Rules:

* Entering the block is the begin: whatever changes afterwards is told.
* What was read from the kernel stays in the watch until somebody takes it.  A waiter that is
  cancelled has taken nothing.
* All watches of a loop share one inotify instance, and watches of the same directory one watch
  of the kernel's.
* The end of iteration has a reason: `watch.reason`.
"""

from __future__ import annotations

import asyncio
import enum
import fnmatch
import os
import re
import warnings
import weakref
from typing import TYPE_CHECKING, TypeAlias, overload

from aiounify._core import changes as _native
from aiounify._core.changes import Change
from aiounify._core.inotify import instance_of
from aiounify._core.sources import current_loop, taking
from aiounify._core.watch_tree import Tree
from aiounify._kernel_events import lib
from aiounify.sources import EMPTY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Any, Self

    from aiounify.loop import EventLoop

__all__ = ["DEFAULT", "EVERYTHING", "Batches", "Change", "Kind", "Watch", "ignoring", "watch"]

Filter: TypeAlias = "Callable[[str, bool], bool]"


class Kind(enum.Flag):
    """What happened; `mask` is a union of these.  See inotify(7)."""

    # ACCESSED, OPENED and CLOSED are told of files, not of directories.
    ACCESSED = lib.IN_ACCESS
    MODIFIED = lib.IN_MODIFY
    ATTRIBUTES = lib.IN_ATTRIB
    #: A file that was open for writing was closed.
    WRITTEN = lib.IN_CLOSE_WRITE
    #: A file that was not open for writing was closed.
    CLOSED = lib.IN_CLOSE_NOWRITE
    OPENED = lib.IN_OPEN
    #: `old_path` is where it was.
    MOVED = lib.IN_MOVED_FROM
    CREATED = lib.IN_CREATE
    DELETED = lib.IN_DELETE
    #: Events were lost; what changed meanwhile follows, with `found` set.  Always told.
    OVERFLOW = lib.IN_Q_OVERFLOW


#: What is told without a mask: whatever changes a file or directory.
DEFAULT = Kind.MODIFIED | Kind.ATTRIBUTES | Kind.WRITTEN | Kind.MOVED | Kind.CREATED | Kind.DELETED
#: All kinds.
EVERYTHING = DEFAULT | Kind.ACCESSED | Kind.CLOSED | Kind.OPENED

_native.configure({kind.value: kind for kind in Kind})

# A batch is handed over at the latest after so many times its quiet time.
_PATIENCE = 20


def ignoring(*patterns: str) -> Filter:
    """A filter that leaves out whatever has a name like one of the patterns.

    Patterns are those of fnmatch (`*.pyc`, `.git`, `build`) and are compared with the last
    part of the path.  A directory that is left out is not looked into.
    """
    if not patterns:
        return lambda path, is_dir: True
    match = re.compile("|".join(map(fnmatch.translate, patterns))).match

    def wanted(path: str, is_dir: bool) -> bool:
        return match(path.rpartition("/")[2]) is None

    return wanted


_loops: weakref.WeakSet[EventLoop] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # the child has the parent's inotify instance: what it would end there, it would end for both
    for loop in list(_loops):
        inotify = vars(loop).get("_inotify")
        if inotify is not None:
            inotify._abandon()
    _loops.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Watch(Tree):
    """A file, directory or tree that is watched; made by `watch()`.

    `async with` begins and ends it, `async for` and `await watch.wait()` give one `Change`
    at a time, and it is a source for `aiounify.select()`.  Cancelling a wait loses nothing.
    """

    def __init__(self, path: str, mask: Kind, recursive: bool, wanted: Filter | None) -> None:
        self.path = path
        self.recursive = recursive
        self.mask = mask
        self._filter = wanted
        self._began = False

    def __repr__(self) -> str:
        state = self.reason or ("watching" if self._began else "not begun")
        return f"<Watch {self.path!r} {state}>"

    async def __aenter__(self) -> Self:
        loop = current_loop("aiounify.watch()")
        if self._began:
            raise RuntimeError(f"{self!r} was begun before; make another one")
        self._start(loop)
        self._began = True
        _loops.add(loop)
        return self

    def _start(self, loop: EventLoop) -> None:
        mask = (self.mask | Kind.OVERFLOW).value
        self._open(instance_of(loop), self.path, mask, self.recursive, self._filter)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching; what was read already can still be taken.  Idempotent."""
        self._end("closed")

    def __del__(self) -> None:
        if self._began and self.reason is None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Change]:
        return taking(self)

    def drain(self) -> list[Change]:
        """All that has changed up to now, read from the kernel without waiting.

        Every change that was finished before the call is in it, or was taken before.  A rename
        whose other half is not there yet is told as what is known of it.  Nothing is
        awaited, so a program may ask right before it trusts something it remembers.
        """
        self._pull()
        found: list[Change] = []
        while len(self):
            change = self.take()
            assert change is not EMPTY
            found.append(change)
        return found


class Batches:
    """A watch that gives lists of changes: all that came until it was quiet for a time.

    A list is handed over when nothing more came for `quiet` seconds, and at the latest after
    20 times as long.  In a list, a change equal to the last one of the same path is left out.
    A cancelled wait leaves the changes where they are, for the next one.
    """

    once = False

    def __init__(self, watch: Watch, quiet: float) -> None:
        self.watch = watch
        self.quiet = quiet
        self._armed: list[Callable[[], object]] = []
        self._seen = 0
        self._first = self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Batches of {self.watch!r}>"

    @property
    def reason(self) -> str | None:
        """Why it ended; see `Watch`."""
        return self.watch.reason

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Directories that could not be read."""
        return self.watch.skipped

    async def __aenter__(self) -> Self:
        await self.watch.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.watch.close()

    def drain(self) -> list[Change]:
        """As `Watch.drain()`: everything up to now, quiet or not."""
        self._seen = 0
        return _without_repeats(self.watch.drain())

    def _due(self, now: float) -> float:
        """When the changes that are there are handed over."""
        count = len(self.watch)
        if count != self._seen:
            if not self._seen:
                self._first = now
            self._last = now
            self._seen = count
        return min(self._last + self.quiet, self._first + _PATIENCE * self.quiet)

    def take(self) -> list[Change] | Any:
        """The list that is due, or EMPTY; see aiounify/sources.py."""
        if not len(self.watch):
            self._seen = 0
            return self.watch.take()  # EMPTY, or raises what ended it
        loop = current_loop("aiounify.watch()")
        now = loop.time()
        if self.quiet and self.watch.reason is None and self._due(now) > now:
            return EMPTY
        self._seen = 0
        found: list[Change] = []
        while len(self.watch):
            found.append(self.watch.take())  # type: ignore[arg-type]
        return _without_repeats(found)

    def arm(self, ready: Callable[[], object], /) -> None:
        """Call ready() when a list may be due."""
        self._armed.append(ready)
        if len(self._armed) == 1:
            self._wait()

    def _wait(self) -> None:
        loop = current_loop("aiounify.watch()")
        self.watch.arm(self._changed)
        if len(self.watch) and self._timer is None:
            self._timer = loop.call_at(self._due(loop.time()), self._quiet)

    def _changed(self) -> None:
        if self.watch.reason is not None or not self.quiet:
            self._fire()
            return
        self._wait()

    def _quiet(self) -> None:
        self._timer = None
        loop = current_loop("aiounify.watch()")
        now = loop.time()
        if (due := self._due(now)) > now:
            self._timer = loop.call_at(due, self._quiet)
        else:
            self._fire()

    def _rest(self) -> None:
        self.watch.disarm(self._changed)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        armed, self._armed = self._armed, []
        self._rest()
        for ready in armed:
            ready()

    def disarm(self, ready: Callable[[], object], /) -> None:
        """Do not call it any more."""
        if ready in self._armed:
            self._armed.remove(ready)
            if not self._armed:
                self._rest()

    async def wait(self) -> list[Change]:
        """The next list."""
        return await taking(self)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[list[Change]]:
        return taking(self)


def _without_repeats(changes: list[Change]) -> list[Change]:
    last: dict[str, Change] = {}
    kept = []
    for change in changes:
        if last.get(change.path) == change:
            continue
        last[change.path] = change
        kept.append(change)
    return kept


@overload
def watch(
    path: str | os.PathLike[str],
    *,
    recursive: bool = False,
    mask: Kind = DEFAULT,
    filter: Filter | None = None,
    filesystem: bool = False,
    batch: None = None,
) -> Watch: ...
@overload
def watch(
    path: str | os.PathLike[str],
    *,
    recursive: bool = False,
    mask: Kind = DEFAULT,
    filter: Filter | None = None,
    filesystem: bool = False,
    batch: float,
) -> Batches: ...
def watch(
    path: str | os.PathLike[str],
    *,
    recursive: bool = False,
    mask: Kind = DEFAULT,
    filter: Filter | None = None,
    filesystem: bool = False,
    batch: float | None = None,
) -> Watch | Batches:
    """Watch a file, a directory, or with `recursive` all that is below it.

        async with aiounify.watch("src", recursive=True) as changes:
            async for change in changes:
                print(change.kind.name, change.path)
        print(changes.reason)

    Entering the block guarantees that watching has begun.  `mask` says which kinds of change
    are told.  `filter(path, is_dir)` is asked once for each name that appears: where it is false
    the name is left out, and a directory not looked into.  With `batch`, a number of seconds,
    lists come instead, when nothing more happened for so long; 0 gives what is there.

    With `filesystem` the file system of `path` is watched as a whole, by fanotify: one mark
    whatever its size, and told is what happens at and below `path`, a directory.  It needs
    Linux 5.17 and CAP_SYS_ADMIN with CAP_DAC_READ_SEARCH.  Names are not remembered: see
    docs/watch.md for what that changes.

    The iteration ends when the root is "deleted", "moved" or "unmounted", or after close();
    `reason` says which.  After IN_Q_OVERFLOW a change of kind OVERFLOW is told and the tree
    read again; what is different comes as changes with `found` true.  A directory that is
    moved or deleted is told once, not for each thing in it.  Symbolic links are not
    followed, except for `path` itself; bind mounts and other file systems below are watched.

    Errors: OSError with the errno and the path, from entering the block or from the
    iteration; of too many watches (ENOSPC) it names the sysctl and its value.  RuntimeError under
    another event loop.  Linux 2.6.36; see inotify(7).
    """
    found = os.fspath(path)
    if not isinstance(found, str):
        raise TypeError(f"path must be a str or a path of str, not {found!r}: use os.fsdecode()")
    if not found or "\0" in found:
        raise ValueError(f"path must be a name without null characters, not {found!r}")
    if not isinstance(mask, Kind) or not mask:
        raise TypeError(f"mask must be a union of aiounify.watching.Kind, not {mask!r}")
    if filter is not None and not callable(filter):
        raise TypeError(
            f"filter must be callable as filter(path, is_dir), not {filter!r}; see "
            "aiounify.watching.ignoring()"
        )
    if batch is not None and not 0 <= batch < float("inf"):
        raise ValueError(f"batch must be a number of seconds, 0 or more, not {batch!r}")
    if filesystem:
        from aiounify._filesystem import FilesystemWatch

        made: Watch = FilesystemWatch(found, mask, True, filter)
    else:
        made = Watch(found, mask, recursive, filter)
    return made if batch is None else Batches(made, batch)
