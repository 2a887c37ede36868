"""Sockets that calls wait at, in other hands: transports, closing, numbers used again, threads."""

import asyncio
import socket
import threading

import pytest
from test_sock_calls import HANG, pair, receive, suspended, tcp_pair, udp, until
from test_sock_readiness import cancelled, looks, registered

pytestmark = pytest.mark.every_reactor


# -- transports ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix", "udp", "unix datagram"])
async def test_a_transport_takes_the_socket(kind):
    """What waits is told; afterwards the transport works, and calls are refused."""
    loop = asyncio.get_running_loop()
    if kind == "udp":
        one, other = udp(), udp()
        one.connect(other.getsockname())
        other.connect(one.getsockname())
    elif kind == "unix datagram":
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.setblocking(False)
    else:
        one, other = pair(kind)
    received = asyncio.Queue()

    class Protocol(asyncio.Protocol):
        def data_received(self, data):
            received.put_nowait(data)

        def datagram_received(self, data, address):
            received.put_nowait(data)

        def error_received(self, exc):
            raise exc

    with one, other:
        waiting = await suspended(loop.sock_recv(one, 100))
        if kind in ("tcp", "unix"):
            transport, _ = await loop.create_connection(Protocol, sock=one)
        else:
            transport, _ = await loop.create_datagram_endpoint(Protocol, sock=one)
        if kind != "unix datagram":  # that transport is asyncio's, which tells nobody
            async with asyncio.timeout(HANG):
                with pytest.raises(RuntimeError, match="is used by transport"):
                    await waiting
        else:
            await cancelled(waiting)
        for call in (
            lambda: loop.sock_recv(one, 100),
            lambda: loop.sock_recvfrom(one, 100),
            lambda: loop.sock_recv_into(one, bytearray(10)),
        ):
            with pytest.raises(RuntimeError, match="is used by transport"):
                await call()
        other.send(b"for the transport")
        async with asyncio.timeout(HANG):
            assert await received.get() == b"for the transport"
        if kind != "unix datagram":
            (transport.sendto if kind == "udp" else transport.write)(b"back")
            assert await loop.sock_recv(other, 100) == b"back"
        transport.close()
        await looks()


async def test_a_number_comes_back_from_a_transport():
    loop = asyncio.get_running_loop()
    for _ in range(3):
        one, other = tcp_pair()
        with other:
            waiting = await suspended(loop.sock_recv(one, 100))
            other.send(b"x")
            await waiting
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=one)
            transport.close()
            await until(lambda one=one: one.fileno() < 0)


# -- closing, and numbers that are used again --------------------------------------------------


def at_number(number, make):
    """Make sockets until one of them gets this descriptor; it and the others."""
    others = []
    while True:
        found = make()
        for sock in found:
            if sock.fileno() == number:
                return sock, [*others, *(s for s in found if s is not sock)]
        others += found
        assert len(others) < 100


def close(socks):
    for sock in socks:
        sock.close()


async def test_a_number_that_is_used_again():
    """Registrations are the file's: the next socket of that number gets its own."""
    loop = asyncio.get_running_loop()
    for _ in range(3):
        one, other = tcp_pair()
        number = other.fileno()
        waiting = await suspended(loop.sock_recv(other, 100))
        one.send(b"x")
        await waiting
        assert registered(number)
        close([one, other])
        again, others = at_number(number, tcp_pair)
        assert not registered(number)
        peer = next(s for s in others if s.getsockname() == again.getpeername())
        waiting = await suspended(loop.sock_recv(again, 100))
        peer.send(b"y")
        async with asyncio.timeout(HANG):
            assert await waiting == b"y"
        close([again, *others])


async def test_closed_while_a_call_waits():
    """As in asyncio nothing tells; the call fails once the number is another socket's."""
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    number = other.fileno()
    waiting = [
        await suspended(loop.sock_recv(other, 100)),
        await suspended(loop.sock_recv(other, 100)),
        await suspended(loop.sock_sendall(other, bytes(16 << 20))),
    ]
    close([one, other])
    await looks()
    again, others = at_number(number, tcp_pair)
    peer = next(s for s in others if s.getsockname() == again.getpeername())
    new = await suspended(loop.sock_recv(again, 100))
    for task in waiting:
        with pytest.raises(OSError, match="Bad file descriptor"):
            async with asyncio.timeout(HANG):
                await task
    peer.send(b"z")
    assert await new == b"z"
    close([again, *others])


@pytest.mark.parametrize("user", ["reader", "transport"])
async def test_closed_while_a_call_waits_and_used_by_something_else(user):
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    number = other.fileno()
    waiting = await suspended(loop.sock_recv(other, 100))
    close([one, other])
    again, others = at_number(number, tcp_pair)
    peer = next(s for s in others if s.getsockname() == again.getpeername())
    got = asyncio.Event()
    if user == "reader":
        loop.add_reader(again, got.set)
        transport = None
    else:

        class Protocol(asyncio.Protocol):
            def data_received(self, data):
                got.set()

        transport, _ = await loop.create_connection(Protocol, sock=again)
    peer.send(b"x")
    async with asyncio.timeout(HANG):
        await got.wait()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await waiting
    if transport is None:
        assert loop.remove_reader(again)
    else:
        transport.close()
        await until(lambda: again.fileno() < 0)
    close([again, *others])


async def test_a_late_cancellation_does_not_disturb_the_next_socket():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    number = other.fileno()
    old = await suspended(loop.sock_recv(other, 100))
    close([one, other])
    again, others = at_number(number, tcp_pair)
    peer = next(s for s in others if s.getsockname() == again.getpeername())
    loop.add_reader(again, print)  # no call of the new socket has displaced the old one yet
    await cancelled(old)
    loop.remove_reader(again)
    new = await suspended(loop.sock_recv(again, 100))
    peer.send(b"x")
    async with asyncio.timeout(HANG):
        assert await new == b"x"
    close([again, *others])


async def forgotten(one):
    """Send to a file whose registration nobody wants until no event comes; how often."""
    loop, quiet = asyncio.get_running_loop(), 0
    for n in range(1, 500):
        events = loop.stats()["readiness_events"]
        one.send(b"y")
        await looks(1)
        quiet = quiet + 1 if loop.stats()["readiness_events"] == events else 0
        if quiet == 10:
            return n
    raise AssertionError("the registration is never forgotten")


async def test_a_duplicate_keeps_the_file_open():
    """Its registration outlives the socket: the loop forgets it and does not spin."""
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    duplicate = other.dup()
    duplicate.setblocking(False)
    waiting = await suspended(loop.sock_recv(other, 100))
    one.send(b"x")
    await waiting
    other.close()
    with one, duplicate:
        n = await forgotten(one)
        assert await receive(duplicate, n) == b"y" * n
        waiting = await suspended(loop.sock_recv(duplicate, 100))
        one.send(b"z")
        assert await waiting == b"z"


async def test_others_keep_waiting_when_a_registration_is_forgotten():
    loop = asyncio.get_running_loop()
    pairs = [tcp_pair() for _ in range(5)]
    waiting = [await suspended(loop.sock_recv(other, 100)) for _, other in pairs]
    full, sink = tcp_pair()
    sending = await suspended(loop.sock_sendall(full, bytes(8 << 20)))
    one, other = tcp_pair()
    duplicate = other.dup()
    task = await suspended(loop.sock_recv(other, 100))
    one.send(b"x")
    await task
    other.close()
    await forgotten(one)
    async with asyncio.timeout(HANG):
        for (mine, _), task in zip(pairs, waiting, strict=True):
            mine.send(b"still there")
            assert await task == b"still there"
        await receive(sink, 8 << 20)
        await sending
    close([one, duplicate, full, sink, *(s for both in pairs for s in both)])


async def test_two_objects_for_one_descriptor():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    twin = socket.socket(fileno=other.fileno())
    with one, other:
        for _ in range(5):
            tasks = [await suspended(loop.sock_recv(s, 1)) for s in (other, twin, other, twin)]
            events = loop.stats()["readiness_events"]
            await looks()
            assert loop.stats()["readiness_events"] - events < 10  # they do not wake each other
            one.send(b"1234")
            async with asyncio.timeout(HANG):
                assert sorted(await asyncio.gather(*tasks)) == [b"1", b"2", b"3", b"4"]
        twin.detach()


async def test_detached_and_wrapped_again():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one:
        for _ in range(3):
            waiting = await suspended(loop.sock_recv(other, 10))
            one.send(b"x")
            assert await waiting == b"x"
            other = socket.socket(fileno=other.detach())
        other.close()


# -- threads ------------------------------------------------------------------------------------


def test_a_loop_that_goes_on_in_another_thread(loop_factory):
    """What waits goes on waiting there."""
    loop = loop_factory()
    one, other = tcp_pair()
    task = loop.create_task(loop.sock_recv(other, 10))
    for _ in range(3):
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert not task.done()
    results = []

    def go_on():
        loop.call_later(0.001, one.send, b"x")
        results.append(loop.run_until_complete(task))

    thread = threading.Thread(target=go_on)
    thread.start()
    thread.join()
    assert results == [b"x"]
    loop.close()
    one.close()
    other.close()
