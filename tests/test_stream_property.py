"""Random programs on both ends of a connection, against a model: hypothesis finds the rest.

The model is short.  What one end writes arrives at the other in order, each byte once: all of it as
long as nobody closes, and also by close() and write_eof(); after an abort or a reset some first
part of it.  Nothing is delivered while paused, the end of the stream comes behind the data, and
connection_lost() comes once and last (Recorder checks the order of the callbacks).  No descriptor
and no transport is left by a program.

One end is always a transport; the other one is too, or it is a raw socket, which can do what no
transport does: reset, read slowly, close with data unread.

Each run tries other programs.  A program that fails is printed with a line that repeats it,
`@reproduce_failure(...)`, to be put above the test.
"""

import asyncio
import contextlib
import os
import socket

import pytest
from conftest import SANITIZED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_peers import (
    LOOPS,
    STRESS,
    BufferedRecorder,
    Recorder,
    busy,
    noise,
    reset,
    run,
    small_buffers,
    socket_pair,
    turns,
    until,
)

# -- programs ----------------------------------------------------------------------------------

sizes = st.one_of(
    st.integers(0, 20), st.sampled_from([4095, 8192, 8193, 16384, 16385, 65536, 300_000])
)
kinds_of_data = st.sampled_from([bytes, bytearray, memoryview])
turn = st.tuples(st.just("turn"), st.integers(0, 3))
write = st.tuples(st.just("write"), sizes, kinds_of_data, st.booleans())
transport_steps = st.one_of(
    write,
    write,
    turn,
    turn,
    st.tuples(st.just("writelines"), st.lists(sizes, max_size=80), kinds_of_data),
    st.tuples(st.just("pause")),
    st.tuples(st.just("resume")),
    st.tuples(st.just("pause in callback"), st.integers(1, 4)),
    st.tuples(st.just("set_protocol"), st.sampled_from([0, 7, 100, 5000, 1 << 19])),
    st.tuples(st.just("set_protocol in callback"), st.sampled_from([0, 7, 5000])),
    st.tuples(st.just("limits"), st.integers(0, 100_000)),
    st.tuples(st.just("write_eof")),
    st.tuples(st.sampled_from(["close", "abort", "turn"]), st.just(1)),
)
send = st.tuples(st.just("send"), sizes)
raw_steps = st.one_of(
    send,
    send,
    turn,
    turn,
    st.tuples(st.just("recv"), sizes),
    st.tuples(st.just("write_eof")),
    st.tuples(st.sampled_from(["close", "abort", "turn"]), st.just(1)),
)


def programs(steps):
    """What end 0, a transport, and end 1 do, one after the other."""
    ends = st.one_of(
        st.tuples(st.just(0), transport_steps),
        st.tuples(st.just(1), steps),
    )
    return st.lists(ends, min_size=5, max_size=40)


# -- the two ends ------------------------------------------------------------------------------


class End:
    """What the model knows of one end: what it has sent, received and done."""

    other = None  # the End it talks to

    def __init__(self, keep_open):
        self.sent, self.received = bytearray(), bytearray()
        self.closed = self.aborted = self.half_closed = self.at_eof = False
        self.keep_open = keep_open
        self.lost = asyncio.get_running_loop().create_future()

    @property
    def gone(self):
        return self.closed or self.aborted

    def data(self, size):
        return noise(size, len(self.sent) % 1000)

    def check(self):
        """What holds at any time."""
        assert self.other.sent[: len(self.received)] == self.received, "not what was sent"

    def came_to_its_end(self):
        """The end of the stream: the other one has closed its side and all of it is here."""
        self.at_eof = True
        other = self.other
        assert other.half_closed or other.gone
        if not other.gone:
            assert self.received == other.sent, "the end came before the data"


class TransportEnd(End):
    def __init__(self, keep_open):
        super().__init__(keep_open)
        self.paused = False
        self.events, self.seen = [], set()  # of all its protocols, in order
        self.pauses, self.next = 0, None

    async def open(self, sock):
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_connection(self.make, sock=sock)

    def make(self, size=0):
        """A protocol of this end, buffered if it has a size."""
        end = self

        class Part(BufferedRecorder if size else Recorder):
            """Its events go on where the last one's ended."""

            keep_open = end.keep_open
            calls = 0

            def get_buffer(self, sizehint):
                # megabytes by a few bytes each would take too long
                self.calls += 1
                if self.calls == 100 and size < 5000:
                    self.buffer = bytearray(5000)
                return super().get_buffer(sizehint)

            def act(self, name):
                if name in ("data_received", "buffer_updated"):
                    n = self.events[-1][1]
                    end.received += self.received[len(self.received) - n :]
                    assert not end.paused, "delivered while paused"
                    end.in_callback()
                elif name == "eof_received":
                    end.came_to_its_end()
                    end.closed |= not self.keep_open
                elif name == "connection_lost":
                    end.lost.set_result(self.reason)

        protocol = Part(size) if size else Part()
        protocol.events, protocol.seen = self.events, self.seen
        return protocol

    def in_callback(self):
        if self.pauses:
            self.pauses -= 1
            self.pause()
            asyncio.get_running_loop().call_soon(self.resume)
        if self.next is not None:
            size, self.next = self.next, None
            self.transport.set_protocol(self.make(size))

    def pause(self):
        self.paused = True
        self.transport.pause_reading()

    def resume(self):
        self.paused = False
        self.transport.resume_reading()

    def expect(self, data):
        """What is written to an open end is to arrive; also while it closes with a queue."""
        transport = self.transport
        if not self.half_closed and (
            not transport.is_closing() or (not self.aborted and transport.get_write_buffer_size())
        ):
            self.sent += data

    def refused(self):
        if self.half_closed:
            return pytest.raises(RuntimeError, match="after write_eof")
        return contextlib.nullcontext()

    async def step(self, name, *args):
        transport = self.transport
        if name == "write":
            size, kind, many = args
            data = self.data(size)
            self.expect(data)
            given_data = kind(data)
            with self.refused(), busy(5) if many else contextlib.nullcontext():
                transport.write(given_data)
            if kind is bytearray:
                given_data[:] = bytes(size)
        elif name == "writelines":
            chunks, kind = [noise(size, i) for i, size in enumerate(args[0])], args[1]
            self.expect(b"".join(chunks))
            with self.refused():
                transport.writelines([kind(chunk) for chunk in chunks])
        elif name == "pause":
            self.pause()
        elif name == "resume":
            self.resume()
        elif name == "pause in callback":
            self.pauses = args[0]
        elif name == "set_protocol":
            transport.set_protocol(self.make(args[0]))
        elif name == "set_protocol in callback":
            self.next = args[0]
        elif name == "limits":
            transport.set_write_buffer_limits(high=args[0])
        elif name == "write_eof":
            self.write_eof()
        elif name == "close":
            self.close()
        elif name == "abort":
            self.aborted = True
            transport.abort()
        assert transport.get_write_buffer_size() >= 0

    def write_eof(self):
        if not self.transport.is_closing():
            self.half_closed = True
        with contextlib.suppress(OSError):  # the other end is gone
            self.transport.write_eof()

    def close(self):
        self.closed = True
        self.transport.close()

    def drain(self):
        """The loop does it."""

    async def end(self):
        self.transport.abort()
        exc = await self.lost
        assert exc is None or isinstance(exc, OSError)
        listed = [name for name, *_ in self.events]
        assert listed[0] == "connection_made"
        assert listed[-1] == "connection_lost"
        assert listed.count("connection_made") == listed.count("connection_lost") == 1
        assert listed.count("eof_received") <= 1


class RawEnd(End):
    async def open(self, sock):
        self.sock = sock
        sock.setblocking(False)

    async def step(self, name, *args):
        if name == "send":
            data = self.data(args[0])
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self.sent += data[: self.sock.send(data)]
        elif name == "recv":
            self.recv(args[0])
        elif name == "write_eof":
            self.write_eof()
        elif name == "close":
            self.close()
        elif name == "abort":
            self.aborted = True
            reset(self.sock)
            self.lost.set_result(None)

    def recv(self, size):
        """False if there is nothing."""
        if not size or self.lost.done() or self.at_eof:
            return False
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return False
        except ConnectionError:
            assert self.other.gone
            return False
        self.received += data
        if not data:
            self.came_to_its_end()
        return bool(data)

    def drain(self):
        while self.recv(1 << 18):
            pass

    def resume(self):
        self.drain()

    def write_eof(self):
        self.half_closed = True
        if not self.lost.done():
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def close(self):
        self.closed = True
        self.sock.close()
        if not self.lost.done():
            self.lost.set_result(None)

    async def end(self):
        self.sock.close()


# -- playing -----------------------------------------------------------------------------------


async def play(family, program, make_other, small, keep_open):
    ends = TransportEnd(keep_open & 1 != 0), make_other(keep_open & 2 != 0)
    socks = socket_pair(family)
    if small and family == "unix":  # TCP with small buffers waits for its timers
        small_buffers(*socks)
    for end, other, sock in zip(ends, ends[::-1], socks, strict=True):
        end.other = other
        await end.open(sock)
    for who, (name, *args) in program:
        end = ends[who]
        if name == "turn":
            await (turns(args[0]) if args[0] else asyncio.sleep(0))
        elif not end.lost.done():
            await end.step(name, *args)
        for end in ends:
            end.check()

    def came(condition):
        """Wait for it, and let a raw end read meanwhile."""

        def drained():
            for end in ends:
                end.drain()
            return condition()

        return until(drained)

    for end in ends:
        end.resume()
    one, other = ends
    if clean := not any(end.gone for end in ends) and keep_open == 3:
        # everything arrives, both ways, and then the end
        await came(lambda: one.received == other.sent and other.received == one.sent)
        for end in ends:
            end.write_eof()
        await came(lambda: one.at_eof and other.at_eof)
    for end, other in (ends, ends[::-1]):
        if end.closed and not end.aborted and not other.gone:
            # close() sends all that was written; but an end that closes with something
            # unread, or is written to afterwards, resets the connection
            await came(lambda: end.lost.done() or other.lost.done())  # noqa: B023 - awaited here
            if end.received == other.sent:
                await came(lambda: other.received == end.sent)  # noqa: B023 - awaited here
    for end in ends:
        end.close()
    if clean:
        for end in ends:
            assert await end.lost is None
    else:
        await turns(5)  # two that close with full queues wait for each other
    for end in ends:
        await end.end()
        end.check()


def descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, no Path each


def play_in(kind, *args, debug):
    before = descriptors()
    run(kind, play, *args, debug=debug)
    assert descriptors() == before


some_programs = settings(
    max_examples=2000 if STRESS else 10 if SANITIZED else 20,
    deadline=None,
    derandomize=False,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(1200 if STRESS else 120)
each_loop = pytest.mark.parametrize("kind", LOOPS)
each_family = pytest.mark.parametrize("family", ["tcp", "unix"])


@each_loop
@each_family
@some_programs
@given(programs(transport_steps), st.booleans(), st.integers(0, 3), st.integers(0, 3))
def test_two_transports(kind, family, program, small, keep_open, mode):
    play_in(kind, family, program, TransportEnd, small, keep_open, debug=mode == 0)


@each_loop
@each_family
@some_programs
@given(programs(raw_steps), st.booleans(), st.integers(0, 3), st.integers(0, 3))
def test_transport_and_raw_peer(kind, family, program, small, keep_open, mode):
    play_in(kind, family, program, RawEnd, small, keep_open, debug=mode == 0)
