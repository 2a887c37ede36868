"""Whose turn it is to read at once, and what is used again: nobody starves, nothing is mixed up."""

# ruff: noqa: PTH102, PTH105, PTH106, PTH108, PTH116, PTH211 - paths are strings here, which is what is kept of them

import asyncio
import gc
import os
import warnings
from pathlib import Path

import pytest

import aiounify.files as files
from aiounify.files import os as files_os

PAGE = 4096


def numbered(path: Path, pages: int) -> Path:
    """A file of which each page tells its number."""
    path.write_bytes(b"".join(i.to_bytes(8, "big") * (PAGE // 8) for i in range(pages)))
    return path


def write(path: str | Path, data: bytes) -> None:
    Path(path).write_bytes(data)


async def turns_of(loop: asyncio.AbstractEventLoop, counted: list[int]) -> None:
    while True:
        counted[0] += 1
        await asyncio.sleep(0)


async def test_many_readers_share_the_turns(tmp_path: Path) -> None:
    path = numbered(tmp_path / "f", 64)
    loop = asyncio.get_running_loop()
    counted = [0]
    beside = asyncio.create_task(turns_of(loop, counted))

    async def reader(number: int) -> None:
        async with files.open(path, "rb") as file:
            for i in range(200):
                page = (number + i) % 64
                data = await file.pread(PAGE, page * PAGE)
                assert data == page.to_bytes(8, "big") * (PAGE // 8)

    await asyncio.gather(*(reader(number) for number in range(64)))
    beside.cancel()
    await asyncio.gather(beside, return_exceptions=True)
    # at most two budgets of 64 in a turn
    assert counted[0] >= 64 * 200 // 128


async def test_readers_that_read_all_the_time_end_at_about_the_same_time(tmp_path: Path) -> None:
    path = numbered(tmp_path / "f", 8)
    done = [0] * 64
    over = asyncio.Event()

    async def reader(number: int) -> None:
        async with files.open(path, "rb") as file:
            while not over.is_set():
                await file.pread(PAGE, 0)
                done[number] += 1
                if done[number] == 400:
                    over.set()

    await asyncio.gather(*(reader(number) for number in range(64)))
    assert min(done) >= 300


async def test_one_read_now_and_then_does_not_queue(tmp_path: Path) -> None:
    path = numbered(tmp_path / "f", 8)
    over = False

    async def reader() -> None:
        async with files.open(path, "rb") as file:
            while not over:
                await file.pread(PAGE, 0)

    readers = [asyncio.create_task(reader()) for _ in range(64)]
    async with files.open(path, "rb") as file:
        for _ in range(10):
            await asyncio.sleep(0)
        counted = [0]
        beside = asyncio.create_task(turns_of(asyncio.get_running_loop(), counted))
        for _ in range(50):
            await asyncio.sleep(0)
            await file.pread(PAGE, PAGE)
        spent = counted[0]
    over = True
    beside.cancel()
    await asyncio.gather(beside, *readers, return_exceptions=True)
    # In the queue each read would take eight turns.
    assert spent <= 120


async def test_cancelled_while_waiting_for_a_turn(tmp_path: Path) -> None:
    path = numbered(tmp_path / "f", 8)

    async def reader(n: int | None) -> int:
        done = 0
        async with files.open(path, "rb") as file:
            while done != n:
                assert len(await file.pread(PAGE, 0)) == PAGE
                done += 1
        return done

    endless = [asyncio.create_task(reader(None)) for _ in range(40)]
    others = [asyncio.create_task(reader(300)) for _ in range(40)]
    while not all(task.done() for task in others):
        await asyncio.sleep(0)
        if endless:
            endless.pop().cancel()
        await asyncio.sleep(0)
    for task in endless:
        task.cancel()
    await asyncio.gather(*endless, return_exceptions=True)
    assert [task.result() for task in others] == [300] * 40


def test_loop_that_stops_while_readers_wait_goes_on_later(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    path = numbered(tmp_path / "f", 8)

    async def reader() -> None:
        async with files.open(path, "rb") as file:
            for _ in range(100):
                await file.pread(PAGE, 0)

    async def begin() -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(reader()) for _ in range(64)]
        for _ in range(4):
            await asyncio.sleep(0)
        return tasks

    tasks = loop.run_until_complete(begin())
    assert not all(task.done() for task in tasks)
    loop.run_until_complete(asyncio.wait_for(asyncio.gather(*tasks), 60))


async def test_a_call_that_is_kept_is_not_used_again(tmp_path: Path) -> None:
    path = numbered(tmp_path / "f", 8)
    async with files.open(path, "rb") as file:
        kept = []
        for i in range(4):
            call = file.pread(PAGE, i * PAGE)
            kept.append(call)
            assert (await call)[:8] == i.to_bytes(8, "big")
        assert len(set(map(id, kept))) == 4
        for call in kept:
            with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
                await call
        # made in one order, awaited in another
        calls = [file.pread(PAGE, i * PAGE) for i in range(8)]
        for i in reversed(range(8)):
            assert (await calls[i])[:8] == i.to_bytes(8, "big")


async def test_a_call_that_is_used_again_complains_if_it_is_not_awaited(tmp_path: Path) -> None:
    path = numbered(tmp_path / "f", 1)
    async with files.open(path, "rb") as file:
        await file.pread(PAGE, 0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            file.pread(PAGE, 0)
            gc.collect()
    assert ["'pread' was never awaited" in str(w.message) for w in caught] == [True]


async def test_stat_of_a_known_path_is_what_the_kernel_says_now(tmp_path: Path) -> None:
    name = str(tmp_path / "f")
    write(name, b"x")
    for _ in range(5):
        assert (await files_os.stat(name)).st_size == 1
    write(name, b"xyz")
    assert (await files_os.stat(name)).st_size == 3
    other = tmp_path / "other"
    write(other, b"12345")
    os.replace(other, name)
    found = await files_os.stat(name)
    assert found == os.stat(name)
    assert found.st_mtime_ns == os.stat(name).st_mtime_ns
    os.unlink(name)
    with pytest.raises(FileNotFoundError) as raised:
        await files_os.stat(name)
    assert raised.value.filename == name
    os.mkdir(name)
    assert await files_os.stat(name) == os.stat(name)
    os.rmdir(name)
    write(name, b"")
    with pytest.raises(NotADirectoryError):
        await files_os.stat(name + "/below")


async def test_stat_of_a_known_link_is_not_that_of_its_target(tmp_path: Path) -> None:
    target, link = tmp_path / "target", str(tmp_path / "link")
    write(target, b"x" * 100)
    os.symlink(target, link)
    for _ in range(4):
        assert await files_os.stat(link) == os.stat(link)
        assert await files_os.lstat(link) == os.lstat(link)
    target.unlink()
    with pytest.raises(FileNotFoundError):
        await files_os.stat(link)
    assert await files_os.lstat(link) == os.lstat(link)


async def test_known_paths_that_share_a_slot(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{i}") for i in range(300)]
    for i, name in enumerate(names):
        write(name, bytes(i))
    for _ in range(3):
        for i, name in enumerate(names):
            assert (await files_os.stat(name)).st_size == i


async def test_relative_path_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "f", bytes(i + 1))
    for i, name in enumerate(("a", "b")):
        monkeypatch.chdir(tmp_path / name)
        for _ in range(3):
            assert (await files_os.stat("f")).st_size == i + 1


@pytest.mark.parametrize("name", ["a\0b", "\0"])
async def test_path_with_a_zero_byte(name: str) -> None:
    with pytest.raises(ValueError, match="null"):
        await files_os.stat(name)
    with pytest.raises(ValueError, match="null"):
        await files.read_bytes(name)


@pytest.mark.parametrize("mode", ["r", "rb"])
async def test_another_way_to_iterate_is_used(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write(path, b"a\nb\n")
    async with files.open(path, mode) as file:
        kind = type(file)
        native = kind.__anext__
        asked = 0

        def next_line(self: object) -> object:
            nonlocal asked
            asked += 1
            return native(self)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "__anext__", next_line)
            assert len([line async for line in file]) == 2
        assert asked == 3
        await file.seek(0)
        assert len([line async for line in file]) == 2
        assert asked == 3
