"""O_DIRECT: alignment, several pieces in flight, and kernel AIO on epoll."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import threading
from typing import TYPE_CHECKING, Any

import pytest

import aiounify
import aiounify.files as files
from aiounify.files.operation import service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """open() with O_DIRECT of a file with this content; skips where there is none."""
    made = []

    async def open_(content: bytes, mode: str = "r+b") -> Any:
        path = tmp_path / f"f{len(made)}"
        path.write_bytes(content)
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)  # its blocks are there
        os.close(fd)
        try:
            f = await files.open(path, mode, direct=True)
        except OSError as exc:
            assert exc.errno == errno.EINVAL
            pytest.skip("this file system has no O_DIRECT")
        await f.statx()  # on epoll the alignment is asked for in a thread
        made.append(f)
        return f

    yield open_
    for f in made:
        await f.close()


async def test_any_read_and_aligned_writes(opened: Callable[..., Any], kernel: str) -> None:
    data = os.urandom(3 * 65536 + 100)
    f = await opened(data)
    assert await f.read(100) == data[:100]
    assert await f.pread(7000, 4090) == data[4090:11090]
    assert await f.pread(1000, len(data) - 50) == data[-50:]
    assert await f.pread(10, len(data) + 9999) == b""
    got = await asyncio.gather(*(f.pread(4096, i * 4096) for i in range(32)))
    assert b"".join(got) == data[: 32 * 4096]
    assert await f.pwrite(b"z" * 4096, 8192) == 4096
    assert await f.pread(4096, 8192) == b"z" * 4096
    with pytest.raises(ValueError, match="multiple of"):
        await f.pwrite(b"z", 0)
    await f.seek(0)
    whole = await f.read()
    assert whole == data[:8192] + b"z" * 4096 + data[12288:]


def aio() -> Any:
    """The kernel's AIO context of the loop, which the first direct operation made."""
    return service().in_thread._aio


async def test_reads_on_epoll_are_kernel_aio(opened: Callable[..., Any]) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, aiounify.EventLoop)
    if loop.backend != "epoll":
        pytest.skip("the ring does it")
    data = os.urandom(1 << 16)
    f = await opened(data, "rb")
    shared = service()
    threads = threading.active_count()
    assert b"".join(await asyncio.gather(*(f.pread(4096, i * 4096) for i in range(16)))) == data
    pool = shared.in_thread
    assert pool._aio.completed == 16
    pool._aio, context = None, pool._aio
    pool._no_aio = True  # as under a filter that forbids it
    assert await f.pread(100, 4096) == data[4096:4196]
    pool._aio = context
    assert threading.active_count() >= threads


async def test_writes_in_one_after_the_other(opened: Callable[..., Any], kernel: str) -> None:
    """Over what is there, and beyond it: large ones are several in flight."""
    f = await opened(bytes(6 * MIB))
    chunks = [os.urandom(size) for size in (4096, 5 * MIB + 4096, 65536, 2 * MIB, MIB)]
    for chunk in chunks:
        assert await f.write(chunk) == len(chunk)
    assert await f.tell() == sum(map(len, chunks))
    loop: Any = asyncio.get_running_loop()
    context = aio() if loop.backend == "epoll" else None
    if context is not None and context.completed + context.refused:  # else it has no NOWAIT
        assert context.completed + context.refused >= 11  # pieces
        assert context.completed > 0  # without a thread, where the file was long enough
    await f.seek(0)
    assert await f.read() == b"".join(chunks)


async def test_concurrent_positional_writes(opened: Callable[..., Any], kernel: str) -> None:
    f = await opened(bytes(2 * MIB))
    parts = [os.urandom(65536) for _ in range(40)]
    await asyncio.gather(*(f.pwrite(part, i * 65536) for i, part in enumerate(parts)))
    assert await f.pread(len(parts) * 65536, 0) == b"".join(parts)


async def test_appends_come_in_order(opened: Callable[..., Any], kernel: str) -> None:
    f = await opened(b"", "ab")
    chunks = [bytes([i]) * (i % 3 * MIB + 4096) for i in range(6)]
    for chunk in chunks:
        assert await f.write(chunk) == len(chunk)
    with open(f.name, "rb") as file:  # noqa: ASYNC230
        assert file.read() == b"".join(chunks)


async def test_a_cancelled_write_has_ended(opened: Callable[..., Any], kernel: str) -> None:
    """The offset is behind what was written from the start, and nothing is written later."""
    f = await opened(bytes(12 * MIB))
    for i in range(12):
        await f.seek(0)
        new = bytes([i + 1]) * (12 * MIB)
        task = asyncio.ensure_future(f.write(new))
        for _ in range(i):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        else:
            continue
        at = await f.tell()
        assert at % 4096 == 0
        assert await f.pread(at, 0) == new[:at]
        rest = await f.pread(12 * MIB, 0)
        await asyncio.sleep(0.002)
        assert await f.pread(12 * MIB, 0) == rest


async def test_a_failing_piece_ends_the_write(tmp_path: Path, kernel: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "f"
    path.touch()
    try:
        f = await files.open(path, "r+b", direct=True)
    except OSError as exc:
        assert exc.errno == errno.EINVAL
        pytest.skip("this file system has no O_DIRECT")
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, hard))
    try:
        async with f:
            assert await f.write(b"x" * (5 * MIB)) == 3 * MIB
            assert await f.tell() == 3 * MIB
            with pytest.raises(OSError) as caught:
                await f.write(b"x" * 4096)
            assert caught.value.errno == errno.EFBIG
            assert caught.value.filename == str(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


NUMBERED = b"".join(bytes([i]) * 4096 for i in range(64))


async def test_more_reads_in_flight_than_are_submitted_together(
    opened: Callable[..., Any], kernel: None
) -> None:
    f = await opened(NUMBERED)
    for count in (1, 7, 8, 9, 300, 700):
        found = await asyncio.gather(*(f.pread(4096, i % 64 * 4096) for i in range(count)))
        assert [data[0] for data in found] == [i % 64 for i in range(count)]


async def test_reads_cancelled_before_they_are_submitted(
    opened: Callable[..., Any], kernel: None
) -> None:
    f = await opened(NUMBERED)
    await f.pread(4096, 0)
    for count in (1, 5, 8, 20):
        tasks = [asyncio.create_task(f.pread(4096, i * 4096)) for i in range(count)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for i, data in enumerate(found):
            assert isinstance(data, asyncio.CancelledError) or data[0] == i
        assert not any(isinstance(data, BaseException) for data in found[1::2])


async def test_close_waits_for_reads_that_are_not_submitted_yet(
    opened: Callable[..., Any], kernel: None
) -> None:
    for _ in range(5):
        f = await opened(NUMBERED)
        await f.pread(4096, 0)
        tasks = [asyncio.ensure_future(f.pread(4096, i * 4096)) for i in range(20)]
        await asyncio.sleep(0)
        await f.close()
        assert [(await task)[0] for task in tasks] == list(range(20))


async def test_reads_that_end_with_the_file(opened: Callable[..., Any], kernel: None) -> None:
    data = os.urandom(4196)
    f = await opened(data)
    for offset in (0, 1, 99, 100, 4095, 4096, 4195, 4196):
        for size in (1, 100, 101, 4096, 4196 - offset, 4197 - offset, 8192):
            assert await f.pread(size, offset) == data[offset : offset + size], (offset, size)
