"""aiounify.files.tempfile: made, used, and gone."""

import asyncio
import gc
import os
import tempfile
from pathlib import Path

import pytest

from aiounify import files
from aiounify.files.tempfile import (
    NamedTemporaryFile,
    SpooledTemporaryFile,
    TemporaryDirectory,
    TemporaryFile,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where temporary files go; empty at the end of every test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    gc.collect()
    assert list(folder.iterdir()) == []


def inside(folder):
    return sorted(os.listdir(folder))  # noqa: PTH208


# -- without a name ------------------------------------------------------------------------------


async def test_file(folder):
    async with TemporaryFile() as file:
        assert inside(folder) == []
        assert await file.write(b"abc\ndef") == 7
        await file.seek(0)
        assert [line async for line in file] == [b"abc\n", b"def"]
    assert file.closed


async def test_file_awaited():
    file = await TemporaryFile("w+", encoding="latin1", newline="\r\n")
    await file.write("ä\n")
    await file.flush()
    assert os.pread(file.fileno(), 10, 0) == b"\xe4\r\n"
    await file.close()


async def test_file_where_there_is_no_o_tmpfile(folder, monkeypatch):
    # what a file system answers that does not have it
    real = os.open

    def refuse(path, flags, mode=0o777, **how):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "not supported", path)
        return real(path, flags, mode, **how)

    monkeypatch.setattr(os, "open", refuse)
    async with TemporaryFile(prefix="my", suffix=".x") as file:
        assert inside(folder) == []
        await file.write(b"abc")


async def test_no_such_directory(folder):
    for make in (TemporaryFile, NamedTemporaryFile, TemporaryDirectory):
        with pytest.raises(FileNotFoundError):
            await make(dir=str(folder / "none"))


async def test_bad_mode():
    for make in (TemporaryFile, NamedTemporaryFile):
        with pytest.raises(ValueError):
            await make("nonsense")


@pytest.mark.parametrize("make", [TemporaryFile, NamedTemporaryFile, TemporaryDirectory])
async def test_nothing_is_left_of_what_was_cancelled(make):
    async def enter():
        async with make():
            await asyncio.sleep(0)

    for n in range(12):
        task = asyncio.create_task(enter())
        for _ in range(n):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])


# -- with a name ---------------------------------------------------------------------------------


async def test_named(folder):
    async with NamedTemporaryFile(prefix="my", suffix=".txt") as file:
        path = Path(file.name)
        assert inside(folder) == [path.name]
        assert (path.name[:2], path.suffix) == ("my", ".txt")
        await file.write(b"one\ntwo\n")
        await file.flush()
        assert await files.Path(path).read_bytes() == b"one\ntwo\n"
        await file.seek(0)
        assert [line async for line in file] == [b"one\n", b"two\n"]
        assert file.delete
        assert repr(file).startswith(f"<NamedFile '{path}'")
    assert inside(folder) == []
    assert file.closed


async def test_named_and_closed(folder):
    file = await NamedTemporaryFile("w")
    await file.write("x")
    assert len(inside(folder)) == 1
    await file.close()
    assert inside(folder) == []
    await file.close()


async def test_named_removed_by_others(folder):
    async with NamedTemporaryFile() as file:
        Path(file.name).unlink()  # noqa: ASYNC240


async def test_named_removed_later(folder):
    async with NamedTemporaryFile("w", delete_on_close=False) as file:
        await file.write("kept")
        await file.close()
        assert await files.Path(file.name).read_text() == "kept"


async def test_named_and_kept(folder):
    async with NamedTemporaryFile(delete=False) as file:
        pass
    assert inside(folder) == [Path(file.name).name]
    Path(file.name).unlink()  # noqa: ASYNC240


async def test_named_and_forgotten(folder):
    file = await NamedTemporaryFile(delete_on_close=False)
    await file.close()
    assert len(inside(folder)) == 1
    del file
    gc.collect()
    assert inside(folder) == []


async def test_a_child_removes_nothing(folder):
    async with NamedTemporaryFile() as file:
        child = os.fork()
        if not child:
            del file
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)  # noqa: ASYNC222 - it ends at once
        assert inside(folder) == [Path(file.name).name]


# -- in memory -----------------------------------------------------------------------------------


async def test_spooled_in_memory():
    async with SpooledTemporaryFile(max_size=100) as file:
        assert await file.write(b"one\ntwo\n") == 8
        await file.writelines([b"three\n", b"four"])
        assert await file.tell() == 18
        assert await file.seek(0) == 0
        assert await file.readline() == b"one\n"
        assert await file.read(2) == b"tw"
        assert await file.readlines() == [b"o\n", b"three\n", b"four"]
        assert await file.truncate(5) == 5
        await file.seek(0)
        assert await file.read() == b"one\nt"
        await file.seek(0)
        space = bytearray(3)
        assert await file.readinto(space) == 3
        assert space == b"one"
        await file.flush()
        assert not await file.isatty()
        assert file.name is None
        assert (file.mode, file.encoding, file.errors, file.newlines) == ("w+b", None, None, None)
        assert "in memory" in repr(file)
    assert file.closed


@pytest.mark.parametrize("how", ["size", "fileno", "rollover", "truncate"])
async def test_spooled_and_rolled_over(how):
    async with SpooledTemporaryFile(max_size=10) as file:
        await file.write(b"0123456789")
        assert file.name is None
        await file.seek(4)
        if how == "size":
            await file.seek(0, os.SEEK_END)
            await file.write(b"a")
            await file.seek(4)
        elif how == "fileno":
            assert os.fstat(await file.fileno()).st_size == 10
        elif how == "truncate":
            await file.truncate(20)
        else:
            await file.rollover()
            await file.rollover()
        assert file.name is not None
        assert await file.tell() == 4
        assert await file.read(3) == b"456"
        await file.write(b"X")
        await file.seek(0)
        assert (await file.read()).startswith(b"0123456X89")
        await file.flush()


async def test_spooled_text():
    async with SpooledTemporaryFile(max_size=12, mode="w+", encoding="utf-8") as file:
        await file.write("ä\nö\n")
        await file.seek(0)
        assert [line async for line in file] == ["ä\n", "ö\n"]
        assert (file.encoding, file.errors) == ("utf-8", "strict")
        await file.write("and more than fits")
        assert file.name is not None
        await file.write(", ü")
        await file.seek(0)
        assert await file.read() == "ä\nö\nand more than fits, ü"


async def test_spooled_without_a_limit():
    async with SpooledTemporaryFile() as file:
        await file.write(b"x" * 1_000_000)
        assert file.name is None


# -- directories ---------------------------------------------------------------------------------


async def test_directory(folder):
    async with TemporaryDirectory(prefix="my") as name:
        assert isinstance(name, str)
        path = files.Path(name)
        assert inside(folder) == [path.name]
        await (path / "a" / "b").mkdir(parents=True)
        await (path / "a" / "b" / "c").touch()
    assert inside(folder) == []


async def test_directory_awaited(folder):
    directory = await TemporaryDirectory()
    assert inside(folder) == [Path(directory.name).name]
    assert directory.name in repr(directory)
    await directory.cleanup()
    await directory.cleanup()


def test_another_loop():
    async def make(kind):
        await kind()

    for kind in (TemporaryFile, NamedTemporaryFile, SpooledTemporaryFile, TemporaryDirectory):
        with asyncio.Runner() as runner, pytest.raises(RuntimeError, match="aiounify"):
            runner.run(make(kind))
