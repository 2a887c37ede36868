"""Pipes at random: whoever writes, pauses or closes when, every byte comes once and in order.

The model is a bytes object: what was accepted by write() up to the close.  All of it has to
come out unless the writer was aborted or its reader went, and then the beginning of it.
"""

import asyncio
import os
import random
import socket
from io import FileIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipe_peers import HANG

pytestmark = [pytest.mark.every_reactor, pytest.mark.as_asyncio]

SIZES = [0, 1, 600, 4096, 5000, 20_000, 70_000, 300_000]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(SIZES)),
        st.tuples(st.just("write_mutable"), st.sampled_from(SIZES)),
        st.tuples(st.just("write_lines"), st.lists(st.sampled_from(SIZES), max_size=6)),
        st.tuples(st.just("turn"), st.integers(1, 3)),
        st.tuples(st.just("look"), st.integers(1, 2)),
        st.tuples(st.just("pause"), st.none()),
        st.tuples(st.just("resume"), st.none()),
        st.tuples(st.just("pause_after"), st.integers(1, 3)),
        st.tuples(st.just("limits"), st.sampled_from([0, 1, 10_000, 1 << 20])),
    ),
    max_size=40,
)
endings = st.sampled_from(["close", "write_eof", "abort", "reader closes"])


class Reader(asyncio.Protocol):
    def __init__(self, keeps):
        self.chunks, self.total, self.keeps = [], bytearray(), keeps
        self.paused_after = 0
        self.told = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        assert self.transport.is_reading()
        assert not self.told
        self.total += data
        if self.keeps:
            self.chunks.append(data)
        if self.paused_after:
            self.paused_after -= 1
            if not self.paused_after:
                self.transport.pause_reading()

    def eof_received(self):
        self.told.append("eof")

    def connection_lost(self, exc):
        self.told.append("lost")
        self.lost.set_result(exc)


class Writer(asyncio.BaseProtocol):
    """Checks that pauses and resumptions alternate and are told when they are due."""

    def __init__(self):
        self.paused = False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def pause_writing(self):
        assert not self.paused
        _, high = self.transport.get_write_buffer_limits()
        assert self.transport.get_write_buffer_size() > high
        self.paused = True

    def resume_writing(self):
        assert self.paused
        low, _ = self.transport.get_write_buffer_limits()
        assert self.transport.get_write_buffer_size() <= low
        self.paused = False

    def connection_lost(self, exc):
        self.lost.set_result(exc)


class Model:
    def __init__(self, reader, writer, rng):
        self.reader, self.writer, self.rng = reader, writer, rng
        self.written = bytearray()

    def data(self, size):
        data = self.rng.randbytes(size)
        self.written += data
        return data

    async def write(self, size):
        self.writer.transport.write(self.data(size))

    async def write_mutable(self, size):
        data = bytearray(self.data(size))
        self.writer.transport.write(memoryview(data) if size % 2 else data)
        data[:] = bytes(size)

    async def write_lines(self, sizes):
        self.writer.transport.writelines([self.data(size) for size in sizes])

    async def turn(self, n):
        for _ in range(n):
            await asyncio.sleep(0)

    async def look(self, n):
        for _ in range(n):
            await asyncio.sleep(0.0002)

    async def pause(self, _):
        self.reader.transport.pause_reading()

    async def resume(self, _):
        self.reader.transport.resume_reading()

    async def pause_after(self, n):
        self.reader.paused_after = n

    async def limits(self, high):
        if not self.writer.paused:  # else they are told of another limit than is known
            self.writer.transport.set_write_buffer_limits(high)


async def play(script, ending, kind, keeps, seed):
    loop = asyncio.get_running_loop()
    if kind == "pipe":
        r, w = os.pipe()
    else:
        r, w = (sock.detach() for sock in socket.socketpair())
    _, reader = await loop.connect_read_pipe(lambda: Reader(keeps), FileIO(r, "r"))
    _, writer = await loop.connect_write_pipe(Writer, FileIO(w, "w"))
    model = Model(reader, writer, random.Random(seed))
    for name, argument in script:
        await getattr(model, name)(argument)
        queued = writer.transport.get_write_buffer_size()
        assert queued <= len(model.written) - len(reader.total)
        assert model.written.startswith(reader.total)
    reader.paused_after = 0
    if ending == "reader closes":
        reader.transport.close()
        assert await asyncio.wait_for(reader.lost, HANG) is None
        exc = await asyncio.wait_for(writer.lost, HANG)
        assert exc is None or isinstance(exc, BrokenPipeError | ConnectionResetError)
        assert reader.told == ["lost"]
    else:
        dropped = writer.transport.get_write_buffer_size() if ending == "abort" else 0
        getattr(writer.transport, ending)()
        reader.transport.resume_reading()
        assert await asyncio.wait_for(reader.lost, HANG) is None
        assert await asyncio.wait_for(writer.lost, HANG) is None
        assert reader.told == ["eof", "lost"]
        assert len(reader.total) == len(model.written) - dropped
    assert model.written.startswith(reader.total)
    if keeps:
        assert b"".join(reader.chunks) == reader.total
    await asyncio.sleep(0)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps, endings, st.sampled_from(["pipe", "socket"]), st.booleans(), st.integers(0, 99))
def test_any_order_of_events(loop, script, ending, kind, keeps, seed):
    found = []
    loop.set_exception_handler(lambda _, report: found.append(report))
    loop.run_until_complete(play(script, ending, kind, keeps, seed))
    assert not found


async def test_a_crowd_of_pipes():
    """Many at a time, so that reads of one come between those of another."""
    rng = random.Random(7)

    def script():
        names = ["write", "write_mutable", "turn", "look", "pause", "resume"]
        for _ in range(60):
            name = rng.choice(names)
            if name.startswith("write"):
                yield name, rng.choice(SIZES)
            else:
                yield name, rng.randrange(1, 3)

    async with asyncio.timeout(HANG), asyncio.TaskGroup() as group:
        for i in range(40):
            ending = rng.choice(["close", "write_eof", "reader closes"])
            group.create_task(
                play(list(script()), ending, rng.choice(["pipe", "socket"]), i % 2, i)
            )
