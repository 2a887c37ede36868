"""SharedStore: two workers in one process, other processes, and those that are killed."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import signal
import struct
from contextlib import asynccontextmanager, closing

import pytest

from aiounify.cache import Changes, PageCache, SharedStore
from aiounify.cache import store as layout

BIG = os.urandom(100_000)
SIZE = 1 << 20


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "site"
    root.mkdir()
    (root / "a").write_text("A")
    (root / "big").write_bytes(BIG)
    return root


@pytest.fixture
def store():
    with closing(SharedStore(None, SIZE)) as store:
        yield store
        assert store.check() == []


def of(path, built):
    async def build(building):
        built.append(1)
        await asyncio.sleep(0.001)
        return await building.file(path), {"X": "y"}

    return build


def body(entry):
    return os.pread(entry.fd, entry.size, entry.offset) if entry.body is None else entry.body


@asynccontextmanager
async def two_workers(root, name):
    """Each has a mapping and a watch of its own, as in two processes."""
    first = SharedStore.create(name, SIZE)
    second = SharedStore.attach(name)
    try:
        async with Changes([root], shared=first) as one, Changes([root], shared=second) as two:
            yield PageCache(one, store=first), PageCache(two, store=second)
        assert first.check() == []
    finally:
        second.close()
        first.close()
    with pytest.raises(FileNotFoundError):
        SharedStore.attach(name)


@pytest.fixture
def name():
    return f"test-cache-{os.getpid()}"


async def test_one_builds_and_the_other_takes(root, name):
    async with two_workers(root, name) as (one, two):
        built = []
        for path in ("a", "big"):
            made = await one.get(path, of(root / path, built))
            taken = await two.get(path, of(root / path, built))
            assert body(made) == body(taken) == (root / path).read_bytes()
            assert taken.headers == {"X": "y"}
            assert two.graph(path) == one.graph(path)
        assert built == [1, 1]
        assert two.stats()["taken_from_store"] == 2


async def test_a_change_is_seen_by_each_worker_itself(root, name):
    async with two_workers(root, name) as (one, two):
        built = []
        await one.get("a", of(root / "a", built))
        await two.get("a", of(root / "a", built))
        (root / "a").write_text("new")
        two.changes.drain()  # the other one has not looked
        assert two.hit("a") is None
        assert body(await two.get("a", of(root / "a", built))) == b"new"
        one.changes.drain()
        assert body(await one.get("a", of(root / "a", built))) == b"new"


async def test_a_worker_that_comes_later_believes_nothing_unseen(root, store):
    """The change is from before it watched, and the other worker has not told it."""
    built = []
    async with Changes([root], shared=store) as changes:
        one = PageCache(changes, store=store)
        await one.get("a", of(root / "a", built))
        with (root / "a").open("w") as file:  # no await since: the loop has not taken it either
            file.write("new")
        async with Changes([root], shared=store) as later:
            two = PageCache(later, store=store)
            later.drain()
            assert two.hit("a") is None
            assert body(await two.get("a", of(root / "a", built))) == b"new"


async def test_a_large_body_is_not_overwritten_while_it_is_sent(root, store):
    async with Changes([root], shared=store) as changes:
        cache = PageCache(changes, store=store)
        entry = await cache.get("big", of(root / "big", []))
        assert entry.fd == store.fd
        for i in range(40):

            async def build(building, i=i):
                return bytes([i]) * 90_000, {}

            await cache.get(str(i), build)
            cache._drop(str(i))
        assert body(entry) == BIG
        assert store.stats()["entries"] < 12
        assert store.check() == []


async def test_a_store_that_is_full_is_told_once_and_pages_are_served(root, store, caplog):
    async with Changes([root], shared=store) as changes:
        cache = PageCache(changes, store=store)

        async def build(building):
            return bytes(SIZE), {}

        for key in ("1", "2"):
            entry = await cache.get(key, build)
            assert body(entry) == bytes(SIZE)
            assert cache.hit(key) is entry
        assert cache.stats()["not_stored"] == 2
        assert len(caplog.records) == 1


async def test_dev_shm_is_full(root, store, monkeypatch, caplog):
    def full(fd, data, offset):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(layout, "_write", full)
    async with Changes([root], shared=store) as changes:
        cache = PageCache(changes, store=store)
        entry = await cache.get("big", of(root / "big", []))
        assert body(entry) == BIG
        assert store.check() == []
        assert store.stats()["blocks_used"] == 0


async def test_the_same_store_for_changes_and_pages(root, store):
    with pytest.raises(ValueError, match="same store"):
        PageCache(Changes([root]), store=store)


def test_names_and_sizes(name):
    with pytest.raises(ValueError, match="at least"):
        SharedStore(None, 100)
    with pytest.raises(FileNotFoundError):
        SharedStore.attach(name)
    store = SharedStore.create(name, SIZE)
    with closing(store):
        store.unlink()
        with pytest.raises(FileNotFoundError):
            SharedStore.attach(name)
    store.close()


# -- the dead ------------------------------------------------------------------------


def _killed(function, *args):
    """Run it in a forked process, which is killed when it is done."""
    pid = os.fork()
    if not pid:
        try:
            function(*args)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


async def test_a_builder_that_died_is_replaced(root, store):
    def claims():
        got = store._lock.word.try_lock()
        assert got == 1
        layout.CLAIM.pack_into(
            *(store._memory, layout._CLAIMS, layout._digest("a"), os.getpid()),
            layout._own_start(),
        )
        store._lock.word.unlock()

    _killed(claims)
    async with Changes([root], shared=store) as changes:
        async with asyncio.timeout(30):
            entry = await PageCache(changes, store=store).get("a", of(root / "a", []))
        assert entry.body == b"A"


async def test_pins_of_the_dead_count_for_nothing(root, store):
    async with Changes([root], shared=store) as changes:
        cache = PageCache(changes, store=store)
        await cache.get("big", of(root / "big", []))
        cache.close()
        for _ in range(3):  # the building's task goes, and with it the last reference
            await asyncio.sleep(0)
        record = next(record for record in store._all() if record.state == layout.VALID)
        assert not store._pinned(record.number)
        _killed(store._pin, record.number)
        assert not store._pinned(record.number)


async def test_whoever_dies_with_the_lock_leaves_all_in_order(root, store):
    async with Changes([root], shared=store) as changes:
        cache = PageCache(changes, store=store)
        await cache.get("big", of(root / "big", []))
        used = store.stats()["blocks_used"]

        def allocates():
            assert store._lock.word.try_lock() == 1
            store._allocate(30)  # and the record is never written

        _killed(allocates)
        assert store.check() == []
        assert store.stats()["blocks_used"] == used

        def frees():
            assert store._lock.word.try_lock() == 1
            for record in store._all():
                if record.state != layout.FREE:
                    store._state(record.number, layout.FREE)

        _killed(frees)
        assert store.check() == []
        assert store.stats()["blocks_used"] == 0

        def breaks():
            assert store._lock.word.try_lock() == 1
            struct.pack_into("<I", store._memory, layout._INDEX, layout.VALID)

        _killed(breaks)
        assert store.check() == []
        assert store.stats()["entries"] == 0


def _use(store, done):
    store.generation.add(1)
    done.put(store.stats()["entries"])
    store.close()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_it_goes_to_other_processes(start):
    context = multiprocessing.get_context(start)
    with closing(SharedStore(None, SIZE)) as store:
        done = context.SimpleQueue()
        with closing(done):
            process = context.Process(target=_use, args=(store, done))
            process.start()
            assert done.get() == 0
            process.join()
            assert process.exitcode == 0
            process.close()
        assert store.generation.load() == 1


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_are_killed(start, backend, run_program):
    seconds = 60 if os.environ.get("AIOUNIFY_STRESS") else 2
    done = run_program("cache_stress", backend, seconds, start, timeout=seconds + 100, check=False)
    assert done.returncode == 0, done.stderr
    assert "kills" in done.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_no_answer_is_old(workers, backend, run_program):
    changes = 2000 if os.environ.get("AIOUNIFY_STRESS") else 100
    done = run_program("cache_fresh", backend, workers, changes, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 stale" in done.stdout
