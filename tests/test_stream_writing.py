"""The stream transport's writing: every byte once and in order, and flow control."""

import array
import asyncio
import contextlib
import random

import pytest
from stream_peers import (
    HANG,
    Recorder,
    both_modes,
    busy,
    every_loop,
    families,
    fill_up,
    joined,
    making,
    noise,
    receive,
    receive_to_the_end,
    resident,
    socket_pair,
    turns,
    until,
)

# -- writing -----------------------------------------------------------------------------------


@families
@making
@both_modes
async def test_nothing_is_written(family, how):
    async with joined(family, how=how) as (protocol, peer):
        for nothing in (b"", bytearray(), memoryview(b""), memoryview(b"abc")[1:1]):
            protocol.transport.write(nothing)
        protocol.transport.writelines([])
        protocol.transport.writelines([b"", bytearray(), b""])
        protocol.transport.writelines(iter(()))
        assert protocol.transport.get_write_buffer_size() == 0
        protocol.transport.write(b"x")
        protocol.transport.close()
        assert await receive_to_the_end(peer) == b"x"


@pytest.fixture(scope="module")
def large():
    """200 MiB in which every place can be told from the others."""
    size = 200 << 20
    data = b"".join([b"%08x" % i + bytes(4088) for i in range(size // 4096)])
    assert len(data) == size
    return data


@pytest.mark.parametrize("kind_of_data", ["bytes", "memoryview"])
@every_loop
async def test_200_mib(kind_of_data, large):
    """bytes are not copied; of a memoryview the rest is, once."""
    size, wrong = len(large), []

    def take_all(sock):
        buffer, view, n = memoryview(bytearray(1 << 20)), memoryview(large), 0
        sock.settimeout(HANG / 2)
        while count := sock.recv_into(buffer):
            if bytes(buffer[:count]) != bytes(view[n : n + count]):
                wrong.append(n)
            n += count
        return n

    async with joined("unix") as (protocol, peer):
        loop = asyncio.get_running_loop()
        before = resident()
        protocol.transport.write(large if kind_of_data == "bytes" else memoryview(large))
        copies = 0 if kind_of_data == "bytes" else 1
        assert resident() - before < copies * size + (32 << 20)
        assert size - (1 << 20) < protocol.transport.get_write_buffer_size() < size
        protocol.transport.close()
        taking = loop.run_in_executor(None, take_all, peer)
        assert await protocol.lost is None
        assert await taking == size
        assert not wrong


@families
@pytest.mark.parametrize("queued", [False, True], ids=["at once", "queued"])
@pytest.mark.parametrize("batched", [False, True], ids=["alone", "busy"])
@pytest.mark.parametrize("call", ["write", "writelines"])
@every_loop
async def test_what_was_given_at_write_is_sent(family, queued, batched, call):
    """Changing a bytearray, or what a memoryview shows, afterwards changes nothing."""
    async with joined(family) as (protocol, peer):
        before = b""
        if queued:
            before = await fill_up(protocol)
        one, other = bytearray(b"a" * 5000), bytearray(b"b" * 5000)
        with busy(10 if batched else 0):
            if call == "write":
                protocol.transport.write(one)
                protocol.transport.write(memoryview(other))
            else:
                protocol.transport.writelines([one, memoryview(other)])
            one[:] = other[:] = b"X" * 5000
            one.clear()
        expected = before + b"a" * 5000 + b"b" * 5000
        assert await receive(peer, len(expected)) == expected


@families
@every_loop
async def test_large_bytearray_changed_after_write(family):
    async with joined(family) as (protocol, peer):
        data = bytearray(noise(1 << 21))
        expected = bytes(data)
        protocol.transport.write(data)
        assert protocol.transport.get_write_buffer_size() > 0
        data[:] = bytes(len(data))
        data.clear()  # no view of it may be left either
        assert await receive(peer, len(expected)) == expected


VIEWS = {
    "every second": lambda data: memoryview(data)[::2],
    "backwards": lambda data: memoryview(data)[::-1],
    "ints": lambda data: memoryview(array.array("I", data[: len(data) // 4 * 4])),
    "matrix": lambda data: memoryview(data[: len(data) // 8 * 8]).cast("B", (len(data) // 8, 8)),
    "doubles, every third": lambda data: memoryview(array.array("d", range(len(data) // 8)))[::3],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [96, 1 << 20])
@every_loop
async def test_views_of_all_shapes(view, size):
    async with joined("unix") as (protocol, peer):
        data = VIEWS[view](noise(size))
        expected = data.tobytes()
        protocol.transport.write(data)  # sent or begun
        protocol.transport.write(b"between")
        protocol.transport.write(data)
        protocol.transport.writelines([data])
        expected = expected + b"between" + expected * 2
        assert await receive(peer, len(expected)) == expected


class Bytes(bytes):
    """A subclass lies about its length."""

    def __len__(self):
        return 1


@every_loop
async def test_subclass_of_bytes():
    async with joined("unix") as (protocol, peer):
        protocol.transport.write(Bytes(b"hello"))
        before = await fill_up(protocol)
        protocol.transport.write(Bytes(b"hello"))
        protocol.transport.writelines([Bytes(b"hello"), Bytes(b"there")])
        expected = b"hello" + before + b"hello" + b"hello" + b"there"
        assert await receive(peer, len(expected)) == expected


@every_loop
async def test_refused_data():
    async with joined("unix") as (protocol, peer):
        for wrong in ("text", None, 5, [b"x"], array.array("b", [1])):
            with pytest.raises(TypeError, match="data argument must be a bytes-like object"):
                protocol.transport.write(wrong)
        with pytest.raises(TypeError):
            protocol.transport.writelines([b"a", "text", b"b"])
        with pytest.raises(TypeError):
            protocol.transport.writelines(5)
        protocol.transport.write(b"end")
        assert await receive(peer, 3) == b"end"  # nothing of what was refused


@families
@both_modes
async def test_writelines_of_many(family):
    """More chunks than fit one system call, some of them empty, of every type."""
    chunks = [noise(i % 97, i) for i in range(5000)]
    types = (bytes, bytearray, memoryview)
    mixed = [types[i % 3](chunk) for i, chunk in enumerate(chunks)]
    async with joined(family) as (protocol, peer):
        expected = b"".join(chunks)
        protocol.transport.writelines(mixed)
        assert await receive(peer, len(expected)) == expected
        protocol.transport.writelines(iter(mixed))  # any iterable
        protocol.transport.write(b"between")
        protocol.transport.writelines(mixed)
        protocol.transport.writelines([noise(1 << 22), *mixed])
        expected += b"between" + expected + noise(1 << 22) + expected
        assert await receive(peer, len(expected)) == expected


@families
@every_loop
async def test_small_and_large_writes_in_all_mixtures(family):
    """In busy turns small writes go by the ring: the order stays."""
    rng = random.Random(family)
    expected = bytearray()
    async with joined(family) as (protocol, peer):
        write, writelines = protocol.transport.write, protocol.transport.writelines

        async def writing():
            for i in range(400):
                size = rng.choice([1, 10, 100, 5000, 8192, 8193, 60_000])
                data = noise(size, i)
                expected.extend(data)
                with busy(rng.choice([0, 0, 1, 5])):
                    if rng.random() < 0.3:
                        cut = rng.randrange(size + 1)
                        writelines([data[:cut], bytearray(data[cut:])])
                    else:
                        write(data)
                if rng.random() < 0.5:
                    await asyncio.sleep(0)
            protocol.transport.write_eof()

        task = asyncio.create_task(writing())
        got = await receive_to_the_end(peer)
        await task
        assert got == expected


@families
@every_loop
async def test_writing_after_the_end(family, caplog):
    async with joined(family) as (protocol, peer):
        protocol.transport.close()
        for _ in range(10):
            protocol.transport.write(b"lost")
            protocol.transport.writelines([b"lost"])
        assert await protocol.lost is None
        for _ in range(10):
            protocol.transport.write(b"lost")
            protocol.transport.writelines([b"lost"])
        assert await receive_to_the_end(peer) == b""
        assert "socket.send() raised exception." in caplog.text
        protocol.transport.close()
        protocol.transport.abort()
        protocol.transport.pause_reading()
        protocol.transport.resume_reading()
        assert protocol.transport.is_closing()
        assert not protocol.transport.is_reading()
        assert protocol.transport.get_write_buffer_size() == 0


@families
@every_loop
async def test_writing_between_close_and_the_last_byte(family):
    """close() sends what is queued, and what is written before it has been sent."""
    async with joined(family) as (protocol, peer):
        data = await fill_up(protocol)
        protocol.transport.close()
        protocol.transport.write(b"and this")
        assert await receive_to_the_end(peer) == data + b"and this"
        assert await protocol.lost is None


# -- flow control ------------------------------------------------------------------------------


@every_loop
async def test_limits():
    async with joined("unix") as (protocol, _):
        transport = protocol.transport
        assert transport.get_write_buffer_limits() == (16384, 65536)
        for given, low, high in (
            ({"high": 100}, 25, 100),
            ({"low": 100}, 100, 400),
            ({"high": 100, "low": 100}, 100, 100),
            ({"high": 0}, 0, 0),
            ({}, 16384, 65536),
        ):
            transport.set_write_buffer_limits(**given)
            assert transport.get_write_buffer_limits() == (low, high)
        for given in ({"high": 1, "low": 2}, {"high": -1}, {"low": -1}):
            with pytest.raises(ValueError, match="must be >="):
                transport.set_write_buffer_limits(**given)
        assert transport.get_write_buffer_limits() == (16384, 65536)


@families
@both_modes
async def test_watermarks(family):
    """Paused above `high`, resumed at `low` and not before."""
    sizes = []

    def resumed(protocol):
        sizes.append(protocol.transport.get_write_buffer_size())

    async with joined(family, lambda: Recorder(resume_writing=resumed)) as (protocol, peer):
        transport = protocol.transport
        transport.set_write_buffer_limits(high=1 << 21, low=1 << 20)
        sent = b""
        while not transport.get_write_buffer_size():
            sent += noise(1 << 16)
            transport.write(noise(1 << 16))
        before = transport.get_write_buffer_size()
        transport.write(bytes((1 << 21) - before))
        assert transport.get_write_buffer_size() == 1 << 21
        assert protocol.names == ["connection_made"]
        transport.write(b"x")
        assert protocol.names == ["connection_made", "pause_writing"]
        transport.write(b"y" * 10)
        expected = sent + bytes((1 << 21) - before) + b"x" + b"y" * 10
        assert await receive(peer, len(expected)) == expected
        await until(lambda: sizes)
        assert sizes[0] <= 1 << 20
        await turns(2)
        assert protocol.names == ["connection_made", "pause_writing", "resume_writing"]
        # setting the limits counts what is there already
        await fill_up(protocol, 1 << 22)
        assert protocol.names[-1] == "pause_writing"


@every_loop
async def test_limits_set_below_what_is_queued():
    async with joined("unix") as (protocol, peer):
        protocol.transport.set_write_buffer_limits(high=1 << 30)
        data = await fill_up(protocol)
        assert protocol.names == ["connection_made"]
        protocol.transport.set_write_buffer_limits(high=10)
        assert protocol.names == ["connection_made", "pause_writing"]
        assert await receive(peer, len(data)) == data
        await until(lambda: protocol.names[-1] == "resume_writing")


@pytest.mark.parametrize("size", [1, 100, 8000, 8193])
@every_loop
async def test_bytes_in_flight_are_counted(size):
    """A small write in a busy turn goes to a socket that is full: it waits in the ring."""
    one, other = socket_pair("unix")
    one.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            one.send(bytes(4096))
    with contextlib.suppress(BlockingIOError):
        while True:
            one.send(b"x")
    _, protocol = await asyncio.get_running_loop().create_connection(Recorder, sock=one)
    protocol.transport.set_write_buffer_limits(high=size - 1)
    with busy(10):
        protocol.transport.write(noise(size))
    assert protocol.transport.get_write_buffer_size() == size
    await turns(3)
    assert protocol.transport.get_write_buffer_size() == size
    assert protocol.names == ["connection_made", "pause_writing"]
    protocol.transport.write(b"more")
    assert protocol.transport.get_write_buffer_size() == size + 4
    protocol.transport.close()
    other.setblocking(False)
    got = await receive_to_the_end(other)
    assert got.endswith(noise(size) + b"more")
    assert await protocol.lost is None
    assert protocol.names[1:] == ["pause_writing", "resume_writing", "connection_lost"]
    other.close()


@families
@every_loop
async def test_writing_in_resume_writing(family):
    """A producer that lives on resume_writing alone."""
    data, at = noise(2 << 20), 0

    def produce(protocol):
        nonlocal at
        while at < len(data) and protocol.names[-1] != "pause_writing":
            protocol.transport.write(data[at : at + 50_000])
            at += 50_000
        if at >= len(data):
            protocol.transport.close()

    async with joined(family, lambda: Recorder(resume_writing=produce)) as (protocol, peer):
        produce(protocol)
        assert protocol.names[-1] == "pause_writing"
        assert await receive_to_the_end(peer) == data
        assert await protocol.lost is None
