"""Echo servers over TCP: a protocol, and the streams API."""

import asyncio

from aiounify.bench.rows.base import Address, ServerRow

__all__ = ["ROWS"]

# Room for every connection of a row at once; the kernel caps it at net.core.somaxconn.
_BACKLOG = 4096
_READ = 1 << 16


class _Echo(asyncio.Protocol):
    __slots__ = ("_write",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._write(data)


async def _stream_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_READ):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


# Whoever makes a server must keep it: some loops stop listening when it is collected.
_kept: list[asyncio.AbstractServer] = []


def _listening(server: asyncio.Server) -> Address:
    _kept.append(server)
    address = server.sockets[0].getsockname()
    return (str(address[0]), int(address[1]))


async def _serve_protocol() -> Address:
    loop = asyncio.get_running_loop()
    return _listening(await loop.create_server(_Echo, "127.0.0.1", 0, backlog=_BACKLOG))


async def _serve_streams() -> Address:
    return _listening(await asyncio.start_server(_stream_echo, "127.0.0.1", 0, backlog=_BACKLOG))


def _size(size: int) -> str:
    return f"{size >> 10}k" if size >= 1024 else str(size)


_tcp = tuple(
    ServerRow(
        f"tcp-{_size(size)}-x{connections}",
        f"TCP echo, protocol: {size} bytes, {connections} connection(s).",
        ("net", "echo", "tcp"),
        "request",
        _serve_protocol,
        connections=connections,
        size=size,
    )
    for size, connections in ((1024, 1), (1024, 100), (1024, 1000), (16384, 100), (65536, 10))
)

_streams = tuple(
    ServerRow(
        f"streams-{_size(size)}-x{connections}",
        f"TCP echo, streams API: {size} bytes, {connections} connection(s).",
        ("net", "echo", "streams"),
        "request",
        _serve_streams,
        connections=connections,
        size=size,
    )
    for size, connections in ((1024, 100), (65536, 10))
)

ROWS = (*_tcp, *_streams)
