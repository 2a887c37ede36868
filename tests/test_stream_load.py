"""Stream connections by the thousand, and more work than there is room for.

What is proved: nothing is lost when the ring runs out of shared buffers or of room for completions;
connections that end in every phase of their life leave no descriptor, object or memory; what a slow
reader has not taken costs no memory of its own.

With AIOUNIFY_STRESS=1 there is ten times as much of everything; see CONTRIBUTING.md.
"""

import asyncio
import contextlib
import errno
import gc
import os
import random
import resource
import socket
import sys
from pathlib import Path

import pytest
from conftest import SANITIZED
from stream_peers import (
    LOOPS,
    STRESS,
    FewBuffersLoop,
    Recorder,
    TinyRingLoop,
    busy,
    connect,
    every_loop,
    families,
    listener,
    noise,
    receive,
    reports,
    reset,
    resident,
    socket_pair,
    transports,
    turns,
    until,
)

ALL = list(LOOPS)
BACKENDS = [kind for kind in ("uring", "epoll") if kind in LOOPS]
RINGS = [kind for kind in LOOPS if kind != "epoll"]
MANY = 10 if STRESS else 1


async def serve(family, factory, sock=None):
    loop = asyncio.get_running_loop()
    if sock is None:
        sock, _ = listener(family)
    create = loop.create_server if family == "tcp" else loop.create_unix_server
    return await create(factory, sock=sock, backlog=4096), sock.getsockname()


@contextlib.contextmanager
def open_files(wanted):
    """Raise the limit of descriptors for a while; what it is then, which may be less."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((wanted, max(wanted, hard)), (min(wanted, hard), hard)):
        with contextlib.suppress(OSError, ValueError):
            if soft < wanted:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                break
    try:
        yield resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, no Path each


# -- more than there is room for ---------------------------------------------------------------


def receives():
    """Receives that the ring was given since the loop was made."""
    return asyncio.get_running_loop().stats()["operations"].get("recv", 0)


@families
@pytest.mark.parametrize("size", [100, 20_000])
@every_loop(kinds=ALL)
async def test_500_connections_share_the_buffers(family, size):
    """All peers send at once, more than the 16 (or 512) shared buffers hold, time and again."""
    made = []
    server, address = await serve(family, lambda: made.append(Recorder()) or made[-1])
    peers = []
    for i in range(500):
        peers.append(connect(family, address))
        peers[-1].setblocking(False)
        peers[-1].send(i.to_bytes(4))  # who it is
        await until(lambda: len(made) == len(peers))
    await until(lambda: all(protocol.received for protocol in made))
    loop, before = asyncio.get_running_loop(), receives()
    sent = bytearray()
    for round_ in range(5 * MANY):
        message = noise(size, round_)
        sent += message
        for peer in peers:
            assert peer.send(message) == size
        await until(lambda: all(len(p.received) - 4 == len(sent) for p in made))  # noqa: B023 - awaited here
        if not round_:
            exhausted = receives() - before
    if size == 100 and isinstance(loop, (FewBuffersLoop, TinyRingLoop)):
        # a receive that found no buffer has ended, and was started again
        assert exhausted > 0
    for peer in peers:
        peer.close()
    for protocol in made:
        assert await protocol.lost is None
        assert protocol.received[4:] == sent
    assert sorted(int.from_bytes(p.received[:4]) for p in made) == list(range(500))
    server.close()
    await server.wait_closed()


def overflown(number):
    """Completions for which a ring has no room, and which the kernel keeps."""
    return (
        Path(f"/proc/self/fdinfo/{number}")
        .read_text()
        .partition("CqOverflowList:")[2]
        .count("user_data=")
    )


def ring_number():
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, no Path each
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[io_uring]":  # noqa: PTH115 - text, no Path
                return int(name)
    raise AssertionError("no ring")


@every_loop(kinds=[kind for kind in RINGS if kind == "uring-tiny"])
async def test_completions_overflow():
    """A ring with room for 16: the other completions of a turn are kept, and in order."""
    loop, seen, ring = asyncio.get_running_loop(), [], ring_number()

    def look(_):
        if len(seen) < 200:
            seen.append(overflown(ring))

    pairs = [socket_pair("unix") for _ in range(200)]
    protocols = []
    for one, _ in pairs:
        _, protocol = await loop.create_connection(lambda: Recorder(data_received=look), sock=one)
        protocols.append(protocol)
    await turns(2)
    expected = b""
    for word in (b"first ", b"second ", b"third ") * MANY:
        expected += word
        for _, other in pairs:
            other.send(word)
        await until(lambda: all(p.received == expected for p in protocols))  # noqa: B023 - awaited here
    assert max(seen) > 0, "nothing has overflown"
    # ends, too: of the receive, of a cancelled one, of the stream
    for i, (protocol, (_, other)) in enumerate(zip(protocols, pairs, strict=True)):
        if i % 3 == 0:
            protocol.transport.abort()
        elif i % 3 == 1:
            protocol.transport.write(b"bye")
            protocol.transport.close()
        else:
            other.close()
    for i, (protocol, (_, other)) in enumerate(zip(protocols, pairs, strict=True)):
        assert await protocol.lost is None
        if i % 3 == 1:
            assert other.recv(4) == b"bye"
        other.close()


@families
@every_loop(kinds=ALL)
async def test_echo_of_200_connections(family):
    """Small messages there and back: completions overflow, sends are batched."""
    made = []

    class Echo(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.write(data)

    server, address = await serve(family, lambda: made.append(Echo()) or made[-1])
    loop = asyncio.get_running_loop()
    rng = random.Random(family)

    class Client(Recorder):
        def data_received(self, data):
            super().data_received(data)
            if len(self.received) == self.expected and self.rounds:
                self.rounds -= 1
                self.go()
            elif len(self.received) == self.expected:
                self.transport.close()

        def go(self):
            data = noise(rng.choice([1, 50, 500, 5000]), self.rounds)
            self.sent += data
            self.expected += len(data)
            self.transport.write(data)

    clients = []
    for _ in range(200):
        sock = connect(family, address)
        _, client = await loop.create_connection(Client, sock=sock)
        client.sent, client.expected, client.rounds = bytearray(), 0, 10
        clients.append(client)
    for client in clients:
        client.go()
    for client in clients:
        assert await client.lost is None
        assert client.received == client.sent
        assert client.rounds == 0
    for echo in made:
        assert await echo.lost is None
    assert sorted(echo.received for echo in made) == sorted(client.sent for client in clients)
    server.close()
    await server.wait_closed()


@every_loop(kinds=ALL)
async def test_a_broadcast_from_one_turn():
    """One turn that writes to many, more than once, aborts some and closes others."""
    loop = asyncio.get_running_loop()
    pairs = []
    for _ in range(300):
        one, other = socket_pair("unix")
        _, protocol = await loop.create_connection(Recorder, sock=one)
        pairs.append((protocol, other))
    with busy(20):
        for i, (protocol, _) in enumerate(pairs):
            protocol.transport.write(b"%04d" % i)
            protocol.transport.write(b"again")
            if i % 3 == 1:
                protocol.transport.close()
            elif i % 3 == 2:
                protocol.transport.abort()
    for i, (protocol, other) in enumerate(pairs):
        other.setblocking(False)
        expected = b"%04dagain" % i
        if i % 3 == 2:
            assert await protocol.lost is None
            assert expected.startswith(await receive(other, 100))
        else:
            assert await receive(other, 9) == expected
        protocol.transport.close()
        assert await protocol.lost is None
        other.close()


# -- thousands that come and go ----------------------------------------------------------------


PHASES = ["at once", "sent", "received", "in flight", "queued", "paused", "half closed"]


@families
@pytest.mark.parametrize("by", ["close", "abort", "peer", "reset"])
@every_loop
async def test_connections_dropped_in_every_phase(family, by):
    """No descriptor, no object and no memory is left of hundreds of connections."""
    made = []

    def make():
        protocol = Recorder()
        protocol.keep_open = len(made) % 2 == 0
        made.append(protocol)
        return protocol

    server, address = await serve(family, make)

    async def one(phase):
        n = len(made)
        peer = connect(family, address)
        await until(lambda: len(made) > n)
        protocol = made[n]
        transport = protocol.transport
        if phase == "sent":
            peer.send(b"x" * 100)
        elif phase == "received":
            peer.send(b"x" * 20_000)
            await until(lambda: protocol.received)
        elif phase == "in flight":
            with busy():
                transport.write(b"y" * 100)
        elif phase == "queued":
            transport.write(bytes(1 << 20))
        elif phase == "paused":
            transport.pause_reading()
            peer.send(b"z")
            await asyncio.sleep(0)
        elif phase == "half closed":
            peer.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0)
        if by in ("close", "abort"):
            getattr(transport, by)()
            peer.close()
        else:
            peer.close() if by == "peer" else reset(peer)
            await asyncio.sleep(0)
            transport.resume_reading()
            await asyncio.sleep(0)
            transport.close()
        await protocol.lost

    async def all_phases(times):
        for _ in range(times):
            for phase in PHASES:
                await one(phase)
        made.clear()
        await turns(3)
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(transports())  # noqa: PTH208 - names, no Path each

    before = await all_phases(2)
    memory = resident()
    assert await all_phases(25) == before
    assert before[1] == 0
    if not SANITIZED:
        assert resident() - memory < 4 << 20
    server.close()
    await server.wait_closed()


class Silent(asyncio.Protocol):
    """As little Python as possible, for connections by the ten thousand."""

    __slots__ = ("heard", "lost", "transport")

    def __init__(self):
        self.heard, self.lost = 0, False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.heard += len(data)

    def eof_received(self):
        self.heard += 1
        return True

    def connection_lost(self, exc):
        self.lost = True


async def drop(phase, made, peers):
    """End as many connections as there are peers, all in the same phase of their life."""
    if phase == "mid-request":
        for peer in peers:
            peer.send(b"GET / HT")
        await until(lambda: all(protocol.heard == 8 for protocol in made))
    elif phase == "half closed":
        for peer in peers:
            peer.shutdown(socket.SHUT_WR)
        await until(lambda: all(protocol.heard for protocol in made))
        for protocol in made:
            protocol.transport.write(b"answer")
            protocol.transport.close()
    elif phase == "reset":
        for protocol, peer in zip(made, peers, strict=True):
            protocol.transport.write(b"never read")
            reset(peer)
    elif phase == "aborted":
        # some with sends in flight, some with a queue, some with data not delivered yet
        with busy():
            for i, (protocol, peer) in enumerate(zip(made, peers, strict=True)):
                if i % 3 == 0:
                    protocol.transport.write(b"in flight")
                elif i % 3 == 1:
                    protocol.transport.write(UNREAD)
                else:
                    peer.send(b"not delivered")
                protocol.transport.abort()
    if phase in ("silent", "mid-request"):
        for peer in peers:
            peer.close()
        await until(lambda: all(protocol.heard in (1, 9) for protocol in made))
        for protocol in made:
            protocol.transport.close()
    await until(lambda: all(protocol.lost for protocol in made))
    for peer in peers:
        peer.close()


UNREAD = bytes(1 << 20)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("phase", ["silent", "mid-request", "half closed", "reset", "aborted"])
@every_loop(kinds=BACKENDS, seconds=500)
async def test_10000_connections_dropped_in_one_phase(phase):
    """50,000 in all the phases together: nothing is left of any of them."""
    made = []

    def make():
        made.append(Silent())
        return made[-1]

    async def several(family, address, times):
        for _ in range(times):
            peers = [connect(family, address) for _ in range(100)]
            await until(lambda: len(made) == 100)
            await drop(phase, made, peers)
            made.clear()
        peers.clear()
        await turns(3)  # connection_lost() comes while the ring still cancels
        gc.collect()
        return descriptors(), len(transports()), sys.getallocatedblocks()

    for family in ("tcp", "unix"):
        server, address = await serve(family, make)
        before = await several(family, address, 5)
        memory = resident()
        after = await several(family, address, 50 * MANY)
        grown = resident() - memory
        print(f"{family}: descriptors, transports, blocks {before}, {after}; {grown} bytes more")
        assert after[:2] == before[:2]
        assert after[1] == 0
        if not SANITIZED:
            assert after[2] - before[2] < 500, "objects left behind"
            assert grown < 4 << 20
        server.close()
        await server.wait_closed()


@every_loop(kinds=ALL)
async def test_numbers_used_again_at_once():
    """A new connection gets the number of the one just lost, whose events may be under way."""
    loop = asyncio.get_running_loop()
    numbers = set()
    for i in range(300):
        one, other = socket_pair("unix")
        transport, protocol = await loop.create_connection(Recorder, sock=one)
        numbers.add(transport._sock_fd)
        other.send(b"%d" % i)
        if i % 3 == 0:
            await until(lambda: protocol.received)  # noqa: B023 - awaited here
            assert protocol.received == b"%d" % i
        elif i % 3 == 1:
            with busy():
                transport.write(b"never mind")
        transport.abort()
        await protocol.lost
        assert protocol.received in (b"", b"%d" % i)
        other.close()
    assert len(numbers) < 20


# -- a slow reader -----------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("call", ["write", "writelines"])
@every_loop(kinds=BACKENDS, seconds=250)
async def test_a_gibibyte_to_a_slow_reader(call):
    """All written at once, from one object; what is not sent yet costs no memory of its own."""
    loop = asyncio.get_running_loop()
    chunk, chunks = noise(1 << 20), 1024 if STRESS or call == "writelines" else 256
    one, other = socket_pair("unix")
    transport, protocol = await loop.create_connection(Recorder, sock=one)
    wrong = []

    def read():
        buffer, expected = bytearray(len(chunk)), memoryview(chunk)
        view, at = memoryview(buffer), 0
        while n := other.recv_into(view[: min(1 << 16, len(chunk) - at % len(chunk))]):
            begin = at % len(chunk)
            if view[:n] != expected[begin : begin + n]:
                wrong.append(at)
            at += n
        return at

    gc.collect()
    memory = resident()
    if call == "writelines":
        transport.writelines([chunk] * chunks)
    else:
        for _ in range(chunks):
            transport.write(chunk)
    queued = transport.get_write_buffer_size()
    assert queued > chunks * len(chunk) - (1 << 20)
    assert protocol.names == ["connection_made", "pause_writing"]
    transport.close()
    reading = loop.run_in_executor(None, read)
    most, sizes = 0, [queued]
    while not protocol.lost.done():
        await asyncio.sleep(0.001)
        sizes.append(transport.get_write_buffer_size())
        most = max(most, resident())
    assert await protocol.lost is None
    assert await reading == chunks * len(chunk)
    assert not wrong
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0
    if not SANITIZED:
        assert most - memory < 16 << 20
    other.close()


# -- without descriptors -----------------------------------------------------------------------


@families
@every_loop
async def test_no_descriptors_left_for_accept(family, monkeypatch):
    """Reported once for each pause, and the connections that wait are served afterwards."""
    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.02)
    loop = asyncio.get_running_loop()
    made = []
    server, address = await serve(family, lambda: made.append(Recorder()) or made[-1])
    peers = [connect(family, address) for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hoard = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))  # noqa: PTH208 - names, no Path each
    try:
        try:
            while True:
                hoard.append(os.dup(0))
        except OSError:
            pass
        began = loop.time()
        await until(lambda: loop.reports)
        await asyncio.sleep(0.05)
        assert len(loop.reports) <= (loop.time() - began) / 0.02 + 1
        assert not made
    finally:
        for fd in hoard:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await until(lambda: len(made) == 3, "recovery")
    for report in reports(*["socket.accept() out of system resource"] * len(loop.reports)):
        assert report["exception"].errno == errno.EMFILE
    for peer in peers:
        peer.close()
    for protocol in made:
        assert await protocol.lost is None
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("where", ["factory", "connection_made"])
@pytest.mark.parametrize("again", [False, True], ids=["", "another listener"])
@every_loop
async def test_server_closed_by_its_first_connection(where, again):
    """The others in the backlog are nobody's, also if a new listener gets the number."""
    loop = asyncio.get_running_loop()
    made, others = [], []
    sock, address = listener("unix")
    number = sock.fileno()

    def close(_=None):
        server.close()
        if again:
            new = socket.socket(socket.AF_UNIX)
            if new.fileno() != number:
                os.dup2(new.fileno(), number, inheritable=False)
                new.close()
                new = socket.socket(fileno=number)
            new.bind(address + b"2")
            new.listen()
            new.setblocking(False)
            others.append(new)
            others.append(connect("unix", address + b"2"))

    def factory():
        if where == "factory":
            close()
        made.append(Recorder(**({"connection_made": close} if where != "factory" else {})))
        return made[-1]

    server = await loop.create_unix_server(factory, sock=sock, start_serving=False)
    peers = [connect("unix", address) for _ in range(3)]
    await server.start_serving()
    await until(lambda: made)
    await turns()
    assert len(made) == 1
    for peer in [*peers, *others]:
        peer.close()
    if made[0].transport is not None:
        made[0].transport.abort()
        await made[0].lost


@pytest.mark.skipif(sys.version_info < (3, 13), reason="of Python 3.13")
@pytest.mark.parametrize("call", ["close_clients", "abort_clients"])
@every_loop
async def test_server_lets_its_clients_go(call):
    made = []
    server, address = await serve("tcp", lambda: made.append(Recorder()) or made[-1])
    peers = [connect("tcp", address) for _ in range(20)]
    await until(lambda: len(made) == 20)
    for i, protocol in enumerate(made):
        if i % 2:
            protocol.transport.write(bytes(1 << 20))
        if i == 4:
            protocol.transport.close()
    server.close()
    getattr(server, call)()
    assert all(protocol.transport.is_closing() for protocol in made)
    for i, (peer, protocol) in enumerate(zip(peers, made, strict=True)):
        peer.setblocking(False)
        if call == "abort_clients":
            assert await protocol.lost is None
        elif i % 2:
            assert not protocol.lost.done()
    waiting = asyncio.create_task(server.wait_closed())
    for protocol in made:
        protocol.transport.abort()
        assert await protocol.lost is None
    await waiting
    for peer in peers:
        peer.close()
