"""A server of examples/kvstore in the test's own loop, its clients, and a disk that can be held."""

import asyncio
import contextlib
from pathlib import Path

from kvstore.disk import Disk
from kvstore.server import Server
from kvstore.store import Store

EXAMPLES = Path(__file__).parents[1] / "examples"


def encode(*args):
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        data = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class ReplyError(Exception):
    """An error reply."""


class Client:
    """One connection, which sends and reads on its own."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, *args):
        self.writer.write(encode(*args))

    async def reply(self):
        line = await self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            n = int(rest)
            return None if n < 0 else (await self.reader.readexactly(n + 2))[:-2]
        if kind == b":":
            return int(rest)
        if kind == b"*":
            return [await self.reply() for _ in range(int(rest))]
        if kind == b"-":
            raise ReplyError(rest.decode())
        assert kind == b"+", line
        return rest.decode()

    async def __call__(self, *args):
        self.send(*args)
        return await self.reply()

    async def close(self):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def until(condition):
    """Until something is so; the test's own limit of time ends what never is."""
    while not condition():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def served(directory, **options):
    """A server in this loop, and a function that connects to it."""
    server = Server(directory, **options)
    address = await server.listen("127.0.0.1", 0)
    clients = []

    async def connect():
        clients.append(Client(*await asyncio.open_connection(*address)))
        return clients[-1]

    server.address = address
    try:
        yield server, connect
    finally:
        for client in clients:
            await client.close()
        await server.close()


class Recorder(Disk):
    """The disk, with a gate before each sync, failures on demand, and what had been synced."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail = None
        self.under_way = asyncio.Event()
        #: Bytes of the file that are certain.
        self.durable = 0
        self.synced = []

    async def append(self, fd, data, offset, *, durable):
        self.under_way.set()
        if self.fail is not None:
            await self.gate.wait()
            raise self.fail
        await super().append(fd, data, offset, durable=False)
        if durable:
            await self.sync(fd)
            self.durable = offset + len(data)
            self.synced.append(data)

    async def sync(self, fd):
        await self.gate.wait()
        await super().sync(fd)


def used_by(store):
    """What a store with the same keys counts that never held another."""
    fresh = Store()
    fresh.data, fresh.expires = dict(store.data), dict(store.expires)
    fresh.replayed()
    return fresh.used


async def quiet(turns=20):
    """Time enough for replies that should not come."""
    for _ in range(turns):
        await asyncio.sleep(0.002)
