"""Many stream connections at once, scarce resources, and connections that outlive things."""

import asyncio
import contextlib
import errno
import gc
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref

import pytest
from test_stream_transport import (
    HANG,
    KINDS,
    LOOPS,
    Recorder,
    alive,
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
    send_all,
    socket_pair,
    transports,
    turns,
    until,
)

every_ring = every_loop(kinds=[*KINDS, *(["uring-tiny"] if "uring-tiny" in LOOPS else [])])
ALL = list(LOOPS)


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def serve(family, factory):
    loop = asyncio.get_running_loop()
    sock, address = listener(family)
    create = loop.create_server if family == "tcp" else loop.create_unix_server
    return await create(factory, sock=sock, backlog=1024), address


# -- more than there is room for ----------------------------------------------------------------


@every_loop(kinds=ALL)
async def test_500_connections_share_the_buffers():
    """All peers send at once, several times what the shared buffers hold."""
    made = []
    server, address = await serve("unix", lambda: made.append(Recorder()) or made[-1])
    peers = [connect("unix", address) for _ in range(500)]
    await until(lambda: len(made) == 500)
    message = noise(20_000)
    for i, peer in enumerate(peers):
        peer.setblocking(False)
        assert peer.send(i.to_bytes(4) + message) == 20_004
    await until(lambda: all(len(protocol.received) == 20_004 for protocol in made))
    for i, peer in enumerate(peers):
        peer.send(i.to_bytes(4) + b"small")
        peer.close()
    for protocol in made:
        assert await protocol.lost is None
    sent = {i.to_bytes(4) + message + i.to_bytes(4) + b"small" for i in range(500)}
    assert {bytes(protocol.received) for protocol in made} == sent
    server.close()
    await server.wait_closed()


@families
@every_loop(kinds=ALL)
async def test_echo_of_200_connections(family):
    """Small messages there and back: completions overflow, sends are batched."""
    server, address = await serve(family, Echo)
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
    server.close()
    await server.wait_closed()


@every_loop(kinds=ALL)
async def test_busy_connections_leave_room_for_timers():
    """Echoes without end whose callbacks are slow: timers and call_soon() have their turn."""
    loop = asyncio.get_running_loop()
    protocols, ends = [], []

    class Slow(Recorder):
        def data_received(self, data):
            end = time.perf_counter() + 0.0002
            while time.perf_counter() < end:
                pass
            self.transport.write(data)

    for _ in range(8):
        for sock in socket_pair("unix"):
            _, protocol = await loop.create_connection(Slow, sock=sock)
            protocols.append(protocol)
    for protocol in protocols:
        protocol.transport.write(b"x")
    for _ in range(10):
        await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        ends.append(loop.time())
    for protocol in protocols:
        protocol.transport.abort()
    for protocol in protocols:
        await protocol.lost
    assert len(ends) == 10


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


# -- thousands that come and go -------------------------------------------------------------------


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
        return len(os.listdir("/proc/self/fd")), len(transports())  # noqa: PTH208

    before = await all_phases(2)
    memory = resident()
    assert await all_phases(25) == before
    assert before[1] == 0
    assert resident() - memory < 4 << 20
    server.close()
    await server.wait_closed()


@families
@every_loop
async def test_2000_connections_at_once(family):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip("too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    made, peers = [], []
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    server, address = await serve(family, lambda: made.append(Recorder()) or made[-1])
    for i in range(2000):
        peers.append(connect(family, address))
        peers[-1].send(b"%d" % i)
        if not i % 100:
            await until(lambda: len(made) == len(peers))
    await until(lambda: sum(bool(protocol.received) for protocol in made) == 2000)
    assert sorted(int(protocol.received) for protocol in made) == list(range(2000))
    for i, peer in enumerate(peers):
        if i % 4 == 0:
            reset(peer)
        elif i % 4 == 1:
            peer.close()
    for protocol in made:
        if int(protocol.received) % 4 >= 2:
            protocol.transport.abort()
    for protocol in made:
        await protocol.lost
    for peer in peers:
        peer.close()
    server.close()
    await server.wait_closed()
    made.clear()
    protocol = None
    # connection_lost() is called while the ring still cancels; soon afterwards all is let go
    await until(lambda: not alive, "the ring")
    assert not transports()
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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
            await until(lambda: protocol.received)  # noqa: B023
            assert protocol.received == b"%d" % i
        elif i % 3 == 1:
            with busy():
                transport.write(b"never mind")
        transport.abort()
        await protocol.lost
        assert protocol.received in (b"", b"%d" % i)
        other.close()
    assert len(numbers) < 20


# -- without descriptors --------------------------------------------------------------------------


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
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))  # noqa: PTH208
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
            assert new.fileno() == number
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
    loop.reports[:] = [r for r in loop.reports if not isinstance(r["exception"], AssertionError)]


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


# -- transports that outlive what they belong to ----------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("state", ["idle", "in flight", "queued", "paused", "closing", "aborted"])
def test_loop_closed_with_open_transports(kind, state):
    """They are harmless afterwards, warn when they go, and give their descriptors back."""
    loop = LOOPS[kind]()
    a, b = socket_pair("unix")

    async def begin():
        transport, protocol = await loop.create_connection(Recorder, sock=a)
        b.send(b"x")
        if state == "in flight":
            with busy():
                transport.write(b"x")
        elif state == "queued":
            transport.write(bytes(1 << 20))
        elif state == "paused":
            transport.pause_reading()
            await turns(2)
        elif state == "closing":
            transport.write(bytes(1 << 20))
            transport.close()
        elif state == "aborted":
            transport.abort()
        return transport, protocol

    transport, protocol = loop.run_until_complete(begin())
    loop.close()
    use_after_close(transport)
    gone, number = weakref.ref(transport), transport._sock_fd
    if state == "aborted":
        del transport, protocol
        gc.collect()
    else:
        with unclosed():
            del transport, protocol, a
            gc.collect()
    assert gone() is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    b.close()


@contextlib.contextmanager
def unclosed():
    """A transport warns; so may the socket object it was made of, which goes with it."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    assert {warning.category for warning in found} == {ResourceWarning}
    assert any("unclosed transport" in str(warning.message) for warning in found)


def use_after_close(transport):
    """Nothing works any more, nothing crashes."""
    for call in (
        transport.pause_reading,
        transport.resume_reading,
        lambda: transport.write(b"x"),
        lambda: transport.write(bytes(1 << 20)),
        lambda: transport.writelines([b"x"] * 3),
        transport.write_eof,
        transport.close,
        transport.abort,
        lambda: repr(transport),
    ):
        try:
            call()
        except (RuntimeError, OSError, ValueError, AttributeError):
            continue


@pytest.mark.parametrize("kind", ALL)
def test_closed_in_another_thread_than_it_ran_in(kind):
    loop = LOOPS[kind]()
    a, b = socket_pair("unix")
    kept = []

    def work():
        kept.extend(loop.run_until_complete(loop.create_connection(lambda: Silent(), sock=a)))
        loop.run_until_complete(turns(2))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    loop.close()
    use_after_close(kept[0])
    gone = weakref.ref(kept[0])
    b.close()
    with unclosed():
        kept.clear()
        del a
        gc.collect()
    assert gone() is None


class Silent(asyncio.Protocol):
    pass


@families
@pytest.mark.parametrize("kind", ALL)
def test_one_thread_after_the_other(kind, family):
    """Open connections move with the loop; what comes between the runs is not lost."""
    loop = LOOPS[kind]()
    pairs = [socket_pair(family) for _ in range(20)]

    async def begin():
        return [(await loop.create_connection(Recorder, sock=a))[1] for a, _ in pairs]

    async def round_(number):
        expected = b"".join(b"%d-between " % i + b"%d " % i for i in range(number + 1))
        for i, (_, b) in enumerate(pairs):
            if i % 2:
                protocols[i].transport.resume_reading()
            b.send(b"%d " % number)
        await until(lambda: all(len(p.received) == len(expected) for p in protocols))
        assert all(protocol.received == expected for protocol in protocols)
        for (_, b), protocol in zip(pairs, protocols, strict=True):
            protocol.transport.write(b"back")
            b.setblocking(False)
            assert await receive(b, 4) == b"back"
        for i, protocol in enumerate(protocols):
            if i % 2:
                protocol.transport.pause_reading()

    def work(number):
        try:
            loop.run_until_complete(round_(number))
        except BaseException as error:
            failures.append(error)

    failures = []
    protocols = loop.run_until_complete(begin())
    for number in range(6):
        for _, b in pairs:
            b.send(b"%d-between " % number)
        if number % 3 == 2:
            work(number)
        else:
            thread = threading.Thread(target=work, args=(number,))
            thread.start()
            thread.join(HANG)
        if failures:
            raise failures[0]
    for _, b in pairs:
        b.close()
    for protocol in protocols:
        protocol.transport.abort()
    loop.run_until_complete(asyncio.wait([p.lost for p in protocols], timeout=HANG))
    assert all(protocol.lost.done() for protocol in protocols)
    loop.close()


FORK = """
import asyncio, gc, os, socket, sys
sys.path.insert(0, sys.argv[2])
from test_stream_transport import LOOPS, Recorder, busy, turns, until

async def main():
    loop = asyncio.get_running_loop()
    a, b = socket.socketpair()
    c, d = socket.socketpair()
    transport, protocol = await loop.create_connection(Recorder, sock=a)
    paused, other = await loop.create_connection(Recorder, sock=c)
    paused.pause_reading()
    d.send(b"waiting")
    await turns(3)
    pid = os.fork()
    if not pid:
        status = 0
        for one in (transport, paused):
            for call in (lambda: one.write(b"x"), lambda: one.write(b""), one.pause_reading,
                         one.resume_reading, lambda: one.writelines([b"a", b"b"]),
                         lambda: one.write(bytes(1 << 22)), one.write_eof, one.close, one.abort):
                try:
                    call()
                except RuntimeError:
                    pass
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    status = 1
        del transport, paused, one, call
        gc.collect()
        os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0, os.waitstatus_to_exitcode(status)
    b.send(b"parent")
    await until(lambda: protocol.received == b"parent")
    paused.resume_reading()
    await until(lambda: other.received == b"waiting")
    for p in (protocol, other):
        p.transport.abort()
        await p.lost
    for sock in (b, d):
        sock.close()

loop = LOOPS[sys.argv[1]]()
loop.run_until_complete(asyncio.wait_for(main(), 40))
loop.close()
"""


@pytest.mark.parametrize("kind", ALL)
def test_fork_with_open_connections(kind):
    """The child cannot use them and does not crash; the parent notices nothing."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, kind, os.path.dirname(__file__)],  # noqa: PTH120
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# -- garbage ------------------------------------------------------------------------------------------


@families
@every_loop(kinds=ALL)
async def test_collected_only_when_nothing_is_awaited(family):
    """A transport nobody refers to lives as long as its peer may say something."""
    loop = asyncio.get_running_loop()
    one, other = socket_pair(family)
    heard = []

    class Listening(asyncio.Protocol):
        def data_received(self, data):
            heard.append(data)

        def connection_lost(self, exc):
            heard.append(exc)

    transport, _ = await loop.create_connection(Listening, sock=one)
    with busy():
        transport.write(b"in flight when it is dropped")
    gone = weakref.ref(transport)
    del transport, one, _
    gc.collect()
    assert gone() is not None
    other.setblocking(False)
    assert await receive(other, 28) == b"in flight when it is dropped"
    await send_all(other, b"hello")
    await until(lambda: heard == [b"hello"])
    gc.collect()
    other.close()
    await until(lambda: heard == [b"hello", None])
    await turns()
    gc.collect()
    assert gone() is None
