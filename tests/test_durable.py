"""write_durable(): a write and its fdatasync as one request."""

import asyncio
import errno
import os
import resource
import sys

import pytest

import aiounify
from aiounify import files
from aiounify._core.file_durable import DurableWrite, start_durable
from aiounify._core.reactor import NopOp
from aiounify.files.operation import service

FSYNC, WRITE = 3, 23


@pytest.fixture
def target(tmp_path):
    fd = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture
def fallback():
    """Take an operation from the ring, as on a kernel that has not got it."""

    def without(*ops):
        files_ = service()
        files_.ops = files_.ops - set(ops)

    return without


@pytest.mark.parametrize("missing", [(), (FSYNC,), (WRITE,)])
async def test_data_are_in_the_file(target, fallback, missing):
    fallback(*missing)
    assert await files.write_durable(target, b"abc", 0) == 3
    assert await files.write_durable(target, memoryview(b"defg"), 3) == 4
    assert await files.write_durable(target, bytearray(b"X"), 1) == 1
    assert await files.write_durable(target, b"", 0) == 0
    assert os.pread(target, 100, 0) == b"aXcdefg"


@pytest.mark.every_reactor
async def test_both_go_in_one_submission(target):
    loop = asyncio.get_running_loop()
    await files.write_durable(target, b"warm", 0)
    before = loop.stats()["operations"]
    await files.write_durable(target, b"abc", 0)
    after = loop.stats()["operations"]
    if loop.backend == "uring":
        assert sum(after.values()) - sum(before.values()) >= 2
    else:
        assert "write" not in after
        assert "fsync" not in after


async def test_a_handle_is_taken_for_its_descriptor(tmp_path):
    async with files.open(tmp_path / "log", "wb") as handle:
        assert await files.write_durable(handle, b"abc", 0) == 3
    assert (tmp_path / "log").read_bytes() == b"abc"


async def test_a_write_that_fails_is_not_synced(target):
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: ASYNC230
        with pytest.raises(OSError, match="No space left") as caught:
            await files.write_durable(full, b"abc", 0)
        assert caught.value.errno == errno.ENOSPC
        assert not isinstance(caught.value, files.SyncError)
        op = DurableWrite(full.fileno(), [b"abc"], 0)
        await start_durable(service(), op)
        assert op.ended
        assert op.written == -errno.ENOSPC
        assert op.result == -errno.ECANCELED
    with pytest.raises(OSError, match="Bad file descriptor"):
        await files.write_durable(1 << 20, b"abc", 0)
    with pytest.raises(ValueError, match="offset must be 0 or more"):
        await files.write_durable(target, b"abc", -1)


@pytest.mark.parametrize("missing", [(), (FSYNC,)])
async def test_a_sync_that_fails_has_an_error_of_its_own(fallback, missing):
    fallback(*missing)
    # what is written to it is taken, and it cannot be synced
    with open("/dev/null", "wb", buffering=0) as null:  # noqa: ASYNC230
        with pytest.raises(files.SyncError) as caught:
            await files.write_durable(null, b"abc", 0)
        assert caught.value.errno == errno.EINVAL


async def test_a_short_write_goes_on_and_is_not_synced_before_its_end(target):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        op = DurableWrite(target, [b"x" * 1500], 0)
        await start_durable(service(), op)
        assert (op.length_asked, op.written, op.result) == (1500, 1000, -errno.ECANCELED)
        with pytest.raises(OSError, match="File too large"):
            await files.write_durable(target, b"y" * 1500, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.pread(target, 2000, 0) == b"y" * 1000


@pytest.mark.every_reactor
async def test_a_ring_that_is_full_cuts_no_chain_in_two():
    """A sync that had lost its write would say EINVAL instead of not being made."""
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: ASYNC230
        ops = [DurableWrite(full.fileno(), [b"x"], 0) for _ in range(1001)]
        # with other operations between them, so that chains begin at odd entries too
        found = []
        for i, op in enumerate(ops):
            if i % 7 == 0:
                asyncio.get_running_loop()._submit(NopOp(), id)
            found.append(start_durable(service(), op))
        await asyncio.gather(*found)
        assert {(op.written, op.result) for op in ops} == {(-errno.ENOSPC, -errno.ECANCELED)}


async def test_many_at_once(tmp_path):
    fds = [os.open(tmp_path / str(i), os.O_RDWR | os.O_CREAT) for i in range(40)]
    try:
        done = await asyncio.gather(
            *(files.write_durable(fd, b"%d" % i, j) for i, fd in enumerate(fds) for j in range(10))
        )
        assert sum(done) == 40 * 10 + 30 * 10
    finally:
        for fd in fds:
            os.close(fd)


async def test_cancelling_waits_for_the_end(target):
    for _ in range(50):
        task = asyncio.create_task(files.write_durable(target, b"x" * 10_000, 0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert os.fstat(target).st_size == 10_000
        os.ftruncate(target, 0)


async def test_cancelled_before_it_began(target):
    task = asyncio.create_task(files.write_durable(target, b"x", 0))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.fstat(target).st_size == 0


async def test_buffers_are_released_and_nothing_is_kept(target):
    data = bytearray(b"x" * 100)
    before = sys.getrefcount(data)
    await files.write_durable(target, data, 0)
    data.append(1)  # BufferError while it is exported
    assert sys.getrefcount(data) == before


def test_a_loop_that_closes_ends_it(loop_factory, target):
    loop = loop_factory()

    async def begin():
        task = asyncio.ensure_future(files.write_durable(target, b"x" * 100_000, 0))
        await asyncio.sleep(0)
        return task

    task = loop.run_until_complete(begin())
    loop.close()
    # the task is never run again: that it is pending is not worth a message here
    task._log_destroy_pending = False
    with pytest.raises(RuntimeError):
        task.get_coro().throw(RuntimeError())


def test_under_another_loop(target):
    with pytest.raises(RuntimeError, match="needs aiounify's event loop"):
        asyncio.run(files.write_durable(target, b"x", 0))


def test_public_names():
    assert issubclass(aiounify.files.SyncError, OSError)
