"""loop.sendfile() and loop.sock_sendfile(): all of the file, once, and the loop goes on."""

import asyncio
import contextlib
import io
import os
import random
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_transports import contexts, serving

from aiounify import files
from aiounify._core import sendfile
from aiounify._core.sendfile import BLOCKED, COLD, DONE, TURN, ReadAhead, Transfer
from aiounify.files import tempfile as tempfile_of_files

HANG = 30
SIZE = 3_000_000
CONTENT = random.Random(7).randbytes(SIZE)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sendfile") / "content"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def file(path):
    with path.open("rb") as file:
        yield file


@pytest.fixture
def cold():
    """Every file is read ahead before it is sent, as if the disk had to be waited for."""
    sendfile.distrust_memory(True)
    yield
    sendfile.distrust_memory(False)


@contextlib.contextmanager
def pair(kind="unix"):
    if kind == "unix":
        one, other = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            one = socket.create_connection(listener.getsockname())
            other, _ = listener.accept()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


async def receive(sock, n):
    loop = asyncio.get_running_loop()
    got = bytearray()
    while len(got) < n and (data := await loop.sock_recv(sock, min(1 << 16, n - len(got)))):
        got += data
    return bytes(got)


async def receive_all(sock):
    return await receive(sock, 1 << 62)


async def turns(n):
    for _ in range(n):
        await asyncio.sleep(0)


async def begun(other):
    """Something of the file has come, and a few turns more."""
    while True:
        try:
            if other.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                break
        except BlockingIOError:
            await asyncio.sleep(0)
    await turns(5)


class Peer(asyncio.Protocol):
    def __init__(self):
        self.data = bytearray()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.event = asyncio.Event()

    def data_received(self, data):
        self.data += data
        self.event.set()

    async def received(self, data):
        async with asyncio.timeout(HANG):
            while self.data != data:
                self.event.clear()
                await self.event.wait()

    def connection_lost(self, exc):
        self.lost.set_result(exc)


@contextlib.asynccontextmanager
async def transport_to(kind="unix"):
    """A transport, its protocol, and the socket at the other end."""
    with pair(kind) as (one, other):
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(Peer, sock=one)
        try:
            yield transport, protocol, other
        finally:
            transport.abort()
            await asyncio.wait_for(protocol.lost, HANG)


# -- what is sent, and where the file stands afterwards ------------------------------------------


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize(
    ("offset", "count"), [(0, None), (1, 1), (1000, 2_000_001), (SIZE - 1, 1 << 70), (SIZE, None)]
)
@pytest.mark.parametrize("through", ["socket", "transport"])
async def test_sends_what_was_asked_for(file, kind, offset, count, through):
    loop, expected = asyncio.get_running_loop(), CONTENT[offset:][:count]
    file.seek(5)
    async with contextlib.AsyncExitStack() as stack:
        if through == "socket":
            one, other = stack.enter_context(pair(kind))
            call = loop.sock_sendfile(one, file, offset, count, fallback=False)
        else:
            transport, _, other = await stack.enter_async_context(transport_to(kind))
            call = loop.sendfile(transport, file, offset, count, fallback=False)
        task = asyncio.create_task(call)
        assert await receive(other, len(expected)) == expected
        assert await task == len(expected)
    assert file.tell() == (offset + len(expected) if expected else 5)


async def test_position_of_a_file_that_was_read_from(file):
    """What Python has in its buffer does not confuse tell()."""
    loop = asyncio.get_running_loop()
    assert file.read(10) == CONTENT[:10]
    with pair() as (one, other):
        assert await loop.sock_sendfile(one, file, 20, 100) == 100
        assert await receive(other, 100) == CONTENT[20:120]
    assert file.tell() == 120
    assert file.read(5) == CONTENT[120:125]


async def test_nothing_is_arranged_for_a_small_file():
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile() as file:
        file.write(b"small")
        file.flush()
        async with transport_to() as (transport, _, other):
            await asyncio.sleep(0)
            before = loop.stats()
            assert await loop.sendfile(transport, file) == 5
            after = loop.stats()
            assert after["turns"] == before["turns"]
            assert after["operations"] == before["operations"]
            assert await receive(other, 5) == b"small"


async def test_behind_what_was_written(file):
    loop = asyncio.get_running_loop()
    async with transport_to() as (transport, _, other):
        transport.write(b"x" * 1_000_000)
        task = asyncio.create_task(loop.sendfile(transport, file))
        await turns(2)
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.write(b"y")
        assert await receive(other, 1_000_000 + SIZE) == b"x" * 1_000_000 + CONTENT
        assert await task == SIZE
        transport.write(b"afterwards")
        assert await receive(other, 10) == b"afterwards"


async def test_what_the_peer_sends_meanwhile_comes_afterwards(file):
    loop = asyncio.get_running_loop()
    async with transport_to() as (transport, protocol, other):
        task = asyncio.create_task(loop.sendfile(transport, file))
        await turns(3)
        other.send(b"meanwhile")
        await turns(3)
        assert not task.done()
        assert await receive(other, SIZE) == CONTENT
        assert await task == SIZE
        await protocol.received(b"meanwhile")


async def test_many_at_once(path):
    """Each with its own position in one file."""
    loop = asyncio.get_running_loop()

    async def one_transfer(i):
        with path.open("rb") as file, pair() as (one, other):
            offset, count = i * 10_000, 200_000 + i
            task = asyncio.create_task(loop.sock_sendfile(one, file, offset, count))
            assert await receive(other, count) == CONTENT[offset : offset + count]
            assert await task == count

    await asyncio.gather(*map(one_transfer, range(64)))


# -- files that change meanwhile --------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 1_500_000])
async def test_truncated_meanwhile(left):
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile() as file, pair() as (one, other):
        file.write(CONTENT)
        file.flush()
        task = asyncio.create_task(loop.sock_sendfile(one, file))
        await turns(3)
        assert not task.done()
        file.truncate(left)
        receiving = asyncio.create_task(receive_all(other))
        sent = await task
        assert left <= sent < SIZE
        one.close()
        # pages that are on their way and were cut off the file arrive as zeros
        got = await receiving
        assert len(got) == sent
        assert got[:left] == CONTENT[:left]
        assert file.tell() == sent


async def test_grown_meanwhile():
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile() as file, pair() as (one, other):
        file.write(CONTENT)
        file.flush()
        task = asyncio.create_task(loop.sock_sendfile(one, file))
        await turns(3)
        os.pwrite(file.fileno(), b"more", SIZE)
        assert await receive(other, SIZE + 4) == CONTENT + b"more"
        assert await task == SIZE + 4


@pytest.mark.parametrize("through", ["socket", "transport"])
async def test_closed_meanwhile(path, through):
    """It goes on with the file, and never with another that got the number."""
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        file = path.open("rb")
        if through == "socket":
            one, other = stack.enter_context(pair())
            task = asyncio.create_task(loop.sock_sendfile(one, file))
        else:
            transport, _, other = await stack.enter_async_context(transport_to())
            task = asyncio.create_task(loop.sendfile(transport, file))
        await turns(3)
        fd = file.fileno()
        file.close()
        with tempfile.TemporaryFile() as wrong:
            wrong.write(b"wrong" * SIZE)
            wrong.flush()
            # as a rule it has the number already
            with os.fdopen(os.dup2(wrong.fileno(), fd), "rb", closefd=fd != wrong.fileno()) as it:
                assert await receive(other, SIZE) == CONTENT
                assert await task == SIZE
                # nor is the other file's position touched
                assert os.lseek(it.fileno(), 0, os.SEEK_CUR) == 5 * SIZE


# -- the loop goes on -------------------------------------------------------------------------


async def test_a_step_ends_though_nothing_blocks(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(100 << 20))
    sink = os.open("/dev/null", os.O_WRONLY)
    try:
        with path.open("rb") as file:
            transfer = Transfer(file.fileno(), 0, None)
            states = []
            while (state := transfer.step(sink)) != DONE:
                states.append(state)
                if state == COLD:  # memory is short
                    reading = transfer.read_ahead()
                    reading.run()
                    transfer.warmed(reading)
            assert TURN in states or set(states) == {COLD}  # overlayfs does not tell
            assert transfer.sent == 100 << 20
            transfer.close()
    finally:
        os.close(sink)
        path.unlink()


async def test_the_loop_runs_beside_a_slow_reader(file):
    loop = asyncio.get_running_loop()
    with pair() as (one, other):
        task = asyncio.create_task(loop.sock_sendfile(one, file))
        await turns(50)
        assert not task.done()
        before = loop.stats()["syscalls"]
        await turns(200)
        # it waits and does not try again and again
        assert loop.stats()["syscalls"] - before < 100
        got = b""
        while len(got) < SIZE:
            got += await receive(other, min(100_000, SIZE - len(got)))
            await turns(3)
        assert got == CONTENT
        assert await task == SIZE


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("through", ["socket", "transport"])
async def test_file_out_of_memory(file, through, backend_name):
    loop = asyncio.get_running_loop()
    before = loop.stats()["operations"].get("read", 0)
    async with contextlib.AsyncExitStack() as stack:
        if through == "socket":
            one, other = stack.enter_context(pair())
            task = asyncio.create_task(loop.sock_sendfile(one, file, 10))
        else:
            transport, _, other = await stack.enter_async_context(transport_to())
            task = asyncio.create_task(loop.sendfile(transport, file, 10))
        assert await receive(other, SIZE - 10) == CONTENT[10:]
        assert await task == SIZE - 10
    reads = loop.stats()["operations"].get("read", 0) - before
    # a MiB at a time, by the ring; on epoll in threads
    assert 3 <= reads <= 12 if backend_name == "uring" else reads == 0


@pytest.fixture
async def backend_name():
    return asyncio.get_running_loop().backend


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("after", range(4))
async def test_cancelled_while_the_disk_is_waited_for(file, after):
    loop = asyncio.get_running_loop()
    with pair() as (one, other):
        task = asyncio.create_task(loop.sock_sendfile(one, file))
        await turns(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        one.close()
        got = await receive_all(other)
        assert got == CONTENT[: len(got)]
        assert file.tell() == len(got)


async def test_really_out_of_memory(path):
    """Whether the file system says so or not."""
    loop = asyncio.get_running_loop()
    with path.open("rb") as file, pair() as (one, other):
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        task = asyncio.create_task(loop.sock_sendfile(one, file))
        assert await receive(other, SIZE) == CONTENT
        assert await task == SIZE


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("turn", range(3))
def test_loop_closed_meanwhile(loop_factory, path, turn):
    """Descriptors and memory of what the kernel still reads are given back by close()."""
    loop = loop_factory()

    async def begin(one, file):
        task = asyncio.create_task(loop.sock_sendfile(one, file))
        await turns(turn)
        return task

    with path.open("rb") as file, pair() as (one, _):
        task = loop.run_until_complete(begin(one, file))
        task._log_destroy_pending = False
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        del task


def test_read_ahead_to_the_end(path):
    with path.open("rb") as file:
        reading = ReadAhead(file.fileno(), SIZE - 10)
        reading.run()
        assert reading.end == SIZE
        reading = ReadAhead(file.fileno(), SIZE + 10)
        reading.run()
        assert reading.end == SIZE + 10


# -- cancellation ------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["socket", "transport"])
async def test_cancelled_under_a_slow_reader(file, through):
    """The position tells exactly what the peer gets, and the socket can be used further."""
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        if through == "socket":
            one, other = stack.enter_context(pair())
            task = asyncio.create_task(loop.sock_sendfile(one, file, 100))
        else:
            transport, protocol, other = await stack.enter_async_context(transport_to())
            task = asyncio.create_task(loop.sendfile(transport, file, 100))
        await begun(other)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        sent = file.tell() - 100
        assert 0 < sent < SIZE
        assert await receive(other, sent) == CONTENT[100 : 100 + sent]
        if through == "socket":
            await loop.sock_sendall(one, b"more")
        else:
            transport.write(b"more")
            other.send(b"and back")
        assert await receive(other, 4) == b"more"
        if through == "transport":
            await protocol.received(b"and back")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("turns"), st.integers(1, 3)),
        st.tuples(st.just("receive"), st.integers(1, 300_000)),
    ),
    max_size=12,
)


@given(offset=st.integers(0, 70_000), count=st.integers(1, 1_500_000) | st.none(), steps=steps)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.parametrize("cold", [False, True])
def test_cancelled_at_any_point(loop, path, cold, offset, count, steps):
    async def main():
        with path.open("rb") as file, pair() as (one, other):
            task = asyncio.create_task(loop.sock_sendfile(one, file, offset, count))
            got = bytearray()
            for what, n in steps:
                if what == "turns":
                    await turns(n)
                elif not task.done():
                    with contextlib.suppress(BlockingIOError):
                        got += other.recv(n)
            task.cancel()
            await asyncio.wait([task])
            position = file.tell()
            one.close()
            got += await receive_all(other)
            assert position == (offset + len(got) if got else 0)
            assert got == CONTENT[offset : offset + len(got)]
            if not task.cancelled():
                assert task.result() == len(got)

    sendfile.distrust_memory(cold)
    try:
        loop.run_until_complete(asyncio.wait_for(main(), HANG))
    finally:
        sendfile.distrust_memory(False)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop._executor_shutdown_called = False
        loop._default_executor = None


# -- connections that end -----------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_transport_closed_meanwhile(file, end):
    """asyncio's waits for ever."""
    loop = asyncio.get_running_loop()
    async with transport_to() as (transport, protocol, other):
        task = asyncio.create_task(loop.sendfile(transport, file))
        await begun(other)
        getattr(transport, end)()
        with pytest.raises(ConnectionError, match="closed"):
            await asyncio.wait_for(task, HANG)
        assert await asyncio.wait_for(protocol.lost, HANG) is None
        got = await receive_all(other)
        assert 0 < len(got) == file.tell() < SIZE


async def test_transport_that_is_closing(file):
    loop = asyncio.get_running_loop()
    async with transport_to() as (transport, _, _):
        transport.close()
        with pytest.raises(RuntimeError, match="closing"):
            await loop.sendfile(transport, file)


@pytest.mark.parametrize("through", ["socket", "transport"])
async def test_peer_that_goes_away(file, through):
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        if through == "socket":
            one, other = stack.enter_context(pair())
            task = asyncio.create_task(loop.sock_sendfile(one, file))
        else:
            transport, _, other = await stack.enter_async_context(transport_to())
            task = asyncio.create_task(loop.sendfile(transport, file))
        await turns(5)
        other.close()
        with pytest.raises((ConnectionError, BrokenPipeError)):
            await asyncio.wait_for(task, HANG)
        assert 0 < file.tell() < SIZE


async def test_peer_that_is_gone(file):
    loop = asyncio.get_running_loop()
    with pair() as (one, other):
        other.close()
        with pytest.raises(asyncio.SendfileNotAvailableError) as caught:
            await loop.sock_sendfile(one, file, fallback=False)
        assert isinstance(caught.value.__cause__, BrokenPipeError)
        with pytest.raises(BrokenPipeError):
            await loop.sock_sendfile(one, file)


async def test_socket_closed_meanwhile(file):
    loop = asyncio.get_running_loop()
    with pair() as (one, other):
        task = asyncio.create_task(loop.sock_sendfile(one, file))
        await turns(5)
        one.close()
        with pair() as (new, _):  # takes the number
            task.cancel()
            with pytest.raises((asyncio.CancelledError, OSError)):
                await task
            assert new.fileno() >= 0
        got = await receive_all(other)
        assert got == CONTENT[: len(got)]


# -- what sendfile(2) is not for ------------------------------------------------------------------


@pytest.mark.as_asyncio
async def test_no_file():
    loop = asyncio.get_running_loop()
    with pair() as (one, other):
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await loop.sock_sendfile(one, io.BytesIO(b"abc"), fallback=False)
        assert await loop.sock_sendfile(one, io.BytesIO(b"0123456789"), 2, 5) == 5
        assert await receive(other, 5) == b"23456"
    async with contextlib.AsyncExitStack() as stack:
        transport, _, other = await stack.enter_async_context(transport_to())
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await loop.sendfile(transport, io.BytesIO(b"abc"), fallback=False)
        assert await loop.sendfile(transport, io.BytesIO(b"0123456789"), 2, 5) == 5
        assert await receive(other, 5) == b"23456"


@pytest.mark.as_asyncio
async def test_bad_arguments(path):
    loop = asyncio.get_running_loop()
    with pair() as (one, _), path.open("rb") as file, path.open(encoding="latin1") as text:
        for count in (0, -1):
            with pytest.raises(ValueError, match="positive"):
                await loop.sock_sendfile(one, file, 0, count)
        with pytest.raises(ValueError, match="binary"):
            await loop.sock_sendfile(one, text)
        with pytest.raises(ValueError, match="offset"):
            await loop.sock_sendfile(one, file, -1)
        with pytest.raises(TypeError, match="offset"):
            await loop.sock_sendfile(one, file, "1")
        with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            datagrams.setblocking(False)
            with pytest.raises(ValueError, match="SOCK_STREAM"):
                await loop.sock_sendfile(datagrams, file)


@pytest.fixture
def version():
    with Path("/proc/version").open("rb") as file:
        yield file


async def test_file_whose_size_is_not_known(version):
    """asyncio takes them to be empty."""
    loop = asyncio.get_running_loop()
    with pair() as (one, other):
        sent = await loop.sock_sendfile(one, version)
        one.close()
        got = await receive_all(other)
        version.seek(0)
        assert got == version.read()
        assert sent == len(got)


async def test_pipe_as_file():
    loop = asyncio.get_running_loop()
    r, w = os.pipe()
    with open(r, "rb") as reader, pair() as (one, other):  # noqa: ASYNC230 - a pipe's end
        os.write(w, b"through a pipe")
        os.close(w)
        with pytest.raises(asyncio.SendfileNotAvailableError, match="regular"):
            await loop.sock_sendfile(one, reader, fallback=False)
        with contextlib.suppress(OSError):  # asyncio's own way seeks when it is done
            await loop.sock_sendfile(one, reader)
        assert await receive(other, 14) == b"through a pipe"


async def test_blocking_socket_never_blocks_the_loop(file):
    loop = asyncio.get_running_loop()
    with pair() as (one, other):
        one.setblocking(True)
        with pytest.raises(asyncio.SendfileNotAvailableError, match="blocking"):
            await loop.sock_sendfile(one, file, fallback=False)
        task = asyncio.create_task(loop.sock_sendfile(one, file))
        assert await receive(other, SIZE) == CONTENT
        assert await task == SIZE


@pytest.mark.parametrize("tls", [False, True])
async def test_handle_of_files(tls, path):
    """With what was written to it and not flushed, and its own position."""
    loop = asyncio.get_running_loop()
    server_side, client_side = contexts() if tls else (None, None)
    accepted = []

    def accept():
        accepted.append(Peer())
        return accepted[0]

    server = await loop.create_server(accept, "127.0.0.1", 0, ssl=server_side)
    async with serving(server) as address, files.open(path, "rb") as file:
        transport, protocol = await loop.create_connection(Peer, *address, ssl=client_side)
        assert await file.read(10) == CONTENT[:10]
        assert await loop.sendfile(transport, file, 1000, 500_000) == 500_000
        assert await file.tell() == 501_000
        assert await file.read(10) == CONTENT[501_000:501_010]
        async with tempfile_of_files.TemporaryFile() as written:
            await written.write(b"not flushed")
            assert await loop.sendfile(transport, written) == 11
        async with tempfile_of_files.SpooledTemporaryFile() as spooled:
            await spooled.write(b" in memory")
            assert await loop.sendfile(transport, spooled) == 10
        transport.close()
        await protocol.lost
        await accepted[0].lost
        assert accepted[0].data == CONTENT[1000:501_000] + b"not flushed in memory"


async def test_handle_of_files_to_a_socket(path):
    loop = asyncio.get_running_loop()
    async with files.open(path, "rb") as file:
        with pair() as (one, other):
            task = asyncio.create_task(loop.sock_sendfile(one, file, 7))
            assert await receive(other, SIZE - 7) == CONTENT[7:]
            assert await task == SIZE - 7
            assert await file.tell() == SIZE
            one.setblocking(True)  # by reading and writing
            task = asyncio.create_task(loop.sock_sendfile(one, file, 9, 20_000))
            assert await receive(other, 20_000) == CONTENT[9:20_009]
            assert await task == 20_000
            assert await file.tell() == 20_009


@pytest.mark.parametrize("blocking", [False, True])
async def test_handle_of_files_that_is_cancelled(path, blocking):
    loop = asyncio.get_running_loop()
    async with files.open(path, "rb") as file:
        with pair() as (one, other):
            one.setblocking(blocking)
            task = asyncio.create_task(loop.sock_sendfile(one, file))
            await turns(5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            one.close()
            got = await receive_all(other)
            assert got == CONTENT[: len(got)]
            if not blocking:
                assert await file.tell() == len(got)


async def test_tls(file):
    """By reading and writing, as asyncio does, unless that is not wanted."""
    loop = asyncio.get_running_loop()
    server_side, client_side = contexts()
    accepted = []

    def accept():
        accepted.append(Peer())
        return accepted[0]

    server = await loop.create_server(accept, "127.0.0.1", 0, ssl=server_side)
    async with serving(server) as address:
        transport, protocol = await loop.create_connection(Peer, *address, ssl=client_side)
        with pytest.raises(RuntimeError, match="fallback is disabled"):
            await loop.sendfile(transport, file, fallback=False)
        assert await loop.sendfile(transport, file, 1000, 500_000) == 500_000
        assert file.tell() == 501_000
        transport.close()
        await protocol.lost
        await accepted[0].lost
        assert accepted[0].data == CONTENT[1000:501_000]


async def test_pipe_transport(file):
    loop = asyncio.get_running_loop()
    r, w = os.pipe()
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(w, "wb", 0))
    with pytest.raises(RuntimeError, match="not supported"):
        await loop.sendfile(transport, file)
    transport.close()
    os.close(r)
    await turns(3)


async def test_socket_of_a_transport(file):
    loop = asyncio.get_running_loop()
    async with transport_to() as (transport, _, other):
        sock = transport.get_extra_info("socket")._sock
        task = asyncio.create_task(loop.sock_sendfile(sock, file))
        with pytest.raises(RuntimeError, match="is used by transport"):
            await task
        assert await receive(other, 1000) == CONTENT[:1000]


def test_step_says_what_stopped_it(path):
    with path.open("rb") as file, pair() as (one, other):
        transfer = Transfer(file.fileno(), 0, None)
        while (state := transfer.step(one.fileno())) != BLOCKED:
            if state == COLD:  # always, on a file system that does not tell (overlayfs)
                reading = transfer.read_ahead()
                reading.run()
                transfer.warmed(reading)
            else:
                assert state == TURN
        assert 0 < transfer.sent < SIZE
        other.close()
        assert transfer.step(one.fileno()) == DONE
        assert transfer.error
        transfer.close()
        transfer.close()
