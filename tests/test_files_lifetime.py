"""Files that wait: pipes, cancelling, loops that end, threads and forks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from files_on_disk import descriptors, write

import aiounify
import aiounify.files as files
from aiounify.files.operation import service

if TYPE_CHECKING:
    from collections.abc import Callable


# -- pipes and devices ------------------------------------------------------------------


async def test_fifo(tmp_path: Path, kernel: str) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    async def sender() -> None:
        async with files.open(path, "w") as f:
            for i in range(1000):
                await f.write(f"{i} " + "y" * 100 + "\n")

    task = asyncio.create_task(sender())
    async with files.open(path) as f:
        lines = [line async for line in f]
    await task
    assert [int(line.split()[0]) for line in lines] == list(range(1000))


async def test_cancelled_read_of_a_fifo_loses_nothing(tmp_path: Path, kernel: str) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    got = b""
    async with files.open(path, "rb") as f:
        for _ in range(2):  # no writer yet
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(f.read(5), 0.01)
        fd = os.open(path, os.O_WRONLY)
        try:
            for i in range(50):
                task = asyncio.create_task(f.read(4))
                await asyncio.sleep(0)
                os.write(fd, b"%04d" % i)
                for _ in range(i % 5):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    got += await task
        finally:
            os.close(fd)
        got += await f.read()
    assert got == b"".join(b"%04d" % i for i in range(50))


async def test_close_ends_a_read_of_an_empty_fifo(tmp_path: Path, kernel: str) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    f = await files.open(path, "rb")
    fd = os.open(path, os.O_WRONLY)
    task = asyncio.create_task(f.read(1))
    await asyncio.sleep(0.01)
    await f.close()
    os.close(fd)
    with pytest.raises(ValueError, match="closed file"):
        await task


def test_process_ends_with_a_cancelled_fifo_read(
    run_program: Callable[..., Any], backend: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    done = run_program("files_fifo", tmp_path / "fifo", AIOUNIFY_BACKEND=backend)
    assert done.stdout == "cancelled\n"


async def test_devices(kernel: str) -> None:
    async with files.open("/dev/zero", "rb") as f:
        assert await f.read(10) == bytes(10)
    async with files.open("/dev/null", "wb") as f:
        assert await f.write(b"gone") == 4


# -- cancelling -------------------------------------------------------------------------


async def test_cancelled_open_leaves_no_descriptor(tmp_path: Path, kernel: str) -> None:
    write(tmp_path / "f", b"x")
    before = descriptors()
    for i in range(60):
        task = asyncio.ensure_future(files.open(tmp_path / f"new{i}", "w")._coroutine)
        for _ in range(i % 6):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await task).close()
    assert descriptors() == before


async def test_cancelled_reads_lose_nothing(tmp_path: Path, kernel: str) -> None:
    data = write(tmp_path / "f", os.urandom(60_000))
    got = b""
    async with files.open(tmp_path / "f", "rb", buffering=1000) as f:
        f.nowait = 0
        turn = 0
        while len(got) < len(data):
            task = asyncio.ensure_future(f.read(5000))
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            turn += 1
            task.cancel()
            try:
                part = await task
            except asyncio.CancelledError:
                if turn % 3 == 0:
                    got += await f.read(1777)
                continue
            got += part
        assert await f.read(1) == b""
    assert got == data


async def test_buffer_of_a_cancelled_readinto_is_left_alone(tmp_path: Path, kernel: str) -> None:
    write(tmp_path / "f", b"x" * 100_000)
    async with files.open(tmp_path / "f", "rb") as f:
        f.nowait = 0
        for i in range(30):
            buffer = bytearray(100_000)
            task = asyncio.ensure_future(f.readinto(buffer))
            for _ in range(i % 4):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
                await f.seek(0)
            except asyncio.CancelledError:
                assert await f.tell() == 0
            buffer.clear()  # BufferError if the kernel still had it


async def test_cancelled_close_closes(tmp_path: Path, kernel: str) -> None:
    for i in range(12):
        f = await files.open(tmp_path / "f", "wb")
        await f.write(b"y" * 100_000)
        task = asyncio.ensure_future(f.close())
        for _ in range(i % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await f.close()
        assert (tmp_path / "f").stat().st_size == 100_000


async def test_cancelled_write_without_waiting_is_whole(tmp_path: Path, kernel: str) -> None:
    """A write that has begun is in the file, whole, however it was cancelled."""
    async with files.open(tmp_path / "f", "wb") as f:
        begun = []
        for i in range(40):
            line = b"%06d" % i + bytes(99_993) + b"\n"

            async def put(line: bytes, i: int) -> None:
                begun.append(i)
                await f.write(line)

            task = asyncio.ensure_future(put(line, i))
            for _ in range(i % 3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    found = [int(line[:6]) for line in (tmp_path / "f").read_bytes().splitlines()]
    assert found == begun
    assert len(found) > 20


# -- loops, threads and processes ---------------------------------------------------------


def test_two_loops_in_two_threads(
    loop_factory: Callable[[], aiounify.EventLoop], tmp_path: Path
) -> None:
    failed: list[BaseException] = []

    def work(name: str) -> None:
        async def main() -> None:
            for i in range(50):
                await files.write_text(tmp_path / name, f"{name} {i}")
                assert await files.read_text(tmp_path / name) == f"{name} {i}"

        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(main())
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_hundred_loops_leave_nothing(
    loop_factory: Callable[[], aiounify.EventLoop], tmp_path: Path
) -> None:
    write(tmp_path / "f", b"x" * 10_000)

    async def main() -> None:
        async with files.open(tmp_path / "f", "r+b") as f:
            f.nowait = 0
            assert len(await f.read()) == 10_000
            await f.seek(0)
            await f.write(b"y")
        service().opens_cached = False
        assert len(await files.read_bytes(tmp_path / "f")) == 10_000

    for i in range(100):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
        if not i:
            before = descriptors()
    assert descriptors() == before


def test_after_fork(run_program: Callable[..., Any], backend: str, tmp_path: Path) -> None:
    done = run_program("files_fork", tmp_path / "f", AIOUNIFY_BACKEND=backend)
    assert done.stdout == "child read 5\nparent read 5\n"


async def test_umask_and_inheritance(tmp_path: Path, kernel: str) -> None:
    before = os.umask(0o027)
    try:
        f = await files.open(tmp_path / "f", "w")
    finally:
        os.umask(before)
    async with f:
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
        assert not os.get_inheritable(f.fileno())
        seen = subprocess.run(  # noqa: ASYNC221 - nothing else runs
            [sys.executable, "-c", f"import os; os.fstat({f.fileno()})"],
            close_fds=False,
            capture_output=True,
            check=False,
        )
        assert b"Bad file descriptor" in seen.stderr


async def test_hits_yield_to_the_loop(tmp_path: Path) -> None:
    write(tmp_path / "f", bytes(4096))
    turns = 0

    async def beside() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(beside())
    async with files.open(tmp_path / "f", "rb") as f:
        for _ in range(3200):
            await f.pread(4096, 0)
        turns_of_preads = turns
        for _ in range(3200):
            await files.read_bytes(tmp_path / "f")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert turns_of_preads >= 90
    assert turns >= 180
