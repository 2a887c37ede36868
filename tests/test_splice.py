"""aiounify.files.splice(): every byte once and in order, between all kinds of ends."""

import asyncio
import contextlib
import os
import random
import socket
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiounify import files
from aiounify._core import sendfile
from aiounify.files import splicing

HANG = 30
SIZE = 1_000_000
CONTENT = random.Random(11).randbytes(SIZE)


async def turns(n):
    for _ in range(n):
        await asyncio.sleep(0)


class Ends:
    """What a test opens, by number; closed at its end."""

    def __init__(self):
        self.open = set()

    def keep(self, *fds):
        self.open.update(fds)
        return fds

    def close(self, fd):
        self.open.discard(fd)
        os.close(fd)

    def pipe(self, blocking=False):
        r, w = self.keep(*os.pipe())
        os.set_blocking(r, blocking)
        os.set_blocking(w, blocking)
        return r, w

    def sockets(self):
        one, other = socket.socketpair()
        one.setblocking(False)
        other.setblocking(False)
        return self.keep(one.detach(), other.detach())

    def file(self, content=b""):
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            file.seek(0)
            return self.keep(os.dup(file.fileno()))[0]


@pytest.fixture
def ends():
    ends = Ends()
    yield ends
    for fd in ends.open:
        os.close(fd)


async def ready(fd, write):
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    add = loop.add_writer if write else loop.add_reader
    add(fd, lambda: waiter.done() or waiter.set_result(None))
    try:
        await waiter
    finally:
        (loop.remove_writer if write else loop.remove_reader)(fd)


async def feed(ends, fd, data):
    """Write all to a descriptor, then close it."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view[:50_000]) :]
        except BlockingIOError:
            await ready(fd, write=True)
    ends.close(fd)


async def drain(fd):
    """Read to the end of the stream."""
    got = bytearray()
    while True:
        try:
            data = os.read(fd, 50_000)
        except BlockingIOError:
            await ready(fd, write=False)
            continue
        if not data:
            return bytes(got)
        got += data


def source(ends, kind):
    """A source with CONTENT, and what feeds it."""
    if kind == "file":
        return ends.file(CONTENT), None
    out, into = ends.pipe() if kind == "pipe" else ends.sockets()
    return out, feed(ends, into, CONTENT)


def target(ends, kind):
    """A target, and what tells what came, once the target is closed."""
    if kind == "file":
        fd = ends.file()
        return fd, None
    out, into = ends.pipe() if kind == "pipe" else ends.sockets()
    return into, drain(out)


KINDS = ["pipe", "socket", "file"]


@pytest.mark.parametrize("kind_in", KINDS)
@pytest.mark.parametrize("kind_out", KINDS)
async def test_everything_to_everything(ends, kind_in, kind_out):
    fd, feeding = source(ends, kind_in)
    out, draining = target(ends, kind_out)
    through = files.Pipe() if "pipe" not in (kind_in, kind_out) else None
    tasks = [asyncio.create_task(c) for c in (feeding, draining) if c]
    async with asyncio.timeout(HANG):
        assert await files.splice(fd, out, through=through) == SIZE
        if kind_out == "file":
            assert os.pread(out, SIZE + 1, 0) == CONTENT
            assert os.lseek(out, 0, os.SEEK_CUR) == SIZE
        ends.close(out)
        results = await asyncio.gather(*tasks)
    if kind_out != "file":
        assert results[-1] == CONTENT
    if kind_in == "file":
        assert os.lseek(fd, 0, os.SEEK_CUR) == SIZE
    if through:
        assert through.pending == 0
        through.close()


@pytest.mark.parametrize("kind_out", KINDS)
@pytest.mark.parametrize("count", [0, 1, 70_000, SIZE, 1 << 70])
async def test_so_many_bytes_of_a_file(ends, kind_out, count):
    fd = ends.file(CONTENT)
    out, draining = target(ends, kind_out)
    task = asyncio.create_task(draining) if draining else None
    expected = CONTENT[10 : 10 + count]
    async with asyncio.timeout(HANG):
        assert await files.splice(fd, out, count, offset=10) == len(expected)
        got = os.pread(out, SIZE, 0) if kind_out == "file" else None
        ends.close(out)
        assert (await task if task else got) == expected
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0


async def test_position_of_a_file(ends):
    fd, (r, w) = ends.file(CONTENT), ends.pipe()
    os.lseek(fd, 500, os.SEEK_SET)
    assert await files.splice(fd, w, 100) == 100
    assert os.read(r, 1000) == CONTENT[500:600]
    assert os.lseek(fd, 0, os.SEEK_CUR) == 600


async def test_target_offset(ends):
    (r, w), out = ends.pipe(), ends.file(b"." * 10)
    os.write(w, b"abc")
    assert await files.splice(r, out, 2, target_offset=4) == 2
    assert await files.splice(r, out, 1) == 1
    assert os.pread(out, 20, 0) == b"c...ab...."
    assert os.lseek(out, 0, os.SEEK_CUR) == 1


async def test_so_many_bytes_of_a_stream(ends):
    """What comes behind them stays in the source."""
    (r, w), (r2, w2) = ends.pipe(), ends.pipe()
    task = asyncio.create_task(files.splice(r, w2, 10))
    os.write(w, b"01234")
    await turns(3)
    assert not task.done()
    os.write(w, b"56789abc")
    assert await task == 10
    assert os.read(r2, 100) == b"0123456789"
    assert os.read(r, 100) == b"abc"


async def test_blocking_pipes_do_not_block_the_loop(ends):
    (r, w), (r2, w2) = ends.pipe(blocking=True), ends.pipe(blocking=True)
    task = asyncio.create_task(files.splice(r, w2))
    await turns(5)
    os.write(w, b"late")
    ends.close(w)
    assert await asyncio.wait_for(task, HANG) == 4
    assert os.read(r2, 10) == b"late"


async def test_empty_source(ends):
    (r, w), (_, w2) = ends.pipe(), ends.pipe()
    ends.close(w)
    assert await files.splice(r, w2) == 0
    assert await files.splice(ends.file(), w2) == 0


async def test_source_that_is_a_file_object(tmp_path, ends):
    (tmp_path / "x").write_bytes(b"abc")
    r, w = ends.pipe()
    with (tmp_path / "x").open("rb") as file:
        assert await files.splice(file, w) == 3
    assert os.read(r, 9) == b"abc"


# -- files out of memory, and where the ring has no splice ----------------------------------------


@pytest.mark.parametrize("kind_out", KINDS)
async def test_file_out_of_memory(ends, kind_out):
    fd = ends.file(CONTENT)
    out, draining = target(ends, kind_out)
    task = asyncio.create_task(draining) if draining else None
    sendfile.distrust_memory(True)
    try:
        async with asyncio.timeout(HANG):
            assert await files.splice(fd, out, offset=3) == SIZE - 3
            got = os.pread(out, SIZE, 0) if kind_out == "file" else None
            ends.close(out)
            assert (await task if task else got) == CONTENT[3:]
    finally:
        sendfile.distrust_memory(False)


async def test_ring_without_splice(ends, monkeypatch):
    class Nothing:
        ops = frozenset()

    monkeypatch.setattr(splicing, "probe", Nothing)
    loop = asyncio.get_running_loop()
    (r, w), out = ends.pipe(), ends.file()
    feeding = asyncio.create_task(feed(ends, w, CONTENT))
    assert await files.splice(r, out) == SIZE
    await feeding
    assert os.pread(out, SIZE + 1, 0) == CONTENT
    assert "splice" not in loop.stats()["operations"]


async def test_files_are_written_by_the_ring(ends):
    loop = asyncio.get_running_loop()
    (r, w), out = ends.pipe(), ends.file()
    os.write(w, b"x")
    assert await files.splice(r, out, 1) == 1
    assert loop.stats()["operations"].get("splice", 0) == (loop.backend == "uring")


# -- cancellation ------------------------------------------------------------------------------


@given(
    plan=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 200_000)), max_size=25),
    size=st.sampled_from([4096, 65536, 1 << 18]),
    kind=st.sampled_from(["socket", "file"]),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_cancelled_at_any_point_nothing_is_lost(loop, plan, size, kind):
    """A proxy whose call is cancelled and made again."""

    async def main(ends):
        one, other = ends.sockets()
        out, draining = target(ends, kind)
        tasks = [asyncio.create_task(feed(ends, one, CONTENT))]
        if draining:
            tasks.append(asyncio.create_task(draining))
        with files.Pipe(size) as through:
            for n, count in plan:
                task = asyncio.create_task(files.splice(other, out, count, through=through))
                await turns(n)
                task.cancel()
                await asyncio.wait([task])
            await files.splice(other, out, through=through)
            assert through.pending == 0
        got = os.pread(out, SIZE + 1, 0) if kind == "file" else None
        ends.close(out)
        results = await asyncio.gather(*tasks)
        assert (results[-1] if draining else got) == CONTENT

    ends = Ends()
    try:
        loop.run_until_complete(asyncio.wait_for(main(ends), HANG))
    finally:
        for fd in ends.open:
            os.close(fd)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop._executor_shutdown_called = False
        loop._default_executor = None


@pytest.mark.parametrize("after", range(6))
async def test_cancelled_file_to_socket(ends, after):
    """The file's position is behind what the socket got."""
    fd, (one, other) = ends.file(CONTENT), ends.sockets()
    task = asyncio.create_task(files.splice(fd, one))
    await turns(after)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ends.close(one)
    got = await drain(other)
    assert got == CONTENT[: len(got)]
    assert os.lseek(fd, 0, os.SEEK_CUR) == len(got) < SIZE


async def test_both_ends_closed_meanwhile(ends):
    """It goes on with the files it began with."""
    (r, w), (r2, w2) = ends.pipe(), ends.pipe()
    task = asyncio.create_task(files.splice(r, w2))
    await turns(3)
    ends.close(r)
    ends.close(w2)
    wrong = ends.pipe()
    os.write(wrong[1], b"wrong")
    os.write(w, b"right")
    ends.close(w)
    assert await task == 5
    assert os.read(r2, 100) == b"right"


async def test_reader_goes_away(ends):
    (r, w), (r2, w2) = ends.pipe(), ends.pipe()
    os.write(w, b"x" * 1000)
    ends.close(r2)
    with pytest.raises(BrokenPipeError):
        await files.splice(r, w2)
    assert len(os.read(r, 2000)) == 1000


async def test_the_loop_runs_meanwhile(ends):
    """It waits, and does not try again and again."""
    loop = asyncio.get_running_loop()
    fd, (one, _) = ends.file(CONTENT), ends.sockets()
    task = asyncio.create_task(files.splice(fd, one))
    await turns(50)
    before = loop.stats()["syscalls"]
    await turns(200)
    assert not task.done()
    assert loop.stats()["syscalls"] - before < 100
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- what is refused --------------------------------------------------------------------------


async def test_bad_ends(ends, tmp_path):
    (r, w), fd, (one, other) = ends.pipe(), ends.file(b"abc"), ends.sockets()
    with pytest.raises(ValueError, match="through=Pipe"):
        await files.splice(one, other)
    with pytest.raises(ValueError, match="neither is a pipe"), files.Pipe() as through:
        await files.splice(r, one, through=through)
    with pytest.raises(ValueError, match="offset is for a source"):
        await files.splice(r, fd, offset=1)
    with pytest.raises(ValueError, match="target_offset is for"):
        await files.splice(fd, w, target_offset=1)
    with pytest.raises(ValueError, match="must not be negative"):
        await files.splice(fd, w, -1)
    with pytest.raises(ValueError, match="must not be negative"):
        await files.splice(fd, w, offset=-1)
    with pytest.raises(TypeError, match="fileno"):
        await files.splice("name", w)
    with pytest.raises(OSError) as caught:
        await files.splice(fd, 1 << 20)
    assert caught.value.errno == 9
    os.set_blocking(one, True)
    with pytest.raises(ValueError, match="non-blocking"):
        await files.splice(one, w)
    (tmp_path / "log").touch()
    with (tmp_path / "log").open("ab") as log, pytest.raises(ValueError, match="append"):
        await files.splice(r, log)
    directory = ends.keep(os.open(tmp_path, os.O_RDONLY))[0]
    with pytest.raises(IsADirectoryError):
        await files.splice(directory, w)


async def test_error_of_the_kernel(ends):
    """A pipe cannot be spliced into itself."""
    r, w = ends.pipe()
    os.write(w, b"x")
    with pytest.raises(OSError) as caught:
        await files.splice(r, w)
    assert caught.value.errno == 22


async def test_pipe_between(ends):
    (one, other), fd = ends.sockets(), ends.file(CONTENT)
    with pytest.raises(ValueError, match="size"):
        files.Pipe(0)
    through = files.Pipe()
    assert through.size >= 4096
    assert "0 of" in repr(through)
    task = asyncio.create_task(files.splice(fd, one, through=through))
    await turns(5)
    with pytest.raises(RuntimeError, match="another splice"):
        await files.splice(fd, one, through=through)
    with pytest.raises(RuntimeError, match="goes on"):
        through.close()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert through.pending > 0
    through.close()
    through.close()
    assert through.closed
    assert "closed" in repr(through)
    with pytest.raises(ValueError, match="closed"):
        await files.splice(fd, other, through=through)


def test_another_loop(ends):
    fd, (_, w) = ends.file(b"abc"), ends.pipe()
    with asyncio.Runner() as runner, pytest.raises(RuntimeError, match="aiounify"):
        runner.run(files.splice(fd, w))
