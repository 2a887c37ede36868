"""What the tests of the web server share: a server in the test's own loop, and a bare client."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import time

from aiounify import _serve_tool

webserver = _serve_tool.load()


def module(name):
    """A module of the server."""
    import importlib

    return importlib.import_module(f"{webserver.__name__}.{name}")


Options = module("options").Options


def write(path, data, *, age=3600):
    """Make a file that is as old as most files are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    then = time.time_ns() - int(age * 1e9)
    os.utime(path, ns=(then, then))
    return path


class Serving:
    """A server that runs."""

    def __init__(self, server, port):
        self.server = server
        self.port = port

    async def connect(self):
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))

    async def talk(self, data):
        """Send bytes on a connection of their own, and return all that comes back."""
        async with await self.connect() as client:
            client.writer.write(data)
            return await asyncio.wait_for(client.reader.read(), 20)

    async def get(self, target, *headers, method="GET", version="1.1"):
        """One request on a connection of its own."""
        async with await self.connect() as client:
            return await client.get(target, *headers, method=method, version=version)


class Client:
    """A connection to a server."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def get(self, target, *headers, method="GET", version="1.1"):
        lines = [f"{method} {target} HTTP/{version}", "Host: test", *headers, "", ""]
        self.writer.write("\r\n".join(lines).encode("latin-1"))
        return await self.answer(method)

    async def answer(self, method="GET"):
        """Read the next answer."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        answer = Answer(int(first.split()[1]), {})
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() not in answer.headers, head
            answer.headers[name.lower()] = value
        if method == "HEAD" or answer.status in (204, 304) or answer.status < 200:
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                answer.body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            await self.reader.readline()
        elif "content-length" in answer.headers:
            size = int(answer.headers["content-length"])
            answer.body = await asyncio.wait_for(self.reader.readexactly(size), 20)
        else:
            answer.body = await asyncio.wait_for(self.reader.read(), 20)
        return answer

    async def ended(self):
        """Whether the server has ended the connection, and said nothing more."""
        try:
            return await asyncio.wait_for(self.reader.read(), 20) == b""
        except ConnectionResetError:
            return True


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict
    body: bytes = b""

    @property
    def text(self):
        return self.body.decode()


@contextlib.asynccontextmanager
async def serving(root, *, tick=1.0, **settings):
    """A server for a directory, in this loop; it looks at its clock each `tick` seconds."""
    sock = socket.socket(proto=socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    sock.listen(512)
    server = module("server").Server(Options(root=root.resolve(), **settings))
    server.tick = tick
    try:
        await server.start(sock)
        yield Serving(server, sock.getsockname()[1])
    finally:
        await server.stop(10)
        await asyncio.get_running_loop().shutdown_default_executor()


async def until(condition):
    """Wait until it is true; a test that waits in vain fails by its time limit."""
    while not condition():  # noqa: ASYNC110 - anything may be asked for
        await asyncio.sleep(0.005)
