"""Pages that are built once and kept until something they were built from has changed.

Rules:

* What a page takes through its `Building` is written down before it is looked at, so a change
  during the building shows at its end, and the page is built again.  After some times it is
  given as it is, and not kept.
* Several who want the same page wait for one building.  Nobody gets what was begun before he
  asked, unless it still holds after he asked.
* With a `SharedStore` one worker builds, and the others wait for it, take what it has built, or go
  on in its place if it died.
* An error reaches those who wait, and nothing of it is kept.
* A page that contains another one depends on all that the other one depends on.
* Small bodies are bytes of the process' own.  Large ones are in a memfd, or in the store, for
  sendfile(2).  A body is where it is until the last reference to its entry goes, or the last
  `release()` of those who send it; a waiter for a building may see its entry only after another
  one has pushed it out of the cache.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiounify.cache.basis import Basis
from aiounify.cache.files import open_traced, read_whole

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import TypeAlias

    from aiounify.cache.basis import Dependency
    from aiounify.cache.changes import Changes
    from aiounify.cache.store import Kept, SharedStore

    Build: TypeAlias = "Callable[[Building], Awaitable[tuple[bytes, Mapping[str, str]]]]"

__all__ = ["Building", "Entry", "Node", "PageCache"]

_log = logging.getLogger("aiounify.cache")
_TRIES = 5
_SMALL = 64 * 1024
_TOLD_AGAIN = 60.0
_PATIENCE = 10.0  # seconds after which a page is built although another worker builds it


@dataclass
class Node:
    """What a page was made of: `kind` is "page", "file", "stat", "names", "time" or "own"."""

    name: str
    kind: str
    children: list[Node] = field(default_factory=list)

    def told(self) -> list[Any]:
        """As what json can write."""
        return [self.name, self.kind, [child.told() for child in self.children]]

    @classmethod
    def from_told(cls, told: list[Any]) -> Node:
        """What told() said."""
        return cls(told[0], told[1], [cls.from_told(child) for child in told[2]])


class Entry:
    """A built page.  `body` is None of large ones: they are `size` bytes at `offset` of `fd`."""

    __slots__ = (
        "_basis",
        "_closes",
        "_held",
        "_kept",
        "_users",
        "body",
        "fd",
        "headers",
        "key",
        "node",
        "offset",
        "ready",
        "size",
    )

    def __init__(self, key: str, headers: Mapping[str, str], basis: Basis, node: Node) -> None:
        self.key = key
        self.headers = dict(headers)
        self.node = node
        self.body: bytes | None = None
        self.fd = -1
        self.offset = self.size = 0
        #: for what others make from it; it lasts as long as the entry does
        self.ready: dict[object, object] = {}
        self._basis = basis
        self._users = 0
        self._held: Entry | None = None  # itself, while somebody sends it
        self._closes = False
        self._kept: Kept | None = None

    def __repr__(self) -> str:
        return f"<Entry {self.key!r} {self.size} bytes>"

    @property
    def valid(self) -> bool:
        """Whether it is what building it now would give, as far as is known since drain()."""
        return self._basis.holds()

    @property
    def watched(self) -> bool:
        """Whether it is valid for as long as the generation is the same."""
        return self._basis.steady

    def acquire(self) -> None:
        """Keep the body where it is, as does each reference to the entry."""
        self._users += 1
        self._held = self

    def release(self) -> None:
        """Let go of the body."""
        self._users -= 1
        if not self._users:
            self._held = None

    def _end(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.release()
        fd, self.fd = self.fd, -1
        if self._closes and fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self._end()

    def _place(self, body: bytes) -> None:
        """Put the body where this process has it for itself."""
        self.size = len(body)
        if len(body) <= _SMALL:
            self.body = body
            return
        fd = os.memfd_create("aiounify-page", os.MFD_CLOEXEC)
        self.fd, self._closes = fd, True
        done = 0
        while done < len(body):
            done += os.pwrite(fd, body[done:], done)


class Building:
    """What a page is built with: everything taken from it is a dependency of the page."""

    def __init__(self, cache: PageCache, key: str, chain: tuple[str, ...]) -> None:
        self._cache = cache
        self._chain = chain
        self._basis = Basis(cache.changes)
        self._node = Node(key, "page")

    def _note(self, kind: str, path: str) -> None:
        node = Node(path, kind)
        if node not in self._node.children:
            self._node.children.append(node)

    async def file(self, path: str | os.PathLike[str]) -> bytes:
        """The content of a file.

        OSError with errno and filename; that there is no such file is a dependency too.
        """
        name = os.fspath(path)
        self._note("file", name)
        for _ in range(_TRIES):
            fd, found, _ = open_traced(self._basis, name)
            try:
                data = await read_whole(fd, found.st_size)
            finally:
                os.close(fd)
            if len(data) == found.st_size:
                return data
        raise OSError(errno.EBUSY, "the file changes faster than it is read", name)

    async def stat(self, path: str | os.PathLike[str]) -> os.stat_result | None:
        """What a file is, links followed; None if there is nothing, a dependency too."""
        name = os.fspath(path)
        self._note("stat", name)
        found = self._basis.add("stat", name)
        try:
            return None if found.state is None else os.lstat(found.real)
        except FileNotFoundError:
            return None  # since then; the change will be told

    async def listdir(self, path: str | os.PathLike[str]) -> list[str]:
        """The names in a directory, sorted: which there are is the dependency."""
        name = os.fspath(path)
        self._note("names", name)
        found = self._basis.add("names", name)
        if found.state is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return sorted(os.listdir(found.real))  # noqa: PTH208 - strings

    async def page(self, key: str, build: Build) -> Entry:
        """Another page, built if it has to be, on which this one depends.

        RecursionError for one that contains this one.
        """
        cache, own = self._cache, self._chain[-1]
        if key in self._chain or cache._waits_for(key, own):
            raise RecursionError(
                f"pages that contain each other: {' -> '.join((*self._chain, key))}"
            )
        waiting = cache._waiting.setdefault(own, [])
        waiting.append(key)
        try:
            entry = await cache._get(key, build, (*self._chain, key))
        finally:
            waiting.remove(key)
            if not waiting:
                cache._waiting.pop(own, None)
        self._basis.join(entry._basis)
        self._node.children.append(entry.node)
        return entry

    def expires_in(self, seconds: float) -> None:
        """Keep the page for at most so long; 0 for not at all."""
        self._note("time", f"{seconds:.3g} s")
        self._basis.expire(time.monotonic() + seconds)

    def add(self, dependency: Dependency) -> None:
        """Depend on something else: an object with `valid()`.  Such a page is not shared."""
        self._note("own", repr(dependency))
        self._basis.depend(dependency)


class PageCache:
    """Built pages by key.  `store` is what workers share, `limit_bytes` what is kept here."""

    def __init__(
        self,
        changes: Changes,
        *,
        store: SharedStore | None = None,
        limit_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        if store is not changes.shared:
            raise ValueError("the changes and the pages need the same store: Changes(shared=store)")
        self.changes = changes
        self._store = store
        self._limit = limit_bytes
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0
        self._making: dict[str, asyncio.Task[tuple[Entry, float]]] = {}
        self._waiting: dict[str, list[str]] = {}  # the pages that a page being built waits for
        self._counts = dict.fromkeys(
            ("built", "built_again", "not_kept", "failed", "taken_from_store", "not_stored"), 0
        )
        self._told = -_TOLD_AGAIN
        changes.on_close(self.close)

    # -- asking ------------------------------------------------------------------------

    def hit(self, key: str) -> Entry | None:
        """The page if it is built and true, as far as is known since drain().  Never waits."""
        entry = self._entries.get(key)
        if entry is not None:
            if entry.valid:
                self._entries.move_to_end(key)
                return entry
            self._drop(key)
        if self._store is not None:
            kept = self._store.look_now(key)
            if kept is not None:
                return self._taken(key, kept)
        return None

    async def get(self, key: str, build: Build) -> Entry:
        """The page, built by `build(building)` if it has to be.

        `build` returns the body and the headers; what it raises is raised here.  Cancelling
        leaves the building to the others, or to the next.
        """
        return await self._get(key, build, (key,))

    async def _get(self, key: str, build: Build, chain: tuple[str, ...]) -> Entry:
        while True:
            known = self.hit(key)
            if known is not None:
                return known
            asked = time.monotonic()
            task = self._making.get(key)
            # One that is done and still here has its callback ahead: awaiting it would not
            # suspend, and what it made is known not to be true any more.
            if task is None or task.done():
                task = asyncio.get_running_loop().create_task(self._make(key, build, chain))
                self._making[key] = task
                task.add_done_callback(lambda task: self._made(key, task))
            entry, began = await asyncio.shield(task)
            # What was begun before is good only if it holds now: publishing it may have taken long.
            if began >= asked or entry.valid:
                return entry

    def _waits_for(self, key: str, other: str) -> bool:
        """Whether the building of a page waits, in the end, for another one."""
        waiting = self._waiting.get(key, ())
        return other in waiting or any(self._waits_for(one, other) for one in waiting)

    def _made(self, key: str, task: asyncio.Task[tuple[Entry, float]]) -> None:
        if self._making.get(key) is task:
            del self._making[key]
        if not task.cancelled():
            task.exception()  # told to those who wait, if any do

    # -- building ----------------------------------------------------------------------

    async def _make(self, key: str, build: Build, chain: tuple[str, ...]) -> tuple[Entry, float]:
        store = self._store
        if store is None:
            return await self._build(key, build, chain)
        until = time.monotonic() + _PATIENCE
        while True:
            built = store.built.load()
            claimed = await store.claim(key)
            # also after a claim: another one may just have ended
            kept = await store.look(key)
            entry = self._taken(key, kept) if kept is not None else None
            if entry is not None:
                if claimed:
                    store.unclaim(key)
                return entry, time.monotonic()
            if claimed or time.monotonic() > until:
                break
            await store.wait_built(built)
            self.changes.drain()
        try:
            return await self._build(key, build, chain)
        finally:
            store.unclaim(key)

    async def _build(self, key: str, build: Build, chain: tuple[str, ...]) -> tuple[Entry, float]:
        counts = self._counts
        for again in range(_TRIES):
            began = time.monotonic()
            self.changes.drain()
            building = Building(self, key, chain)
            counts["built_again" if again else "built"] += 1
            try:
                body, headers = await build(building)
            except BaseException:
                counts["failed"] += 1
                raise
            if not isinstance(body, bytes):
                raise TypeError(f"build() returns bytes and headers, not {type(body).__name__}")
            self.changes.drain()
            basis = building._basis
            if basis.expires <= time.monotonic():
                break
            if basis.holds():
                entry = Entry(key, headers, basis, building._node)
                await self._keep_built(entry, body)
                return entry, began
        counts["not_kept"] += 1
        entry = Entry(key, headers, basis, building._node)
        entry._place(body)
        return entry, began

    async def _keep_built(self, entry: Entry, body: bytes) -> None:
        store, basis = self._store, entry._basis
        if store is not None and not basis.own:
            told = json.dumps(
                {
                    "key": entry.key,
                    "headers": entry.headers,
                    "node": entry.node.told(),
                    "basis": basis.told(),
                }
            ).encode()
            try:
                kept = await store.publish(entry.key, told, body)
            except OSError as exc:
                self._counts["not_stored"] += 1
                now = time.monotonic()
                if now - self._told >= _TOLD_AGAIN:
                    self._told = now
                    _log.warning("%r is not shared with other workers: %s", entry.key, str(exc))
            else:
                if len(body) > _SMALL and kept is not None:
                    entry.size = len(body)
                    entry._kept, entry.fd, entry.offset = kept, store.fd, kept.offset
        if entry._kept is None:
            entry._place(body)
        self._keep(entry)

    def _taken(self, key: str, kept: Kept) -> Entry | None:
        """An entry from what the store has of a key; None if that does not hold any more."""
        told = json.loads(kept.told)
        if told["key"] != key:  # another key with the same digest: one in 2**128
            kept.release()
            return None
        basis = Basis.from_told(self.changes, told["basis"])
        if not basis.holds():
            kept.release()
            return None
        entry = Entry(key, told["headers"], basis, Node.from_told(told["node"]))
        entry.size = kept.size
        if kept.body is not None:
            entry._place(kept.body)
        else:
            assert self._store is not None
            entry._kept, entry.fd, entry.offset = kept, self._store.fd, kept.offset
        self._counts["taken_from_store"] += 1
        self._keep(entry)
        return entry

    # -- keeping -----------------------------------------------------------------------

    def _keep(self, entry: Entry) -> None:
        self._drop(entry.key)
        self._entries[entry.key] = entry
        self._bytes += entry.size
        while self._bytes > self._limit and len(self._entries) > 1:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size

    def keys(self) -> list[str]:
        """The keys of what is kept here, the one asked for last at the end."""
        return list(self._entries)

    def graph(self, key: str) -> Node | None:
        """What a page that is kept here was made of."""
        entry = self._entries.get(key)
        return entry.node if entry is not None else None

    def stats(self) -> dict[str, int]:
        """Counters: how many are kept and how large they are, how often was built, and the like."""
        found = {"entries": len(self._entries), "bytes": self._bytes, **self._counts}
        if self._store is not None:
            found.update({f"store_{name}": n for name, n in self._store.stats().items()})
        return found

    def close(self) -> None:
        """Give up what is kept; what is being built is cancelled."""
        for task in self._making.values():
            task.cancel()
        for key in list(self._entries):
            self._drop(key)
