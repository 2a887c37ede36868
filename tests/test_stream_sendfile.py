"""try_sendfile() of a stream transport: a file as far as it goes without waiting."""

import asyncio
import os
import random
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiounify._core import sendfile

HANG = 30
CONTENT = random.Random(5).randbytes(3_000_000)
HEAD = b"head\r\n\r\n"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sendfile") / "content"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def fd(path):
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def cold():
    sendfile.distrust_memory(True)
    yield
    sendfile.distrust_memory(False)


def descriptors():
    return sorted(Path("/proc/self/fd").iterdir())


class _Fd:
    def __init__(self, fd):
        self.fileno = lambda: fd


class Pair:
    """A transport, and a plain socket at its other end."""

    def __init__(self, room=None):
        self.room = room

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            mine = socket.create_connection(listener.getsockname())
            self.peer, _ = listener.accept()
        self.peer.setblocking(False)
        if self.room:
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.room)
        self.transport, _ = await loop.create_connection(asyncio.Protocol, sock=mine)
        return self

    async def __aexit__(self, *exc):
        self.transport.abort()
        self.peer.close()
        await asyncio.sleep(0)

    async def read(self, size):
        loop, got = asyncio.get_running_loop(), bytearray()
        async with asyncio.timeout(HANG):
            while len(got) < size and (more := await loop.sock_recv(self.peer, size - len(got))):
                got += more
        return bytes(got)

    async def rest(self, fd, at, end):
        """What loop.sendfile() is for."""
        loop = asyncio.get_running_loop()
        return await loop.sendfile(self.transport, _Fd(fd), at, end - at, fallback=False)


@pytest.mark.parametrize("look", [True, False])
async def test_at_once(fd, look):
    async with Pair() as pair:
        before = descriptors()
        assert pair.transport.try_sendfile(HEAD, fd, 5, 50_000, look) == 50_000
        assert pair.transport.get_write_buffer_size() == 0
        assert descriptors() == before
        assert await pair.read(50_000 + len(HEAD)) == HEAD + CONTENT[5:50_005]
        # without a head, and what is written afterwards comes behind
        assert pair.transport.try_sendfile(b"", fd, 0, 10, look) == 10
        pair.transport.write(b"behind")
        assert await pair.read(16) == CONTENT[:10] + b"behind"
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0


async def test_as_far_as_the_socket_takes_it(fd):
    async with Pair(room=50_000) as pair:
        sent = pair.transport.try_sendfile(HEAD, fd, 0, len(CONTENT))
        assert 0 < sent < len(CONTENT)
        task = asyncio.create_task(pair.rest(fd, sent, len(CONTENT)))
        assert await pair.read(len(HEAD) + len(CONTENT)) == HEAD + CONTENT
        assert await task == len(CONTENT) - sent


async def test_a_head_that_does_not_fit(fd):
    """Its rest is queued, and what goes on waits for it."""
    head = CONTENT[::-1] * 3
    async with Pair(room=50_000) as pair:
        assert pair.transport.try_sendfile(head, fd, 0, 1000) == 0
        assert 0 < pair.transport.get_write_buffer_size() < len(head)
        task = asyncio.create_task(pair.rest(fd, 0, 1000))
        assert await pair.read(len(head) + 1000) == head + CONTENT[:1000]
        assert await task == 1000


async def test_nothing_while_something_is_queued(fd):
    async with Pair(room=50_000) as pair:
        pair.transport.write(CONTENT)
        assert pair.transport.get_write_buffer_size() > 0
        assert pair.transport.try_sendfile(HEAD, fd, 0, 10) == -1
        assert await pair.read(len(CONTENT)) == CONTENT
        async with asyncio.timeout(HANG):
            while pair.transport.get_write_buffer_size():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
        assert pair.transport.try_sendfile(HEAD, fd, 0, 10) == 10
        assert await pair.read(10 + len(HEAD)) == HEAD + CONTENT[:10]


async def test_nothing_while_a_file_is_sent(fd):
    async with Pair(room=50_000) as pair:
        task = asyncio.create_task(pair.rest(fd, 0, len(CONTENT)))
        await asyncio.sleep(0.01)
        assert pair.transport.try_sendfile(HEAD, fd, 0, 10) == -1
        assert await pair.read(len(CONTENT)) == CONTENT
        assert await task == len(CONTENT)


async def test_nothing_at_the_end(fd):
    async with Pair() as pair:
        pair.transport.write_eof()
        assert pair.transport.try_sendfile(HEAD, fd, 0, 10) == -1
    async with Pair() as pair:
        pair.transport.close()
        assert pair.transport.try_sendfile(HEAD, fd, 0, 10) == -1
        await asyncio.sleep(0.01)
        assert pair.transport.try_sendfile(HEAD, fd, 0, 10) == -1
        assert await pair.read(1) == b""


@pytest.mark.usefixtures("cold")
async def test_out_of_memory(fd):
    async with Pair() as pair:
        assert pair.transport.try_sendfile(HEAD, fd, 0, 10) == -1
        assert pair.transport.try_sendfile(HEAD, fd, 0, 10, False) == 10
        assert await pair.read(10 + len(HEAD)) == HEAD + CONTENT[:10]


async def test_a_file_that_is_shorter(fd):
    async with Pair() as pair:
        assert pair.transport.try_sendfile(HEAD, fd, len(CONTENT) - 7, 10) == 7
        assert pair.transport.try_sendfile(HEAD, fd, len(CONTENT), 10) == 0
        expected = HEAD + CONTENT[-7:] + HEAD
        assert await pair.read(len(expected)) == expected


async def test_a_peer_that_has_gone(fd):
    """No error here: the transport is lost, as by write()."""
    async with Pair() as pair:
        pair.peer.close()
        async with asyncio.timeout(HANG):
            while (sent := pair.transport.try_sendfile(HEAD, fd, 0, len(CONTENT))) >= 0:
                assert sent <= len(CONTENT)
                await asyncio.sleep(0.001)
        assert pair.transport.is_closing()


async def test_what_is_no_file():
    r, w = os.pipe()
    async with Pair() as pair:
        assert pair.transport.try_sendfile(HEAD, r, 0, 10) in (-1, 0)
        for bad in ((HEAD, r, -1, 10), (HEAD, r, 0, 0), (HEAD, r, 0, -5)):
            with pytest.raises(ValueError, match="no part of a file"):
                pair.transport.try_sendfile(*bad)
        with pytest.raises(TypeError):
            pair.transport.try_sendfile("head", r, 0, 10)
    os.close(r)
    os.close(w)


@given(
    parts=st.lists(
        st.tuples(st.integers(0, 40_000), st.integers(0, 2_900_000), st.integers(1, 100_000)),
        min_size=1,
        max_size=12,
    ),
    room=st.sampled_from([5_000, 50_000, 1 << 20]),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_parts_in_order(loop, fd, parts, room):
    """Heads, files and writes, however much the socket takes of each."""

    async def main():
        expected = b"".join(
            CONTENT[:size] + CONTENT[at : at + count] + b"." for size, at, count in parts
        )
        async with Pair(room) as pair:
            reading = asyncio.create_task(pair.read(len(expected)))
            for size, at, count in parts:
                sent = pair.transport.try_sendfile(CONTENT[:size], fd, at, count)
                if sent < 0:
                    pair.transport.write(CONTENT[:size])
                    sent = 0
                if sent < count:
                    assert await pair.rest(fd, at + sent, at + count) == count - sent
                pair.transport.write(b".")
            assert await reading == expected

    loop.run_until_complete(asyncio.wait_for(main(), HANG))
