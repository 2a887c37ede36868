"""What the tests of stream transports share: loops, raw peers, and protocols that write down.

`every_loop` runs an async test on each kind of loop, one of which has a ring with only 16 shared
buffers, and fails it for whatever was reported to the exception handler, for tasks and for
transports left behind.
"""

import asyncio
import contextlib
import functools
import gc
import inspect
import itertools
import os
import random
import socket
import struct
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


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
