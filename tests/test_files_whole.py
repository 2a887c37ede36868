"""Whole files where they have to be waited for: one chain in the ring, one job in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import aiounify.files as files
from aiounify._core.file_whole import WholeRead, start_whole
from aiounify.files.operation import service

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiounify

ROOM = 130048  # of file_whole.pyx
FADVISE = 24
INSTALL = 54
SLOTS = 128  # of uring.pyx


@pytest.fixture(params=["path unknown", "no chain", "no descriptor", "thread", "not in memory"])
async def way(request: pytest.FixtureRequest) -> str:
    """How a whole file is read; on epoll the first four are a thread."""
    set_way(str(request.param))
    return str(request.param)


def set_way(way: str) -> None:
    shared = service()
    shared.opens_cached = way == "not in memory"
    if way == "no chain":
        shared.ops -= {FADVISE}
    elif way == "no descriptor":
        shared.ops -= {INSTALL}
    elif way == "thread":
        shared.ops = frozenset()


def drop(path: Path) -> None:
    """Have the file out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def chains() -> int:
    made: int = asyncio.get_running_loop().stats()["operations"].get("fadvise", 0)  # type: ignore[attr-defined]
    return made


def opened(path: Path) -> int:
    """How many descriptors of this process are of the file."""
    fds = Path("/proc/self/fd")
    found = []
    for name in os.listdir(fds):  # noqa: PTH208
        try:
            found.append(os.readlink(fds / name))  # noqa: PTH115
        except OSError:
            continue  # the descriptor of the listing
    return found.count(str(path))


SIZES = (0, 1, 4096, ROOM - 1, ROOM, ROOM + 1, ROOM + 64, ROOM + 65, (1 << 20) + 7)


@pytest.mark.every_reactor
async def test_all_of_a_file(tmp_path: Path, way: str) -> None:
    for size in SIZES:
        path = tmp_path / str(size)
        data = os.urandom(size)
        path.write_bytes(data)
        drop(path)
        assert await files.read_bytes(path) == data
        assert await files.read_bytes(path) == data
        assert not opened(path)
    async with asyncio.timeout(60):
        drop(path)
        assert set(await asyncio.gather(*(files.read_bytes(path) for _ in range(20)))) == {data}


async def test_the_chain_is_one_submission(tmp_path: Path) -> None:
    set_way("path unknown")
    path = tmp_path / "f"
    path.write_bytes(b"content")
    loop: Any = asyncio.get_running_loop()
    await files.read_bytes(path)
    before, made = loop.stats()["operations"], chains()
    assert await files.read_bytes(path) == b"content"
    after = loop.stats()["operations"]
    if loop.backend == "uring":
        assert chains() == made + 1
        assert sum(after.values()) == sum(before.values()) + 5
    else:
        assert "openat" not in after


async def test_more_at_once_than_the_ring_has_places(tmp_path: Path) -> None:
    set_way("path unknown")
    paths = [tmp_path / str(i) for i in range(2 * SLOTS + 10)]
    for i, path in enumerate(paths):
        path.write_bytes(str(i).encode() * 100)
    found = await asyncio.gather(*(files.read_bytes(path) for path in paths))
    assert found == [str(i).encode() * 100 for i in range(len(paths))]


@pytest.mark.every_reactor
async def test_errors_name_the_file_and_lose_no_place(tmp_path: Path, way: str) -> None:
    (tmp_path / "f").write_bytes(b"x")
    for _ in range(SLOTS // 2):
        for path, error in [
            (tmp_path / "none", errno.ENOENT),
            (tmp_path / "f" / "below", errno.ENOTDIR),
            (tmp_path, errno.EISDIR),
        ]:
            with pytest.raises(OSError) as caught:
                await files.read_bytes(path)
            assert caught.value.errno == error
            assert caught.value.filename == str(path)
    made = chains()
    assert await files.read_bytes(tmp_path / "f") == b"x"
    if way == "path unknown" and asyncio.get_running_loop().backend == "uring":  # type: ignore[attr-defined]
        assert chains() == made + 1


@pytest.mark.parametrize("path", ["/proc/self/mountinfo", "/proc/version", "/dev/null"])
async def test_files_without_a_size(path: str, way: str) -> None:
    expected = Path(path).read_bytes()  # noqa: ASYNC240
    assert await files.read_bytes(path) == expected


async def test_nothing_of_a_fifo_is_lost(tmp_path: Path, way: str) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    for i in range(SLOTS + 2 if way == "path unknown" else 5):
        hold = os.open(path, os.O_RDWR)  # what is in it stays
        os.write(hold, b"first ")
        reading = asyncio.ensure_future(files.read_bytes(path))
        for _ in range(i % 4):
            await asyncio.sleep(0)
        os.write(hold, b"second")
        while opened(path) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        os.close(hold)
        assert await reading == b"first second"


async def test_a_fifo_is_opened_once(tmp_path: Path, way: str) -> None:
    """A writer that came in by one descriptor would lose what it wrote with the close of that."""
    path = tmp_path / "fifo"
    os.mkfifo(path)

    def write(number: int) -> None:
        with path.open("wb", buffering=0) as fifo:  # waits for the reader
            fifo.write(b"%d" % number)

    for i in range(100):
        writing = asyncio.create_task(asyncio.to_thread(write, i))
        await asyncio.sleep(0.0005 * (i % 3))
        assert await files.read_bytes(path) == b"%d" % i
        await writing
    assert not opened(path)


async def test_a_fifo_cancelled_at_any_point(tmp_path: Path, way: str) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    for i in range(SLOTS + 10):
        reading = asyncio.ensure_future(files.read_bytes(path))
        for _ in range(i % 7):
            await asyncio.sleep(0.0005 if i % 2 else 0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not opened(path)


def test_what_a_terminal_had_is_not_lost(run_program: Callable[..., Any], backend: str) -> None:
    done = run_program("files_terminal", AIOUNIFY_BACKEND=backend)
    assert done.stdout == "b'one\\ntwo\\n'\n"


async def test_cancelled_at_any_point(tmp_path: Path, way: str) -> None:
    path = tmp_path / "f"
    sizes = (100, ROOM + 100, 1 << 20)
    for i in range(60):
        size = sizes[i % 3]
        data = bytes([i]) * size
        path.write_bytes(data)
        drop(path)
        task = asyncio.ensure_future(files.read_bytes(path))
        for _ in range(i // 3 % 6):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert await task == data
        assert not opened(path)
        assert await files.read_bytes(path) == data
    made = chains()
    await files.read_bytes(path)
    if way == "path unknown" and asyncio.get_running_loop().backend == "uring":  # type: ignore[attr-defined]
        assert chains() == made + 1  # no place was lost for good


async def test_a_file_that_changes_its_size_meanwhile(tmp_path: Path, way: str) -> None:
    path = tmp_path / "f"
    for new in (10, 5000, 1 << 20, 0):
        path.write_bytes(b"a" * 4000)
        drop(path)
        task = asyncio.ensure_future(files.read_bytes(path))
        await asyncio.sleep(0)
        os.truncate(path, new)
        found = await task
        assert found.count(b"a") + found.count(b"\0") == len(found) <= max(4000, new)


def test_a_loop_that_changes_its_thread(
    loop_factory: Callable[[], aiounify.EventLoop], tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    loop = loop_factory()

    async def main() -> None:
        set_way("path unknown")
        made = chains()
        assert await files.read_bytes(path) == b"x"
        if loop.backend == "uring":
            assert chains() == made + 1

    for _ in range(3):
        loop.run_until_complete(main())
        thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
        thread.start()
        thread.join()
    loop.close()


def test_loop_closed_with_a_chain_in_flight(
    loop_factory: Callable[[], aiounify.EventLoop], tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10_000)
    os.mkfifo(tmp_path / "fifo")
    for i in range(10):
        loop = loop_factory()

        async def main(loop: Any, turns: int) -> list[asyncio.Task[bytes]]:
            set_way("path unknown")
            drop(path)
            tasks = [loop.create_task(files.read_bytes(p)) for p in (path, tmp_path / "fifo")]
            for _ in range(turns):
                await asyncio.sleep(0)
            return tasks

        left = loop.run_until_complete(main(loop, i % 5))
        loop.close()
        for task in left:
            task._log_destroy_pending = False
        del left, task
        while any(t.name.startswith("aiounify-files") for t in threading.enumerate()):
            threading.Event().wait(0.001)
        gc.collect()
    assert not opened(path)


def test_fork_with_a_chain_in_flight(
    run_program: Callable[..., Any], backend: str, tmp_path: Path
) -> None:
    done = run_program("files_fork_whole", tmp_path / "f", AIOUNIFY_BACKEND=backend)
    assert done.stdout == "child True\nparent True\n"


async def test_by_itself(tmp_path: Path) -> None:
    """What the operation tells, without what is built on it."""
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    op = WholeRead(os.fsencode(path))
    waiter = start_whole(service(), op)
    assert waiter is not None
    await waiter
    assert op.whole
    assert op.opened >= 0
    assert op.take() == b"abc"
    assert op.more() == b""
    op = WholeRead(b"/nonexistent")
    waiter = start_whole(service(), op)
    assert waiter is not None
    await waiter
    assert not op.whole
    assert op.opened == -errno.ENOENT


async def test_any_kind_of_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "naïve", "line\nend", "surrogate\udcff", "x" * 255):
        data = os.urandom(100)
        path = tmp_path / name
        path.write_bytes(data)
        for given in (name, str(path), os.fsencode(path), path, files.Path(path)):
            assert await files.read_bytes(given) == data
    os.mkdir("below")  # noqa: PTH102
    monkeypatch.chdir("below")
    assert await files.read_bytes("../plain") == (tmp_path / "plain").read_bytes()
    with pytest.raises(OSError) as caught:
        await files.read_bytes("y" * 256)
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, "y" * 256)


async def test_without_a_table(tmp_path: Path) -> None:
    """It counts as descriptors would; so there can be none."""
    set_way("path unknown")
    path = tmp_path / "f"
    path.write_bytes(b"content")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SLOTS - 1, hard))
    try:
        assert await files.read_bytes(path) == b"content"
        with pytest.raises(FileNotFoundError):
            await files.read_bytes(tmp_path / "none")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await files.read_bytes(path) == b"content"
    assert chains() == 0
    assert not opened(path)
