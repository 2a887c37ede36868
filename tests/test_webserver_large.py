"""The web server's large files: sent at once as far as they go, the rest by a task."""

import asyncio
import contextlib
import os
import random
import socket
import struct
from pathlib import Path

import pytest
from serving import module, serving, until, write

from aiounify._core import sendfile

LARGE = random.Random(9).randbytes(1 << 20)
HUGE = random.Random(10).randbytes(12 << 20)
GET = b"GET /%b HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def site(tmp_path):
    root = tmp_path / "site"
    write(root / "large.bin", LARGE)
    write(root / "huge.bin", HUGE)
    write(root / "a.txt", "small")
    return root


@pytest.fixture
def tasks(monkeypatch):
    """How many tasks were made for answers."""
    connection, made = module("connection").Connection, []
    start = connection._start

    def counted(self, work):
        made.append(work)
        start(self, work)

    monkeypatch.setattr(connection, "_start", counted)
    return made


async def test_no_task_if_it_goes_at_once(site, tasks):
    write(site / "some.bin", LARGE[:100_000])
    async with serving(site) as server, await server.connect() as client:
        assert (await client.get("/some.bin")).body == LARGE[:100_000]
        made = len(tasks)
        for _ in range(20):
            assert (await client.get("/some.bin")).body == LARGE[:100_000]
        assert len(tasks) == made
        assert server.server.counts.hits == 20


async def test_a_slow_reader(site, tasks):
    """What the client does not take goes by a task, and what it asked for next comes behind."""
    async with serving(site) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1000)
        asked = [b"a.txt", b"huge.bin", b"large.bin", b"a.txt", b"huge.bin", b"huge.bin", b"a.txt"]
        for names in (asked[:2], asked):  # the second time both are known
            writer.write(b"".join(GET % name for name in names))
            await asyncio.sleep(0.05)  # nothing is read
            for name in names:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
                expected = {b"a.txt": b"small", b"large.bin": LARGE, b"huge.bin": HUGE}[name]
                assert b"\r\nContent-Length: %d\r\n" % len(expected) in head + b"\r\n"
                assert await asyncio.wait_for(reader.readexactly(len(expected)), 20) == expected
        assert len(tasks) > 2
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_what_is_not_in_memory(site):
    async with serving(site) as server, await server.connect() as client:
        sendfile.distrust_memory(True)
        try:
            for _ in range(3):
                assert (await client.get("/large.bin")).body == LARGE
        finally:
            sendfile.distrust_memory(False)


async def test_ranges_and_heads_that_are_known(site):
    async with serving(site) as server, await server.connect() as client:
        for _ in range(3):
            part = await client.get("/large.bin", "Range: bytes=70000-270000")
            assert (part.status, part.body) == (206, LARGE[70_000:270_001])
            head = await client.get("/large.bin", method="HEAD")
            assert head.headers["content-length"] == str(len(LARGE))
            assert (await client.get("/large.bin")).body == LARGE
            several = await client.get("/large.bin", "Range: bytes=0-99999,200000-299999")
            assert several.status == 206
            assert LARGE[200_000:300_000] in several.body


async def test_it_is_never_stale(site):
    """Replaced, and written to: the next request gets what is there."""
    async with serving(site) as server, await server.connect() as client:
        for i in range(30):
            content = bytes([i]) * (200_000 + i)
            if i % 2:
                write(site / "new", content, age=0)
                (site / "new").replace(site / "large.bin")
            else:
                (site / "large.bin").write_bytes(content)
            for _ in range(2):
                assert (await client.get("/large.bin")).body == content


async def test_the_descriptor_is_kept_until_the_task_begins(site, monkeypatch):
    """A change lets go of the file between the request and the task that answers it."""
    connection = module("connection").Connection
    monkeypatch.setattr(connection, "_send_at_once", lambda self, known: False)
    start, others = connection._start, []

    def replaced(self, work):
        start(self, work)
        write(site / "new", b"n" * len(LARGE), age=0)
        (site / "new").replace(site / "large.bin")
        self._server.drain()
        assert self._server._files.hit("large.bin") is None
        others.append(os.open(site / "a.txt", os.O_RDONLY))  # gets the number, if it is free

    async with serving(site) as server, await server.connect() as client:
        assert (await client.get("/large.bin")).body == LARGE
        monkeypatch.setattr(connection, "_start", replaced)
        assert (await client.get("/large.bin")).body == LARGE  # as of when it was asked for
        monkeypatch.setattr(connection, "_start", start)
        assert (await client.get("/large.bin")).body == b"n" * len(LARGE)
    for fd in others:
        os.close(fd)


@pytest.mark.parametrize("known", [False, True])
async def test_clients_that_go_away_are_no_errors_of_the_server(site, caplog, known):
    async with serving(site) as server:
        if known:
            for _ in range(2):
                assert (await server.get("/huge.bin")).body == HUGE
        for i in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall(GET % b"huge.bin")
                if i % 2:  # in the middle; else before the first byte, by RST for the header
                    await asyncio.sleep(0.002)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.sleep(0.002)
        await until(lambda: not server.server.connections)
        assert (await server.get("/huge.bin")).body == HUGE
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_descriptors_are_given_back(site):
    """However an answer ended, a file that was replaced is not open afterwards."""

    def still_open():
        found = []
        for name in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(name.readlink()))
        return [link for link in found if "huge.bin" in link]

    async with serving(site) as server:
        for ends in ("whole", "reset"):
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", server.port)) as sock:
                    sock.sendall(GET % b"huge.bin")
                    if ends == "reset":
                        await asyncio.sleep(0.01)
                        linger = struct.pack("ii", 1, 0)
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    else:
                        sock.setblocking(False)
                        got = 0
                        while got < len(HUGE):
                            got += len(await asyncio.get_running_loop().sock_recv(sock, 1 << 20))
        await until(lambda: not server.server.connections)
        assert still_open()
        (site / "huge.bin").unlink()
        assert (await server.get("/huge.bin")).status == 404
        await until(lambda: not still_open())


async def test_a_known_file_that_is_truncated_while_it_is_sent(site):
    """Its length was said: the connection is broken off, and nothing else is sent for it."""
    size = 40_000_000  # more than is on its way at a time
    os.truncate(site / "huge.bin", size)
    async with serving(site) as server:
        for _ in range(2):
            assert len((await server.get("/huge.bin")).body) == size
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=4096)
        writer.write(GET % b"huge.bin" + GET % b"a.txt")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        assert b"Content-Length: %d\r\n" % size in head
        os.truncate(site / "huge.bin", 1000)
        got = 0  # of what is on its way the kernel may show the zeros of the truncated page
        with contextlib.suppress(ConnectionResetError):
            while data := await asyncio.wait_for(reader.read(65536), 20):
                got += len(data)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        assert got < size
        assert (await server.get("/huge.bin")).body == HUGE[:1000]
