"""aiounify.files.open: what other libraries get wrong, one test each, and the whole interface."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import io
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import aiounify
import aiounify.files as files
from aiounify.files.operation import service

if TYPE_CHECKING:
    from collections.abc import Callable


def write(path: Path, data: bytes) -> bytes:
    path.write_bytes(data)
    return data


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def blocking_stat(path: Path | str) -> os.stat_result:
    return Path(path).stat()


def descriptors() -> int:
    return len(names(Path("/proc/self/fd")))


@pytest.fixture(params=["full", "ring without operations"])
async def kernel(request: pytest.FixtureRequest) -> str:
    """The loop's backend as it is, and with a ring that knows no file operation."""
    if request.param != "full":
        shared = service()
        shared.ops = frozenset()
        shared.opens_cached = False
    return str(request.param)


# -- one handle, many users -----------------------------------------------------------


async def test_tasks_that_read_one_handle_get_each_chunk_once(tmp_path: Path, kernel: str) -> None:
    chunks = [bytes([i]) * 4096 for i in range(64)]
    write(tmp_path / "f", b"".join(chunks))
    async with files.open(tmp_path / "f", "rb") as f:
        got = await asyncio.gather(*(f.read(4096) for _ in range(64)))
        assert sorted(got) == chunks
        assert await f.read(1) == b""


async def test_tasks_that_read_one_handle_that_has_to_wait(tmp_path: Path, kernel: str) -> None:
    chunks = [bytes([i]) * 4096 for i in range(64)]
    write(tmp_path / "f", b"".join(chunks))
    async with files.open(tmp_path / "f", "rb", buffering=0) as f:
        f.nowait = 0  # as if nothing were in the page cache
        got = await asyncio.gather(*(f.read(4096) for _ in range(64)))
        assert sorted(got) == chunks


@pytest.mark.parametrize("mode", ["w", "a", "wb", "ab"])
async def test_tasks_that_write_lines_to_one_handle(tmp_path: Path, mode: str, kernel: str) -> None:
    async with files.open(tmp_path / "f", mode) as f:

        async def line(i: int) -> None:
            text = f"line {i} " + "x" * (i * 37 % 2000) + "\n"
            await f.write(text.encode() if "b" in mode else text)

        await asyncio.gather(*(line(i) for i in range(200)))
    found = (tmp_path / "f").read_text().splitlines()
    assert sorted(int(text.split()[1]) for text in found) == list(range(200))
    assert all(len(text.split(" ")[2]) == int(text.split()[1]) * 37 % 2000 for text in found)


async def test_append_beside_another_writer(tmp_path: Path, kernel: str) -> None:
    path = tmp_path / "f"
    async with files.open(path, "a") as f:
        await f.write("one\n")
        await f.flush()
        with path.open("a") as other:
            other.write("two\n")
        await f.write("three\n")
        await f.flush()
        assert await f.tell() == len("one\ntwo\nthree\n")
    assert path.read_text() == "one\ntwo\nthree\n"


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


# -- errors -----------------------------------------------------------------------------


async def test_no_space(kernel: str) -> None:
    f = await files.open("/dev/full", "wb")
    await f.write(b"x")
    with pytest.raises(OSError) as caught:
        await f.flush()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
    with pytest.raises(OSError, match="No space"):
        await f.close()
    assert f.closed


async def test_input_output_error(kernel: str) -> None:
    async with files.open("/proc/self/mem", "rb", buffering=0) as f:
        with pytest.raises(OSError) as caught:
            await f.read(10)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "/proc/self/mem")


async def test_missing_file_and_directory(tmp_path: Path, kernel: str) -> None:
    missing = str(tmp_path / "missing")
    for call in (files.open(missing), files.read_bytes(missing), files.os.stat(missing)):
        with pytest.raises(FileNotFoundError) as caught:
            await call
        assert caught.value.filename == missing
    for mode in ("r", "w", "rb", "r+"):
        with pytest.raises(IsADirectoryError) as wrong:
            await files.open(str(tmp_path), mode)
        assert wrong.value.filename == str(tmp_path)


async def test_wrong_mode(tmp_path: Path) -> None:
    for kind in ("", "b"):
        async with files.open(tmp_path / "f", "w" + kind) as f:
            for call in (f.read(), f.readline(), f.read(3)):
                with pytest.raises(io.UnsupportedOperation):
                    await call
        async with files.open(tmp_path / "f", "r" + kind) as f:
            with pytest.raises(io.UnsupportedOperation):
                await f.write(b"x" if kind else "x")


async def test_wrong_arguments(tmp_path: Path) -> None:
    for arguments, message in (
        (("f", "rz"), "invalid mode"),
        (("f", "rw"), "exactly one"),
        (("f", "rbt"), "text and binary"),
        (("f", "rb", -1, "utf-8"), "encoding"),
        (("f", "r", 0), "unbuffered text"),
        (("f", "r", -1, None, None, "x"), "newline"),
        (("f\0", "r"), "null byte"),
    ):
        with pytest.raises(ValueError, match=message):
            await files.open(*arguments)
    with pytest.raises(LookupError):
        await files.open(tmp_path / "f", "w", encoding="nothing")


async def test_use_after_close_never_reads_another_file(tmp_path: Path, kernel: str) -> None:
    write(tmp_path / "f", b"mine")
    write(tmp_path / "secret", b"SECRET")
    for kind in ("rb", "r"):
        async with files.open(tmp_path / "f", kind) as f:
            number = f.fileno()
        with (tmp_path / "secret").open("rb") as other:
            assert other.fileno() == number
            calls = [f.read(), f.read(2), f.readline(), f.tell(), f.seek(0), f.flush()]
            if kind == "rb":
                calls += [f.pread(2, 0), f.peek(), f.read1(), f.readinto(bytearray(2))]
            for call in calls:
                with pytest.raises(ValueError, match="closed"):
                    await call
            with pytest.raises(ValueError, match="closed"):
                [line async for line in f]
            with pytest.raises(ValueError, match="closed"):
                f.fileno()
        await f.close()


async def test_close_waits_for_what_is_in_flight(tmp_path: Path, kernel: str) -> None:
    data = write(tmp_path / "f", os.urandom(1 << 20))
    for _ in range(20):
        f = await files.open(tmp_path / "f", "rb")
        f.nowait = 0
        reads = [asyncio.create_task(f.pread(1 << 16, i << 16)) for i in range(16)]
        await asyncio.sleep(0)
        await f.close()
        assert b"".join(await asyncio.gather(*reads)) == data


def test_another_loop_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        await files.open(tmp_path / "f", "w")

    with (
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
        pytest.raises(RuntimeError, match="aiounify"),
    ):
        runner.run(main())


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


# -- the rest of the interface --------------------------------------------------------------


async def test_paths_of_bytes_and_surrogates(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe"
    for name in (raw, os.fsdecode(raw)):
        async with files.open(name, "w") as f:
            await f.write("text")
            assert f.name == name
        assert await files.read_bytes(name) == b"text"
        assert await files.os.path.getsize(name) == 4
        await files.os.unlink(name)


async def test_descriptors_and_openers(tmp_path: Path) -> None:
    write(tmp_path / "f", b"0123456789")
    fd = os.open(tmp_path / "f", os.O_RDWR)
    async with files.open(fd, "rb", closefd=False) as f:
        assert await f.read(3) == b"012"
    assert os.read(fd, 2) == b"34"  # the offset is where the handle was
    async with files.open(fd, "r") as f:
        assert await f.read(1) == "5"
        assert f.fileno() == fd
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    directory = os.open(tmp_path, os.O_RDONLY)

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, dir_fd=directory)

    async with files.open("f", "rb", opener=opener) as f:
        assert await f.read() == b"0123456789"
    os.close(directory)
    with pytest.raises(ValueError, match="closefd"):
        await files.open(tmp_path / "f", closefd=False)


async def test_positional_and_vectored(tmp_path: Path, kernel: str) -> None:
    async with files.open(tmp_path / "f", "w+b") as f:
        await f.write(b"abc")
        assert await f.pwrite(b"XYZ" * 1000, 10) == 3000
        assert await f.pwritev([b"1", b"", b"22"], 3) == 3
        assert await f.pread(20, 0) == b"abc122" + bytes(4) + b"XYZXYZXYZX"
        one, two = bytearray(3), bytearray(4)
        assert await f.preadv([one, two], 0) == 7
        assert bytes(one + two) == b"abc122\0"
        await f.seek(0)
        assert await f.readv([one, two]) == 7
        await f.fdatasync()
        assert await f.writev([b"p", b"q"]) == 2
        assert await f.tell() == 9
        await f.fsync()
    assert (tmp_path / "f").read_bytes()[:12] == b"abc122\0pq\0XY"


async def test_space(tmp_path: Path, kernel: str) -> None:
    async with files.open(tmp_path / "f", "w+b") as f:
        try:
            await f.fallocate(0, 1 << 20)
        except OSError as exc:
            assert exc.errno == errno.EOPNOTSUPP
            pytest.skip("this file system has no fallocate")
        assert (await f.statx()).size == 1 << 20
        await f.fallocate(0, 2 << 20, keep_size=True)
        assert (await f.statx()).size == 1 << 20
        await f.pwrite(b"x" * (1 << 20), 0)
        await f.punch_hole(0, 1 << 19)
        assert await f.pread(10, 100) == bytes(10)
        assert await f.pread(10, 1 << 19) == b"x" * 10


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("what", ["fifo", "flush", "direct"])
def test_loop_closed_with_operations_in_flight(
    loop_factory: Callable[[], aiounify.EventLoop], tmp_path: Path, what: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    write(tmp_path / "f", bytes(1 << 16))
    loop = loop_factory()
    kept: list[Any] = []

    async def main() -> None:
        if what == "fifo":
            f = await files.open(tmp_path / "fifo", "rb")
            kept.append(asyncio.ensure_future(f.read(1)))
        elif what == "flush":
            f = await files.open(tmp_path / "g", "wb")
            await f.write(bytes(1 << 20))
        else:
            f = await files.open(tmp_path / "f", "rb", direct=True)
            kept.append(asyncio.ensure_future(f.read(4096)))
        kept.append(f)
        await asyncio.sleep(0)

    try:
        loop.run_until_complete(main())
    except OSError as exc:
        assert (what, exc.errno) == ("direct", errno.EINVAL)
    loop.close()
    for item in kept:
        if isinstance(item, asyncio.Task):
            item._log_destroy_pending = False  # type: ignore[attr-defined]
            del item
    while any(t.name.startswith("aiounify-files") for t in threading.enumerate()):
        time.sleep(0.001)
    kept.clear()
    gc.collect()


async def test_copy_range(tmp_path: Path) -> None:
    data = write(tmp_path / "f", os.urandom(100_000))
    async with files.open(tmp_path / "f", "rb") as one, files.open(tmp_path / "g", "wb") as two:
        assert await one.copy_range(two, 1 << 20, 10) == 99_990
    assert (tmp_path / "g").read_bytes() == data[10:]


async def test_locks(tmp_path: Path) -> None:
    write(tmp_path / "f", b"x" * 100)
    async with files.open(tmp_path / "f", "r+b") as one, files.open(tmp_path / "f", "r+b") as two:
        for take in ("flock", "lock"):
            async with getattr(one, take)():
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        async with getattr(two, take)():
                            pass
            async with getattr(two, take)():
                pass
            async with getattr(one, take)(shared=True), getattr(two, take)(shared=True):
                pass
        async with one.lock(0, 10), two.lock(10, 10):
            pass


async def test_whole_files(tmp_path: Path, kernel: str) -> None:
    path = tmp_path / "f"
    for atomic in (False, True):
        for data in (b"", b"x", os.urandom(5 << 20)):
            assert await files.write_bytes(path, data, atomic=atomic) == len(data)
            assert await files.read_bytes(path) == data
    path.chmod(0o640)
    assert await files.write_text(path, "é\n", "utf-8", newline="\r\n", atomic=True) == 2
    assert path.read_bytes() == b"\xc3\xa9\r\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert await files.read_text(path, "utf-8") == "é\n"
    assert names(tmp_path) == ["f"]


async def test_cancelled_atomic_write_leaves_the_old_file(tmp_path: Path, kernel: str) -> None:
    path = tmp_path / "f"
    old = write(path, b"old")
    new = b"new" * 100_000
    for i in range(30):
        task = asyncio.ensure_future(files.write_bytes(path, new, atomic=True))
        for _ in range(i % 10):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert path.read_bytes() in (old, new)
        assert names(tmp_path) == ["f"]


async def test_calls_can_be_tasks(tmp_path: Path) -> None:
    write(tmp_path / "f", b"data\n")
    task = asyncio.create_task(files.read_bytes(tmp_path / "f"))
    assert await task == b"data\n"
    async with asyncio.timeout(5), files.open(tmp_path / "f", "rb") as f:
        assert await asyncio.create_task(f.read(4)) == b"data"
        assert await asyncio.wait_for(f.readline(), 5) == b"\n"
        done = f.read(1)
        assert await done == b""
        with pytest.raises(RuntimeError, match="already awaited"):
            await done


async def test_unclosed_file_warns_and_keeps_what_was_written(tmp_path: Path) -> None:
    f = await files.open(tmp_path / "f", "wb")
    await f.write(b"kept")
    with pytest.warns(ResourceWarning, match="unclosed file"):
        del f
        gc.collect()
    assert (tmp_path / "f").read_bytes() == b"kept"


async def test_a_failed_write_behind_is_told(tmp_path: Path) -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    f = await files.open(tmp_path / "f", "wb")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError) as caught:
            for _ in range(10):
                await f.write(bytes(50_000))
            await f.flush()
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "f"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
        await asyncio.gather(f.close(), return_exceptions=True)
    assert f.closed


async def test_attributes(tmp_path: Path) -> None:
    async with files.open(tmp_path / "f", "w+", encoding="latin-1", errors="replace") as f:
        assert (f.mode, f.encoding, f.errors, f.closed) == ("w+", "latin-1", "replace", False)
        assert f.line_buffering is False
        assert f.newlines is None
        assert f.name == f.buffer.name == str(tmp_path / "f")
        for question in ("readable", "writable", "seekable"):
            assert await getattr(f, question)() is True
        assert await f.isatty() is False
        await f.write("☃")
        await f.seek(0)
        assert await f.readlines() == ["?"]
    assert f.closed


def test_programs_written_for_aiofiles(
    run_program: Callable[..., Any], backend: str, tmp_path: Path
) -> None:
    done = run_program("written_for_aiofiles", tmp_path, AIOUNIFY_BACKEND=backend)
    assert done.stdout == "ok\n"
