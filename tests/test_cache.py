"""aiounify.cache in one process: after drain() what depends on a change is gone, and only that."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiounify.cache import Changes, Entry, FileCache, PageCache
from aiounify.cache.basis import Basis

BIG = os.urandom(70_000)
LIMIT = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    (root / "sub").mkdir(parents=True)
    (root / "a").write_text("A")
    (root / "b").write_text("B")
    (root / "sub" / "c").write_text("C")
    return root


class Pages:
    """A page cache, and how often each page was built."""

    def __init__(self, changes, root):
        self.cache, self.changes, self.root = PageCache(changes), changes, root
        self.built = {}

    def of(self, key, *paths):
        """The page of what is in some files."""

        async def build(building):
            self.built[key] = self.built.get(key, 0) + 1
            parts = []
            for path in paths:
                try:
                    parts.append(await building.file(self.root / path))
                except OSError as exc:
                    parts.append(errno.errorcode[exc.errno].encode())
            return b" ".join(parts), {"X-Key": key}

        return build

    async def get(self, key, *paths):
        self.changes.drain()
        return (await self.cache.get(key, self.of(key, *paths))).body


@asynccontextmanager
async def pages_of(root):
    async with Changes([root]) as changes:
        yield Pages(changes, root)


# -- pages -------------------------------------------------------------------------


async def test_a_page_is_built_once(root):
    async with pages_of(root) as pages:
        assert await pages.get("ab", "a", "b") == b"A B"
        assert await pages.get("ab", "a", "b") == b"A B"
        assert pages.built == {"ab": 1}
        entry = pages.cache.hit("ab")
        assert entry.headers == {"X-Key": "ab"}
        assert entry.valid
        assert entry.watched


def _write(root):
    (root / "a").write_text("a new one")


def _append(root):
    with (root / "a").open("a") as file:
        file.write(" and more")


def _same_size_and_times(root):
    found = (root / "a").stat()
    (root / "a").write_text("Z")
    os.utime(root / "a", ns=(found.st_atime_ns, found.st_mtime_ns))


def _truncate(root):
    os.truncate(root / "a", 0)


def _replace(root):
    (root / "new").write_text("replaced")
    (root / "new").replace(root / "a")


def _unlink(root):
    (root / "a").unlink()


def _rename(root):
    (root / "a").rename(root / "sub" / "elsewhere")


def _directory(root):
    (root / "a").unlink()
    (root / "a").mkdir()


def _link(root):
    (root / "a").unlink()
    (root / "a").symlink_to("sub/c")


def _hidden_root(root):
    root.rename(root.parent / "other")
    root.mkdir()


@pytest.mark.parametrize(
    "change",
    [
        *(_write, _append, _same_size_and_times, _truncate, _replace, _unlink, _rename),
        *(_directory, _link, _hidden_root),
    ],
)
async def test_no_change_is_missed(root, change):
    async with pages_of(root) as pages:
        await pages.get("a", "a")
        change(root)
        pages.changes.drain()
        assert pages.cache.hit("a") is None
        try:
            expected = (root / "a").read_bytes()
        except OSError as exc:
            expected = errno.errorcode[exc.errno].encode()
        assert await pages.get("a", "a") == expected


async def test_only_what_depends_on_a_change_is_built_again(root):
    async with pages_of(root) as pages:
        for key, paths in (("a", "a"), ("b", "b"), ("ab", "ab")):
            await pages.get(key, *paths)
        (root / "a").write_text("new")
        assert await pages.get("b", "b") == b"B"
        assert await pages.get("ab", "a", "b") == b"new B"
        assert await pages.get("a", "a") == b"new"
        assert pages.built == {"a": 2, "b": 1, "ab": 2}


async def test_what_is_not_there_is_a_dependency(root):
    async with pages_of(root) as pages:
        assert await pages.get("x", "deep/down/x") == b"ENOENT"
        (root / "unrelated").write_text("")
        assert await pages.get("x", "deep/down/x") == b"ENOENT"
        assert pages.built["x"] == 1
        (root / "deep" / "down").mkdir(parents=True)
        (root / "deep" / "down" / "x").write_text("here")
        assert await pages.get("x", "deep/down/x") == b"here"


async def test_links_are_followed_and_each_is_a_dependency(root):
    (root / "first").symlink_to("second")
    (root / "second").symlink_to("sub/c")
    async with pages_of(root) as pages:
        assert await pages.get("link", "first") == b"C"
        (root / "sub" / "c").write_text("D")
        assert await pages.get("link", "first") == b"D"
        (root / "second").unlink()
        (root / "second").symlink_to("a")
        assert await pages.get("link", "first") == b"A"
        assert pages.built["link"] == 3
        (root / "first").unlink()
        (root / "first").symlink_to("first")
        assert await pages.get("link", "first") == b"ELOOP"
        pages.changes.drain()
        assert pages.cache.hit("link") is None  # what would mend it is not known


async def test_outside_of_the_roots_is_looked_at_each_time(root, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("1")
    os.utime(outside, (1, 1))
    async with pages_of(root) as pages:
        while pages.cache.hit("out") is None:  # until the file is some ticks old
            assert await pages.get("out", outside) == b"1"
            await asyncio.sleep(0.01)
        assert not pages.cache.hit("out").watched
        built = pages.built["out"]
        assert await pages.get("out", outside) == b"1"
        assert pages.built["out"] == built
        outside.write_text("2")
        assert pages.cache.hit("out") is None
        assert await pages.get("out", outside) == b"2"


async def test_a_file_with_several_names_is_looked_at_each_time(root, tmp_path):
    os.link(root / "a", tmp_path / "other-name")
    async with pages_of(root) as pages:
        await pages.get("a", "a")
        (tmp_path / "other-name").write_text("through the other name")
        assert await pages.get("a", "a") == b"through the other name"


async def test_a_second_name_below_the_root_is_noticed_when_it_is_made(root):
    async with pages_of(root) as pages:
        await pages.get("a", "a")
        os.link(root / "a", root / "sub" / "again")
        pages.changes.drain()
        pages.cache.hit("a")
        (root / "sub" / "again").write_text("by the new name")
        assert await pages.get("a", "a") == b"by the new name"


async def test_listing_and_stat_are_dependencies(root):
    async with Changes([root]) as changes:
        cache, built = PageCache(changes), []

        async def names(building):
            built.append("names")
            return " ".join(await building.listdir(root)).encode(), {}

        async def size(building):
            built.append("size")
            found = await building.stat(root / "a")
            return str(found and found.st_size).encode(), {}

        async def both():
            changes.drain()
            return (await cache.get("n", names)).body, (await cache.get("s", size)).body

        assert await both() == (b"a b sub", b"1")
        (root / "a").write_text("four")
        assert await both() == (b"a b sub", b"4")
        assert built == ["names", "size", "size"]
        (root / "d").write_text("")
        assert await both() == (b"a b d sub", b"4")
        assert built == ["names", "size", "size", "names"]
        (root / "a").unlink()
        assert await both() == (b"b d sub", b"None")


async def test_the_state_of_a_directory_changes_with_its_entries(root):
    async with Changes([root]) as changes:
        cache = PageCache(changes)

        async def build(building):
            return str((await building.stat(root / "sub")).st_nlink).encode(), {}

        assert (await cache.get("sub", build)).body == b"2"
        (root / "sub" / "deeper").mkdir()
        changes.drain()
        assert cache.hit("sub") is None


async def test_pages_in_pages(root):
    async with pages_of(root) as pages:
        inner = pages.of("inner", "a")
        built = []

        async def outer(building):
            built.append(1)
            entry = await building.page("inner", inner)
            return entry.body + await building.file(root / "b"), {}

        async def get():
            pages.changes.drain()
            return (await pages.cache.get("outer", outer)).body

        assert await get() == b"AB"
        (root / "b").write_text("b")
        assert await get() == b"Ab"
        assert pages.built == {"inner": 1}
        (root / "a").write_text("a")
        assert await get() == b"ab"
        assert pages.built == {"inner": 2}
        assert len(built) == 3
        node = pages.cache.graph("outer")
        assert [(n.kind, n.name) for n in node.children] == [
            ("page", "inner"),
            ("file", str(root / "b")),
        ]
        assert node.children[0].children[0].name == str(root / "a")


async def test_pages_that_contain_each_other(root):
    async with Changes([root]) as changes:
        cache = PageCache(changes)

        async def one(building):
            await asyncio.sleep(0)
            return (await building.page("two", two)).body, {}

        async def two(building):
            await asyncio.sleep(0)
            return (await building.page("one", one)).body, {}

        async with asyncio.timeout(20):
            with pytest.raises(RecursionError):
                await cache.get("one", one)
            results = await asyncio.gather(
                cache.get("one", one), cache.get("two", two), return_exceptions=True
            )
        assert [type(result) for result in results] == [RecursionError, RecursionError]


async def test_who_come_together_wait_for_one_building(root):
    async with Changes([root]) as changes:
        cache, built = PageCache(changes), []
        go = asyncio.Event()

        async def build(building):
            built.append(1)
            await go.wait()
            return await building.file(root / "a"), {}

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(cache.get("a", build)) for _ in range(20)]
            await asyncio.sleep(0)
            tasks[0].cancel()  # leaves the building to the others
            await asyncio.sleep(0)
            go.set()
        assert built == [1]
        assert {task.result() for task in tasks[1:]} == {cache.hit("a")}
        assert tasks[0].cancelled()


async def test_a_change_during_the_building_builds_again(root):
    async with Changes([root]) as changes:
        cache, built = PageCache(changes), []

        async def build(building):
            body = await building.file(root / "a")
            built.append(body)
            if len(built) == 1:
                (root / "a").write_text("changed meanwhile")
            return body, {}

        assert (await cache.get("a", build)).body == b"changed meanwhile"
        assert built == [b"A", b"changed meanwhile"]


async def test_what_changes_all_the_time_is_given_and_not_kept(root):
    async with Changes([root]) as changes:
        cache, built = PageCache(changes), []

        async def build(building):
            body = await building.file(root / "a")
            built.append(body)
            (root / "a").write_text(str(len(built)))
            return body, {}

        entry = await cache.get("a", build)
        assert entry.body == built[-1]
        assert 1 < len(built) < 20
        assert not entry.valid
        assert cache.hit("a") is None
        assert cache.stats()["not_kept"] == 1


async def test_an_error_reaches_all_and_leaves_nothing(root):
    async with Changes([root]) as changes:
        cache = PageCache(changes)

        async def fails(building):
            await building.file(root / "a")
            await asyncio.sleep(0)
            raise ZeroDivisionError

        async def works(building):
            return await building.file(root / "a"), {}

        assert (await cache.get("a", works)).body == b"A"
        (root / "a").write_text("new")
        changes.drain()
        results = await asyncio.gather(
            *(cache.get("a", fails) for _ in range(3)), return_exceptions=True
        )
        assert [type(result) for result in results] == [ZeroDivisionError] * 3
        assert cache.hit("a") is None
        assert (await cache.get("a", works)).body == b"new"


async def test_a_time_ends_a_page(root, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr("aiounify.cache.basis.time.monotonic", lambda: now)
    async with Changes([root]) as changes:
        cache = PageCache(changes)

        async def inner(building):
            building.expires_in(5)
            return b"x", {}

        async def outer(building):
            return (await building.page("inner", inner)).body, {}

        async def at_once(building):
            building.expires_in(0)
            return b"", {}

        entry = await cache.get("outer", outer)
        assert cache.hit("outer") is entry
        now += 4.9
        assert cache.hit("outer") is entry
        now += 0.2
        assert cache.hit("outer") is None
        assert cache.hit("inner") is None
        await cache.get("0", at_once)
        assert cache.hit("0") is None


async def test_dependencies_of_ones_own(root):
    class Own:
        holds = True

        def valid(self):
            return self.holds

    async with Changes([root]) as changes:
        cache, own = PageCache(changes), Own()

        async def build(building):
            building.add(own)
            return b"", {}

        entry = await cache.get("own", build)
        assert cache.hit("own") is entry
        own.holds = False
        assert cache.hit("own") is None


async def test_a_large_body_stays_as_long_as_somebody_holds_it(root):
    (root / "a").write_bytes(BIG)
    async with pages_of(root) as pages:
        entry = await pages.cache.get("big", pages.of("big", "a"))
        assert (entry.body, entry.size) == (None, len(BIG))
        entry.acquire()
        (root / "a").write_text("small")
        assert await pages.get("big", "a") == b"small"
        assert not entry.valid
        assert os.pread(entry.fd, entry.size, entry.offset) == BIG
        fd = entry.fd
        del entry
        assert os.fstat(fd).st_size == len(BIG)  # whoever sends it need not have a reference
        for one in gc.get_objects():
            if isinstance(one, Entry) and one.key == "big" and one.fd == fd:
                one.release()
        del one
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(fd)


async def test_who_waited_for_a_page_has_its_body_although_it_was_pushed_out(root):
    async with Changes([root]) as changes:
        cache = PageCache(changes, limit_bytes=1)

        async def build(building):
            await asyncio.sleep(0)
            return BIG, {}

        entries = await asyncio.gather(*(cache.get(str(i % 3), build) for i in range(9)))
        assert len(cache.keys()) == 1
        for entry in entries:
            assert os.pread(entry.fd, entry.size, entry.offset) == BIG


async def test_the_limit(root):
    async with Changes([root]) as changes:
        cache = PageCache(changes, limit_bytes=100)

        async def build(building):
            return bytes(40), {}

        for key in ("1", "2"):
            await cache.get(key, build)
        cache.hit("1")
        await cache.get("3", build)
        assert cache.keys() == ["1", "3"]
        assert cache.stats()["bytes"] == 80


async def test_only_bytes_are_bodies(root):
    async with Changes([root]) as changes:

        async def build(building):
            return "text", {}

        with pytest.raises(TypeError, match="bytes"):
            await PageCache(changes).get("text", build)


async def test_the_end_cancels_what_is_being_built(root):
    async with Changes([root]) as changes:
        cache = PageCache(changes)

        async def build(building):
            await asyncio.Event().wait()

        waiting = asyncio.ensure_future(cache.get("x", build))
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await waiting


# -- changes -----------------------------------------------------------------------


async def test_drain_counts_changes_and_only_them(root):
    async with Changes([root]) as changes:
        before = changes.drain()
        assert changes.drain() == before
        (root / "a").read_text()
        assert changes.drain() == before
        (root / "a").write_text("new")
        assert changes.generation == before  # nobody has looked
        assert changes.drain() > before


async def test_changes_are_taken_between_requests(root):
    async with pages_of(root) as pages:
        await pages.get("a", "a")
        before = pages.changes.generation
        (root / "a").write_text("new")
        async with asyncio.timeout(20):
            while pages.changes.generation == before:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
        assert pages.cache.hit("a") is None


async def test_a_root_that_went_is_watched_again_when_it_is_back(root, monkeypatch, caplog):
    monkeypatch.setattr("aiounify.cache.changes._AGAIN", 0.001)
    async with pages_of(root) as pages:
        await pages.get("a", "a")
        root.rename(root.parent / "away")
        assert await pages.get("a", "a") == b"ENOENT"
        (root.parent / "away").rename(root)
        async with asyncio.timeout(20):
            while not pages.changes._watches:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
        assert await pages.get("a", "a") == b"A"
        assert pages.cache.hit("a").watched
    assert [record.getMessage().split(str(root))[1][:26] for record in caplog.records] == [
        " is not watched any more: ",
        " is watched again",
    ]


async def test_where_nothing_can_be_watched_everything_is_looked_at(root, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "no more watches")

    monkeypatch.setattr("aiounify.cache.changes.watch", full)
    for name in ("a", "b"):
        os.utime(root / name, (1, 1))
    async with pages_of(root) as pages:
        files = FileCache(pages.changes, root)
        while pages.cache.hit("ab") is None:
            await pages.get("ab", "a", "b")
            await asyncio.sleep(0.01)
        file = await files.open("a")
        assert not file.watched
        assert not pages.cache.hit("ab").watched
        built = pages.built["ab"]
        assert await pages.get("ab", "a", "b") == b"A B"
        assert pages.built["ab"] == built
        (root / "b").write_text("new")
        assert await pages.get("ab", "a", "b") == b"A new"
        (root / "a").write_text("new")
        assert files.hit("a") is None
    assert len(caplog.records) == 1


async def test_lost_events_make_everything_be_looked_at(root):
    async with pages_of(root) as pages:
        await pages.get("b", "b")
        await asyncio.sleep(0.05)
        entry = pages.cache.hit("b")
        if LIMIT > 20_000:
            pytest.skip("a queue of that length takes too long to fill")

        def fill():
            for i in range(LIMIT // 2 + 100):
                os.utime(root / ("a" if i % 2 else "sub/c"))
                os.utime(root / ("a" if i % 3 else "b"))
            (root / "b").write_text("lost")

        fill()
        assert await pages.get("b", "b") == b"lost"
        assert not entry.valid


async def test_another_thread_writes_while_pages_are_asked_for(root):
    """What was written before asking is in the answer, or something newer."""
    async with pages_of(root) as pages:
        written, stop = [0], threading.Event()

        def write():
            number = 0
            while not stop.is_set():
                number += 1
                (root / "new").write_text(str(number))
                (root / "new").replace(root / "a")
                written[0] = number
                time.sleep(0.0005)

        (root / "a").write_text("0")
        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(500):
                least = written[0]
                assert int(await pages.get("a", "a")) >= least
                await asyncio.sleep(0)
        finally:
            stop.set()
            thread.join()


# -- files -------------------------------------------------------------------------


async def test_files_stay_open_until_they_change(root):
    async with Changes([root]) as changes:
        files = FileCache(changes, root)
        file = await files.open("sub/c")
        assert await files.open("sub/c") is files.hit("sub/c") is file
        assert (file.body, file.size, file.valid) == (b"C", 1, True)
        found = (root / "sub" / "c").stat()
        assert file.etag == f'"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"'
        file.acquire()
        (root / "sub" / "c").unlink()
        (root / "sub" / "c").write_text("other")
        changes.drain()
        assert not file.valid
        assert files.hit("sub/c") is None
        assert os.pread(file.fd, 10, 0) == b"C"
        file.release()
        assert file.fd == -1
        assert (await files.open("sub/c")).body == b"other"


async def test_a_large_file_is_not_kept_in_memory(root):
    (root / "big").write_bytes(BIG)
    async with Changes([root]) as changes:
        file = await FileCache(changes, root).open("big")
        assert file.body is None
        assert os.pread(file.fd, file.size, 0) == BIG


async def test_what_is_not_served(root, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (root / "escape").symlink_to("../secret")
    (root / "inside").symlink_to(root / "a")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    async with Changes([root]) as changes:
        files = FileCache(changes, root)
        assert (await files.open("inside")).body == b"A"
        for path, error in (
            ("escape", PermissionError),
            ("../secret", PermissionError),
            ("sub/../../secret", PermissionError),
            ("fifo", PermissionError),
            ("sub", IsADirectoryError),
            ("", IsADirectoryError),
            ("nothing", FileNotFoundError),
            ("a/b", FileNotFoundError),
        ):
            with pytest.raises(error) as caught:
                await files.open(path)
            assert caught.value.filename is not None
        with pytest.raises(OSError, match="loop") as caught:
            await files.open("loop")
        assert caught.value.errno == errno.ELOOP
        assert len(files) == 1


async def test_the_oldest_file_makes_room(root):
    async with Changes([root]) as changes:
        files = FileCache(changes, root, limit=2)
        first = await files.open("a")
        for path in ("b", "sub/c"):
            await files.open(path)
        assert len(files) == 2
        assert first.fd == -1


def test_other_loops_are_refused(root):
    async def enter():
        async with Changes([root]):
            pass

    with (
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
        pytest.raises(RuntimeError, match="aiounify"),
    ):
        runner.run(enter())


async def test_a_root_has_to_be_a_directory(root):
    with pytest.raises(NotADirectoryError):
        async with Changes([root / "a"]):
            pass


async def test_the_same_state_at_two_generations_is_kept_twice(tmp_path):
    """A page that was read before a change, in one that was read after it, within one tick."""
    path = tmp_path / "a"
    path.write_text("x")
    async with Changes([tmp_path]) as changes:
        inner, outer = Basis(changes), Basis(changes)
        state = inner.add("file", str(path))
        (tmp_path / "a").touch()
        changes.drain()
        outer._take(state, changes.seen(state.names))  # as if the touch had left the same times
        outer.join(inner)
        outer.join(inner)
        assert len(outer._traces) == 2
        assert not outer.holds()
