"""watch(): what is told, the block, waiting and cancelling, the end and its reason, errors."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

import aiounify
from aiounify.sources import EMPTY
from aiounify.watching import EVERYTHING, Change, Kind, ignoring


def simple(changes: list[Change], root: object) -> list[tuple[str, ...]]:
    """Kind, path below the root, and where it was if it was moved."""
    prefix = f"{root}/"
    found = []
    for c in changes:
        names = [c.path.removeprefix(prefix)]
        if c.old_path is not None:
            names.append(c.old_path.removeprefix(prefix))
        found.append((c.kind.name, *names))
    return found


async def until(watch, count: int) -> list[Change]:
    async with asyncio.timeout(20):
        return [await watch.wait() for _ in range(count)]


async def test_a_file_that_is_made_written_and_removed(tmp_path):
    async with aiounify.watch(tmp_path) as watch:
        (tmp_path / "a").write_text("text")
        (tmp_path / "a").chmod(0o600)
        (tmp_path / "a").unlink()
        changes = await until(watch, 5)
        assert simple(changes, tmp_path) == [
            ("CREATED", "a"),
            ("MODIFIED", "a"),
            ("WRITTEN", "a"),
            ("ATTRIBUTES", "a"),
            ("DELETED", "a"),
        ]
        assert not any(c.is_dir or c.found for c in changes)
        assert watch.take() is EMPTY


async def test_what_is_not_in_the_mask_is_not_told(tmp_path):
    async with aiounify.watch(tmp_path, mask=Kind.DELETED, recursive=True) as watch:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "c").touch()
        assert watch.drain() == []
        (tmp_path / "a" / "b" / "c").unlink()
        assert simple(await until(watch, 1), tmp_path) == [("DELETED", "a/b/c")]


async def test_reading_is_told_on_wish(tmp_path):
    (tmp_path / "a").write_text("text")
    async with aiounify.watch(tmp_path, mask=EVERYTHING) as watch:
        (tmp_path / "a").read_text()
        assert simple(await until(watch, 3), tmp_path) == [
            ("OPENED", "a"),
            ("ACCESSED", "a"),
            ("CLOSED", "a"),
        ]


@pytest.mark.parametrize("name", ["ä", b"\xff\xfe", "with space", "x" * 255])
async def test_names(tmp_path, name):
    name = os.fsdecode(name)
    async with aiounify.watch(tmp_path, mask=Kind.CREATED) as watch:
        (tmp_path / name).touch()
        assert (await watch.wait()).path == str(tmp_path / name)


# -- moves -------------------------------------------------------------------------------


async def test_a_move_is_one_change(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "file").touch()
    async with aiounify.watch(tmp_path, recursive=True) as watch:
        (tmp_path / "a" / "file").rename(tmp_path / "b" / "other")
        assert simple(await until(watch, 1), tmp_path) == [("MOVED", "b/other", "a/file")]
        # what is below a directory goes with it
        (tmp_path / "b").rename(tmp_path / "a" / "b")
        (tmp_path / "a" / "b" / "new").touch()
        assert simple((await until(watch, 2)), tmp_path) == [
            ("MOVED", "a/b", "b"),
            ("CREATED", "a/b/new"),
        ]


async def test_moves_out_of_sight_and_into_it(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "file").touch()
    async with aiounify.watch(root, recursive=True) as watch:
        (root / "a").rename(tmp_path / "a")
        assert simple(await until(watch, 1), root) == [("DELETED", "a")]
        (tmp_path / "a").rename(root / "b")
        changes = await until(watch, 2)
        assert simple(changes, root) == [("CREATED", "b"), ("CREATED", "b/file")]
        assert [c.found for c in changes] == [False, True]
        (root / "b" / "file").unlink()
        assert simple(await until(watch, 1), root) == [("DELETED", "b/file")]


async def test_a_move_from_one_tree_to_another(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "a").touch()
    async with aiounify.watch(one) as from_here, aiounify.watch(two) as to_here:
        (one / "a").rename(two / "b")
        for watch in (from_here, to_here):
            assert simple(await until(watch, 1), tmp_path) == [("MOVED", "two/b", "one/a")]


async def test_many_moves_out_do_not_wait_for_each_other(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    number = 500
    for i in range(number):
        (root / str(i)).touch()
    async with aiounify.watch(root) as watch:
        for i in range(number):
            (root / str(i)).rename(tmp_path / str(i))
        names = [c.path.rpartition("/")[2] for c in await until(watch, number)]
    assert names == [str(i) for i in range(number)]


async def test_a_file_that_is_replaced_by_a_hidden_one(tmp_path):
    """As editors write: a temporary name, then a rename."""
    (tmp_path / "a").touch()
    async with aiounify.watch(tmp_path, filter=ignoring("*.tmp")) as watch:
        (tmp_path / "a.tmp").write_text("new")
        (tmp_path / "a.tmp").rename(tmp_path / "a")
        assert simple(await until(watch, 1), tmp_path) == [("MODIFIED", "a")]


# -- filter, sharing, links ----------------------------------------------------------------


async def test_the_filter_keeps_directories_from_being_watched(tmp_path):
    (tmp_path / "node_modules" / "deep").mkdir(parents=True)
    async with aiounify.watch(
        tmp_path, recursive=True, filter=ignoring("node_modules", "*.pyc")
    ) as watch:
        assert watch._directories == 1
        (tmp_path / "node_modules" / "file").touch()
        (tmp_path / "a.pyc").touch()
        (tmp_path / "src").mkdir()
        (tmp_path / "src" / "node_modules").mkdir()
        (tmp_path / "src" / "last").touch()
        assert simple(await until(watch, 2), tmp_path) == [
            ("CREATED", "src"),
            ("CREATED", "src/last"),
        ]


def inotify_watches() -> list[int]:
    """How many watches each inotify instance of this process has."""
    found = []
    for fd in list(Path("/proc/self/fd").iterdir()):
        try:
            if "inotify" in str(fd.readlink()):
                info = Path("/proc/self/fdinfo", fd.name).read_text()
                found.append(info.count("inotify wd:"))
        except FileNotFoundError:
            continue
    return found


async def test_watches_share(tmp_path):
    (tmp_path / "below").mkdir()
    async with aiounify.watch(tmp_path, recursive=True) as one:
        async with aiounify.watch(tmp_path) as two, aiounify.watch(tmp_path / "below") as three:
            assert inotify_watches() == [2]
            (tmp_path / "below" / "a").touch()
            (tmp_path / "b").touch()
            assert simple(await until(two, 1), tmp_path)[0] == ("CREATED", "b")
            assert simple(await until(three, 1), tmp_path)[0] == ("CREATED", "below/a")
        # those that ended take nothing from the one that goes on
        (tmp_path / "below" / "c").touch()
        told = simple(one.drain(), tmp_path)
        assert [t for t in told if t[0] == "CREATED"] == [
            ("CREATED", "below/a"),
            ("CREATED", "b"),
            ("CREATED", "below/c"),
        ]
    assert inotify_watches() == []


async def test_symbolic_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    async with aiounify.watch(tmp_path / "link", recursive=True) as watch:
        (tmp_path / "real" / "a").touch()
        (tmp_path / "real" / "loop").symlink_to("..")
        assert [c.path for c in await until(watch, 1)] == [str(tmp_path / "link" / "a")]
        await asyncio.sleep(0)
        changes = watch.drain()
        assert changes[-1].path == str(tmp_path / "link" / "loop")
        assert not changes[-1].is_dir
        assert watch._directories == 1


async def test_directories_that_may_not_be_read_are_named(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "secret").mkdir(0)
    async with aiounify.watch(tmp_path, recursive=True) as watch:
        assert watch.skipped == [(str(tmp_path / "secret"), "Permission denied")]


# -- waiting ---------------------------------------------------------------------------------


async def test_a_cancelled_wait_loses_nothing(tmp_path):
    async with aiounify.watch(tmp_path, mask=Kind.CREATED) as watch:
        names = []
        # Another process: a thread would wait for the interpreter 3,000 times.
        make = "import os\nfor i in range(3000): os.close(os.open(str(i), os.O_CREAT))"
        maker = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", make, cwd=tmp_path)
        async with asyncio.timeout(40):
            for round in itertools.count():
                if len(names) == 3000:
                    break
                task = asyncio.ensure_future(watch.wait())
                for _ in range(round % 4):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    names.append((await task).path.rpartition("/")[2])
                except asyncio.CancelledError:
                    await asyncio.sleep(0)
                if len(names) % 7 == 0 and watch:
                    names += [change.path.rpartition("/")[2] for change in watch.drain()]
        assert await maker.wait() == 0
        assert names == [str(i) for i in range(3000)]


async def test_drain_does_not_wait_for_the_loop(tmp_path):
    async with aiounify.watch(tmp_path, recursive=True, mask=Kind.CREATED | Kind.DELETED) as watch:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "c").touch()
        assert simple(watch.drain(), tmp_path) == [
            ("CREATED", "a"),
            ("CREATED", "a/b"),
            ("CREATED", "a/b/c"),
        ]
        (tmp_path / "a" / "b" / "c").rename(tmp_path.parent / "elsewhere")
        assert simple(watch.drain(), tmp_path) == [("DELETED", "a/b/c")]
        (tmp_path.parent / "elsewhere").unlink()


async def test_it_is_a_source(tmp_path):
    async with aiounify.watch(tmp_path) as watch:
        never = asyncio.get_running_loop().create_future()
        async with aiounify.select(watch, never) as selection:
            (tmp_path / "a").touch()
            source, change = await selection
            assert source is watch
            assert change.kind is Kind.CREATED


@pytest.mark.parametrize("quiet", [0, 0.01])
async def test_batches(tmp_path, quiet):
    tmp_path = tmp_path / "root"
    tmp_path.mkdir()
    async with aiounify.watch(tmp_path, batch=quiet) as batches:
        for _ in range(3):
            (tmp_path / "a").write_text("text")
        names = []
        async with asyncio.timeout(20):
            while names.count(("WRITTEN", "a")) < 3:
                batch = await batches.wait()
                assert batch
                names += simple(batch, tmp_path)
        assert names[0] == ("CREATED", "a")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await batches.wait()
        (tmp_path / "b").touch()
        async with asyncio.timeout(20):
            batch = await anext(batches)
        assert ("CREATED", "b") in simple(batch, tmp_path)
        never = asyncio.get_running_loop().create_future()
        async with aiounify.select(batches, never) as selection:
            (tmp_path / "c").touch()
            source, batch = await selection
            assert source is batches
            assert ("CREATED", "c") in simple(batch, tmp_path)
        tmp_path.rename(tmp_path.with_name("moved"))
        async with asyncio.timeout(20):
            rest = [batch async for batch in batches]
        assert batches.reason == "moved"
        assert not [c for batch in rest for c in batch if c.kind is not Kind.WRITTEN]


async def test_a_batch_is_not_put_off_for_ever(tmp_path):
    async with aiounify.watch(tmp_path, batch=0.02) as batches:
        stop = asyncio.Event()

        async def make() -> None:
            i = 0
            while not stop.is_set():
                (tmp_path / str(i)).touch()
                i += 1
                await asyncio.sleep(0.001)

        maker = asyncio.ensure_future(make())
        async with asyncio.timeout(20):
            assert await batches.wait()
        stop.set()
        await maker


# -- the end ---------------------------------------------------------------------------------


async def test_the_root_is_deleted(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    async with aiounify.watch(root, recursive=True) as watch:
        (root / "a").touch()
        shutil.rmtree(root)
        root.mkdir()
        (root / "other").touch()
        async with asyncio.timeout(20):
            names = simple([change async for change in watch], root)
        assert watch.reason == "deleted"
        assert names[0] == ("CREATED", "a")
        assert names[-1] == ("DELETED", "a")
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


async def test_the_root_is_moved(tmp_path):
    (tmp_path / "root").mkdir()
    async with aiounify.watch(tmp_path / "root") as watch:
        (tmp_path / "root").rename(tmp_path / "other")
        async with asyncio.timeout(20):
            assert not [change async for change in watch]
        assert watch.reason == "moved"


async def test_a_file_as_root(tmp_path):
    file = tmp_path / "file"
    file.touch()
    async with aiounify.watch(file) as watch:
        with file.open("w") as opened:
            opened.write("text")
            opened.flush()
            assert (await until(watch, 1))[0] == Change(Kind.MODIFIED, str(file))
            file.unlink()  # while it is open
            async with asyncio.timeout(20):
                _ = [change async for change in watch]
            assert watch.reason == "deleted"


def test_a_child_does_not_end_what_its_parent_watches(loop, tmp_path):
    async def begin():
        return await aiounify.watch(tmp_path).__aenter__()

    watch = loop.run_until_complete(begin())
    pid = os.fork()
    if not pid:
        status = 1
        try:
            assert inotify_watches() == []
            watch.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    (tmp_path / "a").touch()
    assert simple(loop.run_until_complete(until(watch, 1)), tmp_path) == [("CREATED", "a")]
    watch.close()


async def test_closing_ends_a_wait(tmp_path):
    async with aiounify.watch(tmp_path) as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        watch.close()
        watch.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert watch.reason == "closed"


async def test_a_filter_that_raises_ends_the_watch(tmp_path):
    def broken(path: str, is_dir: bool) -> bool:
        raise LookupError(path)

    async with aiounify.watch(tmp_path, filter=broken) as watch:
        (tmp_path / "a").touch()
        with pytest.raises(LookupError):
            await watch.wait()
        assert watch.reason == "failed"


def test_a_watch_that_nobody_closed(loop, tmp_path):
    watch = aiounify.watch(tmp_path)
    loop.run_until_complete(watch.__aenter__())
    with pytest.warns(ResourceWarning, match="unclosed"):
        watch.__del__()
    watch.close()
    assert not gc.is_tracked(Change(Kind.CREATED, "a"))


# -- errors ----------------------------------------------------------------------------------


async def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        async with aiounify.watch(tmp_path / "missing"):
            pass
    assert caught.value.filename == str(tmp_path / "missing")
    assert inotify_watches() == []


async def test_bad_arguments(tmp_path):
    for arguments, error, message in (
        ((b"bytes",), TypeError, "fsdecode"),
        (("",), ValueError, "path"),
        (("a\0b",), ValueError, "null"),
    ):
        with pytest.raises(error, match=message):
            aiounify.watch(*arguments)
    for name, value, error in (
        ("mask", 5, TypeError),
        ("filter", "*.py", TypeError),
        ("batch", -1, ValueError),
    ):
        with pytest.raises(error, match=name):
            aiounify.watch(tmp_path, **{name: value})
    watch = aiounify.watch(tmp_path)
    with pytest.raises(RuntimeError, match="async with"):
        await watch.wait()
    async with watch:
        pass
    with pytest.raises(RuntimeError, match="begun before"):
        await watch.__aenter__()


def test_another_loop(tmp_path):
    async def main() -> None:
        async with aiounify.watch(tmp_path):
            pass

    with (
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
        pytest.raises(
            RuntimeError, match=re.escape("aiounify.watch() needs an event loop of aiounify")
        ),
    ):
        runner.run(main())


def test_the_limit_is_named(run_program, backend):
    done = run_program("watch_limit", check=False, AIOUNIFY_BACKEND=backend)
    if done.returncode == 77:
        pytest.skip(f"no user namespace with limits of its own: {done.stdout}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
