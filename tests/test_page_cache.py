"""Reads that cannot wait, and the file systems that do not offer them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import aiounify.files as files
from aiounify._core import page_cache

if TYPE_CHECKING:
    from collections.abc import Iterator

NOT, NOWAIT, PLAIN = 0, 1, 2
READ = 22


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    page_cache.forget()
    yield
    page_cache.forget()


def waited() -> int:
    """How many reads went to the ring."""
    loop: Any = asyncio.get_running_loop()
    made: dict[str, int] = loop.stats()["operations"]
    return made.get("read", 0)


async def test_a_file_system_is_asked_once(tmp_path: Path) -> None:
    async with files.open("/proc/self/status", "rb") as f:
        assert f.nowait == NOWAIT
        assert await f.pread(5, 0) == b"Name:"
        assert f.nowait == NOT
    assert page_cache.without_nowait() == {os.stat("/proc/self").st_dev}  # noqa: PTH116
    async with files.open("/proc/version", "rb") as f:
        assert f.nowait == NOT
        assert await f.pread(5, 0) == b"Linux"
    (tmp_path / "f").write_bytes(b"x")
    async with files.open(tmp_path / "f", "rb") as f:
        assert f.nowait == NOWAIT
        assert await f.read() == b"x"


@pytest.mark.parametrize("kind", ["text", "binary", "whole"])
async def test_of_one_that_does_not_offer_it_reads_wait(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a line\n" * 1000)
    await read(path, kind)
    before = waited()
    await read(path, kind)
    device = path.stat().st_dev
    if device not in page_cache.without_nowait():  # overlayfs is, and tmpfs
        assert waited() == before
    page_cache.latch(device)
    before = waited()
    await read(path, kind)
    async with files.open(path, "rb") as f:
        waits = f.nowait == NOT
    if asyncio.get_running_loop().backend == "uring":  # type: ignore[attr-defined]
        assert (waited() > before) is waits


async def read(path: Path, kind: str) -> None:
    if kind == "whole":
        assert await files.read_bytes(path) == b"a line\n" * 1000
    elif kind == "binary":
        async with files.open(path, "rb") as f:
            assert await f.pread(100, 7) == (b"a line\n" * 15)[:100]
            assert await f.read() == b"a line\n" * 1000
    else:
        async with files.open(path, encoding="utf-8") as f:
            assert [line async for line in f] == ["a line\n"] * 1000


async def test_in_memory_a_plain_read_does_not_wait(tmp_path: Path) -> None:
    path = Path(f"/dev/shm/aiounify-{os.getpid()}")
    try:
        path.write_bytes(b"a line\n" * 1000)  # noqa: ASYNC240
        page_cache.latch(path.stat().st_dev)  # noqa: ASYNC240
        before = waited()
        for kind in ("text", "binary", "whole"):
            await read(path, kind)
        async with files.open(path, "rb") as f:
            assert f.nowait == PLAIN
        assert waited() == before
    finally:
        path.unlink()  # noqa: ASYNC240


async def test_more_file_systems_than_are_remembered(tmp_path: Path) -> None:
    for device in range(100):
        page_cache.latch(1 << 40 | device)
    assert len(page_cache.without_nowait()) == 64
    async with files.open("/proc/version", "rb") as f:
        assert await f.pread(5, 0) == b"Linux"
        assert f.nowait == NOT


async def test_a_large_copy_does_not_hold_the_loop_up(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    os.truncate(path, 64 << 20)
    path.read_bytes()
    turns = 0
    for _ in range(20):
        reading = asyncio.ensure_future(files.read_bytes(path))
        turns = 0
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)
        assert len(await reading) == 64 << 20
        if turns > 50:
            break
    assert turns > 50
