"""The stream transport against a raw peer: every phase of a connection, step by step.

What the other test_stream_* modules share is here too: `every_loop` runs an async test on
each kind of loop, one of which has a ring with only 16 shared buffers, and fails it for
whatever was reported to the exception handler, for tasks and for transports left behind.
"""

import array
import asyncio
import contextlib
import contextvars
import functools
import gc
import inspect
import io
import itertools
import logging
import os
import random
import socket
import struct
import tempfile
import time
import weakref

import pytest
from conftest import NO_URING, PollLoop

import aiounify
from aiounify._core.stream import StreamTransport
from aiounify._core.uring import UringReactor

HANG = 20  # seconds after which a test is said to hang
STRESS = os.environ.get("AIOUNIFY_STRESS", "") not in ("", "0")  # see CONTRIBUTING.md
BUFFERED_SIZES = (7, 1 << 20)


# -- loops -------------------------------------------------------------------------------------


class FewBuffersLoop(aiounify.EventLoop):
    """A ring with 16 shared buffers."""

    def _make_reactor(self, backend, forced):
        return UringReactor(self._backlog, buffer_count=16)


class TinyRingLoop(aiounify.EventLoop):
    """16 buffers, eight entries to submit and sixteen to complete: all of them too few."""

    def _make_reactor(self, backend, forced):
        return UringReactor(self._backlog, entries=8, cq_entries=16, buffer_count=16)


LOOPS = {"epoll": functools.partial(aiounify.EventLoop, "epoll")}
if not NO_URING:
    LOOPS["uring"] = functools.partial(aiounify.EventLoop, "uring")
    LOOPS["uring-poll"] = functools.partial(PollLoop, "uring")
    LOOPS["uring-16"] = functools.partial(FewBuffersLoop, "uring")
    LOOPS["uring-tiny"] = functools.partial(TinyRingLoop, "uring")
KINDS = [kind for kind in LOOPS if kind != "uring-tiny"]
ASYNCIO = "asyncio"  # where a test states asyncio's contract, its own loop has to pass too


alive = weakref.WeakSet()  # the transports of this test's protocols


def transports():
    """All stream transports that exist."""
    return [found for found in gc.get_objects() if type(found) is StreamTransport]


def run(kind, function, *args, debug=False, seconds=HANG, **kwargs):
    """Run an async function in a new loop, which must end with nothing left and unreported."""
    alive.clear()
    loop = asyncio.SelectorEventLoop() if kind == ASYNCIO else LOOPS[kind]()
    loop.reports = found = []  # the test takes out of it what it expects
    loop.set_exception_handler(lambda _, report: found.append(report))
    loop.set_debug(debug)
    loop.slow_callback_duration = HANG
    try:
        result = loop.run_until_complete(asyncio.wait_for(function(*args, **kwargs), seconds))
        for _ in range(3):
            loop.run_until_complete(asyncio.sleep(0))
        assert not asyncio.all_tasks(loop), "tasks left behind"
        loop.run_until_complete(loop.shutdown_default_executor())
        assert not found
    finally:
        loop.close()
    del loop
    if alive:
        gc.collect()
        assert not list(alive), "transports left behind"
    return result


def every_loop(function=None, *, kinds=None, debug=(False,), seconds=HANG):
    """Make a test of an async function, run once for each kind of loop."""
    if function is None:
        return functools.partial(every_loop, kinds=kinds, debug=debug, seconds=seconds)
    cases = [
        pytest.param(kind, mode, id=f"{kind}-debug" if mode else kind)
        for kind, mode in itertools.product(kinds or KINDS, debug)
    ]

    @pytest.mark.parametrize(("loop_kind", "loop_debug"), cases)
    @functools.wraps(function)
    def test(loop_kind, loop_debug, **kwargs):
        run(loop_kind, function, debug=loop_debug, seconds=seconds, **kwargs)

    signature = inspect.signature(function)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
        for name in ("loop_kind", "loop_debug")
    ]
    test.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])
    del test.__wrapped__
    return test


both_modes = functools.partial(every_loop, debug=(False, True))


async def until(condition, what="it"):
    """Wait for something that the loop is about to do."""
    deadline = time.monotonic() + HANG / 2
    for turn in itertools.count():
        if condition():
            return
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        await asyncio.sleep(0 if turn < 20 else 0.001)


async def turns(n=5):
    """Some turns of the loop, each with a look at the kernel."""
    for _ in range(n):
        await asyncio.sleep(0.0005)


def reports(*messages):
    """What was reported to the exception handler, in this order, and nothing else."""
    loop = asyncio.get_running_loop()
    found, loop.reports[:] = list(loop.reports), []
    assert [report["message"] for report in found] == list(messages)
    return found


# -- peers -------------------------------------------------------------------------------------

families = pytest.mark.parametrize("family", ["tcp", "unix"])


def moderate(sock):
    """Buffers of a known size: the kernel takes at least 100 KB and less than a MiB."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
    return sock


def listener(family):
    """A listening socket of its own, and the address to connect to."""
    if family == "tcp":
        sock = moderate(socket.create_server(("127.0.0.1", 0), backlog=1024))
    else:
        sock = moderate(socket.socket(socket.AF_UNIX))
        sock.bind(f"\0aiounify-test-{os.getpid()}-{random.getrandbits(64):x}")
        sock.listen(1024)
    return sock, sock.getsockname()


def connect(family, address):
    sock = moderate(socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX))
    sock.connect(address)
    return sock


def socket_pair(family):
    if family == "unix":
        return tuple(map(moderate, socket.socketpair()))
    server, address = listener(family)
    with server:
        one = connect(family, address)
        other, _ = server.accept()
    return one, other


def reset(sock):
    """Close at once with an RST (of unix sockets: with unread data if there is any)."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Recorder(asyncio.Protocol):
    """Writes down what it is told and knows what order is legal.

    `keep_open`: what eof_received() answers.  `raising`: the name of a method that raises.
    `doing`: functions called in a method, by its name, before it ends.
    """

    keep_open = False
    raising = None

    def __init__(self, **doing):
        self.events, self.seen, self.doing = [], set(), doing
        self.transport = None
        self.received = bytearray()
        self.lost = asyncio.get_running_loop().create_future()
        self.reason = None

    def note(self, name, *args):
        seen = self.seen
        assert "connection_lost" not in seen, f"{name} after connection_lost"
        if name == "connection_made":
            assert not seen, f"connection_made after {seen}"
        else:
            assert "connection_made" in seen, f"{name} before connection_made"
        if name in ("data_received", "get_buffer", "buffer_updated", "eof_received"):
            assert "eof_received" not in seen, f"{name} after eof_received"
        if name == "pause_writing":
            assert "paused" not in seen, "paused twice"
            seen.add("paused")
        elif name == "resume_writing":
            assert "paused" in seen, "resumed, not paused"
            seen.discard("paused")
        seen.add(name)
        self.events.append((name, *args))

    def act(self, name):
        if name in self.doing:
            self.doing[name](self)
        if self.raising == name:
            raise LookupError(name)

    def connection_made(self, transport):
        self.note("connection_made")
        alive.add(transport)
        self.transport = transport
        self.act("connection_made")

    def data_received(self, data):
        assert type(data) is bytes
        assert data
        self.note("data_received", len(data))
        self.received += data
        self.act("data_received")

    def eof_received(self):
        self.note("eof_received")
        self.act("eof_received")
        return self.keep_open

    def pause_writing(self):
        self.note("pause_writing")
        self.act("pause_writing")

    def resume_writing(self):
        self.note("resume_writing")
        self.act("resume_writing")

    def connection_lost(self, exc):
        self.note("connection_lost", exc)
        self.reason = exc
        self.lost.set_result(exc)
        self.act("connection_lost")

    @property
    def names(self):
        """The methods called, runs of the same one as one."""
        return [name for name, _ in itertools.groupby(event[0] for event in self.events)]


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    """The same with a buffer of the given size."""

    def __init__(self, size=1000, **doing):
        super().__init__(**doing)
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint):
        assert sizehint == -1 or sizehint > 0
        self.act("get_buffer")
        return self.buffer

    def buffer_updated(self, n):
        assert 0 < n <= len(self.buffer)
        self.note("buffer_updated", n)
        self.received += self.buffer[:n]
        self.act("buffer_updated")

    def data_received(self, data):
        raise AssertionError("data_received() of a BufferedProtocol")


@contextlib.asynccontextmanager
async def joined(family, make=Recorder, how="accepted"):
    """(protocol, peer): a transport's protocol and the raw socket at the other end.

    The transport is one that a server `accepted` or one made from a `given` socket.  Its
    connection must be over, or is aborted, at the end.
    """
    loop = asyncio.get_running_loop()
    server = None
    if how == "accepted":
        made = []
        listening, address = listener(family)
        create = loop.create_server if family == "tcp" else loop.create_unix_server
        server = await create(lambda: made.append(make()) or made[-1], sock=listening)
        peer = connect(family, address)
        await until(lambda: made, "the connection")
        protocol = made[0]
    else:
        peer, other = socket_pair(family)
        _, protocol = await loop.create_connection(make, sock=other)
    peer.setblocking(False)
    try:
        yield protocol, peer
        if protocol.transport is not None:
            protocol.transport.abort()
            await asyncio.wait_for(asyncio.shield(protocol.lost), HANG / 2)
    finally:
        peer.close()
        if protocol.transport is not None:
            protocol.transport.abort()
        if server is not None:
            server.close()
            await server.wait_closed()


making = pytest.mark.parametrize("how", ["accepted", "given"])


async def send_all(sock, data):
    """The peer sends; its socket does not block."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view[: 1 << 18]) :]
        except BlockingIOError:
            await asyncio.sleep(0)


async def receive(sock, n):
    """The peer receives n bytes, or what comes before the end of the stream."""
    got = bytearray()
    deadline = time.monotonic() + HANG / 2
    while len(got) < n:
        try:
            data = sock.recv(min(1 << 18, n - len(got)))
        except BlockingIOError:
            assert time.monotonic() < deadline, f"{n - len(got)} bytes missing"
            await asyncio.sleep(0)
            continue
        if not data:
            break
        got += data
    return bytes(got)


async def receive_to_the_end(sock):
    got = await receive(sock, 1 << 40)
    assert not sock.recv(1)
    return got


@functools.cache
def noise(n, seed=0):
    """n bytes that do not repeat, the same for the same seed."""
    return random.Random(seed * 1_000_003 + n).randbytes(n)


def small_buffers(*socks):
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


async def fill_up(protocol, size=1 << 21):
    """Write more than the kernel takes; what was written."""
    data = noise(size)
    protocol.transport.write(data)
    assert protocol.transport.get_write_buffer_size() > 0
    return data


@contextlib.contextmanager
def busy(n=4):
    """Enough callbacks in this turn for small writes to be submitted together."""
    loop = asyncio.get_running_loop()
    for _ in range(n):
        loop.call_soon(int)
    yield


# -- a quiet life ------------------------------------------------------------------------------


@families
@making
@both_modes
async def test_whole_life(family, how):
    async with joined(family, how=how) as (protocol, peer):
        peer.send(b"ping")
        await until(lambda: protocol.received)
        protocol.transport.write(b"pong")
        assert await receive(peer, 4) == b"pong"
        peer.close()
        assert await protocol.lost is None
        assert protocol.names == [
            "connection_made",
            "data_received",
            "eof_received",
            "connection_lost",
        ]
        assert protocol.received == b"ping"


@families
@making
@both_modes
async def test_peer_that_trickles(family, how):
    """One byte at a time, in turns of their own or several in one."""
    data = noise(300)
    async with joined(family, how=how) as (protocol, peer):
        for i, byte in enumerate(data):
            peer.send(bytes([byte]))
            if i % 3:
                await asyncio.sleep(0)
        await until(lambda: len(protocol.received) == len(data))
        assert protocol.received == data


@families
@making
@pytest.mark.parametrize("phase", ["at once", "after data", "while written to", "while paused"])
@pytest.mark.parametrize("how_gone", ["reset", "half close", "close"])
@every_loop
async def test_peer_goes(family, how, phase, how_gone):
    async with joined(family, how=how) as (protocol, peer):
        if phase == "after data":
            peer.send(b"first")
            await until(lambda: protocol.received)
        elif phase == "while written to":
            await fill_up(protocol)
            await turns(2)
        elif phase == "while paused":
            protocol.transport.pause_reading()
            peer.send(b"first")
            await turns(2)
        if how_gone == "reset":
            reset(peer)
        elif how_gone == "half close":
            peer.shutdown(socket.SHUT_WR)
        else:
            peer.close()
        if phase == "while paused":
            await turns(10)
            assert protocol.names == ["connection_made"]
            protocol.transport.resume_reading()
        if phase == "while written to" and how_gone == "half close":
            await until(lambda: protocol.transport.is_closing())
            assert not protocol.lost.done()
            await receive_to_the_end(peer)
        exc = await protocol.lost
        if family == "tcp" and how_gone == "reset":
            assert isinstance(exc, (ConnectionResetError, BrokenPipeError)), exc
        elif phase == "while written to" and how_gone != "half close":
            assert exc is None or isinstance(exc, ConnectionError)
        else:
            assert exc is None
            assert "eof_received" in protocol.names
        if phase == "after data" or (phase == "while paused" and exc is None):
            assert protocol.received == b"first"


@both_modes
async def test_reset_while_paused_is_told_as_a_reset():
    """... not as the end of the stream, though the ring has taken the error already."""
    async with joined("tcp") as (protocol, peer):
        protocol.transport.pause_reading()
        await turns(2)
        reset(peer)
        await turns(5)
        assert protocol.names == ["connection_made"]
        protocol.transport.resume_reading()
        assert isinstance(await protocol.lost, ConnectionResetError)
        assert protocol.names == ["connection_made", "connection_lost"]


@both_modes
async def test_paused_again_before_the_end_of_the_stream():
    """Data and end came while paused; the protocol pauses in the data: no end yet."""

    def pause(protocol):
        protocol.transport.pause_reading()

    async with joined("tcp", lambda: Recorder(data_received=pause)) as (protocol, peer):
        protocol.transport.pause_reading()
        peer.send(b"last words")
        await turns(3)
        peer.close()
        await turns(5)
        assert protocol.names == ["connection_made"]
        protocol.transport.resume_reading()
        await until(lambda: protocol.received)
        await turns(10)
        assert protocol.names == ["connection_made", "data_received"]
        protocol.transport.resume_reading()
        assert await protocol.lost is None
        assert protocol.received == b"last words"


@families
@every_loop
async def test_peer_that_stalls(family):
    """It reads nothing, then everything: nothing is lost, and flow control says so."""
    async with joined(family) as (protocol, peer):
        data = await fill_up(protocol)
        await turns(20)
        assert protocol.names == ["connection_made", "pause_writing"]
        size = protocol.transport.get_write_buffer_size()
        await turns(20)
        # the kernel may take more later, on a machine that lets its own work wait
        assert 0 < protocol.transport.get_write_buffer_size() <= size
        assert protocol.names == ["connection_made", "pause_writing"]
        assert await receive(peer, len(data)) == data
        await until(lambda: protocol.names[-1] == "resume_writing")
        assert protocol.transport.get_write_buffer_size() == 0


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


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


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


# -- the end -----------------------------------------------------------------------------------


@families
@making
@pytest.mark.parametrize("data", ["none", "in flight", "queued"])
@both_modes
async def test_write_eof(family, how, data):
    async with joined(family, how=how) as (protocol, peer):
        sent = b""
        if data == "queued":
            sent = await fill_up(protocol)
        elif data == "in flight":
            sent = b"x" * 100
            with busy(10):
                protocol.transport.write(sent)
        assert protocol.transport.can_write_eof()
        protocol.transport.write_eof()
        protocol.transport.write_eof()
        for call, argument in (
            (protocol.transport.write, b"x"),
            (protocol.transport.write, b""),
            (protocol.transport.writelines, [b"x"]),
        ):
            with pytest.raises(RuntimeError, match="after write_eof"):
                call(argument)
        assert await receive_to_the_end(peer) == sent
        assert not protocol.transport.is_closing()
        peer.send(b"reading goes on")
        await until(lambda: protocol.received == b"reading goes on")
        peer.close()
        assert await protocol.lost is None


@every_loop
async def test_write_eof_behind_bytes_that_are_answered_by_a_reset():
    """Nothing is reported: write_eof() has returned, and the reader finds out about the peer."""
    loop = asyncio.get_running_loop()
    for _ in range(20):
        one, other = socket_pair("tcp")
        transport, protocol = await loop.create_connection(Recorder, sock=one)
        other.close()
        with busy():
            transport.write(b"x")
        with contextlib.suppress(OSError):  # the bytes have gone at once, and so has the peer
            transport.write_eof()
        assert isinstance(await protocol.lost, OSError | None)


@families
@making
@both_modes
async def test_half_closed_by_the_peer(family, how):
    def make():
        protocol = Recorder()
        protocol.keep_open = True
        return protocol

    async with joined(family, make, how) as (protocol, peer):
        peer.send(b"question")
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: "eof_received" in protocol.names)
        await turns()
        assert not protocol.transport.is_closing()
        protocol.transport.write(b"answer")
        assert await receive(peer, 6) == b"answer"
        protocol.transport.pause_reading()
        protocol.transport.resume_reading()
        await turns()
        data = await fill_up(protocol)
        protocol.transport.write_eof()
        protocol.transport.close()
        assert await receive_to_the_end(peer) == data
        assert await protocol.lost is None
        assert protocol.names.count("eof_received") == 1


@families
@pytest.mark.parametrize("data", ["none", "in flight", "queued", "in flight and queued"])
@pytest.mark.parametrize("call", ["close", "abort"])
@every_loop
async def test_close_and_abort(family, data, call):
    async with joined(family) as (protocol, peer):
        sent = b""
        if data == "queued":
            sent = await fill_up(protocol)
        elif data != "none":
            with busy(10):
                protocol.transport.write(b"x" * 100)
                sent = b"x" * 100
                if "queued" in data:
                    sent += await fill_up(protocol)
        getattr(protocol.transport, call)()
        assert protocol.transport.is_closing()
        assert "connection_lost" not in protocol.names  # never from inside the call
        if call == "abort":
            assert protocol.transport.get_write_buffer_size() == 0
            assert await protocol.lost is None
            got = await receive(peer, len(sent) + 1) if sent else b""
            assert sent.startswith(got)
            assert "queued" not in data or len(got) < len(sent)
        else:
            assert await receive_to_the_end(peer) == sent
            assert await protocol.lost is None


@every_loop
async def test_memory_of_a_send_in_flight_outlives_abort():
    """The peer takes nothing, so the ring holds on to the bytes when the transport is gone."""
    for _ in range(50):
        one, other = socket_pair("unix")
        small_buffers(one, other)
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(bytes(4096))
        _, protocol = await asyncio.get_running_loop().create_connection(Recorder, sock=one)
        with busy(10):
            protocol.transport.write(os.urandom(8000))
            protocol.transport.write(os.urandom(8000))
        if random.random() < 0.5:
            await asyncio.sleep(0)
        protocol.transport.abort()
        junk = [os.urandom(8000) for _ in range(20)]
        assert await protocol.lost is None
        del junk
        other.close()


@families
@pytest.mark.parametrize("where", ["connection_made", "data_received", "eof_received"])
@pytest.mark.parametrize("call", ["close", "abort"])
@pytest.mark.parametrize("buffered", [False, True])
@both_modes
async def test_closed_by_the_protocol(family, where, call, buffered):
    name = "buffer_updated" if buffered and where == "data_received" else where
    doing = {name: lambda protocol: getattr(protocol.transport, call)()}
    make = BufferedRecorder if buffered else Recorder
    async with joined(family, lambda: make(**doing)) as (protocol, peer):
        # What the protocol closed or aborted may be gone already: EPIPE, ECONNRESET, ENOTCONN.
        with contextlib.suppress(OSError):
            peer.send(b"x" * 5000)
            peer.shutdown(socket.SHUT_WR)
        assert await protocol.lost is None
        assert protocol.names[-2] == name
        if where == "data_received":
            assert len(protocol.events) == 3  # nothing is delivered after close()


@every_loop
async def test_connection_lost_is_never_called_by_close_itself():
    order = []
    async with joined("tcp") as (protocol, _):
        protocol.doing["connection_lost"] = lambda _: order.append("lost")
        protocol.transport.close()
        order.append("closed")
        await protocol.lost
        assert order == ["closed", "lost"]


@families
@making
@every_loop
async def test_descriptor_is_closed_when_the_connection_is_lost(family, how):
    async with joined(family, how=how) as (protocol, peer):
        sock = protocol.transport.get_extra_info("socket") if how == "given" else None
        protocol.transport.close()
        await protocol.lost
        await until(lambda: at_end(peer), "the end of the stream")
        if sock is not None:
            assert sock.fileno() == -1
        assert "closed" in repr(protocol.transport)


def at_end(sock):
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


# -- exceptions in the protocol ----------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["data_received", "eof_received", "get_buffer", "buffer_updated"]
)
@both_modes
async def test_exception_that_ends_the_connection(method):
    buffered = method in ("get_buffer", "buffer_updated")
    async with joined("tcp", BufferedRecorder if buffered else Recorder) as (protocol, peer):
        protocol.raising = method
        peer.send(b"x" * 5000)
        peer.shutdown(socket.SHUT_WR)
        exc = await protocol.lost
        assert isinstance(exc, LookupError)
        (report,) = reports(f"Fatal error: protocol.{method}() call failed.")
        assert report["exception"] is exc
        assert report["transport"] is protocol.transport
        assert report["protocol"] is protocol
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""


@pytest.mark.parametrize("wrong", [b"read only", bytearray(), None, memoryview(bytearray(9))[::2]])
@every_loop
async def test_wrong_buffers(wrong):
    async with joined("unix", BufferedRecorder) as (protocol, peer):
        protocol.buffer = wrong
        peer.send(b"x")
        assert isinstance(await protocol.lost, (TypeError, RuntimeError, BufferError))
        reports("Fatal error: protocol.get_buffer() call failed.")


@making
@both_modes
async def test_exception_in_connection_made(how):
    """It is reported; the connection lives on, as in asyncio."""

    def make():
        protocol = Recorder()
        protocol.raising = "connection_made"
        return protocol

    async with joined("tcp", make, how) as (protocol, peer):
        (report,) = reports(*[r["message"] for r in asyncio.get_running_loop().reports])
        assert isinstance(report["exception"], LookupError)
        peer.send(b"still there")
        await until(lambda: protocol.received == b"still there")


@families
@both_modes
async def test_exceptions_in_flow_control(family):
    async with joined(family) as (protocol, peer):
        protocol.raising = "pause_writing"
        data = await fill_up(protocol)
        (report,) = reports("protocol.pause_writing() failed")
        assert isinstance(report["exception"], LookupError)
        protocol.raising = "resume_writing"
        assert await receive(peer, len(data)) == data
        await until(lambda: "resume_writing" in protocol.names)
        reports("protocol.resume_writing() failed")
        protocol.transport.write(b"alive")
        assert await receive(peer, 5) == b"alive"


@families
@pytest.mark.parametrize("data", ["none", "in flight", "queued"])
@pytest.mark.parametrize("call", ["close", "abort", "peer"])
@both_modes
async def test_exception_in_connection_lost(family, data, call):
    """Reported; the loop goes on, and the descriptor is closed."""
    async with joined(family) as (protocol, peer):
        protocol.raising = "connection_lost"
        if data == "queued":
            await fill_up(protocol)
        elif data == "in flight":
            with busy(10):
                protocol.transport.write(b"x")
        if call == "peer":
            reset(peer)
        else:
            getattr(protocol.transport, call)()
            reading = asyncio.create_task(receive_to_the_end_or_reset(peer))
        await protocol.lost
        if call != "peer":
            await reading
        await turns(2)
        loop = asyncio.get_running_loop()
        (report,) = reports(*[r["message"] for r in loop.reports])
        assert isinstance(report["exception"], LookupError)
        assert "closed" in repr(protocol.transport)


async def receive_to_the_end_or_reset(sock):
    with contextlib.suppress(ConnectionResetError):
        await receive_to_the_end(sock)


@pytest.mark.parametrize("method", ["data_received", "connection_lost", "eof_received"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", KINDS)
def test_interrupts_leave_the_loop(kind, method, error):
    """They end the run and nothing else; the loop can run again, nothing that came is lost."""
    loop = LOOPS[kind]()
    a, b = socket.socketpair()
    c, d = socket.socketpair()

    def interrupt(_):
        raise error

    async def begin():
        _, one = await loop.create_connection(lambda: Recorder(**{method: interrupt}), sock=a)
        _, other = await loop.create_connection(Recorder, sock=c)
        return one, other

    one, other = loop.run_until_complete(begin())
    b.send(b"x")
    d.send(b"y")
    b.shutdown(socket.SHUT_WR)
    loop.call_later(HANG, loop.stop)
    with pytest.raises(error):
        loop.run_forever()
    loop.run_until_complete(until(lambda: other.received == b"y"))
    one.transport.abort()
    other.transport.abort()
    loop.run_until_complete(until(lambda: one.lost.done() and other.lost.done()))
    loop.close()
    b.close()
    d.close()


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
                await until(lambda: len(protocol.received) == len(expected))  # noqa: B023
                assert protocol.received == expected
            elif i % 8:
                protocol.transport.pause_reading()
                protocol.transport.resume_reading()
                await until(lambda: len(protocol.received) == len(expected))  # noqa: B023
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
                await until(lambda: len(protocol.received) >= at or hurry.random() < 0.01)  # noqa: B023
        peer.close()
        assert await protocol.lost is None
        assert protocol.received == data
        assert switches > 2
        sizes = [event[1] for event in protocol.events if len(event) > 1 and event[1]]
        assert min(sizes) < 500
        assert max(sizes) > 16384


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


# -- contexts, information, debugging ----------------------------------------------------------

tag = contextvars.ContextVar("tag", default="none")


@making
@both_modes
async def test_contexts(how):
    """Every callback sees the variables as they were when the transport was made."""
    seen = {}

    def see(name):
        return lambda protocol: seen.setdefault(name, tag.get())

    names = ["connection_made", "data_received", "eof_received", "pause_writing", "resume_writing"]

    def make():
        protocol = Recorder(**{name: see(name) for name in [*names, "connection_lost"]})
        protocol.keep_open = True
        return protocol

    async def made():
        tag.set("mine")
        async with joined("tcp", make, how) as (protocol, peer):
            await asyncio.sleep(0)
            peer.send(b"x")
            await until(lambda: protocol.received)
            data = await fill_up(protocol)
            await receive(peer, len(data))
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: {"eof_received", "resume_writing"} <= set(protocol.names))

    await asyncio.create_task(made())
    assert seen == dict.fromkeys([*names, "connection_lost"], "mine")
    assert tag.get() == "none"


@families
@making
@both_modes
async def test_extra_info(family, how):
    async with joined(family, how=how) as (protocol, peer):
        transport = protocol.transport
        assert transport.get_extra_info("peername") == peer.getsockname()
        assert transport.get_extra_info("sockname") == peer.getpeername()
        sock = transport.get_extra_info("socket")
        assert sock.fileno() == transport._sock_fd
        assert sock.gettimeout() == 0
        assert sock.family == peer.family
        assert sock.type == socket.SOCK_STREAM
        assert transport.get_extra_info("socket") is sock
        assert transport.get_extra_info("nothing") is None
        assert transport.get_extra_info("nothing", 5) == 5
        peer.send(b"x")
        await until(lambda: protocol.received)
        transport.close()
        await protocol.lost
        assert sock.fileno() == -1
        assert transport.get_extra_info("peername") == peer.getsockname()


@every_loop
async def test_ipv6_peername():
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    loop = asyncio.get_running_loop()
    made = loop.create_future()
    server = await loop.create_server(lambda: Recorder(connection_made=made.set_result), "::1", 0)
    assert server.sockets
    peer = socket.create_connection(server.sockets[0].getsockname()[:2])
    protocol = await made
    transport = protocol.transport
    assert transport.get_extra_info("peername") == peer.getsockname()
    sock = transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    peer.close()
    await protocol.lost
    server.close()
    await server.wait_closed()


@every_loop
async def test_looks_like_asyncios():
    async with joined("unix") as (protocol, _):
        transport = protocol.transport
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, asyncio.ReadTransport)
        assert isinstance(transport, asyncio.WriteTransport)
        assert "read=polling" in repr(transport) or "read=idle" in repr(transport)
        assert f"fd={transport._sock_fd}" in repr(transport)
        assert hash(transport) == hash(transport)
        assert transport in {transport}
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.add_reader(transport._sock_fd, print)
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.remove_writer(transport._sock_fd)
        transport.close()
        assert "closing" in repr(transport)


@every_loop
async def test_descriptor_of_an_open_transport_is_not_given_to_another():
    async with joined("unix", how="given") as (protocol, _):
        loop = asyncio.get_running_loop()
        with socket.socket(fileno=os.dup(protocol.transport._sock_fd)):
            pass
        sock = protocol.transport._sock
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.create_connection(Recorder, sock=sock)
        assert not protocol.transport.is_closing()


@every_loop
async def test_debug_log(monkeypatch):
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    text, log = io.StringIO(), logging.getLogger("asyncio")
    handler = logging.StreamHandler(text)
    monkeypatch.setattr(log, "propagate", False)  # pytest keeps records, and so transports
    level = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        async with joined("tcp") as (protocol, peer):
            protocol.transport.pause_reading()
            protocol.transport.resume_reading()
            peer.send(b"x")
            await until(lambda: protocol.received)
            reset(peer)
            assert isinstance(await protocol.lost, ConnectionResetError)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    for part in ("pauses reading", "resumes reading", "Fatal read error on socket transport"):
        assert part in text.getvalue()


@every_loop
async def test_debug_switched_in_mid_stream():
    loop = asyncio.get_running_loop()
    async with joined("tcp") as (protocol, peer):
        data = noise(200_000)
        for i in range(0, len(data), 1000):
            loop.set_debug(bool(i // 1000 % 2))
            await send_all(peer, data[i : i + 1000])
            if i % 3:
                await asyncio.sleep(0)
        loop.set_debug(True)
        peer.close()
        assert await protocol.lost is None
        assert protocol.received == data


# -- what waits for the queue ------------------------------------------------------------------


@pytest.mark.parametrize("end", ["abort", "reset", "write error"])
@every_loop
async def test_waiting_for_an_empty_queue_ends_with_the_connection(end):
    """sendfile() waits for the queue; a connection that is lost ends its waiting."""
    async with joined("tcp") as (protocol, peer):
        await fill_up(protocol)
        with tempfile.TemporaryFile() as file:
            file.write(b"x" * 1000)
            file.seek(0)
            loop = asyncio.get_running_loop()
            task = asyncio.create_task(loop.sendfile(protocol.transport, file))
            await turns(2)
            assert not task.done()
            if end == "abort":
                protocol.transport.abort()
            elif end == "reset":
                reset(peer)
            else:
                sock = protocol.transport.get_extra_info("socket")
                sock._sock.shutdown(socket.SHUT_WR)
            with pytest.raises(OSError):
                await asyncio.wait_for(task, HANG / 4)
        await protocol.lost


@every_loop
async def test_nobody_waits_for_the_empty_queue_any_more():
    """sendfile() was cancelled while it waited; then the queue empties."""
    async with joined("tcp") as (protocol, peer):
        data = await fill_up(protocol)
        with tempfile.TemporaryFile() as file:
            file.write(b"x" * 1000)
            file.seek(0)
            loop = asyncio.get_running_loop()
            task = asyncio.create_task(loop.sendfile(protocol.transport, file))
            await turns(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await receive(peer, len(data)) == data
            await turns(5)
            assert protocol.names[-1] == "resume_writing"
            loop.reports.clear()  # asyncio reports an InvalidStateError here


@families
@pytest.mark.parametrize("queued", [False, True])
@both_modes
async def test_sendfile(family, queued):
    async with joined(family) as (protocol, peer):
        loop = asyncio.get_running_loop()
        expected = await fill_up(protocol) if queued else b""
        content = noise(3 << 20)
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            task = asyncio.create_task(loop.sendfile(protocol.transport, file, 1000))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="sendfile is in progress"):
                protocol.transport.write(b"x")
            with pytest.raises(RuntimeError, match="sendfile is in progress"):
                protocol.transport.writelines([b"x"])
            await send_all(peer, b"from the peer, meanwhile")
            expected += content[1000:]
            assert await receive(peer, len(expected)) == expected
            assert await task == len(content) - 1000
        protocol.transport.write(b"afterwards")
        assert await receive(peer, 10) == b"afterwards"
        await until(lambda: protocol.received == b"from the peer, meanwhile")
