"""Handles of aiounify.files: many users of one, errors, and the whole interface."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import io
import os
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from files_on_disk import names, write

import aiounify
import aiounify.files as files
from aiounify.files.operation import service

if TYPE_CHECKING:
    from collections.abc import Callable


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


MISSING = [1, 2, 3, 17, 18, 19, 21, 22, 23, 24, 35, 36, 37, 38, 39, 55]


@pytest.mark.parametrize("cached", [True, False])
async def test_a_ring_that_lacks_one_operation(tmp_path: Path, cached: bool) -> None:
    """As older kernels do: a thread makes that one, and all is as before."""
    shared = service()
    offered = shared.ops
    shared.opens_cached = cached
    for missing in (None, *MISSING):
        shared.ops = offered - {missing}
        top = tmp_path / str(missing)
        await files.os.mkdir(top)
        async with files.open(top / "f", "w+b") as f:
            f.nowait = 0
            await f.write(b"0123456789" * 1000)
            await f.fsync()
            await f.fdatasync()
            with contextlib.suppress(OSError):  # not on every file system
                await f.fallocate(0, 20_000, keep_size=True)
            assert await f.pwritev([b"ab", b"cd"], 4) == 4
            one, two = bytearray(3), bytearray(5)
            assert await f.preadv([one, two], 2) == 8
            assert one + two == b"23abcd89"
            assert await f.truncate(5000) == 5000
            assert (await f.statx()).size == 5000
            await f.seek(0)
            assert len(await f.read()) == 5000
        assert (await files.os.stat(top / "f")).st_size == 5000
        assert len(await files.read_bytes(top / "f")) == 5000
        await files.os.link(top / "f", top / "g")
        await files.os.symlink("g", top / "h")
        await files.os.rename(top / "g", top / "i")
        await files.os.replace(top / "i", top / "f")
        await files.os.unlink(top / "h")
        with pytest.raises(FileNotFoundError):
            await files.os.stat(top / "h")
        await files.os.unlink(top / "f")
        await files.os.unlink(top / "i")  # one file with two names is not renamed
        await files.os.rmdir(top)
