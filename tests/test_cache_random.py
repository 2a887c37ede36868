"""Whatever happens to files, a page is never old; and one that it does not concern stays."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import aiounify
from aiounify.cache import Changes, PageCache, SharedStore

NAMES = ("a", "b", "d", "d/a", "d/e", "d/e/a", "l")
name = st.sampled_from(NAMES)
data = st.binary(max_size=3)
used = st.lists(st.tuples(st.sampled_from(("file", "names")), name), max_size=3)


def answer(kind, path):
    """What a page says of a path, by asking the file system."""
    try:
        if kind == "file":
            return path.read_bytes()
        return " ".join(sorted(one.name for one in path.iterdir())).encode()
    except OSError as exc:
        return said(exc)


def said(exc):
    """The cache does not tell whether a part of a path is no directory, or not there."""
    absent = (errno.ENOENT, errno.ENOTDIR)
    return b"absent" if exc.errno in absent else errno.errorcode[exc.errno].encode()


def leads_through(root, kind, path, links=0):
    """Each name on the way of a path, found in another way than the cache does."""
    names, at = [], root
    for part in path.relative_to(root).parts:
        at = at / part
        names.append(str(at))
        if at.is_symlink():
            if links == 45:
                return names
            rest = path.relative_to(at)
            return names + leads_through(root, kind, at.parent / at.readlink() / rest, links + 1)
    return [*names, f"{path}/"] if kind == "names" else names


class Model(RuleBasedStateMachine):
    backend = "epoll"
    shared = False

    def __init__(self):
        super().__init__()
        self.root = Path(os.path.realpath(tempfile.mkdtemp())) / "site"
        self.root.mkdir()
        self.loop = aiounify.new_event_loop(self.backend)
        self.store = SharedStore(None, 1 << 20) if self.shared else None
        self.changes = Changes([self.root], shared=self.store)
        self.loop.run_until_complete(self.changes.__aenter__())
        self.cache = PageCache(self.changes, store=self.store)
        self.pages = []
        self.ways = {}
        self.known = {}

    def teardown(self):
        self.loop.run_until_complete(self.changes.__aexit__(None, None, None))
        self.loop.close()
        if self.store is not None:
            assert self.store.check() == []
            self.store.close()
        shutil.rmtree(self.root.parent)

    @initialize(pages=st.lists(st.tuples(used, st.booleans()), min_size=1, max_size=5))
    def begin(self, pages):
        """A page is made of paths and, if it likes, of the page before it."""
        self.pages = [(paths, inner and i > 0) for i, (paths, inner) in enumerate(pages)]

    def page(self, number):
        paths, inner = self.pages[number]

        async def build(building):
            parts = []
            for kind, path in paths:
                try:
                    if kind == "file":
                        parts.append(await building.file(self.root / path))
                    else:
                        parts.append(" ".join(await building.listdir(self.root / path)).encode())
                except OSError as exc:
                    parts.append(said(exc))
            if inner:
                entry = await building.page(str(number - 1), self.page(number - 1))
                parts.append(entry.body)
            return b"|".join(parts), {}

        return build

    def expected(self, number):
        paths, inner = self.pages[number]
        parts = [answer(kind, self.root / path) for kind, path in paths]
        return b"|".join([*parts, self.expected(number - 1)] if inner else parts)

    def names(self, number):
        paths, inner = self.pages[number]
        names = set()
        for kind, path in paths:
            names.update(leads_through(self.root, kind, self.root / path))
        return names | self.names(number - 1) if inner else names

    def happens(self, what, *paths):
        # where a directory is a link, the change is of what is behind it
        real = {Path(os.path.realpath(path.parent)) / path.name for path in paths}
        touched = {str(path) for path in real} | {f"{path.parent}/" for path in real}
        with contextlib.suppress(OSError):  # and what it did before counts
            what()
        for number, names in self.ways.items():
            if names & touched:
                self.known.pop(number, None)

    @rule(path=name, data=data)
    def write(self, path, data):
        path = self.root / path
        self.happens(lambda: path.write_bytes(data), path, Path(os.path.realpath(path)))

    @rule(path=name, size=st.integers(0, 3))
    def truncate(self, path, size):
        path = self.root / path
        self.happens(lambda: os.truncate(path, size), path, Path(os.path.realpath(path)))

    @rule(path=name)
    def unlink(self, path):
        path = self.root / path
        self.happens(path.unlink, path)

    @rule(path=name, to=name)
    def rename(self, path, to):
        path, to = self.root / path, self.root / to
        self.happens(lambda: path.rename(to), path, to)

    @rule(path=name, data=data)
    def replace(self, path, data):
        new, path = self.root / "new", self.root / path
        new.write_bytes(data)
        self.happens(lambda: new.replace(path), new, path)

    @rule(path=name)
    def mkdir(self, path):
        path = self.root / path
        self.happens(path.mkdir, path)

    @rule(path=name)
    def rmtree(self, path):
        path = self.root / path
        self.happens(lambda: shutil.rmtree(path), path)

    @rule(path=name, to=st.sampled_from(("a", "d", "e", "l", "../a", "d/e", ".")))
    def symlink(self, path, to):
        path = self.root / path
        self.happens(lambda: path.symlink_to(to), path)

    @invariant()
    def nothing_is_old(self):
        self.loop.run_until_complete(self.look())

    async def look(self):
        self.changes.drain()
        for number in range(len(self.pages)):
            key, expected = str(number), self.expected(number)
            hit = self.cache.hit(key)
            assert hit is None or hit.body == expected
            if number in self.known:
                assert hit is self.known[number], "built again without a reason"
            entry = await self.cache.get(key, self.page(number))
            assert entry.body == expected
            self.ways[number] = self.names(number)
            if entry.valid and entry.watched:
                self.known[number] = entry


def test_random_changes(backend):
    run(backend, False)


def test_random_changes_with_a_store(backend):
    run(backend, True)


def run(backend, shared):
    model = type("Pages", (Model,), {"backend": backend, "shared": shared})
    long = os.environ.get("AIOUNIFY_STRESS")
    run_state_machine_as_test(
        model,
        settings=settings(
            max_examples=1500 if long else 10,
            stateful_step_count=40 if long else 20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
