"""The contract of pipe transports, which asyncio's own transports state.

Tests marked `everywhere` are run on those too.
"""

import array
import asyncio
import contextlib
import fcntl
import functools
import gc
import itertools
import logging
import os
import random
import socket
import tempfile
import tty
import weakref
from pathlib import Path

import pytest
import stream_peers as streams
from stream_peers import alive, noise, turns, until

from aiounify._core.pipe_read import ReadPipeTransport
from aiounify._core.pipe_write import WritePipeTransport

NATIVE = [kind for kind in streams.LOOPS if kind in ("epoll", "uring", "uring-poll")]
ours = functools.partial(streams.every_loop, kinds=NATIVE)
everywhere = functools.partial(streams.every_loop, kinds=[*NATIVE, streams.ASYNCIO])
both_modes = functools.partial(everywhere, debug=(False, True))


class Recorder(asyncio.Protocol):
    """Notes what is called, and raises what the test asks for."""

    def __init__(self):
        self.calls = []
        self.received = bytearray()
        self.raises = {}
        self.transport = None
        self.lost = asyncio.get_running_loop().create_future()

    def note(self, name, *args):
        self.calls.append((name, *args))
        if name in self.raises:
            raise self.raises[name]

    def connection_made(self, transport):
        self.transport = transport
        alive.add(transport)
        self.note("made")

    def data_received(self, data):
        assert type(data) is bytes
        assert data
        self.received += data
        self.note("data")

    def eof_received(self):
        self.note("eof")

    def pause_writing(self):
        self.note("pause")

    def resume_writing(self):
        self.note("resume")

    def connection_lost(self, exc):
        self.transport = None
        self.lost.set_result(exc)
        self.note("lost", exc)

    def order(self):
        """The calls, a run of equal ones as one."""
        return [name for name, _ in itertools.groupby(call[0] for call in self.calls)]


@contextlib.asynccontextmanager
async def reading(r, make=Recorder, mode="rb"):
    """A reading transport's protocol; the transport is over, or closed, at the end."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_read_pipe(make, os.fdopen(r, mode, 0))
    try:
        yield protocol
        if not protocol.lost.done():
            transport.close()
            await asyncio.wait_for(asyncio.shield(protocol.lost), 10)
    finally:
        transport.close()


@contextlib.asynccontextmanager
async def writing(w, make=Recorder, mode="wb"):
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(make, os.fdopen(w, mode, 0))
    try:
        yield protocol
        if not protocol.lost.done():
            transport.abort()
            await asyncio.wait_for(asyncio.shield(protocol.lost), 10)
    finally:
        if not protocol.lost.done():
            transport.abort()


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def some(fd, size=1 << 20):
    """What can be read now; None if nothing can."""
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None


async def read_exactly(fd, n, piece=1 << 20):
    found = bytearray()
    while len(found) < n:
        data = some(fd, min(piece, n - len(found)))
        assert data != b"", f"the end after {len(found)} of {n} bytes"
        if data is None:
            await asyncio.sleep(0)
        else:
            found += data
    return bytes(found)


# -- reading -------------------------------------------------------------------------------


@both_modes()
async def test_a_life_of_a_reader():
    r, w = os.pipe()
    async with reading(r) as protocol:
        transport = protocol.transport
        assert transport.is_reading()
        assert not transport.is_closing()
        os.write(w, b"one")
        await until(lambda: protocol.received == b"one")
        os.write(w, b"two")
        os.close(w)
        assert await protocol.lost is None
        assert protocol.received == b"onetwo"
        assert protocol.order() == ["made", "data", "eof", "lost"]
        assert transport.is_closing()
        assert not transport.is_reading()
        await turns()
        assert not is_open(r)


@both_modes()
async def test_every_size():
    """Small messages, long ones and the ways between; nothing is lost or reordered."""
    r, w = os.pipe()
    fcntl.fcntl(w, 1031, 1 << 20)  # F_SETPIPE_SZ
    async with reading(r) as protocol:
        for size in [1, 5, 511, 512, 513, 4096, 16384, 65535, 65536, 65537, 300000, 1 << 20] * 2:
            data = noise(size)
            protocol.received.clear()
            assert os.write(w, data) == size
            await until(lambda: len(protocol.received) >= size)  # noqa: B023 - awaited here
            assert protocol.received == data
            for _ in range(20):  # back to small ones
                protocol.received.clear()
                os.write(w, data[:100])
                await until(lambda: len(protocol.received) == min(100, size))  # noqa: B023 - awaited here
                assert protocol.received == data[:100]
        os.close(w)


@both_modes()
async def test_pausing_stops_delivery_at_once():
    r, w = os.pipe()
    async with reading(r) as protocol:
        transport = protocol.transport
        protocol.data_received = None

        class Pausing(Recorder):
            def data_received(self, data):
                super().data_received(data)
                transport.pause_reading()

        transport.set_protocol(other := Pausing())
        other.lost = protocol.lost
        for i in range(1, 20):
            os.write(w, b"%2d" % i)
            await until(lambda: len(other.calls) == i)  # noqa: B023 - awaited here
            assert not transport.is_reading()
            os.write(w, b"..")
            await turns(3)
            assert len(other.calls) == i
            transport.resume_reading()
            transport.pause_reading()
            await turns(3)
            assert len(other.calls) == i
            transport.resume_reading()
            assert transport.is_reading()
            await until(lambda: len(other.received) == 4 * i)  # noqa: B023 - awaited here
            other.calls = [("data",)] * i
            transport.resume_reading()
        assert other.received == b"".join(b"%2d.." % i for i in range(1, 20))
        os.close(w)
        await other.lost


@everywhere()
async def test_the_end_is_not_told_while_paused():
    r, w = os.pipe()
    async with reading(r) as protocol:
        protocol.transport.pause_reading()
        os.write(w, b"last")
        os.close(w)
        await turns()
        assert protocol.order() == ["made"]
        protocol.transport.resume_reading()
        assert await protocol.lost is None
        assert protocol.received == b"last"
        assert protocol.order() == ["made", "data", "eof", "lost"]


@everywhere()
async def test_pausing_before_reading_begins():
    r, w = os.pipe()

    class Pausing(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    os.write(w, b"early")
    async with reading(r, Pausing) as protocol:
        await turns()
        assert protocol.received == b""
        protocol.transport.resume_reading()
        await until(lambda: protocol.received == b"early")
    os.close(w)


@both_modes()
async def test_closing_inside_of_data_received():
    r, w = os.pipe()

    class Closing(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.close()

    async with reading(r, Closing) as protocol:
        os.write(w, b"one")
        assert await protocol.lost is None
        assert protocol.order() == ["made", "data", "lost"]
    os.close(w)


@everywhere()
async def test_another_protocol_in_mid_stream():
    r, w = os.pipe()
    async with reading(r) as protocol:
        os.write(w, b"one")
        await until(lambda: protocol.received == b"one")
        transport, other = protocol.transport, Recorder()
        transport.set_protocol(other)
        assert transport.get_protocol() is other
        os.write(w, b"two")
        await until(lambda: other.received == b"two")
        assert protocol.received == b"one"
        os.close(w)
        assert await other.lost is None
        protocol.lost.set_result(None)


@everywhere()
async def test_exceptions_of_a_reading_protocol():
    r, w = os.pipe()

    class Broken(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.raises = {name: ValueError(name) for name in ("data", "eof", "lost")}
            raise ValueError("made")

    async with reading(r, Broken) as protocol:
        os.write(w, b"one")
        await until(lambda: protocol.received == b"one")
        os.write(w, b"two")
        await until(lambda: protocol.received == b"onetwo")
        os.close(w)
        assert await protocol.lost is None
        await turns()
        found = [str(report["exception"]) for report in asyncio.get_running_loop().reports]
        assert found == ["made", "data", "data", "eof", "lost"]
        asyncio.get_running_loop().reports.clear()
    assert not is_open(r)


# -- writing -------------------------------------------------------------------------------


@both_modes()
async def test_a_life_of_a_writer():
    r, w = os.pipe()
    async with writing(w) as protocol:
        transport = protocol.transport
        assert transport.can_write_eof()
        transport.write(b"one")
        assert os.read(r, 100) == b"one"  # without a turn of the loop
        transport.write(b"")
        transport.writelines([b"t", bytearray(b"w"), memoryview(b"o")])
        assert os.read(r, 100) == b"two"
        transport.write_eof()
        transport.write_eof()
        assert transport.is_closing()
        assert await protocol.lost is None
        assert protocol.order() == ["made", "lost"]
        assert os.read(r, 100) == b""
        await turns()
        assert not is_open(w)
    os.close(r)


@ours(debug=(False, True))
async def test_a_slow_reader_gets_every_byte():
    """Also of what was changed after it was written, and of views of all kinds."""
    rng = random.Random(3)
    r, w = os.pipe()
    os.set_blocking(r, False)
    expected = bytearray()
    async with writing(w) as protocol:
        transport = protocol.transport
        assert transport.get_write_buffer_size() == 0
        for _ in range(60):
            data = rng.randbytes(rng.choice([1, 100, 5000, 70000, 200000]))
            how = rng.randrange(6)
            if how == 0:
                transport.write(data)
            elif how == 1:
                mutable = bytearray(data)
                transport.write(mutable)
                mutable[:] = bytes(len(mutable))
            elif how == 2:
                transport.write(memoryview(data))
            elif how == 3:
                transport.write(memoryview(data)[::3])
                data = data[::3]
            elif how == 4:
                data = data[: len(data) // 4 * 4]
                transport.write(memoryview(array.array("I", data)))
            else:
                cuts = sorted(rng.randrange(len(data) + 1) for _ in range(5))
                parts = [data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)])]
                transport.writelines(parts)
            expected += data
        transport.close()
        size = transport.get_write_buffer_size()
        assert size > 1 << 20
        got = bytearray()
        while (data := some(r, rng.choice([10, 1000, 100000]))) != b"":
            if data is None:
                await asyncio.sleep(0)
                continue
            got += data
        assert got == expected
        assert await protocol.lost is None
        assert protocol.order() == ["made", "pause", "resume", "lost"]
    os.close(r)


@both_modes()
async def test_flow_control():
    r, w = os.pipe()
    os.set_blocking(r, False)
    async with writing(w) as protocol:
        transport = protocol.transport
        assert transport.get_write_buffer_limits() == (16384, 65536)
        transport.set_write_buffer_limits(high=1000)
        assert transport.get_write_buffer_limits() == (250, 1000)
        with pytest.raises(ValueError, match="must be >= low"):
            transport.set_write_buffer_limits(high=10, low=20)
        transport.set_write_buffer_limits(high=1000, low=100)
        room = fcntl.fcntl(w, 1032)  # F_GETPIPE_SZ
        transport.write(bytes(room + 1000))
        assert transport.get_write_buffer_size() == 1000
        assert protocol.order() == ["made"]
        transport.write(b"x")
        assert protocol.order() == ["made", "pause"]
        assert await read_exactly(r, room + 1001) == bytes(room + 1000) + b"x"
        await until(lambda: protocol.order() == ["made", "pause", "resume"])
        assert transport.get_write_buffer_size() == 0
        transport.abort()
        await protocol.lost
    os.close(r)


@everywhere()
async def test_a_reader_that_goes_while_nothing_is_queued():
    r, w = os.pipe()
    async with writing(w) as protocol:
        os.close(r)
        assert await protocol.lost is None
        assert protocol.order() == ["made", "lost"]


@everywhere()
async def test_a_reader_that_goes_while_something_is_queued():
    r, w = os.pipe()
    async with writing(w) as protocol:
        protocol.transport.write(bytes(1 << 20))
        os.close(r)
        assert isinstance(await protocol.lost, BrokenPipeError)


@everywhere()
async def test_writing_to_nobody(caplog):
    r, w = os.pipe()
    async with writing(w) as protocol:
        transport = protocol.transport
        os.close(r)
        transport.write(b"one")
        assert transport.is_closing()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(10):
                transport.write(b"more")
        assert caplog.messages
        assert set(caplog.messages) == {
            "pipe closed by peer or os.write(pipe, data) raised exception."
        }
        assert isinstance(await protocol.lost, BrokenPipeError)
        transport.write(b"more")


@everywhere()
async def test_closing_writes_what_is_queued_and_aborting_drops_it():
    for how in ("close", "write_eof", "abort"):
        r, w = os.pipe()
        async with writing(w) as protocol:
            transport = protocol.transport
            data = bytes(range(256)) * 1000
            transport.write(data)
            getattr(transport, how)()
            transport.write(b"too late")
            got = bytearray()
            os.set_blocking(r, False)
            while (found := some(r)) != b"":
                if found is None:
                    await asyncio.sleep(0)
                else:
                    got += found
            if how == "abort":
                assert data.startswith(got)
                assert got != data
            else:
                assert got == data
            assert await protocol.lost is None
        os.close(r)


@everywhere()
async def test_aborting_after_closing_drops_what_is_left():
    r, w = os.pipe()
    async with writing(w) as protocol:
        protocol.transport.write(bytes(1 << 20))
        protocol.transport.close()
        await turns()
        assert not protocol.lost.done()
        protocol.transport.abort()
        assert await protocol.lost is None
    os.close(r)


@everywhere()
async def test_exceptions_of_a_writing_protocol():
    r, w = os.pipe()
    os.set_blocking(r, False)

    class Broken(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.raises = {name: ValueError(name) for name in ("pause", "resume", "lost")}
            raise ValueError("made")

    async with writing(w, Broken) as protocol:
        protocol.transport.write(bytes(1 << 20))
        assert await read_exactly(r, 1 << 20) == bytes(1 << 20)
        await until(lambda: protocol.order()[-1] == "resume")
        protocol.transport.close()
        assert await protocol.lost is None
        await turns()
        found = [str(report["exception"]) for report in asyncio.get_running_loop().reports]
        assert found == ["made", "pause", "resume", "lost"]
        asyncio.get_running_loop().reports.clear()
    os.close(r)


@ours()
async def test_writing_again_when_there_is_room():
    """What resume_writing() writes and closes is complete."""
    r, w = os.pipe()
    os.set_blocking(r, False)

    class Again(Recorder):
        def resume_writing(self):
            super().resume_writing()
            if len(self.calls) < 12:
                self.transport.write(b"x" * 200000)
            else:
                self.transport.write(b"end")
                self.transport.close()

    async with writing(w, Again) as protocol:
        protocol.transport.write(b"x" * 200000)
        got = bytearray()
        while (found := some(r)) != b"":
            if found is None:
                await asyncio.sleep(0)
            else:
                got += found
        assert got == b"x" * (len(got) - 3) + b"end"
        assert len(got) % 200000 == 3
        assert await protocol.lost is None
    os.close(r)


@everywhere()
async def test_what_cannot_be_written():
    r, w = os.pipe()
    async with writing(w) as protocol:
        for wrong in ("text", 5, None):
            with pytest.raises(AssertionError):
                protocol.transport.write(wrong)
        assert protocol.transport.get_write_buffer_size() == 0
    assert os.read(r, 10) == b""
    os.close(r)


# -- what they are -------------------------------------------------------------------------


@everywhere()
async def test_what_a_transport_shows():
    r, w = os.pipe()
    async with reading(r) as one, writing(w) as two:
        assert isinstance(one.transport, asyncio.ReadTransport)
        assert not isinstance(one.transport, asyncio.WriteTransport)
        assert isinstance(two.transport, asyncio.WriteTransport)
        assert one.transport.get_extra_info("pipe").fileno() == r
        assert two.transport.get_extra_info("pipe").fileno() == w
        assert two.transport.get_extra_info("peername", "none") == "none"
        text = repr(one.transport)
        assert "ReadPipeTransport" in text
        assert f"fd={r}" in text
        assert "polling" in text
        assert "bufsize=0" in repr(two.transport)
        assert not os.get_blocking(r)
        assert not os.get_blocking(w)
        transport = one.transport
    assert "closed" in repr(transport)


@ours()
async def test_they_are_native():
    r, w = os.pipe()
    async with reading(r) as one, writing(w) as two:
        assert type(one.transport) is ReadPipeTransport
        assert type(two.transport) is WritePipeTransport


@ours()
async def test_what_is_no_pipe():
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile() as file:
        with pytest.raises(ValueError, match=r"Pipe transport is for pipes/sockets only\."):
            await loop.connect_read_pipe(Recorder, file)
        with pytest.raises(ValueError, match="Pipe transport is only for pipes, sockets and char"):
            await loop.connect_write_pipe(Recorder, file)
        assert not file.closed
    closed = os.fdopen(os.dup(0), "rb", 0)
    closed.close()
    with pytest.raises(ValueError, match="closed file"):
        await loop.connect_read_pipe(Recorder, closed)


@everywhere()
async def test_names_in_the_file_system(tmp_path_factory):
    path = tmp_path_factory.mktemp("fifo") / "fifo"
    os.mkfifo(path)
    r = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    async with reading(r) as protocol:
        await turns()
        assert protocol.order() == ["made"]  # no writer yet is no end
        w = os.open(path, os.O_WRONLY)
        async with writing(w) as writer:
            writer.transport.write(b"hello")
            await until(lambda: protocol.received == b"hello")
        assert await protocol.lost is None
        assert protocol.order() == ["made", "data", "eof", "lost"]


@everywhere()
async def test_terminals():
    master, slave = os.openpty()
    tty.setraw(slave)
    async with reading(master) as protocol:
        other = os.dup(slave)
        async with writing(slave) as writer:
            writer.transport.write(b"hello")
            await until(lambda: protocol.received == b"hello")
        assert not protocol.lost.done()
        os.close(other)
        exc = await protocol.lost  # EIO is how a master sees its last slave go
        assert isinstance(exc, OSError)


@ours()
async def test_both_directions_of_one_descriptor():
    """A terminal, as programs have it at 0 and 1, or as one descriptor."""
    master, slave = os.openpty()
    tty.setraw(master)
    peer = slave
    os.set_blocking(peer, False)
    loop = asyncio.get_running_loop()
    file = os.fdopen(master, "r+b", 0)
    there, reader = await loop.connect_read_pipe(Recorder, file)
    back, writer = await loop.connect_write_pipe(
        Recorder, os.fdopen(master, "wb", 0, closefd=False)
    )
    rng = random.Random(5)
    for _ in range(20):
        data = bytes(rng.choices(b"abcdef", k=500))
        os.write(peer, data)
        await until(lambda: reader.received == data)  # noqa: B023 - awaited here
        reader.received.clear()
        back.write(data)
        assert await read_exactly(peer, 500) == data
    there.pause_reading()
    os.write(peer, b"later")
    back.write(bytes(100) * 1000)  # more than there is room for
    assert await read_exactly(peer, 100000) == bytes(100000)
    assert reader.received == b""
    there.resume_reading()
    await until(lambda: reader.received == b"later")
    back.close()
    assert await writer.lost is None
    os.write(peer, b"still")
    await until(lambda: reader.received == b"laterstill")
    there.close()
    assert await reader.lost is None
    os.close(peer)


@everywhere()
async def test_a_socket_as_a_pipe():
    one, two = socket.socketpair()
    other = two.detach()
    async with reading(one.detach()) as protocol, writing(other) as writer:
        writer.transport.write(b"x" * 1000)
        await until(lambda: len(protocol.received) == 1000)
        writer.transport.close()
        assert await protocol.lost is None
        assert protocol.order() == ["made", "data", "eof", "lost"]


@everywhere()
async def test_a_socket_whose_other_end_goes():
    one, two = socket.socketpair()
    async with writing(one.detach()) as writer:
        two.close()
        assert await writer.lost is None


@everywhere()
async def test_messages_of_a_socket_are_not_cut():
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with two:
        two.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        async with reading(one.detach()) as protocol:
            for size in (1, 100000, 5, 150000):
                two.send(bytes(size))
                await until(lambda: len(protocol.received) >= size)  # noqa: B023 - awaited here
                assert len(protocol.received) == size
                protocol.received.clear()


# -- lifetimes -----------------------------------------------------------------------------


@everywhere()
async def test_a_number_that_is_used_again_at_once():
    """What belonged to a closed transport never reaches the next one of that number."""
    numbers = set()
    for turn in range(50):
        r, w = os.pipe()
        numbers.add((r, w))
        async with reading(r) as protocol, writing(w) as writer:
            assert protocol.received == b""
            message = b"%d" % turn
            writer.transport.write(message)
            await until(lambda: protocol.received == message)  # noqa: B023 - awaited here
            writer.transport.write(b"never read")
    assert len(numbers) == 1


@ours()
async def test_nothing_is_left():
    loop = asyncio.get_running_loop()
    watched = loop.stats()["watched"]
    before = descriptors()
    kept = []
    for turn in range(60):
        r, w = os.pipe()
        async with reading(r) as one, writing(w) as two:
            kept += [weakref.ref(one.transport), weakref.ref(two.transport)]
            two.transport.write(bytes(100 * turn))
            if turn % 3 == 0:
                one.transport.pause_reading()
            await asyncio.sleep(0)
            if turn % 2:
                one.transport.close()
    del one, two
    await turns()
    gc.collect()
    assert [ref() for ref in kept if ref()] == []
    assert descriptors() == before
    assert loop.stats()["watched"] == watched


@everywhere()
async def test_dropped_transports_warn_and_close():
    loop = asyncio.get_running_loop()
    r, w = os.pipe()
    transport, protocol = await loop.connect_read_pipe(Recorder, os.fdopen(r, "rb", 0))
    transport.pause_reading()
    protocol.transport = None
    protocol.lost.set_result(None)
    await turns(2)
    with pytest.warns(ResourceWarning, match="unclosed transport.*ReadPipe"):
        del transport, protocol
        gc.collect()
    assert not is_open(r)
    os.close(w)


def test_a_loop_closed_with_transports_open(recwarn):
    for kind in NATIVE:
        loop = streams.LOOPS[kind]()

        async def main():
            loop = asyncio.get_running_loop()
            r, w = os.pipe()
            other = os.dup(r)
            one, _ = await loop.connect_read_pipe(Recorder, os.fdopen(r, "rb", 0))
            two, _ = await loop.connect_write_pipe(Recorder, os.fdopen(w, "wb", 0))
            two.write(bytes(1 << 20))
            return one, two, r, w, other

        one, two, r, w, other = loop.run_until_complete(main())
        loop.close()
        for call in (one.close, two.abort, one.resume_reading):
            with contextlib.suppress(RuntimeError):
                call()
        with contextlib.suppress(RuntimeError):
            two.write(b"x")
        del one, two, call
        gc.collect()
        assert not is_open(r)
        assert not is_open(w)
        os.close(other)


@ours()
async def test_pausing_and_resuming_at_once_asks_nothing_of_the_kernel():
    loop = asyncio.get_running_loop()
    r, w = os.pipe()
    async with reading(r) as protocol:
        await turns()
        before = loop.stats()["syscalls"]
        for _ in range(100):
            protocol.transport.pause_reading()
            protocol.transport.resume_reading()
        assert loop.stats()["syscalls"] == before
        os.write(w, b"x")
        await until(lambda: protocol.received == b"x")
    os.close(w)
