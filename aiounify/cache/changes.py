"""Which names changed, and when: the counter that everything cached is compared with.

Why the order holds: inotify queues an event before the system call that caused it returns.  A
client that sends a request after such a call returned is read after the event is in the
queue, so `drain()`, called after the request was received and before anything cached is believed,
finds it.  It reads the queue itself; nothing rests on the order in which the loop takes events.

Rules:

* Each name that changed gets a new generation, and the generation of all is the newest.  With a
  `SharedStore` both are in its memory (names by hash), and every worker tells what it sees: each
  drains its own queue before a lookup, so none relies on the others being quick.
* When events were lost, or a watch has ended, the epoch changes: nothing is believed then without
  being looked at.
* What cannot be watched is not believed either: it is looked at for every lookup.  That are names
  outside the roots, network and user-space file systems, whose changes may be made elsewhere,
  directories that cannot be read, and files with several names, which may be written through
  one that is not watched.
* Between requests the loop takes the events, so that the queue does not fill.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from typing import TYPE_CHECKING

from aiounify._core.sources import current_loop
from aiounify.watching import DEFAULT, Kind, Watch, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from aiounify.cache.store import SharedStore

__all__ = ["Changes"]

_log = logging.getLogger("aiounify.cache")

# changed elsewhere, or by a program that need not tell the kernel: inotify(7), "Limitations"
_REMOTE = frozenset(
    (
        *("9p", "afs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs"),
        *("nfs4", "ocfs2", "smb3", "smbfs", "vboxsf", "virtiofs"),
        *("cgroup", "cgroup2", "proc", "sysfs"),
    )
)
_NAMES = 1 << 16  # whose generations are kept; then the epoch changes
_AGAIN = 1.0  # seconds after which a root that was lost is watched again
_ENTRIES = Kind.CREATED | Kind.DELETED | Kind.MOVED


class Changes:
    """Watches directory trees for the caches of one loop.

    `roots` are directories; `shared` is the store of workers that share what they build.
    `async with` begins and ends the watching, and closes the caches that were made on it.
    """

    def __init__(self, roots: Sequence[str | Path], *, shared: SharedStore | None = None) -> None:
        self.roots = tuple(os.path.realpath(root) for root in roots)
        self.shared = shared
        self._watches: dict[str, Watch] = {}
        self._watching: tuple[Watch, ...] = ()
        self._lost: dict[str, asyncio.TimerHandle] = {}
        self._pull: Callable[[], object] = _nothing
        self._closers: list[Callable[[], None]] = []
        self._remote: dict[int, bool] = {}
        self._epoch = 0
        self._generation = 0
        self._moved: dict[str, int] = {}
        self._load: Callable[[], int] = (
            shared.generation.load if shared is not None else self._own_generation
        )

    def __repr__(self) -> str:
        return f"<Changes of {', '.join(self.roots)}: {self.generation}>"

    async def __aenter__(self) -> Self:
        current_loop("aiounify.cache")
        for root in self.roots:
            if not os.path.isdir(root):  # noqa: ASYNC240, PTH112 - once, at the begin
                raise NotADirectoryError(f"{root} is not a directory")
            try:
                await self._begin(root)
            except OSError as exc:
                # the limits, mostly: what is served stays right, and is slower
                _log.warning("%s is not watched: %s; it is looked at for each lookup", root, exc)
        if self.shared is not None:
            # What changed before this worker watched may be known to nobody, or to one that has
            # not told it yet: what the store has is looked at once.
            self._doubt()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for close in self._closers:
            close()
        self._closers.clear()
        for timer in self._lost.values():
            timer.cancel()
        self._lost.clear()
        watches, self._watches = self._watches, {}
        self._chosen()
        for one in watches.values():
            one.disarm(self._ready)
            one.close()

    def on_close(self, close: Callable[[], None]) -> None:
        """Call a function when the watching ends."""
        self._closers.append(close)

    # -- watching ----------------------------------------------------------------------

    async def _begin(self, root: str) -> None:
        one = watch(root, recursive=True, mask=DEFAULT)
        await one.__aenter__()
        self._watches[root] = one
        self._chosen()
        one.arm(self._ready)

    def _chosen(self) -> None:
        self._watching = tuple(self._watches.values())
        # all watches of a loop share one queue
        self._pull = self._watching[0]._pull if self._watching else _nothing

    def _ready(self) -> None:
        self.drain()
        for one in self._watching:
            if not one._is_armed:
                one.arm(self._ready)

    def _gone(self, root: str) -> None:
        """A root was deleted, moved or unmounted: look for it again."""
        one = self._watches.pop(root)
        _log.warning("%s is not watched any more: %s", root, one.reason)
        one.disarm(self._ready)
        one.close()
        self._chosen()
        self._retry(root)

    def _retry(self, root: str) -> None:
        loop = current_loop("aiounify.cache")
        self._lost[root] = loop.call_later(_AGAIN, lambda: loop.create_task(self._again(root)))

    async def _again(self, root: str) -> None:
        if root not in self._lost:
            return
        try:
            await self._begin(root)
        except OSError:
            self._retry(root)
            return
        del self._lost[root]
        _log.warning("%s is watched again", root)
        self._doubt()

    # -- reading -----------------------------------------------------------------------

    def drain(self) -> int:
        """Take note of everything that has changed up to now, without waiting.

        Returns the generation: as long as it is the same, nothing below the roots has changed.
        One read(2) if nothing has.
        """
        self._pull()
        for one in self._watching:
            if len(one) or one.reason is not None:
                self._absorb()
                break
        return self._load()

    def _absorb(self) -> None:
        names: set[str] = set()
        doubt = False
        for root, one in list(self._watches.items()):
            while len(one):
                change = one.take()
                kind = change.kind  # type: ignore[union-attr]
                if kind is Kind.OVERFLOW:
                    doubt = True
                    continue
                for path in (change.path, change.old_path):  # type: ignore[union-attr]
                    if path is not None:
                        names.add(path)
                        if kind & _ENTRIES:
                            names.add(path[: path.rfind("/") + 1])
                            doubt = doubt or _has_other_names(path)
            if one.reason is not None:
                self._gone(root)
                doubt = True
        if names:
            self._move(names)
        if doubt:
            self._doubt()

    def _move(self, names: set[str]) -> None:
        if self.shared is not None:
            self.shared.move(names)
            return
        self._generation += 1
        if len(self._moved) + len(names) > _NAMES:
            self._moved.clear()
            self._epoch += 1
        self._moved.update(dict.fromkeys(names, self._generation))

    def _doubt(self) -> None:
        """Nothing is believed until it was looked at."""
        if self.shared is not None:
            self.shared.doubt()
            return
        self._epoch += 1
        self._generation += 1

    def _own_generation(self) -> int:
        return self._generation

    @property
    def generation(self) -> int:
        """What drain() returned last, or more, if another worker saw something since."""
        return self._load()

    @property
    def epoch(self) -> int:
        """Changes whenever changes may have been missed."""
        return self._epoch if self.shared is None else self.shared.epoch.load()

    def seen(self, names: Iterable[str]) -> tuple[int, ...]:
        """The generation at which each name changed last."""
        if self.shared is not None:
            return self.shared.seen(names)
        moved = self._moved
        return tuple([moved.get(name, 0) for name in names])

    # -- what is watched ---------------------------------------------------------------

    def start(self, path: str) -> tuple[str, str]:
        """Where to begin to follow a path, and what is left of it: at its root if it has one."""
        if not path.startswith("/"):
            path = f"{os.getcwd()}/{path}"  # noqa: PTH109
        for root in self.roots:
            if path == root or path.startswith(f"{root}/"):
                return root, path[len(root) + 1 :]
        return "/", path

    def is_above(self, name: str) -> bool:
        """Whether a name is a root or above one: they are taken to stay where they are."""
        return any(root == name or root.startswith(f"{name}/") for root in self.roots)

    def watches(self, names: Sequence[str], found: os.stat_result | None) -> bool:
        """Whether each change of these names, and of the file at their end, is told."""
        if found is not None and (
            (found.st_nlink > 1 and stat.S_ISREG(found.st_mode)) or self._is_remote(found.st_dev)
        ):
            return False
        for name in names:
            for root, one in self._watches.items():
                if name.startswith(f"{root}/"):
                    if any(
                        name.startswith(f"{skipped.rstrip('/')}/") for skipped, _ in one.skipped
                    ):
                        return False
                    break
            else:
                return False
        return True

    def _is_remote(self, device: int) -> bool:
        known = self._remote.get(device)
        if known is None:
            known = self._remote[device] = _remote(device)
        return known


def _has_other_names(path: str) -> bool:
    """Whether a file has several names: the kernel does not tell the others of a new one."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return found.st_nlink > 1 and stat.S_ISREG(found.st_mode)


def _nothing() -> None:
    """Nothing is watched."""


def _remote(device: int) -> bool:
    """Whether a file system can change without the kernel being told: proc_pid_mountinfo(5)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            if fields[2] == wanted:
                kind = fields[fields.index("-") + 1]
                return kind in _REMOTE or kind.startswith("fuse")
    return False  # btrfs has devices that are not in the table
