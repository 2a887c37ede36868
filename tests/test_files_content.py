"""What is read from a file and written to it: text, sizes, offsets, whole files over 2 GiB."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from files_on_disk import blocking_stat, write

import aiounify.files as files

if TYPE_CHECKING:
    pass


# -- what is in the file ----------------------------------------------------------------


async def test_proc_file_of_size_zero(kernel: str) -> None:
    async with files.open("/proc/self/status") as f:
        assert "VmRSS" in await f.read()
    assert b"VmRSS" in await files.read_bytes("/proc/self/status")
    async with files.open("/proc/self/status") as f:
        assert any(line.startswith("Pid:") for line in [line async for line in f])


TEXTS = [
    "é" * 200_001,
    "\r\n".join(f"{i} ünï🙂" for i in range(9_000)),
    "a" * 70_000 + "\r\n" + "b" * 300_000 + "\n" + "c" * 65_535 + "\r" + "\nlast",
    "\r" * 3_000 + "\n",
    "",
    "\n",
    "no end",
]


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
async def test_text_is_what_the_builtin_reads(
    tmp_path: Path, newline: str | None, encoding: str
) -> None:
    for number, text in enumerate(TEXTS):
        path = tmp_path / str(number)
        path.write_bytes(text.encode(encoding, "replace"))
        with path.open(encoding=encoding, newline=newline) as same:
            lines = same.readlines()
            ends = same.newlines
        async with files.open(path, encoding=encoding, newline=newline) as f:
            assert [line async for line in f] == lines
            assert f.newlines == ends
        async with files.open(path, encoding=encoding, newline=newline) as f:
            f.buffer.nowait = 0
            found = []
            while line := await f.readline():
                found.append(line)
            assert found == lines
        async with files.open(path, encoding=encoding, newline=newline) as f:
            assert await f.read() == "".join(lines)


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
async def test_text_is_written_as_by_the_builtin(
    tmp_path: Path, newline: str | None, encoding: str
) -> None:
    for mode in ("w", "a", "a"):
        with (tmp_path / "a").open(mode, encoding=encoding, newline=newline) as same:
            same.writelines(["one\n", "two\r\n", "dréi"])
        async with files.open(tmp_path / "b", mode, encoding=encoding, newline=newline) as f:
            await f.writelines(["one\n", "two\r\n", "dréi"])
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("newline", [None, ""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
async def test_tell_and_seek_of_text(tmp_path: Path, newline: str | None, encoding: str) -> None:
    text = "".join(f"{i} é🙂\r\n" for i in range(2000))
    (tmp_path / "f").write_bytes(text.encode(encoding))
    async with files.open(tmp_path / "f", encoding=encoding, newline=newline) as f:
        whole = await f.read()
        for n in (0, 1, 3, 4, 5, 777, 6, 2000):
            await f.seek(0)
            assert await f.read(n) == whole[:n]
            cookie = await f.tell()
            await f.read(100)
            assert await f.seek(cookie) == cookie
            assert await f.read(50) == whole[n : n + 50]
            with (tmp_path / "f").open(encoding=encoding, newline=newline) as same:
                same.seek(cookie)  # a cookie means the same to the builtin
                assert same.read(50) == whole[n : n + 50]


async def test_random_calls_do_what_the_builtin_does(tmp_path: Path, kernel: str) -> None:
    import random

    chosen = random.Random(4)
    path = tmp_path / "a"
    other = tmp_path / "b"
    data = bytes(chosen.choices(b"abc\n", k=200_000))
    write(path, data)
    write(other, data)
    with other.open("r+b") as same:
        async with files.open(path, "r+b", buffering=chosen.choice([-1, 100])) as f:
            for _ in range(600):
                n = chosen.choice([0, 1, 7, 4096, 70_000])
                match chosen.randrange(8):
                    case 0:
                        assert await f.read(n) == same.read(n)
                    case 1:
                        assert await f.readline() == same.readline()
                    case 2:
                        where = chosen.randrange(220_000)
                        assert await f.seek(where) == same.seek(where)
                    case 3:
                        assert await f.write(b"W" * n) == same.write(b"W" * n)
                    case 4:
                        assert await f.tell() == same.tell()
                    case 5:
                        one, two = bytearray(n), bytearray(n)
                        assert await f.readinto(one) == same.readinto(two)
                        assert one == two
                    case 6 if chosen.random() < 0.2:
                        assert await f.truncate() == same.truncate()
                    case 7:
                        same.flush()
                        here = same.tell()
                        assert await f.pread(n, 1000) == os.pread(same.fileno(), n, 1000)
                        assert await f.seek(-3, 2) == same.seek(-3, 2)
                        assert await f.seek(here) == same.seek(here)
    assert path.read_bytes() == other.read_bytes()


async def test_file_over_two_gibibytes(tmp_path: Path) -> None:
    size = (2 << 30) + (200 << 20)
    with (tmp_path / "f").open("wb") as f:
        f.truncate(size)
        f.seek(size - 4)
        f.write(b"last")
    async with files.open(tmp_path / "f", "r+b") as big:
        assert await big.seek(0, os.SEEK_END) == size
        await big.seek(-10, os.SEEK_END)
        assert await big.read() == bytes(6) + b"last"
        assert await big.pread(10, size - 4) == b"last"
        await big.pwrite(b"far", size + 10)
        assert await big.truncate(size + 1) == size + 1
    assert (tmp_path / "f").stat().st_size == size + 1


@pytest.mark.parametrize("size", [(2 << 30) + 8, (4 << 30) + 8, (1 << 40) + 8])
async def test_offsets_beyond_two_and_four_gibibytes(
    tmp_path: Path, kernel: str, size: int
) -> None:
    with (tmp_path / "f").open("wb") as f:  # sparse: it takes no room
        f.truncate(size)
        os.pwrite(f.fileno(), b"12345678", size - 8)
    assert (await files.os.stat(tmp_path / "f")).st_size == size
    async with files.open(tmp_path / "f", "r+b") as f:
        assert await f.pread(100, size - 8) == b"12345678"
        assert await f.seek(size - 12) == size - 12
        assert await f.read(6) == bytes(4) + b"12"
        assert await f.tell() == size - 6
        assert await f.readline() == b"345678"
        assert await f.read() == b""
        await f.write(b"more\n")
        await f.flush()
        assert (await f.statx()).size == size + 5
        assert await f.seek(-5, os.SEEK_END) == size
        assert [line async for line in f] == [b"more\n"]


@pytest.mark.parametrize("ask", [files.os.stat, files.read_bytes])
async def test_a_null_byte_in_a_path(tmp_path: Path, kernel: str, ask: Any) -> None:
    write(tmp_path / "f", b"x")
    for path in (f"{tmp_path}/f\0more", os.fsencode(tmp_path) + b"/f\0more"):
        with pytest.raises(ValueError, match="null byte"):
            await ask(path)


async def test_stat_is_what_os_stat_says(tmp_path: Path, kernel: str) -> None:
    write(tmp_path / "f", b"x" * 5000)
    os.utime(tmp_path / "f", ns=(-1_500_000_000, 4_000_000_000_123_456_789))
    for path in (tmp_path / "f", tmp_path, "/dev/null", "/"):
        for _ in range(4):  # the first few are compared inside
            found = await files.os.stat(path)
            assert type(found) is os.stat_result
            expected = blocking_stat(path)
            for name in dir(expected):
                if name.startswith("st_") and "atime" not in name:
                    assert getattr(found, name) == getattr(expected, name), (path, name)
            assert tuple(found)[:7] == tuple(expected)[:7]


async def test_a_call_steps_as_a_coroutine_does(tmp_path: Path) -> None:
    write(tmp_path / "f", b"some")
    async with files.open(tmp_path / "f", "rb") as f:
        assert await f.pread(4, 0) == b"some"  # in the page cache now
        if not f.nowait:
            pytest.skip("this file system has no RWF_NOWAIT (overlayfs)")
        for step in (lambda call: call.send(None), lambda call: call.__next__(), next):
            call = f.pread(4, 0)
            with pytest.raises(StopIteration) as ended:
                step(call)
            assert ended.value.value == b"some"
            with pytest.raises(RuntimeError, match="already awaited"):
                step(call)
        call = f.pread(4, 0)
        with pytest.raises(TypeError, match="just-started"):
            call.send(1)
        call.close()
        task = asyncio.create_task(f.pread(4, 0))
        assert await task == b"some"
        kept = [await f.pread(2, i) for i in range(3)]
        assert kept == [b"so", b"om", b"me"]


async def test_a_whole_file_over_two_gibibytes_in_pieces(tmp_path: Path) -> None:
    size = (2 << 30) + (200 << 20)
    mark = 2 << 30
    with (tmp_path / "f").open("wb") as f:  # sparse: it takes no room on the disk
        f.truncate(size)
        os.pwrite(f.fileno(), b"border", mark - 3)
        os.pwrite(f.fileno(), b"end", size - 3)
    room = bytearray(64 << 20)
    at = 0
    async with files.open(tmp_path / "f", "rb") as f:
        while n := await f.readinto(room):
            for where, data in ((mark - 3, b"bor"), (mark, b"der"), (size - 3, b"end")):
                if at <= where < at + n:
                    assert room[where - at : where - at + 3] == data
            at += n
            os.posix_fadvise(f.fileno(), 0, at, os.POSIX_FADV_DONTNEED)
        assert at == await f.tell() == size
        await f.seek(mark - (4 << 20))
        crossing = await f.read(8 << 20)
        assert crossing == b"border".rjust((4 << 20) + 3, b"\0").ljust(8 << 20, b"\0")


@pytest.mark.skipif(not os.environ.get("AIOUNIFY_STRESS"), reason="takes 2.2 GiB of memory")
async def test_read_all_of_a_file_over_two_gibibytes(tmp_path: Path) -> None:
    size = (2 << 30) + (200 << 20)
    with (tmp_path / "f").open("wb") as f:
        f.truncate(size)
    assert len(await files.read_bytes(tmp_path / "f")) == size


async def test_a_detached_handle_can_do_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one\ntwo\n")
    file = await files.open(path, "r+")
    assert await file.readline() == "one\n"
    await file.seek(0, os.SEEK_END)
    await file.write("three\n")
    buffer = file.detach()
    for call in (
        file.read,
        file.readline,
        file.tell,
        file.flush,
        file.close,
        file.readable,
        lambda: file.write("x"),
        lambda: file.seek(0),
        file.__anext__,
    ):
        with pytest.raises(ValueError, match="detached"):
            await call()
    for look in (file.detach, file.fileno, lambda: file.closed):
        with pytest.raises(ValueError, match="detached"):
            look()
    await buffer.seek(0)
    assert await buffer.read() == b"one\ntwo\nthree\n"
    await buffer.close()

    with pytest.raises(ValueError, match="detached"):
        async with files.open(path) as file:
            buffer = file.detach()
    assert not buffer.closed
    await buffer.close()
    file = await files.open(path)
    await file.close()
    with pytest.raises(ValueError, match="closed"):
        file.detach()
