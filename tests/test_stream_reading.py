"""The stream transport's reading: pausing, protocols that change, bulk and small."""

import asyncio
import functools
import random
import socket
import weakref

import pytest
from stream_peers import (
    BUFFERED_SIZES,
    BufferedRecorder,
    Recorder,
    both_modes,
    every_loop,
    families,
    joined,
    making,
    noise,
    send_all,
    turns,
    until,
)

# -- pausing -----------------------------------------------------------------------------------


@families
@making
@pytest.mark.parametrize("buffered", [0, *BUFFERED_SIZES])
@both_modes
async def test_pause_stops_delivery_at_once(family, how, buffered):
    """Pausing in every delivery: nothing comes until resumed, nothing is lost or reordered."""
    name = "buffer_updated" if buffered else "data_received"
    rng = random.Random(str((family, how, buffered)))
    loop = asyncio.get_running_loop()

    def pause(protocol):
        assert protocol.transport.is_reading(), "delivered while paused"
        protocol.transport.pause_reading()
        again = rng.randrange(4)
        if again == 0:
            protocol.transport.resume_reading()
        elif again == 1:
            loop.call_soon(protocol.transport.resume_reading)
        else:
            loop.call_later(0.0005, protocol.transport.resume_reading)

    def make():
        return (
            BufferedRecorder(buffered, **{name: pause})
            if buffered
            else Recorder(data_received=pause)
        )

    async with joined(family, make, how) as (protocol, peer):
        size = 1500 if buffered == 7 else 1 << 19
        data, at = noise(size), 0
        while at < size:
            n = rng.choice([1, 10, 1000, 40_000])
            await send_all(peer, data[at : at + n])
            at += n
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        peer.close()
        assert await protocol.lost is None
        assert protocol.received == data


@families
@making
@both_modes
async def test_nothing_is_delivered_while_paused(family, how):
    async with joined(family, how=how) as (protocol, peer):
        expected = b""
        for i in range(20):
            protocol.transport.pause_reading()
            assert not protocol.transport.is_reading()
            before = bytes(protocol.received)
            data = noise([1, 100, 20_000, 60_000][i % 4], i)
            await send_all(peer, data)
            if i % 3:
                await turns(2)
            assert protocol.received == before
            expected += data
            protocol.transport.resume_reading()
            protocol.transport.resume_reading()
            assert protocol.transport.is_reading()
            if i % 4:
                await until(lambda: len(protocol.received) == len(expected))  # noqa: B023 - awaited here
                assert protocol.received == expected
            elif i % 8:
                protocol.transport.pause_reading()
                protocol.transport.resume_reading()
                await until(lambda: len(protocol.received) == len(expected))  # noqa: B023 - awaited here
        peer.close()
        assert await protocol.lost is None
        assert protocol.received == expected


@every_loop
async def test_paused_in_the_same_batch():
    """Data for a hundred connections comes together; the first one pauses all the others."""
    loop = asyncio.get_running_loop()
    protocols, peers, told = [], [], []

    def first(protocol):
        told.append(protocol)
        if len(told) == 1:
            for other in protocols:
                other.transport.pause_reading()

    for _ in range(100):
        one, other = socket.socketpair()
        _, protocol = await loop.create_connection(lambda: Recorder(data_received=first), sock=one)
        protocols.append(protocol)
        peers.append(other)
    for peer in peers:
        peer.send(b"x")
    await until(lambda: told)
    await turns()
    assert len(told) == 1
    for protocol in protocols:
        protocol.transport.resume_reading()
    await until(lambda: len(told) == 100)
    assert all(protocol.received == b"x" for protocol in protocols)
    # ... and closes them
    told.clear()
    for protocol in protocols:
        protocol.doing["data_received"] = lambda protocol: (
            told.append(protocol) or [other.transport.abort() for other in protocols]
        )
    for peer in peers:
        peer.send(b"y")
    for protocol in protocols:
        assert await protocol.lost is None
    assert len(told) == 1
    for peer in peers:
        peer.close()


# -- protocols that change ---------------------------------------------------------------------


@families
@making
@both_modes
async def test_set_protocol_in_mid_stream(family, how):
    """From one kind of protocol to another with every chunk: no byte goes astray."""
    rng = random.Random(str((family, how)))
    got = bytearray()

    class Plain(asyncio.Protocol):
        def data_received(self, data):
            got.extend(data)
            change()

        def connection_lost(self, exc):
            lost.set_result(exc)

    class Buffered(asyncio.BufferedProtocol):
        def __init__(self):
            self.buffer = bytearray(rng.choice([1, 100, 5000, 1 << 20]))

        def get_buffer(self, sizehint):
            return self.buffer

        def buffer_updated(self, n):
            got.extend(self.buffer[:n])
            change()

        def connection_lost(self, exc):
            lost.set_result(exc)

    def change():
        transport.set_protocol(rng.choice([Plain, Buffered])())
        if rng.random() < 0.2:
            transport.pause_reading()
            loop.call_soon(transport.resume_reading)

    loop = asyncio.get_running_loop()
    lost = loop.create_future()
    async with joined(family, how=how) as (protocol, peer):
        transport = protocol.transport
        protocol.transport = None
        change()
        data, at = noise(300_000), 0
        while at < len(data):
            n = rng.choice([1, 1, 30, 1000, 30_000])
            await send_all(peer, data[at : at + n])
            at += n
            await asyncio.sleep(0)
        peer.close()
        assert await lost is None
        assert got == data


@families
@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 22])
@both_modes
async def test_buffered_protocol(family, size):
    async with joined(family, lambda: BufferedRecorder(size)) as (protocol, peer):
        data = noise(3000 if size < 10 else 1 << 21)
        await send_all(peer, data)
        peer.close()
        assert await protocol.lost is None
        assert protocol.received == data
        assert protocol.names[-2:] == ["eof_received", "connection_lost"]


@every_loop
async def test_old_protocol_is_let_go():
    async with joined("unix") as (protocol, _peer):
        old = Recorder()
        gone = weakref.ref(old)
        protocol.transport.set_protocol(old)
        assert protocol.transport.get_protocol() is old
        protocol.transport.set_protocol(protocol)
        del old
        assert gone() is None


# -- bulk and small ----------------------------------------------------------------------------


@families
@making
@pytest.mark.parametrize("buffered", [False, True])
@every_loop
async def test_bulk_and_small_alternate(family, how, buffered):
    """Megabytes in chunks of random sizes, with runs of small ones long enough to switch."""
    rng, seed = random.Random(str((family, how))), len(family + how)
    hurry = random.Random(seed)  # of its own: how often it is asked depends on the time
    data = noise(3 << 20, seed)
    make = functools.partial(BufferedRecorder, 100_000) if buffered else Recorder
    async with joined(family, make, how) as (protocol, peer):
        at = switches = 0
        small = False
        while at < len(data):
            small = not small
            if small:
                sizes = [rng.randint(1, 500) for _ in range(40)]
            else:
                sizes = [rng.randint(10_000, 400_000) for _ in range(rng.randint(1, 3))]
                switches += 1
            for n in sizes:
                await send_all(peer, data[at : at + n])
                at = min(at + n, len(data))
                # each chunk on its own, so that small ones arrive as such
                await until(lambda: len(protocol.received) >= at or hurry.random() < 0.01)  # noqa: B023 - awaited here
        peer.close()
        assert await protocol.lost is None
        assert protocol.received == data
        assert switches > 2
        sizes = [event[1] for event in protocol.events if len(event) > 1 and event[1]]
        assert min(sizes) < 500
        assert max(sizes) > 16384
