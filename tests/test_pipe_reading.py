"""Reading pipe transports against raw peers; asyncio's promises are checked on its loop as well."""

import asyncio
import errno
import os
import socket
from io import FileIO

import pytest
from pipe_peers import (
    HANG,
    Recorder,
    ends,
    kinds,
    noise,
    reading,
    reported,
    send,
    turns,
    until,
)

pytestmark = [pytest.mark.every_reactor, pytest.mark.as_asyncio]

# -- reading -----------------------------------------------------------------------------------


@kinds
async def test_whole_life_of_a_reader(kind):
    async with reading(kind) as (protocol, peer):
        transport = protocol.transport
        assert isinstance(transport, asyncio.ReadTransport)
        assert not isinstance(transport, asyncio.WriteTransport)
        assert protocol.told == ["connection_made"]
        assert transport.get_protocol() is protocol
        assert transport.is_reading()
        assert not transport.is_closing()
        pipe = transport.get_extra_info("pipe")
        assert not os.get_blocking(pipe.fileno())
        assert transport.get_extra_info("nothing", 5) == 5
        peer.write(b"first")
        await until(lambda: protocol.received == b"first")
        peer.write(b"second")
        await until(lambda: protocol.received == b"firstsecond")
        peer.close()
        exc = await asyncio.wait_for(protocol.lost, HANG)
        if kind == "terminal":
            assert exc.errno == errno.EIO
            assert protocol.told == ["connection_made", "data_received", "connection_lost"]
        else:
            assert exc is None
            assert protocol.told == [
                "connection_made",
                "data_received",
                "eof_received",
                "connection_lost",
            ]
        assert transport.is_closing()
        assert not transport.is_reading()
        transport.close()
        transport.pause_reading()
        transport.resume_reading()


@kinds
@pytest.mark.parametrize("size", [1, 700, 4096, 20_000, 70_000, 3_000_000])
async def test_every_byte_is_read(kind, size):
    if kind == "terminal":
        size = min(size, 20_000)
    data = noise(size)
    async with reading(kind) as (protocol, peer):
        await send(peer, data)
        await until(lambda: len(protocol.received) >= size)
        await send(peer, b"small again")
        await until(lambda: len(protocol.received) > size + 10)
        assert protocol.received == data + b"small again"


async def test_what_a_protocol_keeps_stays_as_it_was():
    """Memory that is read into again is only what the protocol did not keep."""
    kept = []

    class Keeper(Recorder):
        def data_received(self, data):
            if len(kept) % 3 != 2:
                kept.append((data, bytes(bytearray(data))))
            else:
                kept.append((b"", b""))
            self.count = getattr(self, "count", 0) + len(data)

    data = noise(2_000_000)
    async with reading(make=Keeper) as (protocol, peer):
        await send(peer, data)
        for size in [600, 600, 3000, 1, 600, 50_000, 600] * 20:
            await send(peer, data[:size])
            await asyncio.sleep(0)
        expected = len(data) + 20 * (600 * 4 + 3001 + 50_000)
        await until(lambda: protocol.count == expected)
    for one, copy in kept:
        assert one == copy
        assert hash(one) == hash(copy)


async def test_messages_of_a_socket_that_keeps_them_apart():
    """What is not read of a message is gone; so there is room for all of it."""
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    got = []

    class Messages(Recorder):
        def data_received(self, data):
            got.append(data)

    loop = asyncio.get_running_loop()
    _transport, protocol = await loop.connect_read_pipe(Messages, a)
    messages = [noise(n) for n in (1, 100, 100_000, 3, 70_000, *[5] * 40, 120_000)]
    sent = 0
    for message in messages:
        b.send(message)
        sent += len(message)
        await asyncio.sleep(0)
        if len(message) != 5:
            await until(lambda: sum(map(len, got)) == sent)  # noqa: B023 - awaited here
    await until(lambda: len(got) == len(messages))
    assert got == messages
    b.close()
    assert await protocol.lost is None


@kinds
async def test_paused_inside_data_received(kind):
    """Nothing more is delivered, nothing is lost, and the end waits as well."""
    async with reading(kind, data_received=lambda p: p.transport.pause_reading()) as (p, peer):
        peer.write(b"one")
        await until(lambda: p.received == b"one")
        assert not p.transport.is_reading()
        peer.write(b"two")
        await turns()
        assert p.received == b"one"
        if kind != "terminal":
            peer.close()  # a terminal drops what was not read
            await turns()
        p.transport.resume_reading()
        p.transport.resume_reading()
        await until(lambda: p.received == b"onetwo")
        await turns()
        assert not p.lost.done()
        p.doing.clear()
        p.transport.resume_reading()
        if kind != "terminal":
            assert await asyncio.wait_for(p.lost, HANG) is None


async def test_paused_and_resumed_without_data_between():
    async with reading() as (protocol, peer):
        for _ in range(3):
            protocol.transport.pause_reading()
            protocol.transport.pause_reading()
            protocol.transport.resume_reading()
        protocol.transport.pause_reading()
        peer.write(b"x")
        await turns()
        assert protocol.received == b""
        protocol.transport.resume_reading()
        await until(lambda: protocol.received == b"x")


async def test_paused_in_connection_made():
    async with reading(connection_made=lambda p: p.transport.pause_reading()) as (protocol, peer):
        peer.write(b"x")
        await turns()
        assert protocol.received == b""
        protocol.transport.resume_reading()
        await until(lambda: protocol.received == b"x")


async def test_closed_inside_data_received():
    async with reading(data_received=lambda p: p.transport.close()) as (protocol, peer):
        peer.write(b"x")
        assert await asyncio.wait_for(protocol.lost, HANG) is None
        assert protocol.told == ["connection_made", "data_received", "connection_lost"]
        with pytest.raises(BrokenPipeError):
            for _ in range(3):
                peer.write(b"y")
                await asyncio.sleep(0)


async def test_closed_in_connection_made():
    async with reading(connection_made=lambda p: p.transport.close()) as (protocol, _):
        assert await asyncio.wait_for(protocol.lost, HANG) is None
        assert protocol.told == ["connection_made", "connection_lost"]


async def test_other_protocol_in_mid_stream():
    second = Recorder()
    second.told.append("set")

    def hand_over(protocol):
        protocol.transport.set_protocol(second)
        second.transport = protocol.transport

    ours, theirs = ends("pipe")
    loop = asyncio.get_running_loop()
    transport, first = await loop.connect_read_pipe(lambda: Recorder(data_received=hand_over), ours)
    with theirs:
        theirs.write(b"one")
        await until(lambda: first.received == b"one")
        assert transport.get_protocol() is second
        theirs.write(b"two")
        await until(lambda: second.received == b"two")
    assert await asyncio.wait_for(second.lost, HANG) is None
    assert not first.lost.done()


async def test_error_of_read_is_reported():
    """A transport whose descriptor is no file to read: it ends with the error."""
    r, w = os.pipe()
    with FileIO(r, "r") as other, reported("Fatal read error on pipe transport"):
        ours = FileIO(w, "w")
        loop = asyncio.get_running_loop()
        _transport, protocol = await loop.connect_read_pipe(Recorder, ours)
        other.close()  # EPOLLERR: to be read, which the writing end of a pipe is not
        exc = await asyncio.wait_for(protocol.lost, HANG)
        assert exc.errno == errno.EBADF
        assert protocol.told == ["connection_made", "connection_lost"]
        await asyncio.sleep(0)
