"""Everything asyncio has, once, on this loop: that it works here and is of asyncio's types."""

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
import sys
import unittest.mock
from pathlib import Path

import pytest

CERTIFICATE = Path(__file__).parent / "programs" / "certificate.pem"


class Collect(asyncio.Protocol):
    """Keeps what it is told."""

    def __init__(self):
        loop = asyncio.get_running_loop()
        self.made, self.lost = loop.create_future(), loop.create_future()
        self.data, self.paused = bytearray(), []
        self.eof = False

    def connection_made(self, transport):
        self.transport = transport
        self.made.set_result(transport)

    def data_received(self, data):
        self.data += data

    def eof_received(self):
        self.eof = True

    def pause_writing(self):
        self.paused.append(True)

    def resume_writing(self):
        self.paused.append(False)

    def connection_lost(self, exc):
        self.lost.set_result(exc)


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def echo(reader, writer):
    """The server side of most tests here."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def converse(reader, writer):
    """A small and a large message, there and back."""
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    message = secrets.token_bytes(1 << 20)

    async def send():
        writer.write(message)
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    sending = asyncio.create_task(send())
    assert await reader.readexactly(len(message)) == message
    await sending
    writer.close()
    await writer.wait_closed()


def contexts():
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(CERTIFICATE)
    client = ssl.create_default_context(cafile=CERTIFICATE)
    return server, client


@contextlib.asynccontextmanager
async def serving(server):
    async with server:
        yield server.sockets[0].getsockname()
    await server.wait_closed()


# -- streams over TCP, unix sockets, TLS ---------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_tcp_streams(host):
    async with serving(await asyncio.start_server(echo, host, 0)) as address:
        await converse(*await asyncio.open_connection(host, address[1]))


@pytest.mark.parametrize("kind", ["path", "abstract"])
async def test_unix_streams(kind, tmp_path):
    path = str(tmp_path / "s") if kind == "path" else f"\0aiounify-{secrets.token_hex(8)}"
    async with serving(await asyncio.start_unix_server(echo, path)):
        await converse(*await asyncio.open_unix_connection(path))


async def test_unix_socket_left_over_is_replaced(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    async with serving(await asyncio.start_unix_server(echo, path)):
        await converse(*await asyncio.open_unix_connection(path))


async def test_tls_streams():
    server_side, client_side = contexts()
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_side)
    async with serving(server) as address:
        reader, writer = await asyncio.open_connection(*address, ssl=client_side)
        assert writer.get_extra_info("cipher")
        assert writer.get_extra_info("peercert")["subject"] == ((("commonName", "localhost"),),)
        await converse(reader, writer)


async def test_tls_refuses_an_unknown_certificate():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # the server's side of the story
    server_side, _ = contexts()
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_side)
    async with serving(server) as address:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(*address, ssl=True)


async def test_start_tls():
    server_side, client_side = contexts()

    async def upgrade(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.drain()
        await writer.start_tls(server_side)
        await echo(reader, writer)

    async with serving(await asyncio.start_server(upgrade, "127.0.0.1", 0)) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(client_side, server_hostname="localhost")
        await converse(reader, writer)


async def test_refused_connection():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    with pytest.raises(FileNotFoundError):
        await asyncio.open_unix_connection("/nonexistent/socket")


# -- transports and protocols ----------------------------------------------------------


async def connected(server_protocol=Collect):
    """A server-side and a client-side protocol over a socket pair."""
    loop = asyncio.get_running_loop()
    a, b = socket.socketpair()
    _, one = await loop.create_connection(server_protocol, sock=a)
    _, other = await loop.create_connection(Collect, sock=b)
    return one, other


async def test_transports_are_asyncios():
    one, other = await connected()
    assert isinstance(one.transport, asyncio.Transport)
    assert one.transport.get_protocol() is one
    assert one.transport.get_extra_info("socket").family == socket.AF_UNIX
    assert not one.transport.is_closing()
    one.transport.close()
    assert one.transport.is_closing()
    assert await one.lost is None
    assert await other.lost is None
    assert other.eof


@pytest.mark.parametrize("size", [1, 1000, 1 << 22])
@pytest.mark.parametrize("how", ["write", "writelines"])
async def test_everything_written_arrives_before_the_end(size, how):
    one, other = await connected()
    message = secrets.token_bytes(size)
    if how == "write":
        one.transport.write(message)
    else:
        one.transport.writelines([message[: size // 2], memoryview(message)[size // 2 :]])
    one.transport.close()
    await other.lost
    assert other.data == message
    assert await one.lost is None


async def test_flow_control():
    one, other = await connected()
    one.transport.set_write_buffer_limits(high=1000, low=10)
    assert one.transport.get_write_buffer_limits() == (10, 1000)
    other.transport.pause_reading()
    assert not other.transport.is_reading()
    message = bytes(1 << 22)
    one.transport.write(message)
    await asyncio.sleep(0.005)
    assert one.paused == [True]
    assert one.transport.get_write_buffer_size() > 1000
    before = len(other.data)
    await asyncio.sleep(0.005)
    assert len(other.data) == before
    other.transport.resume_reading()
    one.transport.close()
    await other.lost
    assert len(other.data) == len(message)
    assert one.paused == [True, False]


async def test_abort_throws_the_buffer_away():
    one, other = await connected()
    other.transport.pause_reading()
    one.transport.write(bytes(1 << 22))
    one.transport.abort()
    assert await one.lost is None
    other.transport.resume_reading()
    await other.lost
    assert len(other.data) < 1 << 22


async def test_half_closed_connection():
    one, other = await connected()
    other.eof_received = lambda: True
    one.transport.write_eof()
    await asyncio.sleep(0.002)
    other.transport.write(b"still open")
    other.transport.close()
    await one.lost
    assert one.data == b"still open"
    await other.lost


async def test_buffered_protocol():
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self):
            self.buffer, self.data = bytearray(10), bytearray()
            self.lost = asyncio.get_running_loop().create_future()

        def connection_made(self, transport):
            self.transport = transport

        def get_buffer(self, sizehint):
            return self.buffer

        def buffer_updated(self, n):
            self.data += self.buffer[:n]

        def connection_lost(self, exc):
            self.lost.set_result(exc)

    one, other = await connected(Buffered)
    other.transport.write(b"0123456789" * 10 + b"x")
    other.transport.close()
    await one.lost
    assert one.data == b"0123456789" * 10 + b"x"
    await other.lost


async def test_protocol_that_raises_loses_its_connection():
    loop, reports = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, report: reports.append(report))

    class Broken(Collect):
        def data_received(self, data):
            raise LookupError("broken")

    one, other = await connected(Broken)
    other.transport.write(b"x")
    assert isinstance(await one.lost, LookupError)
    await other.lost
    assert reports[0]["message"] == "Fatal error: protocol.data_received() call failed."


async def test_peer_that_resets():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Collect, "127.0.0.1", 0)
    async with serving(server) as address:
        transport, protocol = await loop.create_connection(Collect, *address)
        await asyncio.sleep(0.002)
        sock = socket.socket()
        sock.connect(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        sock.close()
        transport.close()
        assert await protocol.lost is None
        await asyncio.sleep(0.005)


async def test_server_object():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0, start_serving=False)
    assert isinstance(server, asyncio.AbstractServer)
    assert not server.is_serving()
    assert server.get_loop() is loop
    await server.start_serving()
    assert server.is_serving()
    forever = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    forever.cancel()
    with pytest.raises(asyncio.CancelledError):
        await forever
    assert not server.is_serving()
    await server.wait_closed()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="of Python 3.13")
@pytest.mark.parametrize("how", ["close_clients", "abort_clients"])
async def test_server_lets_its_clients_go(how):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Collect, "127.0.0.1", 0)
    protocols = []
    for _ in range(3):
        _, protocol = await loop.create_connection(Collect, *server.sockets[0].getsockname())
        protocols.append(protocol)
    await asyncio.sleep(0.005)
    server.close()
    getattr(server, how)()
    for protocol in protocols:
        exc = await protocol.lost
        assert exc is None or how == "abort_clients"
    await server.wait_closed()


async def test_many_connections_at_once():
    async with serving(await asyncio.start_server(echo, "127.0.0.1", 0, backlog=200)) as address:

        async def client(i):
            reader, writer = await asyncio.open_connection(*address)
            for n in range(5):
                message = f"{i} {n}\n".encode()
                writer.write(message)
                assert await reader.readline() == message
            writer.close()
            await writer.wait_closed()

        await asyncio.gather(*(client(i) for i in range(150)))


async def test_connect_accepted_socket():
    loop = asyncio.get_running_loop()
    a, b = socket.socketpair()
    transport, protocol = await loop.connect_accepted_socket(Collect, a)
    b.send(b"x")
    b.close()
    await protocol.lost
    assert protocol.data == b"x"
    assert transport.is_closing()


async def test_happy_eyeballs():
    async with serving(await asyncio.start_server(echo, "127.0.0.1", 0)) as address:
        await converse(
            *await asyncio.open_connection("localhost", address[1], happy_eyeballs_delay=0.1)
        )


# -- datagrams ---------------------------------------------------------------------------


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self):
        self.queue, self.errors = asyncio.Queue(), []
        self.lost = asyncio.get_running_loop().create_future()

    def datagram_received(self, data, address):
        self.queue.put_nowait((data, address))

    def error_received(self, exc):
        self.errors.append(exc)

    def connection_lost(self, exc):
        self.lost.set_result(exc)


async def test_udp():
    loop = asyncio.get_running_loop()
    server, there = await loop.create_datagram_endpoint(Datagrams, ("127.0.0.1", 0))
    address = server.get_extra_info("sockname")
    client, here = await loop.create_datagram_endpoint(Datagrams, remote_addr=address)
    if sys.version_info >= (3, 12):  # before, asyncio's own class was none
        assert isinstance(client, asyncio.DatagramTransport)
    for message in (b"", b"x", b"y" * 60_000):
        client.sendto(message)
        if not message and sys.version_info < (3, 13):
            continue  # asyncio before 3.13 (3.12.3) drops empty datagrams
        data, peer = await there.queue.get()
        if not data and message:
            data, peer = await there.queue.get()
        assert data == message
        server.sendto(data[::-1], peer)
        assert (await here.queue.get())[0] == message[::-1]
    for transport, protocol in ((client, here), (server, there)):
        transport.close()
        assert await protocol.lost is None


async def test_udp_to_a_closed_port():
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
    client, protocol = await loop.create_datagram_endpoint(Datagrams, remote_addr=address)
    client.sendto(b"x")
    await asyncio.sleep(0.005)
    client.close()
    assert await protocol.lost is None
    assert [type(error) for error in protocol.errors] == [ConnectionRefusedError]


# -- the sock_ methods ---------------------------------------------------------------------


async def test_sock_methods_of_streams():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        server.setblocking(False)
        client.setblocking(False)
        accepting = asyncio.create_task(loop.sock_accept(server))
        await asyncio.sleep(0)
        await loop.sock_connect(client, server.getsockname())
        accepted, address = await accepting
        assert address == client.getsockname()
        with accepted:
            message = secrets.token_bytes(1 << 21)
            sending = asyncio.create_task(loop.sock_sendall(client, message))
            got = bytearray()
            while len(got) < len(message):
                got += await loop.sock_recv(accepted, 65536)
            await sending
            assert got == message
            buffer = bytearray(10)
            receiving = asyncio.create_task(loop.sock_recv_into(client, buffer))
            await asyncio.sleep(0.001)
            await loop.sock_sendall(accepted, b"into")
            assert await receiving == 4
            assert buffer[:4] == b"into"
            accepted.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(client, 10) == b""


async def test_sock_methods_of_datagrams():
    loop = asyncio.get_running_loop()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b,
    ):
        for sock in (a, b):
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
        receiving = asyncio.create_task(loop.sock_recvfrom(b, 100))
        await asyncio.sleep(0)
        assert await loop.sock_sendto(a, b"one", b.getsockname()) == 3
        assert await receiving == (b"one", a.getsockname())
        buffer = bytearray(100)
        await loop.sock_sendto(b, b"two", a.getsockname())
        assert await loop.sock_recvfrom_into(a, buffer) == (3, b.getsockname())
        assert buffer[:3] == b"two"


async def test_cancelled_sock_recv_leaves_the_data():
    loop = asyncio.get_running_loop()
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        for _ in range(50):
            receiving = asyncio.create_task(loop.sock_recv(a, 10))
            await asyncio.sleep(0)
            b.send(b"x")
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receiving
            assert await loop.sock_recv(a, 10) == b"x"
        assert loop.stats()["watched"] == 1


async def test_blocking_socket_is_refused_in_debug_mode():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    with socket.socket() as sock, pytest.raises(ValueError, match="non-blocking"):
        await loop.sock_recv(sock, 1)


# -- files, pipes, names -------------------------------------------------------------------


@pytest.fixture
def big_file(tmp_path):
    """A file and what is in it."""
    path, content = tmp_path / "big", secrets.token_bytes(3_000_000)
    path.write_bytes(content)
    with path.open("rb") as file:
        yield file, content


@pytest.mark.parametrize(("offset", "count"), [(0, None), (1000, 2_000_001), (2_999_999, None)])
async def test_sock_sendfile(big_file, offset, count):
    loop, (file, content) = asyncio.get_running_loop(), big_file
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        sending = asyncio.create_task(loop.sock_sendfile(a, file, offset, count))
        expected = content[offset:][:count]
        got = bytearray()
        while len(got) < len(expected):
            got += await loop.sock_recv(b, 65536)
        assert await sending == len(expected)
        assert got == expected
        assert file.tell() == offset + len(expected)


@pytest.mark.parametrize("tls", [False, True])
async def test_sendfile(big_file, tls):
    """By the kernel, and for TLS by reading and writing."""
    loop, (file, content) = asyncio.get_running_loop(), big_file
    server_side, client_side = contexts() if tls else (None, None)
    received = []

    def accept():
        received.append(Collect())
        return received[0]

    server = await loop.create_server(accept, "127.0.0.1", 0, ssl=server_side)
    async with serving(server) as address:
        transport, protocol = await loop.create_connection(Collect, *address, ssl=client_side)
        transport.write(b"head ")
        assert await loop.sendfile(transport, file) == 3_000_000
        transport.write(b" tail")
        transport.close()
        await protocol.lost
        await received[0].lost
        assert received[0].data == b"head " + content + b" tail"


async def test_pipes():
    loop = asyncio.get_running_loop()
    r, w = os.pipe()
    reading, collect = await loop.connect_read_pipe(Collect, os.fdopen(r, "rb", 0))
    writing, source = await loop.connect_write_pipe(Collect, os.fdopen(w, "wb", 0))
    assert isinstance(reading, asyncio.ReadTransport)
    assert isinstance(writing, asyncio.WriteTransport)
    message = secrets.token_bytes(1_000_000)
    writing.write(message)
    writing.close()
    assert await collect.lost is None
    assert await source.lost is None
    assert collect.data == message


async def test_write_pipe_whose_reader_goes_away():
    loop = asyncio.get_running_loop()
    r, w = os.pipe()
    writing, source = await loop.connect_write_pipe(Collect, os.fdopen(w, "wb", 0))
    os.close(r)
    await source.lost
    assert writing.is_closing()


async def test_names():
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
    assert {info[4][0] for info in found} <= {"127.0.0.1", "::1"}
    assert found
    assert (await loop.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST))[0] == "127.0.0.1"
    with pytest.raises(socket.gaierror):
        await loop.getaddrinfo("localhost", "no such service")


# -- tasks -----------------------------------------------------------------------------------


async def test_task_keywords():
    import contextvars

    loop, variable = asyncio.get_running_loop(), contextvars.ContextVar("v")
    context = contextvars.copy_context()
    context.run(variable.set, 5)

    async def get():
        return variable.get()

    task = loop.create_task(get(), name="named", context=context)
    assert task.get_name() == "named"
    assert await task == 5
    with pytest.raises(TypeError):
        coroutine = get()
        try:
            loop.create_task(coroutine, unknown=1)
        finally:
            coroutine.close()
    with pytest.raises(TypeError):
        loop.create_task(5)
    with pytest.raises(TypeError):
        loop.create_task()


async def test_create_task_by_keyword():
    task = asyncio.get_running_loop().create_task(coro=asyncio.sleep(0, "slept"))
    assert await task == "slept"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="of Python 3.12")
async def test_eager_tasks():
    loop, seen = asyncio.get_running_loop(), []
    loop.set_task_factory(asyncio.eager_task_factory)

    async def work():
        seen.append("started")
        await asyncio.sleep(0)
        return "done"

    async def at_once():
        return "at once"

    task = loop.create_task(work(), name="eager")
    assert seen == ["started"]
    assert task.get_name() == "eager"
    assert await task == "done"
    assert asyncio.create_task(at_once()).done()
    loop.set_task_factory(None)
    assert loop.get_task_factory() is None
    assert not loop.create_task(work()).done()
    await asyncio.sleep(0.001)


async def test_task_factory():
    loop, made = asyncio.get_running_loop(), []

    def factory(loop, coroutine, **keywords):
        made.append(keywords)
        return asyncio.Task(coroutine, loop=loop, **keywords)

    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    assert await loop.create_task(asyncio.sleep(0, 1), name="n") == 1
    assert len(made) == 1
    with pytest.raises(TypeError):
        loop.set_task_factory(5)


async def test_groups_queues_and_locks():
    queue, lock = asyncio.Queue(3), asyncio.Lock()
    held, most = 0, 0

    async def produce(i):
        await queue.put(i)

    async def consume():
        nonlocal held, most
        item = await queue.get()
        async with lock:
            held += 1
            most = max(held, most)
            await asyncio.sleep(0)
            held -= 1
        return item

    async with asyncio.TaskGroup() as group:
        consumers = [group.create_task(consume()) for _ in range(20)]
        for i in range(20):
            group.create_task(produce(i))
    assert sorted(task.result() for task in consumers) == list(range(20))
    assert most == 1


def test_asynchronous_generators_are_shut_down(loop_factory):
    import aiounify

    seen = []

    async def generate():
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            seen.append("finalised")

    kept = []

    async def main():
        generator = generate()
        kept.append(generator)
        async for _ in generator:
            break

    aiounify.run(main(), loop_factory=loop_factory)
    assert seen == ["finalised"]


async def test_asynchronous_generator_let_go_is_finalised():
    seen = []

    async def generate():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            seen.append("finalised")

    async for _ in generate():
        break
    for _ in range(20):
        await asyncio.sleep(0)
    assert seen == ["finalised"]


# -- what programs look for -------------------------------------------------------------------


async def test_every_public_method_of_asyncios_transports_is_there():
    """dir() shows the methods of the type that isinstance() sees: each must be there too."""
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    one, other = socket.socketpair()
    writer, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(writing, "wb", 0))
    reader, _ = await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(reading, "rb", 0))
    datagram, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    )
    stream, _ = await loop.create_connection(asyncio.Protocol, sock=one)
    expected = {
        writer: asyncio.unix_events._UnixWritePipeTransport,
        reader: asyncio.unix_events._UnixReadPipeTransport,
        datagram: asyncio.selector_events._SelectorDatagramTransport,
        stream: asyncio.selector_events._SelectorSocketTransport,
    }
    for transport, kind in expected.items():
        names = [n for n in dir(kind) if not n.startswith("_") and callable(getattr(kind, n))]
        assert len(names) >= 7
        assert [name for name in names if not hasattr(transport, name)] == []
        transport.note = "mine"
        assert vars(transport) == {"note": "mine"}
    for name in ("is_reading", "pause_reading", "resume_reading"):
        with pytest.raises(NotImplementedError):
            getattr(writer, name)()
    for transport in expected:
        transport.close()
    other.close()
    await asyncio.sleep(0.001)


async def test_tests_may_replace_methods_of_a_transport():
    """As aiohttp's own do; what the transport does by itself is not redirected."""
    loop = asyncio.get_running_loop()
    one, other = socket.socketpair()
    transport, _ = await loop.create_connection(Echo, sock=one)
    with (
        unittest.mock.patch.object(transport, "write", side_effect=ConnectionResetError),
        pytest.raises(ConnectionResetError),
    ):
        transport.write(b"x")
    transport.write(b"y")
    assert other.recv(10) == b"y"
    transport.close()
    other.close()
    await asyncio.sleep(0.001)
