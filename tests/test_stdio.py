"""aiounify.files.stdin and its kin: on pipes, terminals, files and what stands in for them."""

import asyncio
import io
import os
import pty
import random
import sys
import tempfile

import pytest

from aiounify import files
from aiounify.files import stdio

HANG = 30


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(stdio, "_input", stdio._Input())


@pytest.fixture
def pipe_in(monkeypatch):
    """The descriptor that writes to standard input; the test may close it."""
    r, w = os.pipe()
    with open(r, encoding="utf-8") as reader, open(w, "wb", buffering=0) as writer:
        monkeypatch.setattr(sys, "stdin", reader)
        yield writer


@pytest.fixture
def pipe_out(monkeypatch):
    """Returns what reads from standard output, which pytest sets before each test."""
    r, w = os.pipe()
    with open(r, "rb", buffering=0) as reader, open(w, "w", encoding="utf-8") as writer:

        def install():
            monkeypatch.setattr(sys, "stdout", writer)
            return reader

        yield install


async def turns(n):
    for _ in range(n):
        await asyncio.sleep(0)


# -- reading ------------------------------------------------------------------------------------


async def test_lines(pipe_in):
    pipe_in.write(b"one\nt")
    assert await files.stdin.readline() == "one\n"
    task = asyncio.create_task(files.stdin.readline())
    await turns(5)
    assert not task.done()
    pipe_in.write("wö\r\nthree".encode())
    assert await task == "twö\n"
    pipe_in.close()
    assert [line async for line in files.stdin] == ["three"]
    assert await files.stdin.readline() == ""


async def test_characters_in_pieces(pipe_in):
    async def feed():
        for byte in "äöü\n€uro":
            for each in byte.encode():
                pipe_in.write(bytes([each]))
                await turns(3)
        pipe_in.close()

    feeding = asyncio.create_task(feed())
    assert await files.stdin.read(2) == "äö"
    assert await files.stdin.readline() == "ü\n"
    assert await files.stdin.read() == "€uro"
    await feeding


async def test_bytes(pipe_in):
    pipe_in.write(b"0123456789\nabc\nrest")
    assert await files.stdin_bytes.read(4) == b"0123"
    assert await files.stdin_bytes.read1(3) == b"456"
    assert await files.stdin_bytes.readline(2) == b"78"
    assert await files.stdin_bytes.readline() == b"9\n"
    space = bytearray(2)
    assert await files.stdin_bytes.readinto(space) == 2
    assert space == b"ab"
    assert await files.stdin_bytes.read1() == b"c\nrest"
    pipe_in.close()
    assert await files.stdin_bytes.read() == b""
    assert await files.stdin_bytes.read1() == b""


async def test_lines_up_to_a_limit(pipe_in):
    pipe_in.write(b"long line\nb\nc\nd\n")
    pipe_in.close()
    assert await files.stdin.readline(4) == "long"
    assert await files.stdin.readline(0) == ""
    assert await files.stdin.readlines(6) == [" line\n"]
    assert await files.stdin_bytes.readlines() == []  # what stdin has decoded is text
    assert await files.stdin.readlines() == ["b\n", "c\n", "d\n"]


async def test_large_input(pipe_in):
    lines = [f"{i} {'x' * (i % 300)}\n" for i in range(5000)]
    loop = asyncio.get_running_loop()
    feeding = loop.run_in_executor(None, pipe_in.write, "".join(lines).encode())
    got = [await files.stdin.readline() for _ in lines]
    assert got == lines
    await feeding


async def test_a_cancelled_read_takes_nothing(pipe_in):
    for read in (files.stdin.readline, files.stdin.read, files.stdin_bytes.read):
        for n in range(4):
            task = asyncio.create_task(read())
            await turns(n)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    pipe_in.write(b"kept\n")
    assert await files.stdin.readline() == "kept\n"
    pipe_in.write(b"half a li")
    task = asyncio.create_task(files.stdin.readline())
    await turns(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pipe_in.write(b"ne\n")
    assert await files.stdin.readline() == "half a line\n"


async def test_many_readers(pipe_in):
    tasks = [asyncio.create_task(files.stdin.readline()) for _ in range(20)]
    await turns(3)
    for i in range(20):
        pipe_in.write(f"{i}\n".encode())
        await turns(i % 4)
    assert sorted(await asyncio.gather(*tasks), key=int) == [f"{i}\n" for i in range(20)]


def test_two_loops_one_after_the_other(pipe_in, loop_factory):
    pipe_in.write(b"one\ntwo\n")
    for expected in ("one\n", "two\n"):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            assert runner.run(files.stdin.readline()) == expected


async def test_file_as_input(monkeypatch, tmp_path):
    content = "".join(f"line {i}\n" for i in range(20_000))
    (tmp_path / "in").write_text(content)
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert await files.stdin.readline() == "line 0\n"
        assert "line 0\n" + await files.stdin.read() == content
        assert await files.stdin.seekable()


async def test_nothing_as_input(monkeypatch):
    with open("/dev/null") as file:  # noqa: ASYNC230 - nothing to wait for
        monkeypatch.setattr(sys, "stdin", file)
        assert await files.stdin.read() == ""


async def test_terminal(monkeypatch):
    ours, theirs = pty.openpty()
    with (
        open(ours, "r+b", buffering=0) as keys,  # noqa: ASYNC230
        open(theirs, closefd=False) as text,  # noqa: ASYNC230
        open(theirs, "w") as shown,  # noqa: ASYNC230
    ):
        monkeypatch.setattr(sys, "stdin", text)
        monkeypatch.setattr(sys, "stdout", shown)
        assert await files.stdin.isatty()
        task = asyncio.create_task(files.stdin.readline())
        await turns(5)
        keys.write(b"typed\n")
        assert await task == "typed\n"
        assert await files.stdout.write("shown") == 5
        got = b""
        while len(got) < 12:
            got += keys.read(100)
        assert got == b"typed\r\nshown"


# -- writing ------------------------------------------------------------------------------------


async def test_behind_print(pipe_out):
    reader = pipe_out()
    print("printed,", end="")
    assert await files.stdout.write(" wrötten,") == 9
    assert await files.stdout_bytes.write(b" bytes") == 6
    await files.stdout.writelines([" a", " b"])
    await files.stdout_bytes.writelines([b" c", b" d"])
    assert reader.read(100).decode() == "printed, wrötten, bytes a b c d"
    print("more", end="")
    await files.stdout.flush()
    assert reader.read(100) == b"more"


async def test_slow_reader(pipe_out):
    """Each write goes out whole, and the loop runs."""
    reader = pipe_out()
    loop = asyncio.get_running_loop()
    texts = [chr(97 + i) * 150_000 for i in range(5)]
    tasks = [asyncio.create_task(files.stdout.write(text)) for text in texts]
    await turns(20)
    assert not any(task.done() for task in tasks)
    got = bytearray()
    while len(got) < 750_000:
        got += await loop.run_in_executor(None, reader.read, 10_000)
    assert got.decode() == "".join(texts)
    assert await asyncio.gather(*tasks) == [150_000] * 5


async def test_cancelled_write(pipe_out):
    reader = pipe_out()
    task = asyncio.create_task(files.stdout_bytes.write(random.Random(1).randbytes(1_000_000)))
    await turns(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    written = len(reader.read(1 << 20))
    assert 0 < written < 1_000_000
    await files.stdout.write("next")
    assert reader.read(100) == b"next"


async def test_reader_that_is_gone(pipe_out):
    reader = pipe_out()
    reader.close()
    with pytest.raises(BrokenPipeError):
        await files.stdout.write("x")


async def test_file_as_output(monkeypatch):
    with tempfile.TemporaryFile("w+") as file:
        monkeypatch.setattr(sys, "stderr", file)
        print("one", file=sys.stderr)
        await files.stderr.write("two\n")
        await files.stderr_bytes.write(b"three\n")
        assert await files.stderr.tell() == 14
        file.seek(0)
        assert file.read() == "one\ntwo\nthree\n"


# -- what stands in their place --------------------------------------------------------------------


async def test_objects_without_a_descriptor(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\ndef\nghi\n")))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), write_through=True))
    assert await files.stdin.readline() == "abc\n"
    assert [line async for line in files.stdin] == ["def\n", "ghi\n"]
    assert await files.stdin.read() == ""
    assert await files.stdin_bytes.read() == b""
    await files.stdout.write("x")
    await files.stdout_bytes.write(b"y")
    await files.stdout.flush()
    assert sys.stdout.buffer.getvalue() == b"xy"


async def test_attributes(pipe_in, pipe_out):
    pipe_out()
    assert files.stdin.fileno() == sys.stdin.fileno()
    assert files.stdin.encoding == "utf-8"
    assert files.stdin.errors == sys.stdin.errors
    assert files.stdin.buffer is sys.stdin.buffer
    assert files.stdin.name == sys.stdin.name
    assert files.stdin.mode == sys.stdin.mode
    assert files.stdin.line_buffering is False
    assert files.stdin.newlines is None
    assert not files.stdin.closed
    assert await files.stdin.readable()
    assert await files.stdout.writable()
    assert not await files.stdin.writable()
    assert not await files.stdin.isatty()
    assert not await files.stdin.seekable()
    assert repr(files.stdin_bytes) == "<aiounify.files.stdin_bytes>"


async def test_closed_or_absent(pipe_in, monkeypatch):
    await files.stdin.close()
    assert sys.stdin.closed
    with pytest.raises(ValueError, match="closed"):
        await files.stdin.read()
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="there is no"):
        await files.stdin.read()


def test_another_loop(pipe_in):
    with asyncio.Runner() as runner, pytest.raises(RuntimeError, match="aiounify"):
        runner.run(files.stdin.read())


def test_a_pending_read_does_not_keep_the_process(run_program, backend):
    """As a thread in read() would."""
    r, w = os.pipe()
    saved = os.dup(0)
    os.dup2(r, 0)
    try:
        run_program("pending_stdin", AIOUNIFY_BACKEND=backend)
    finally:
        os.dup2(saved, 0)
        for fd in (r, w, saved):
            os.close(fd)
