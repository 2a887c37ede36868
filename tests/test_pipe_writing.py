"""Writing pipe transports against raw peers; asyncio's promises are checked on its loop as well."""

import asyncio
import errno
import fcntl
import logging
import os

import pytest
from pipe_peers import (
    HANG,
    fill,
    kinds,
    noise,
    receive,
    turns,
    until,
    writing,
)

pytestmark = [pytest.mark.every_reactor, pytest.mark.as_asyncio]

# -- writing -----------------------------------------------------------------------------------


@kinds
async def test_whole_life_of_a_writer(kind):
    async with writing(kind) as (protocol, peer):
        transport = protocol.transport
        assert isinstance(transport, asyncio.WriteTransport)
        assert protocol.told == ["connection_made"]
        assert transport.can_write_eof()
        assert transport.get_write_buffer_size() == 0
        pipe = transport.get_extra_info("pipe")
        assert not os.get_blocking(pipe.fileno())
        transport.write(b"first")
        transport.write(b"")
        transport.writelines([b"sec", bytearray(b"on"), memoryview(b"d"), b""])
        assert await receive(peer, 11) == b"firstsecond"
        transport.close()
        assert transport.is_closing()
        assert await asyncio.wait_for(protocol.lost, HANG) is None
        assert protocol.told == ["connection_made", "connection_lost"]
        assert await receive(peer, 1) == b""
        transport.close()
        transport.write_eof()
        transport.write(b"late")


@kinds
@pytest.mark.parametrize("end", ["close", "write_eof"])
@pytest.mark.parametrize("at_once", [1 << 16, 4096, 777])
async def test_slow_reader_gets_every_byte_before_the_end(kind, end, at_once):
    size = 20_000 if kind == "terminal" else 300_000
    data = noise(size * 2)
    async with writing(kind) as (protocol, peer):
        protocol.transport.write(data[:size])
        step = size // 10
        for i in range(size, 2 * size, step):
            protocol.transport.write(data[i : i + step])
        getattr(protocol.transport, end)()
        assert await receive(peer, 2 * size, at_once) == data
        assert await asyncio.wait_for(protocol.lost, HANG) is None


async def test_long_lines_are_queued_in_order():
    chunks = [noise(n, i) for i, n in enumerate([1, 9000, 0, 70_000, 200_000, 3, 100_000])]
    async with writing() as (protocol, peer):
        for _ in range(3):
            protocol.transport.writelines(chunks)
        protocol.transport.close()
        assert await receive(peer, 1 << 40) == b"".join(chunks) * 3


@pytest.mark.parametrize("make", [bytes, bytearray, lambda d: memoryview(bytearray(d))])
@pytest.mark.parametrize("full", [False, True])
async def test_what_was_given_is_written(make, full):
    """Objects that are changed after write() do not change what is written."""
    async with writing() as (protocol, peer):
        expected = fill(protocol) if full else b""
        data = make(noise(200_000))
        expected += bytes(data)
        protocol.transport.write(data)
        if not isinstance(data, bytes):
            data[:] = bytes(200_000)
            if isinstance(data, bytearray):
                data.clear()  # nothing holds its buffer
        protocol.transport.close()
        assert await receive(peer, 1 << 40) == expected


@pytest.mark.parametrize("data", ["text", 5, None, [b"x"]])
async def test_what_cannot_be_written(data):
    async with writing() as (protocol, peer):
        with pytest.raises(AssertionError):
            protocol.transport.write(data)
        protocol.transport.write(b"x")
        assert await receive(peer, 1) == b"x"


async def test_flow_control():
    async with writing() as (protocol, peer):
        transport = protocol.transport
        assert transport.get_write_buffer_limits() == (16384, 65536)
        with pytest.raises(ValueError, match="must be"):
            transport.set_write_buffer_limits(1, 2)
        transport.set_write_buffer_limits(100, 10)
        assert transport.get_write_buffer_limits() == (10, 100)
        size = capacity(peer)
        data = noise(size + 1000)
        transport.write(data[: size + 100])
        assert transport.get_write_buffer_size() == 100
        assert protocol.told == ["connection_made"]
        transport.write(data[size + 100 : size + 101])
        assert protocol.told == ["connection_made", "pause_writing"]
        transport.write(data[size + 101 :])
        assert transport.get_write_buffer_size() == 1000
        assert await receive(peer, len(data)) == data
        await until(lambda: protocol.told[-1] == "resume_writing")
        assert protocol.told == ["connection_made", "pause_writing", "resume_writing"]
        assert transport.get_write_buffer_size() == 0


def capacity(file):
    return fcntl.fcntl(file, fcntl.F_GETPIPE_SZ)


async def test_written_in_resume_writing():
    """The protocol writes again as soon as it may, and closes at last."""
    left = [noise(200_000, i) for i in range(5)]
    expected = b"".join(left)

    def more(protocol):
        if left:
            protocol.transport.write(left.pop(0))
        else:
            protocol.transport.close()

    async with writing(resume_writing=more) as (protocol, peer):
        more(protocol)
        assert await receive(peer, 1 << 40) == expected
        assert await asyncio.wait_for(protocol.lost, HANG) is None


@pytest.mark.parametrize("kind", ["pipe", "fifo", "socket"])
@pytest.mark.parametrize("phase", ["idle", "queued", "closing", "paused"])
async def test_reader_goes(kind, phase):
    async with writing(kind) as (protocol, peer):
        transport = protocol.transport
        if phase == "idle":
            transport.write(b"unread")
        else:
            fill(protocol, (1 << 21) if phase != "queued" else (1 << 18) + (1 << 17))
        if phase == "closing":
            transport.close()
        await turns()
        peer.close()
        exc = await asyncio.wait_for(protocol.lost, HANG)
        if phase == "idle":
            assert exc is None
        elif kind == "socket":
            assert isinstance(exc, BrokenPipeError | ConnectionResetError)
        else:
            assert type(exc) is BrokenPipeError
        assert transport.is_closing()


async def test_written_before_it_is_known_that_the_reader_has_gone(caplog):
    async with writing() as (protocol, peer):
        peer.close()
        transport = protocol.transport
        transport.write(b"x")
        assert transport.is_closing()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(4):
                transport.write(b"x")
            assert not caplog.records
            transport.write(b"x")
            transport.write(b"")
        message = "pipe closed by peer or os.write(pipe, data) raised exception."
        assert [record.message for record in caplog.records] == [message]
        exc = await asyncio.wait_for(protocol.lost, HANG)
        assert type(exc) is BrokenPipeError
        assert exc.errno == errno.EPIPE


async def test_abort_drops_what_is_queued():
    async with writing() as (protocol, peer):
        size = capacity(peer)
        data = fill(protocol)
        protocol.transport.abort()
        assert protocol.transport.get_write_buffer_size() == 0
        assert not protocol.lost.done()
        assert await asyncio.wait_for(protocol.lost, HANG) is None
        assert await receive(peer, 1 << 40) == data[:size]


async def test_closed_in_connection_made_of_a_writer():
    async with writing(connection_made=lambda p: p.transport.close()) as (protocol, peer):
        assert await asyncio.wait_for(protocol.lost, HANG) is None
        assert await receive(peer, 1) == b""


async def test_written_in_connection_made():
    async with writing(connection_made=lambda p: p.transport.write(b"x")) as (_, peer):
        assert await receive(peer, 1) == b"x"
