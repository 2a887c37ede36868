"""aiounify.files.splice() between two sockets, which goes on by itself."""

import asyncio
import contextlib
import gc
import random
import socket
import struct
import weakref
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiounify import files

HANG = 30


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


class Chain:
    """writer -> source, a splice to be made, target -> reader."""

    def __init__(self, pair=tcp_pair):
        self.writer, self.source = pair()
        self.target, self.reader = pair()
        self.through = files.Pipe()
        for end in self.ends:
            end.setblocking(False)

    @property
    def ends(self):
        return self.writer, self.source, self.target, self.reader

    def begin(self, count=None):
        return asyncio.create_task(
            files.splice(self.source, self.target, count, through=self.through)
        )

    async def read(self, size):
        loop, got = asyncio.get_running_loop(), b""
        while len(got) < size and (more := await loop.sock_recv(self.reader, size - len(got))):
            got += more
        return got

    def close(self):
        self.through.close()
        for end in self.ends:
            end.close()


@pytest.fixture(params=[tcp_pair, socket.socketpair], ids=["tcp", "unix"])
def chain(request):
    chain = Chain(request.param)
    yield chain
    chain.close()


@pytest.fixture
def tcp():
    chain = Chain()
    yield chain
    chain.close()


async def ended(task):
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_pieces_and_the_end(chain):
    """Each piece arrives before the next is sent; then the end is told, and not passed on."""
    loop, task = asyncio.get_running_loop(), chain.begin()
    async with asyncio.timeout(HANG):
        for size in (1, 80, 4096, 65535, 65536, 65537, 300_000, 1, 2):
            data = random.Random(size).randbytes(size)
            sending = asyncio.create_task(loop.sock_sendall(chain.writer, data))
            assert await chain.read(size) == data
            await sending
        chain.writer.sendall(b"last")
        chain.writer.shutdown(socket.SHUT_WR)
        moved = 1 + 80 + 4096 + 65535 + 65536 + 65537 + 300_000 + 1 + 2 + 4
        assert await task == moved
        assert await chain.read(4) == b"last"
        chain.target.sendall(b"and this side goes on")
        assert await chain.read(21) == b"and this side goes on"


async def test_data_with_the_end_behind_it(chain):
    """The end was there before anything was received."""
    chain.writer.sendall(b"x" * 1000)
    chain.writer.close()
    assert await asyncio.wait_for(chain.begin(), HANG) == 1000
    assert await chain.read(1000) == b"x" * 1000


@pytest.mark.parametrize("count", [1, 70_000, 200_000])
async def test_what_comes_behind_stays(chain, count):
    loop, task = asyncio.get_running_loop(), chain.begin(count)
    data = random.Random(2).randbytes(count + 500)
    async with asyncio.timeout(HANG):
        sending = asyncio.create_task(loop.sock_sendall(chain.writer, data))
        assert await chain.read(count) == data[:count]
        assert await task == count
        await sending
        assert await loop.sock_recv(chain.source, 1000) == data[count:]
    assert chain.through.pending == 0


async def test_a_slow_reader(chain):
    """What is moved and not read is bounded; none of it is lost."""
    loop, task = asyncio.get_running_loop(), chain.begin()
    data = random.Random(3).randbytes(20 << 20)
    sending = asyncio.create_task(loop.sock_sendall(chain.writer, data))
    async with asyncio.timeout(HANG):
        while chain.through.pending == 0:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        assert not sending.done()
        assert chain.through.pending <= chain.through.size
        assert await chain.read(len(data)) == data
        await sending
        chain.writer.close()
        assert await task == len(data)


async def test_a_slow_reader_of_small_pieces(chain):
    """Pieces that are copied: what did not fit is in the pipe, in order."""
    task, sent = chain.begin(), 0
    async with asyncio.timeout(HANG):
        while chain.through.pending == 0:
            with contextlib.suppress(BlockingIOError):
                sent += chain.writer.send(struct.pack("I", sent) * 500)
            await asyncio.sleep(0)
        await ended(task)
        again = chain.begin()
        chain.writer.close()
        got = await chain.read(sent)
        assert (await again) > 0
    assert len(got) == sent
    at = 0
    while at < sent:
        piece = struct.pack("I", at) * 500
        end = min(at + 2000, sent)
        # a send that was cut short begins the next one where it ended
        n = next((i for i in range(end - at) if got[at + i] != piece[i]), end - at)
        assert n >= 4 or at + n == sent
        at += n


@given(
    plan=st.lists(
        st.tuples(st.sampled_from([0, 0, 1, 3]), st.integers(1, 150_000)), min_size=1, max_size=12
    ),
    seed=st.integers(0, 1 << 30),
    tcp=st.booleans(),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_cancelled_and_made_again(loop, plan, seed, tcp):
    """Whenever calls are cancelled, all bytes arrive once and in order."""
    rng = random.Random(seed)
    data = rng.randbytes(600_000)

    async def feed(sock):
        at = 0
        while at < len(data):
            size = rng.choice((1, 100, 5000, 70_000, 200_000))
            await asyncio.get_running_loop().sock_sendall(sock, data[at : at + size])
            at += size
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        sock.close()

    async def main():
        chain = Chain(tcp_pair if tcp else socket.socketpair)
        try:
            feeding = asyncio.create_task(feed(chain.writer))
            reading = asyncio.create_task(chain.read(len(data) + 1))
            for turns, count in plan:
                task = chain.begin(count)
                for _ in range(turns):
                    await asyncio.sleep(0)
                await ended(task)
            await chain.begin()
            chain.target.close()
            await feeding
            assert await reading == data
        finally:
            chain.close()

    loop.run_until_complete(asyncio.wait_for(main(), HANG))


async def test_urgent_data_does_not_stop_it(tcp):
    """A receive ends at the urgent byte, with more behind it."""
    task = tcp.begin()
    async with asyncio.timeout(HANG):
        for i in range(20):
            tcp.writer.sendall(b"before")
            tcp.writer.send(b"!", socket.MSG_OOB)
            tcp.writer.sendall(b"behind")
            assert await tcp.read(12) == b"beforebehind", i
        tcp.writer.close()
        assert await task == 240


async def test_the_source_is_reset(tcp):
    task = tcp.begin()
    tcp.writer.sendall(b"abc")
    assert await asyncio.wait_for(tcp.read(3), HANG) == b"abc"
    tcp.writer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.writer.close()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(task, HANG)


async def test_the_target_goes_away(chain):
    """What was taken and did not reach it is in the pipe."""
    task = chain.begin()
    chain.reader.close()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        async with asyncio.timeout(HANG):
            while not task.done():
                with contextlib.suppress(BlockingIOError):
                    chain.writer.send(b"x" * 100)
                await asyncio.sleep(0.001)
            await task
    assert chain.through.pending % 100 == 0 < chain.through.pending


async def test_both_closed_meanwhile(chain):
    """It goes on with the files it began with, and others that get the numbers are left alone."""
    task = chain.begin()
    await asyncio.sleep(0.01)
    numbers = {chain.source.fileno(), chain.target.fileno()}
    chain.source.close()
    chain.target.close()
    kept = []
    while not numbers <= {s.fileno() for s in kept}:
        kept += socket.socketpair()
    loop = asyncio.get_running_loop()
    for s in kept:
        s.setblocking(False)
    chain.writer.sendall(b"right")
    assert await asyncio.wait_for(chain.read(5), HANG) == b"right"
    waiting = asyncio.create_task(loop.sock_recv(kept[0], 10))  # waits at such a number
    chain.writer.sendall(b"more")
    assert await asyncio.wait_for(chain.read(4), HANG) == b"more"
    kept[1].send(b"own")
    assert await asyncio.wait_for(waiting, HANG) == b"own"
    chain.writer.close()
    assert await asyncio.wait_for(task, HANG) == 9
    for s in kept:
        s.close()


async def test_nothing_is_told_afterwards(chain):
    """The descriptors left the epoll set, though the sockets are open still."""
    loop = asyncio.get_running_loop()
    task = chain.begin(1)
    await asyncio.sleep(0.01)
    chain.writer.send(b"x")
    assert await asyncio.wait_for(task, HANG) == 1
    await ended(chain.begin())
    before = loop.stats()["readiness_events"]
    for _ in range(5):
        chain.writer.send(b"behind")
        await asyncio.sleep(0.005)
    assert loop.stats()["readiness_events"] == before
    assert await loop.sock_recv(chain.source, 100) == b"behind" * 5


async def test_the_opposite_direction_at_the_same_time(chain):
    """Two splices, and others that wait for the same sockets."""
    loop = asyncio.get_running_loop()
    with files.Pipe() as back:
        forth = chain.begin()
        fro = asyncio.create_task(files.splice(chain.target, chain.source, through=back))
        async with asyncio.timeout(HANG):
            for i in range(50):
                chain.writer.send(b"ping%d" % i)
                assert await loop.sock_recv(chain.reader, 100) == b"ping%d" % i
                chain.reader.send(b"pong%d" % i)
                assert await loop.sock_recv(chain.writer, 100) == b"pong%d" % i
            chain.writer.shutdown(socket.SHUT_WR)
            await forth
            chain.reader.send(b"still")
            assert await loop.sock_recv(chain.writer, 100) == b"still"
            chain.reader.shutdown(socket.SHUT_WR)
            await fro


async def test_the_task_sleeps_while_it_goes_on(chain):
    """A piece is moved where events are taken: no callback of the loop runs for it."""
    loop, task = asyncio.get_running_loop(), chain.begin()
    await asyncio.sleep(0.01)
    pieces, before, awaited = 100, loop.stats()["callbacks"], 0
    async with asyncio.timeout(HANG):
        for _ in range(pieces):
            chain.writer.send(b"x")
            assert await loop.sock_recv(chain.reader, 10) == b"x"
            awaited += 1
    # each of these waits takes one callback, or none
    assert loop.stats()["callbacks"] - before <= awaited + 5
    await ended(task)


def test_messages_are_not_cut(loop):
    """Sockets that are no streams are never copied through a buffer that may be too small."""

    async def main():
        chain = Chain(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        try:
            data = random.Random(5).randbytes(100_000)
            chain.writer.send(data)
            assert await chain.begin(len(data)) == len(data)
            assert await chain.read(len(data)) == data
        finally:
            chain.close()

    loop.run_until_complete(asyncio.wait_for(main(), HANG))


def test_the_loop_ends_first(loop_factory):
    """A splice that waits when its loop is closed: nothing is left of it."""
    chain = Chain()
    loop = loop_factory()

    async def main():
        task = chain.begin()
        await asyncio.sleep(0.01)
        return task

    task = loop.run_until_complete(main())
    task._log_destroy_pending = False
    loop.close()
    gone = weakref.ref(task)
    del task
    gc.collect()
    assert gone() is None
    before = descriptors()
    chain.close()
    assert descriptors() == before - 6  # four sockets, and the pipe's ends
