"""examples/proxy.py: every byte arrives, ends are passed on, and what is wrong is answered."""

import asyncio
import contextlib
import importlib.util
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiounify

EXAMPLE = Path(__file__).parents[1] / "examples" / "proxy.py"
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def _load():
    spec = importlib.util.spec_from_file_location("example_proxy", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["example_proxy"] = module
    spec.loader.exec_module(module)
    return module


proxy = _load()


@contextlib.asynccontextmanager
async def proxying(limits=None, to=None):
    one = proxy.Proxy(limits, to)
    try:
        yield one, await one.listen("127.0.0.1", 0)
    finally:
        await one.close()


@contextlib.asynccontextmanager
async def serving(handler):
    """A server whose handler gets (reader, writer); yields its address."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        await server.wait_closed()


async def quiet(one, served=0):
    """Until it has had so many connections, and all have ended."""
    while one.served < served or one._tasks:  # noqa: ASYNC110 - the program has no event for it
        await asyncio.sleep(0.01)


async def closing(writer):
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def echo(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    await closing(writer)


async def ask(address, text):
    """Send, and read all that comes."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(text)
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        await closing(writer)


def refused_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# -- TCP ------------------------------------------------------------------------


async def test_large_both_ways():
    data = random.Random(1).randbytes(3 << 20)
    async with serving(echo) as to, proxying(to=to) as (one, address):
        reader, writer = await asyncio.open_connection(*address)

        async def send():
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        assert await reader.read() == data
        await sending
        await closing(writer)
        for _ in range(3):  # through pipes that were used before
            assert await ask_echo(address) == b"again"
        assert one.served == 4


async def ask_echo(address):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"again")
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        await closing(writer)


async def test_the_server_ends_first():
    got = asyncio.get_running_loop().create_future()

    async def handler(reader, writer):
        writer.write(b"bye")
        writer.write_eof()
        got.set_result(await reader.read())
        await closing(writer)

    async with serving(handler) as to, proxying(to=to) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.read() == b"bye"  # with its end; the other way is still open
        writer.write(b"late")
        await writer.drain()
        writer.write(b"r")
        writer.write_eof()
        assert await got == b"later"
        await closing(writer)


@pytest.mark.parametrize("who", ["client", "server"])
async def test_reset_is_passed_on(who):
    seen = asyncio.get_running_loop().create_future()

    async def drain(reader):
        try:
            return await reader.read()
        except ConnectionResetError:
            return "reset"

    def abort(writer):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    async def handler(reader, writer):
        await reader.readexactly(1)
        writer.write(b"y")
        if who == "server":
            await reader.readexactly(1)
            abort(writer)
        else:
            seen.set_result(await drain(reader))
            writer.close()

    async with serving(handler) as to, proxying(to=to) as (one, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"y"
        if who == "client":
            abort(writer)
            assert await seen == "reset"
        else:
            writer.write(b"z")
            assert await drain(reader) == "reset"
            writer.close()
        await quiet(one)


async def test_a_slow_reader_slows_the_writer():
    """What is on its way is bounded by the kernel's buffers, and all of it arrives."""
    total = 48 << 20
    sent = 0

    async def handler(reader, writer):
        nonlocal sent
        writer.transport.set_write_buffer_limits(0)
        piece = bytes(1 << 16)
        while sent < total:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
        await closing(writer)

    async with serving(handler) as to, proxying(to=to) as (_, address):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            s.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(s, address)
            before = -1
            while sent != before or not sent:
                before = sent
                await asyncio.sleep(0.1)
            assert sent < total
            got = 0
            while n := len(await loop.sock_recv(s, 1 << 20)):
                got += n
            assert got == total


async def test_idle_connections_end():
    limits = proxy.Limits(idle=0.1)
    async with serving(echo) as to, proxying(limits, to) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()


async def test_one_at_a_time():
    """Above the limit a connection waits in the listening queue."""
    async with serving(echo) as to, proxying(proxy.Limits(connections=1), to) as (one, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        second = asyncio.create_task(ask_echo(address))
        for _ in range(20):
            await asyncio.sleep(0)
        assert one.served == 1
        await closing(writer)
        assert await second == b"again"


async def test_nobody_there_resets():
    async with proxying(to=("127.0.0.1", refused_port())) as (_, address):
        with pytest.raises(ConnectionResetError):
            await ask(address, b"")


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    forth=st.lists(st.integers(1, 90_000), max_size=5),
    back=st.lists(st.integers(1, 90_000), max_size=5),
    first=st.sampled_from(["client", "server", "both"]),
    seed=st.integers(0, 1 << 30),
)
def test_random_chunks_and_ends(loop_factory, forth, back, first, seed):
    """Each direction has its own bytes and its own end, whichever comes first."""

    async def main():
        rnd = random.Random(seed)
        data = {
            "client": [rnd.randbytes(n) for n in forth],
            "server": [rnd.randbytes(n) for n in back],
        }
        ended = {name: asyncio.Event() for name in data}
        got = {}

        async def side(me, other, reader, writer):
            async def send():
                if first == other:
                    await ended[me].wait()  # the other's end has arrived here
                for piece in data[me]:
                    writer.write(piece)
                    await writer.drain()
                writer.write_eof()

            sending = asyncio.create_task(send())
            got[me] = await reader.read()
            ended[me].set()
            await sending
            await closing(writer)

        done = asyncio.get_running_loop().create_future()

        async def handler(reader, writer):
            await side("server", "client", reader, writer)
            done.set_result(None)

        async with serving(handler) as to, proxying(to=to) as (one, address):
            await side("client", "server", *await asyncio.open_connection(*address))
            await done
            await quiet(one)
        assert got["server"] == b"".join(data["client"])
        assert got["client"] == b"".join(data["server"])

    loop = loop_factory()
    try:
        loop.run_until_complete(asyncio.wait_for(main(), 40))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


# -- HTTP -----------------------------------------------------------------------


async def test_connect_and_what_came_with_it():
    async with serving(echo) as to, proxying() as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(f"CONNECT {to[0]}:{to[1]} HTTP/1.1\r\nHost: x\r\n\r\nearly".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        assert await reader.readexactly(5) == b"early"
        writer.write_eof()
        assert await reader.read() == b""
        await closing(writer)


BAD = [
    (400, b"GARBAGE\r\n\r\n"),
    (400, b"GET http://x/ HTTP/3\r\n\r\n"),
    (400, b"CONNECT nowhere HTTP/1.1\r\n\r\n"),
    (400, b"CONNECT a:99999 HTTP/1.1\r\n\r\n"),
    (400, b"GET http://x:y/ HTTP/1.1\r\n\r\n"),
    (400, b"GET http://x/ HTTP/1.1\r\nA: b\r\n folded\r\n\r\n"),
    (400, b"GET http://x/ HTTP/1.1\r\nA : b\r\n\r\n"),
    (400, b"GET http://x/ HTTP/1.1\r\nA: b\rC: d\r\n\r\n"),
    (400, b"POST http://x/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (400, b"POST http://x/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    (400, b"POST http://x/ HTTP/1.1\r\nContent-Length: +1\r\n\r\n"),
    (501, b"POST http://x/ HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
    (501, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    (501, b"GET ftp://x/ HTTP/1.1\r\n\r\n"),
    (431, b"GET http://x/ HTTP/1.1\r\nA: " + b"b" * 40000 + b"\r\n\r\n"),
    (502, b"CONNECT does-not-exist.invalid:80 HTTP/1.1\r\n\r\n"),
]


@pytest.mark.parametrize(("status", "text"), BAD)
async def test_answers_to_bad_requests(status, text):
    async with proxying() as (_, address):
        answer = await ask(address, text)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_refused_forbidden_too_slow_too_many():
    async with proxying() as (_, address):
        text = f"CONNECT 127.0.0.1:{refused_port()} HTTP/1.1\r\n\r\n".encode()
        assert (await ask(address, text)).startswith(b"HTTP/1.1 502 ")
    async with proxying(proxy.Limits(allow=["*.example.org", "a:80"])) as (_, address):
        for place in ("example.com:443", "a:81"):
            answer = await ask(address, f"CONNECT {place} HTTP/1.1\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403 ")
    async with proxying(proxy.Limits(head=0.05)) as (_, address):
        assert (await ask(address, b"CONN")).startswith(b"HTTP/1.1 408 ")
    async with proxying(proxy.Limits(per_client=1)) as (_, address):
        _, writer = await asyncio.open_connection(*address)
        assert (await ask(address, b"")).startswith(b"HTTP/1.1 503 ")
        await closing(writer)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_a_server_that_does_not_answer():
    """Its queue is full: connect() gets no answer, and the client a 504."""
    loop = asyncio.get_running_loop()
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        await asyncio.sleep(0.05)
        async with proxying(proxy.Limits(connect=0.1)) as (_, address):
            text = f"CONNECT 127.0.0.1:{full.getsockname()[1]} HTTP/1.1\r\n\r\n".encode()
            assert (await ask(address, text)).startswith(b"HTTP/1.1 504 ")
    await loop.shutdown_default_executor()


@pytest.mark.parametrize("cut", [0, 4, 30])
async def test_clients_that_leave_early(cut):
    async with serving(echo) as to, proxying() as (one, address):
        text = f"CONNECT {to[0]}:{to[1]} HTTP/1.1\r\n\r\n".encode()
        for _ in range(5):
            with socket.socket() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                s.connect(address)
                s.send(text[:cut] or b"C") if cut else None
        await quiet(one, 5)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(text)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await closing(writer)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_no_descriptors(monkeypatch, capsys):
    """A pipe cannot be had: 503, said once, and served again afterwards."""
    async with serving(echo) as to, proxying() as (_, address):
        text = f"CONNECT {to[0]}:{to[1]} HTTP/1.1\r\n\r\n".encode()
        with monkeypatch.context() as patched:

            def fail():
                raise OSError(24, "Too many open files")

            patched.setattr(proxy, "Pipe", fail)
            for _ in range(2):
                assert (await ask(address, text)).startswith(b"HTTP/1.1 503 ")
        assert capsys.readouterr().err.count("Too many open files") == 1
        reader, writer = await asyncio.open_connection(*address)
        writer.write(text)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await closing(writer)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_accept_without_descriptors(capsys):
    """EMFILE: it waits, says so once, and serves when there are some again."""
    loop = asyncio.get_running_loop()
    async with serving(echo) as to, proxying(to=to) as (one, address):
        with socket.socket() as client, contextlib.ExitStack() as stack:
            client.setblocking(False)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(client.fileno())
            os.close(lowest)
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, b"hello")
            while not one._said:  # noqa: ASYNC110 - the program has no event for it
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.25)  # it has tried again
            stack.close()
            assert await loop.sock_recv(client, 5) == b"hello"
        assert capsys.readouterr().err.count("accept: ") == 1


def test_the_request_that_is_sent_on():
    head = (
        b"POST http://u:p@h:81/a?b HTTP/1.1\r\nHost: other\r\nProxy-Connection: keep-alive\r\n"
        b"Connection: X-Gone, Content-Length\r\nX-Gone: 1\r\nContent-Length: 3\r\nX-Kept: 2\r\n\r\n"
    )
    request = proxy.parse(head)
    assert request.place == ("h", 81)
    assert request.body == 3
    assert request.first == (
        b"POST /a?b HTTP/1.1\r\nHost: h:81\r\nContent-Length: 3\r\nX-Kept: 2\r\n"
        b"Connection: close\r\n\r\n"
    )


# -- as a process, with curl -------------------------------------------------------

BODY = random.Random(2).randbytes(1 << 20)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def origin():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def process(backend, *arguments):
    package = str(Path(aiounify.__file__).parents[1])
    argv = [
        sys.executable,
        "-X",
        "dev",
        "-W",
        "error",
        EXAMPLE,
        "--listen",
        "127.0.0.1:0",
        *arguments,
    ]
    with subprocess.Popen(
        argv,
        env={**os.environ, "PYTHONPATH": package, "AIOUNIFY_BACKEND": backend},
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child, child.stdout.readline().split()[-1]
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0
        finally:
            child.kill()


def curl(*arguments):
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "30", *arguments], stdout=subprocess.PIPE, check=False
    )
    assert done.returncode == 0
    return done.stdout


@needs_curl
def test_curl(backend, origin, tmp_path):
    (tmp_path / "body").write_bytes(BODY)
    with process(backend) as (_, address):
        for how in (["-x", address], ["-x", address, "--proxytunnel"]):
            assert curl(*how, origin) == BODY
            assert curl(*how, "--data-binary", f"@{tmp_path / 'body'}", origin) == BODY
            assert curl(*how, origin, origin) == BODY + BODY


def test_graceful_stop(backend):
    """What goes on when the signal comes ends as it would have."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        to = f"127.0.0.1:{server.getsockname()[1]}"
        with process(backend, "--to", to, "--grace", "30") as (child, address):
            host, _, port = address.partition(":")
            with socket.create_connection((host, int(port))) as client:
                other, _ = server.accept()
                with other:
                    client.sendall(b"one")
                    assert other.recv(3) == b"one"
                    child.send_signal(signal.SIGTERM)
                    assert child.stdout.readline() == "stopping\n"
                    with pytest.raises(ConnectionRefusedError):
                        socket.create_connection((host, int(port)), 5)
                    client.sendall(b"two")
                    assert other.recv(3) == b"two"
            assert child.wait(30) == 0


def test_bad_arguments(backend):
    for argv in (
        ["--to", "nowhere"],
        ["--idle", "0"],
        ["--connections", "0"],
        ["--to", "a:1", "--allow", "b"],
    ):
        with pytest.raises(SystemExit) as failed:
            proxy.arguments(argv)
        assert failed.value.code == 2
