"""UDP transports: batches, addresses, errors, and the order of a transport's life."""

import asyncio
import socket

import pytest


class Recorder(asyncio.DatagramProtocol):
    def __init__(self):
        self.events = []
        self.received = []
        self.errors = []
        self.lost = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()
        self.transport = None

    def connection_made(self, transport):
        self.events.append("made")
        self.transport = transport

    def datagram_received(self, data, addr):
        self.received.append((data, addr))
        self.changed.set()

    def error_received(self, exc):
        self.errors.append(exc)
        self.changed.set()

    def connection_lost(self, exc):
        self.events.append("lost")
        self.lost.set_result(exc)

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Echo(Recorder):
    def datagram_received(self, data, addr):
        super().datagram_received(data, addr)
        self.transport.sendto(data, addr)


async def endpoint(protocol, **where):
    return await asyncio.get_running_loop().create_datagram_endpoint(protocol, **where)


async def ended(*protocols):
    for protocol in protocols:
        protocol.transport.close()
    for protocol in protocols:
        assert await protocol.lost is None
        assert protocol.events == ["made", "lost"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("size", [0, 1, 64, 1400, 20_000, 65_507])
async def test_echo_of_every_size(host, size):
    _, server = await endpoint(Echo, local_addr=(host, 0))
    name = server.transport.get_extra_info("sockname")
    _, client = await endpoint(Recorder, remote_addr=name[:2])
    data = bytes(i * 7 % 251 for i in range(size))
    client.transport.sendto(data)
    await client.until(lambda: client.received)
    assert client.received == [(data, name)]
    own = client.transport.get_extra_info("sockname")
    assert server.received == [(data, own)]
    await ended(server, client)


async def test_many_peers_each_get_their_own():
    # more than addresses are remembered
    _, server = await endpoint(Echo, local_addr=("127.0.0.1", 0))
    name = server.transport.get_extra_info("sockname")
    clients = [(await endpoint(Recorder, remote_addr=name))[1] for _ in range(150)]
    for turn in range(3):
        for number, client in enumerate(clients):
            client.transport.sendto(b"%d.%d" % (turn, number))
        for client in clients:
            await client.until(lambda c=client, t=turn: len(c.received) == t + 1)
    for number, client in enumerate(clients):
        assert [data for data, _ in client.received] == [b"%d.%d" % (t, number) for t in range(3)]
        assert {addr for _, addr in client.received} == {name}
    assert {addr for _, addr in server.received} == {
        client.transport.get_extra_info("sockname") for client in clients
    }
    await ended(server, *clients)


async def test_a_burst_arrives_in_order():
    _, server = await endpoint(Recorder, local_addr=("127.0.0.1", 0))
    name = server.transport.get_extra_info("sockname")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for i in range(100):
            sender.sendto(b"%d" % i, name)
    await server.until(lambda: len(server.received) == 100)
    assert [data for data, _ in server.received] == [b"%d" % i for i in range(100)]
    await ended(server)


async def test_same_peer_is_the_same_tuple_and_others_are_not():
    _, server = await endpoint(Recorder, local_addr=("127.0.0.1", 0))
    name = server.transport.get_extra_info("sockname")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        for sender in (one, other, one):
            sender.sendto(b"x", name)
        await server.until(lambda: len(server.received) == 3)
        assert [addr for _, addr in server.received] == [
            one.getsockname(), other.getsockname(), one.getsockname(),
        ]  # fmt: skip
    await ended(server)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_what_was_given_is_sent(kind):
    _, server = await endpoint(Recorder, local_addr=("127.0.0.1", 0))
    _, client = await endpoint(Recorder, local_addr=("127.0.0.1", 0))
    data = kind(b"before")
    client.transport.sendto(data, server.transport.get_extra_info("sockname"))
    if kind is bytearray:
        data[:] = b"after!"
    await server.until(lambda: server.received)
    assert server.received[0][0] == b"before"
    with pytest.raises(TypeError, match="bytes-like"):
        client.transport.sendto("text", ("127.0.0.1", 9))
    await ended(server, client)


async def test_name_in_place_of_an_address():
    _, server = await endpoint(Recorder, local_addr=("127.0.0.1", 0))
    port = server.transport.get_extra_info("sockname")[1]
    _, client = await endpoint(Recorder, local_addr=("127.0.0.1", 0))
    client.transport.sendto(b"by name", ("localhost", port))
    await server.until(lambda: server.received)
    client.transport.sendto(b"nowhere", ("no.such.host.invalid", port))
    await client.until(lambda: client.errors)
    assert isinstance(client.errors[0], OSError)
    await ended(server, client)


async def test_refused_is_an_error_and_not_the_end():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        name = gone.getsockname()
    _, client = await endpoint(Recorder, remote_addr=name)
    client.transport.sendto(b"anybody?")
    await client.until(lambda: client.errors)
    assert isinstance(client.errors[0], ConnectionRefusedError)
    assert not client.transport.is_closing()
    await ended(client)


async def test_other_address_than_the_remote_one():
    _, client = await endpoint(Recorder, remote_addr=("127.0.0.1", 9))
    with pytest.raises(ValueError, match="Invalid address: must be None or"):
        client.transport.sendto(b"x", ("127.0.0.1", 10))
    await ended(client)


async def test_too_long_is_reported():
    _, client = await endpoint(Recorder, remote_addr=("127.0.0.1", 9))
    client.transport.sendto(bytes(70_000))
    assert isinstance(client.errors[0], OSError)
    await ended(client)


async def test_close_inside_a_batch_ends_delivery():
    class Once(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.close()

    _, server = await endpoint(Once, local_addr=("127.0.0.1", 0))
    name = server.transport.get_extra_info("sockname")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(10):
            sender.sendto(b"x", name)
        assert await server.lost is None
    assert len(server.received) == 1


async def test_replies_of_a_batch_are_sent_before_the_close():
    class Last(Recorder):
        def datagram_received(self, data, addr):
            self.transport.sendto(data, addr)
            if data == b"last":
                self.transport.close()

    _, server = await endpoint(Last, local_addr=("127.0.0.1", 0))
    _, client = await endpoint(Recorder, remote_addr=server.transport.get_extra_info("sockname"))
    for data in (b"1", b"2", b"last"):
        client.transport.sendto(data)
    assert await server.lost is None
    await client.until(lambda: len(client.received) == 3)
    assert [data for data, _ in client.received] == [b"1", b"2", b"last"]
    await ended(client)


async def test_exception_of_the_protocol_is_reported_and_the_rest_delivered():
    reports = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))

    class Fails(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            raise ZeroDivisionError

    _, server = await endpoint(Fails, local_addr=("127.0.0.1", 0))
    name = server.transport.get_extra_info("sockname")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(3):
            sender.sendto(b"x", name)
        await server.until(lambda: len(server.received) == 3)
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError] * 3
    await ended(server)


async def test_abort_and_what_is_left():
    _, client = await endpoint(Recorder, remote_addr=("127.0.0.1", 9))
    transport = client.transport
    assert isinstance(transport, asyncio.DatagramTransport)
    assert transport.get_write_buffer_size() == 0
    assert transport.get_extra_info("peername") == ("127.0.0.1", 9)
    transport.abort()
    assert transport.is_closing()
    assert await client.lost is None
    transport.sendto(b"too late")
    transport.close()
    assert "closed" in repr(transport)


async def test_readers_of_its_descriptor_are_refused():
    loop = asyncio.get_running_loop()
    _, client = await endpoint(Recorder, remote_addr=("127.0.0.1", 9))
    fd = client.transport.get_extra_info("socket").fileno()
    with pytest.raises(RuntimeError, match="is used by transport"):
        loop.add_reader(fd, print)
    await ended(client)


# -- a protocol that pauses reading -------------------------------------------------------


class Pausing(Echo):
    """Pauses after each `every` datagrams."""

    every = 3

    def datagram_received(self, data, addr):
        super().datagram_received(data, addr)
        if len(self.received) % self.every == 0:
            self.transport.pause_reading()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_nothing_is_lost_or_reordered_while_paused(host):
    transport, server = await endpoint(Pausing, local_addr=(host, 0))
    name = transport.get_extra_info("sockname")
    clients = [(await endpoint(Recorder, remote_addr=name[:2]))[1] for _ in range(2)]
    for i in range(50):
        clients[i % 2].transport.sendto(b"%d" % i)
    for end in range(3, 50, 3):
        await server.until(lambda end=end: len(server.received) == end)
        assert not transport.is_reading()
        assert "read=idle" in repr(transport)
        for _ in range(3):
            await asyncio.sleep(0.001)
        assert len(server.received) == end
        transport.pause_reading()  # again does nothing
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading()
    await server.until(lambda: len(server.received) == 50)
    own = [client.transport.get_extra_info("sockname") for client in clients]
    assert server.received == [(b"%d" % i, own[i % 2]) for i in range(50)]
    for client in clients:
        await client.until(lambda client=client: len(client.received) == 25)
    assert [int(data) for data, _ in clients[0].received] == list(range(0, 50, 2))
    await ended(server, *clients)
    transport.resume_reading()
    assert not transport.is_reading()


async def test_paused_and_resumed_at_once():
    """Also before the first look, and while datagrams are held."""

    class Stubborn(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.pause_reading()
            self.transport.resume_reading()
            self.transport.pause_reading()

    transport, server = await endpoint(Stubborn, local_addr=("127.0.0.1", 0))
    _, client = await endpoint(Recorder, remote_addr=transport.get_extra_info("sockname"))
    for i in range(10):
        client.transport.sendto(b"%d" % i)
    for _ in range(3):
        await asyncio.sleep(0.001)
    assert server.received == []
    for i in range(10):
        transport.resume_reading()
        transport.pause_reading()
        transport.resume_reading()
        await server.until(lambda i=i: len(server.received) > i)
        assert [int(data) for data, _ in server.received] == list(range(i + 1))
    await ended(server, client)


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_closed_while_datagrams_are_held(end):
    transport, server = await endpoint(Pausing, local_addr=("127.0.0.1", 0))
    _, client = await endpoint(Recorder, remote_addr=transport.get_extra_info("sockname"))
    for _ in range(10):
        client.transport.sendto(b"x")
    await server.until(lambda: len(server.received) == 3)
    transport.resume_reading()
    getattr(transport, end)()
    assert await server.lost is None
    assert len(server.received) == 3
    await ended(client)


def test_the_rest_of_a_batch_comes_after_an_exit(loop):
    class Exiting(Pausing):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if len(self.received) == 5:
                raise SystemExit

    async def begin():
        transport, server = await endpoint(Exiting, local_addr=("127.0.0.1", 0))
        _, client = await endpoint(Recorder, remote_addr=transport.get_extra_info("sockname"))
        for i in range(6):
            client.transport.sendto(b"%d" % i)
        await server.until(lambda: len(server.received) == 3)
        return server, client

    server, client = loop.run_until_complete(begin())
    server.transport.resume_reading()
    with pytest.raises(SystemExit):
        loop.run_forever()
    loop.run_until_complete(server.until(lambda: len(server.received) == 6))
    assert [int(data) for data, _ in server.received] == list(range(6))
    loop.run_until_complete(ended(server, client))
