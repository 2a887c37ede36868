"""The echo servers of the rows: the four ways an asyncio program can answer a stream socket.

Each is a coroutine that starts listening in a place and returns its address.  The place is `TCP`,
an ephemeral port on loopback, or `UNIX`, a socket file in a directory of its own below TMPDIR,
which whoever asked for the row removes.
"""

import asyncio
import socket
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final, Literal, cast

from aiounify.bench.rows.base import Address

__all__ = ["PLACES", "SERVERS", "TCP", "UNIX", "Place"]

Place = Literal["tcp", "unix"]
TCP: Final = "tcp"
UNIX: Final = "unix"
PLACES: tuple[Place, ...] = (TCP, UNIX)

# Room for every connection of a row at once; the kernel caps it at net.core.somaxconn.
_BACKLOG = 8192
_READ = 1 << 16
# Programs ask for much more than comes; several loops allocate all of it.
_SOCK_READ = 1 << 18

# Whoever makes a server must keep it: some loops stop listening when it is collected.
_kept: list[object] = []


def _socket_path() -> str:
    return str(Path(tempfile.mkdtemp(prefix="aiounify-bench-"), "socket"))


def _listening(server: asyncio.Server) -> Address:
    _kept.append(server)
    name = server.sockets[0].getsockname()
    return (str(name[0]), int(name[1]))


class _Echo(asyncio.Protocol):
    __slots__ = ("_write",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._write(data)


class _BufferedEcho(asyncio.BufferedProtocol):
    """One buffer a connection; what is written is a copy, as a transport may keep it."""

    __slots__ = ("_view", "_write")

    def __init__(self) -> None:
        self._view = memoryview(bytearray(_READ))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._write(bytes(self._view[:nbytes]))


async def _stream_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_READ):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def _sock_echo(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with connection:
        try:
            while data := await loop.sock_recv(connection, _SOCK_READ):
                await loop.sock_sendall(connection, data)
        except ConnectionError:
            pass


async def _accept(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(_sock_echo(connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _serve(factory: Callable[[], asyncio.BaseProtocol], place: Place) -> Address:
    loop = asyncio.get_running_loop()
    # The types say Protocol, although every loop takes the buffered one too.
    protocol = cast(Callable[[], asyncio.Protocol], factory)
    if place == UNIX:
        path = _socket_path()
        _kept.append(await loop.create_unix_server(protocol, path, backlog=_BACKLOG))
        return (path,)
    return _listening(await loop.create_server(protocol, "127.0.0.1", 0, backlog=_BACKLOG))


async def _protocol(place: Place) -> Address:
    return await _serve(_Echo, place)


async def _buffered(place: Place) -> Address:
    return await _serve(_BufferedEcho, place)


async def _streams(place: Place) -> Address:
    if place == UNIX:
        path = _socket_path()
        _kept.append(await asyncio.start_unix_server(_stream_echo, path, backlog=_BACKLOG))
        return (path,)
    return _listening(await asyncio.start_server(_stream_echo, "127.0.0.1", 0, backlog=_BACKLOG))


async def _sock(place: Place) -> Address:
    address: Address
    if place == UNIX:
        listener = socket.socket(socket.AF_UNIX)
        address = (_socket_path(),)
        listener.bind(str(address[0]))
        listener.listen(_BACKLOG)
    else:
        listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        address = listener.getsockname()
    listener.setblocking(False)
    _kept.append(asyncio.create_task(_accept(listener)))
    return address


#: By the word that row names use; "" is the plain protocol.
SERVERS: dict[str, Callable[[Place], Coroutine[object, object, Address]]] = {
    "": _protocol,
    "buffered": _buffered,
    "streams": _streams,
    "sock": _sock,
}
