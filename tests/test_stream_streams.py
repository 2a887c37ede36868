"""What is built on the transport: asyncio's streams, TLS, and a switch to it in mid-stream."""

import asyncio
import ssl

import pytest
from stream_peers import (
    Recorder,
    connect,
    every_loop,
    families,
    listener,
    noise,
    receive,
    reset,
    socket_pair,
    until,
)
from test_transports import contexts, echo


async def serve(family, handler, **options):
    sock, address = listener(family)
    start = asyncio.start_server if family == "tcp" else asyncio.start_unix_server
    return await start(handler, sock=sock, **options), address


async def open_(family, address, **options):
    sock = connect(family, address)
    if options.get("ssl"):
        options["server_hostname"] = "localhost"
    return await asyncio.open_connection(sock=sock, **options)


async def there_and_back(reader, writer, seed):
    """Megabytes in uneven pieces while the same comes back."""
    data = noise(3 << 20, seed)

    async def send():
        at, step = 0, 1
        while at < len(data):
            writer.write(data[at : at + step])
            at, step = at + step, step * 7 % 100_003
            await writer.drain()

    sending = asyncio.create_task(send())
    assert await reader.readexactly(len(data)) == data
    await sending


@families
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("limit", [64, 65536])
@every_loop
async def test_streams(family, tls, limit):
    """A limit pauses and resumes the transport all the time."""
    ours, theirs = contexts() if tls else (None, None)
    server, address = await serve(family, echo, ssl=ours, limit=limit)
    reader, writer = await open_(family, address, ssl=theirs, limit=limit)
    await there_and_back(reader, writer, limit)
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@families
@pytest.mark.parametrize("tls", [False, True])
@every_loop
async def test_line_longer_than_the_limit(family, tls):
    async def long_line(reader, writer):
        writer.write(b"x" * 5000 + b"\nshort\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    ours, theirs = contexts() if tls else (None, None)
    server, address = await serve(family, long_line, ssl=ours)
    reader, writer = await open_(family, address, ssl=theirs, limit=1000)
    with pytest.raises(asyncio.LimitOverrunError):
        await reader.readuntil(b"\n")
    assert await reader.readexactly(5001) == b"x" * 5000 + b"\n"
    assert await reader.readline() == b"short\n"
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@families
@every_loop
async def test_start_tls_in_mid_stream(family):
    """What came before is plain, what comes after is not, and nothing is lost between."""
    ours, theirs = contexts()

    async def upgrade(reader, writer):
        for _ in range(3):
            assert await reader.readline() == b"plain\n"
            writer.write(b"plain\n")
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.drain()
        await writer.start_tls(ours)
        await echo(reader, writer)

    server, address = await serve(family, upgrade)
    reader, writer = await open_(family, address)
    for _ in range(3):
        writer.write(b"plain\n")
        assert await reader.readline() == b"plain\n"
    writer.write(b"STARTTLS\n")
    assert await reader.readline() == b"go\n"
    await writer.start_tls(theirs, server_hostname="localhost")
    assert writer.get_extra_info("cipher")
    await there_and_back(reader, writer, 5)
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@every_loop
async def test_reset_during_the_handshake():
    loop = asyncio.get_running_loop()
    _, theirs = contexts()
    one, other = socket_pair("tcp")
    task = asyncio.create_task(
        loop.create_connection(Recorder, sock=one, ssl=theirs, server_hostname="localhost")
    )
    other.setblocking(False)
    assert await receive(other, 5)  # the client's hello
    reset(other)
    with pytest.raises((ConnectionError, ssl.SSLError)):
        await task


@families
@every_loop
async def test_many_tls_connections_dropped(family):
    """Aborted in different phases; the loop's end finds nothing left."""
    ours, theirs = contexts()
    loop = asyncio.get_running_loop()
    server, address = await serve(family, echo, ssl=ours)
    for i in range(12):
        reader, writer = await open_(family, address, ssl=theirs)
        if i % 3:
            writer.write(noise(1 << (i + 4)))
        if i % 3 == 2:
            assert await reader.readexactly(16)
        writer.transport.abort()
    server.close()
    # 3.11's wait_for(), in which this runs, makes a task of its own
    await until(lambda: len(asyncio.all_tasks()) <= 2)
    await server.wait_closed()
    loop.reports.clear()  # a connection that the peer resets is reported by asyncio's TLS
