"""The web server's reading of requests: what is refused, limits, time, order, aborted clients."""

import asyncio
import contextlib
import os
import socket
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Options, module, serving, until, write

parsing = module("parsing")
BadRequest = module("request").BadRequest


@pytest.fixture
def site(tmp_path):
    root = tmp_path / "site"
    write(root / "a.txt", "content of a\n")
    write(root / "large.bin", bytes(range(256)) * 16384)
    write(tmp_path / "secret.txt", "secret\n")
    write(
        root / "echo.page.py",
        "async def page(page):\n    return 'only posts'\n"
        "async def post(page):\n    return page.body, {'Content-Type': 'text/plain'}\n",
    )
    return root


GET = "GET /a.txt HTTP/1.1\r\nHost: h\r\n"

REFUSED = {
    "no request line": (b"\r\n\r\nhello\r\n\r\n", 400),
    "two words": (b"GET /a.txt\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /a.txt HTTP/0.9\r\n\r\n", 505),
    "HTTP/2.0": (b"GET /a.txt HTTP/2.0\r\nHost: h\r\n\r\n", 505),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no host": (b"GET /a.txt HTTP/1.1\r\n\r\n", 400),
    "two hosts": (f"{GET}Host: g\r\n\r\n".encode(), 400),
    "bad host": (b"GET /a.txt HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "space before colon": (f"{GET}X : 1\r\n\r\n".encode(), 400),
    "folded line": (f"{GET}X: 1\r\n 2\r\n\r\n".encode(), 400),
    "folded by tab": (f"{GET}X: 1\r\n\t2\r\n\r\n".encode(), 400),
    "bare CR in a value": (f"{GET}X: 1\rY: 2\r\n\r\n".encode(), 400),
    "bare LF": (b"GET /a.txt HTTP/1.1\nHost: h\n\n", 400),
    "bare LF between lines": (f"{GET}X: 1\nY: 2\r\n\r\n".encode(), 400),
    "bare LF at the end": (f"{GET}\n".encode(), 400),
    "NUL": (f"{GET}X: a\0b\r\n\r\n".encode(), 400),
    "no name": (f"{GET}: 1\r\n\r\n".encode(), 400),
    "no colon": (f"{GET}X\r\n\r\n".encode(), 400),
    "unknown method": (b"FROB /a.txt HTTP/1.1\r\nHost: h\r\n\r\n", 501),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: h\r\n\r\n", 501),
    "both lengths": (
        f"{GET}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(),
        400,
    ),
    "both, other order": (
        f"{GET}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n".encode(),
        400,
    ),
    "two lengths": (f"{GET}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd".encode(), 400),
    "a list of lengths": (f"{GET}Content-Length: 3, 3\r\n\r\nabc".encode(), 400),
    "negative length": (f"{GET}Content-Length: -1\r\n\r\n".encode(), 400),
    "signed length": (f"{GET}Content-Length: +1\r\n\r\na".encode(), 400),
    "hexadecimal length": (f"{GET}Content-Length: 0x1\r\n\r\na".encode(), 400),
    "empty length": (f"{GET}Content-Length:\r\n\r\n".encode(), 400),
    "length of 19 digits": (f"{GET}Content-Length: {10**18}\r\n\r\n".encode(), 400),
    "other coding": (f"{GET}Transfer-Encoding: gzip\r\n\r\n".encode(), 400),
    "chunked not last": (f"{GET}Transfer-Encoding: chunked, gzip\r\n\r\n".encode(), 400),
    "coding hidden by a tab": (f"{GET}Transfer-Encoding: \x0bchunked\r\n\r\n".encode(), 400),
    "chunked twice": (
        f"{GET}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
        400,
    ),
    "chunked in 1.0": (
        b"POST /echo HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "expects a miracle": (f"{GET}Expect: miracle\r\n\r\n".encode(), 417),
    "fragment": (b"GET /a.txt#b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "broken escape": (b"GET /a%2 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "wrong escape": (b"GET /a%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "escaped NUL": (b"GET /a.txt%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "dots": (b"GET /../secret.txt HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "dots inside": (b"GET /b/../../secret.txt HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "escaped dots": (b"GET /%2e%2e/secret.txt HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "escaped slash": (b"GET /..%2fsecret.txt HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "no path": (b"GET a.txt HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "space in the target": (b"GET /a .txt HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "long target": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
    "long header": (GET.encode() + b"X: " + b"a" * 20000 + b"\r\n\r\n", 431),
    "endless header": (GET.encode() + b"X: " + b"a" * 20000, 431),
    "many lines": (GET.encode() + b"X: 1\r\n" * 200 + b"\r\n", 431),
    "long body": (f"{GET}Content-Length: {2**21}\r\n\r\n".encode(), 413),
}

CHUNKED = "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
BAD_CHUNKS = {
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "not a number": b"xyz\r\nabc\r\n",
    "negative": b"-3\r\nabc\r\n",
    "with a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "space in front": b" 3\r\nabc\r\n0\r\n\r\n",
    "space behind": b"3 \r\nabc\r\n0\r\n\r\n",
    "bare LF": b"3\nabc\n0\n\n",
    "bare CR": b"3\rabc\r0\r\r\n",
    "data too long": b"3\r\nabcd\r\n0\r\n\r\n",
    "data too short": b"3\r\nab\r\n0\r\n\r\n",
    "16 digits and more": b"00000000000000003\r\nabc\r\n0\r\n\r\n",
    "overflow": b"ffffffffffffffff\r\nabc\r\n",
    "too large": b"ffffff\r\nabc\r\n",
    "bad trailer": b"3\r\nabc\r\n0\r\nno colon\r\n\r\n",
    "space before the extension": b"3 ;x\r\nabc\r\n0\r\n\r\n",
    "length as trailer": b"3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n",
    "coding as trailer": b"3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "endless size": b"3;" + b"a" * 300,
}


async def refused(server, data, status):
    answer = await server.talk(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert b"secret" not in answer


async def test_refused(site):
    async with serving(site) as server:
        for name, (data, status) in REFUSED.items():
            print(name)
            await refused(server, data, status)
            # followed by a request that must not be answered
            await refused(server, data + GET.encode() + b"\r\n", status)
        for name, data in BAD_CHUNKS.items():
            print(name)
            await refused(server, CHUNKED.encode() + data, 413 if "large" in name else 400)
        assert (await server.get("/a.txt")).text == "content of a\n"
        await until(lambda: not server.server.connections)


async def test_refused_byte_by_byte(site):
    async with serving(site) as server:
        for name in ("bare LF", "folded line", "bare CR in a value", "both lengths", "dots"):
            data, status = REFUSED[name]
            async with await server.connect() as client:
                for i in range(len(data)):
                    client.writer.write(data[i : i + 1])
                    await asyncio.sleep(0)
                assert (await client.answer()).status == status
                assert await client.ended()


# what is unusual and right
ACCEPTED = {
    "1.0": b"GET /a.txt HTTP/1.0\r\n\r\n",
    "empty lines in front": b"\r\n\r\nGET /a.txt HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    "absolute": b"GET http://h/a.txt HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    "escaped": b"GET /%61%2etxt HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    "query": b"GET /a.txt?b=%zz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    "empty host": b"GET /a.txt HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
    "port": b"GET /a.txt HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n",
    "no space, tabs": b"GET /a.txt HTTP/1.1\r\nHost:\th\t\r\nConnection:close\r\nX:\r\n\r\n",
    "upgrade": b"GET /a.txt HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\n"
    b"Connection: upgrade, close\r\n\r\n",
    "body of a GET": b"GET /a.txt HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
    b"Content-Length: 3\r\n\r\nabc",
}


async def test_accepted(site):
    async with serving(site) as server:
        for name, data in ACCEPTED.items():
            answer = await server.talk(data)
            assert answer.startswith(b"HTTP/1.1 200 "), (name, answer)
            assert answer.endswith(b"\r\n\r\ncontent of a\n"), (name, answer)
            assert answer.count(b"HTTP/1.1") == 1


async def test_keep_alive_of_1_0(site):
    async with serving(site) as server, await server.connect() as client:
        for _ in range(3):
            answer = await client.get("/a.txt", "Connection: keep-alive", version="1.0")
            assert answer.headers["connection"] == "keep-alive"
            assert answer.text == "content of a\n"
        answer = await client.get("/a.txt", version="1.0")
        assert answer.headers["connection"] == "close"
        assert await client.ended()


async def test_pipelined(site):
    async with serving(site) as server, await server.connect() as client:
        request = GET.encode() + b"\r\n"
        missing = b"GET /missing HTTP/1.1\r\nHost: h\r\n\r\n"
        post = CHUNKED.encode() + b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nSum: 1\r\n\r\n"
        head = request.replace(b"GET", b"HEAD")
        large = request.replace(b"a.txt", b"large.bin")
        for data in (request, missing, post, head, large, request) * 5:
            client.writer.write(data)
        for _ in range(5):
            assert (await client.answer()).text == "content of a\n"
            assert (await client.answer()).status == 404
            assert (await client.answer()).text == "hello!"
            assert (await client.answer("HEAD")).headers["content-length"] == "13"
            assert (await client.answer()).body == bytes(range(256)) * 16384
            assert (await client.answer()).text == "content of a\n"


async def test_pipelined_cut_anywhere(site):
    data = GET.encode() + b"\r\n" + CHUNKED.encode() + b"3\r\nabc\r\n0\r\n\r\n" + GET.encode()
    data += b"\r\n"
    async with serving(site) as server:
        for cut in range(1, len(data)):
            async with await server.connect() as client:
                client.writer.write(data[:cut])
                await asyncio.sleep(0)
                client.writer.write(data[cut:])
                found = [(await client.answer()).text for _ in range(3)]
                assert found == ["content of a\n", "abc", "content of a\n"]


async def test_a_reader_that_takes_nothing_is_not_answered_without_end(site):
    """Requests that are sent and never read from wait in the kernel."""
    async with serving(site) as server:
        sock = socket.socket()
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", server.port))
        request = GET.encode().replace(b"a.txt", b"a.txt?") + b"\r\n"
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while sent < 100_000_000:
                    await loop.sock_sendall(sock, request * 500)
                    sent += 500
        (connection,) = server.server.connections
        assert len(connection._buffer) < 1024 * 1024
        assert connection._transport.get_write_buffer_size() < 1024 * 1024
        sock.close()
        await until(lambda: not server.server.connections)


async def test_body(site):
    async with serving(site) as server, await server.connect() as client:
        client.writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
        assert (await client.answer()).text == "hello"
        client.writer.write(
            b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await client.answer()).status == 100
        client.writer.write(b"again")
        assert (await client.answer()).text == "again"
        assert (await client.get("/echo")).text == "only posts"
        client.writer.write(b"POST /a.txt HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
        answer = await client.answer()
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"
        assert (await client.get("/a.txt", method="DELETE")).status == 405
        assert (await client.get("/a.txt", method="OPTIONS")).status == 204
        assert (await client.get("/a.txt")).status == 200


async def test_body_that_will_not_be_taken(site):
    async with serving(site) as server:
        head = (
            b"PUT /a.txt HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        await refused(server, head, 405)
        head = head.replace(b"PUT", b"POST").replace(b": 5", b": 55555555")
        await refused(server, head, 413)


async def test_the_answer_arrives_though_the_client_goes_on_sending(site):
    """A close with unread data would be a reset, and the answer lost."""
    async with serving(site) as server, await server.connect() as client:
        client.writer.write(f"{GET}Content-Length: 99999999\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                client.writer.write(b"x" * 10000)
                await client.writer.drain()
        assert (await client.answer()).status == 413


async def test_slow_clients_are_dropped(site):
    async with serving(site, request_timeout=0.1, idle_timeout=0.3, tick=0.02) as server:
        for data in (b"", b"GET /a.txt HT", f"{GET}Content-Length: 5\r\n\r\nab".encode()):
            async with await server.connect() as client:
                client.writer.write(data)
                if data:
                    answer = await client.answer()
                    assert answer.status == 408
                    assert answer.headers["connection"] == "close"
                assert await client.ended()
        async with await server.connect() as client:  # a byte now and then does not help

            async def drip():
                with contextlib.suppress(ConnectionError):
                    for byte in GET * 100:
                        client.writer.write(byte.encode())
                        await asyncio.sleep(0.05)

            task = asyncio.create_task(drip())
            assert (await client.answer()).status == 408
            task.cancel()
        async with await server.connect() as client:
            assert (await client.get("/a.txt")).status == 200
            assert await client.ended()  # idle for too long: no answer without a request
        assert server.server.counts.timeouts == 5


async def test_clients_that_take_nothing_are_dropped(site):
    os.truncate(site / "large.bin", 100_000_000)  # more than the buffers of both sides
    async with serving(site, send_timeout=0.2, build_timeout=0.2, tick=0.02) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
        writer.write(GET.replace("a.txt", "large.bin").encode() + b"\r\n")
        await reader.read(1)
        await until(lambda: not server.server.connections)
        assert server.server.counts.timeouts == 1
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_client_whose_first_bytes_are_on_their_way_is_not_dropped(site, monkeypatch):
    """Nothing is acknowledged yet when it is first looked at: its time begins then."""
    connection = module("connection").Connection
    monkeypatch.setattr(connection, "_progress", lambda self: 0.0)
    os.truncate(site / "large.bin", 100_000_000)
    async with serving(site, send_timeout=30, tick=0.02) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
        writer.write(GET.replace("a.txt", "large.bin").encode() + b"\r\n")
        await reader.read(1)
        held = next(iter(server.server.connections))
        await until(lambda: held._acked == 0.0)
        # as if all had gone by the short way, which sets no time; at least one more look
        held._acked, held._acked_at = type(held)(server.server)._acked, 0.0
        await asyncio.sleep(0.1)
        assert server.server.connections == {held}
        assert server.server.counts.timeouts == 0
        writer.transport.abort()


async def test_connections_for_each_client(site):
    async with serving(site, connections_per_client=3) as server:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(await server.connect()) for _ in range(3)]
            for client in clients:
                assert (await client.get("/a.txt")).status == 200
            async with await server.connect() as one_more:
                assert (await one_more.answer()).status == 503
                assert await one_more.ended()
            assert (await clients[0].get("/a.txt")).status == 200
        await until(lambda: not server.server.connections)
        assert (await server.get("/a.txt")).status == 200
        await until(lambda: not server.server.clients)


async def test_clients_that_abort(site):
    """In each phase of a request: nothing is left, and the others are served."""
    posted = f"{GET}Content-Length: 5\r\n\r\n".replace("GET", "POST").replace("a.txt", "echo")
    write(
        site / "slow.page.py",
        "import asyncio\nasync def page(page):\n    await asyncio.sleep(0.02)\n    return 'slow'\n",
    )
    phases = [
        b"",
        b"GET",
        GET.encode(),
        posted.encode(),
        posted.encode() + b"ab",
        CHUNKED.encode() + b"5\r\nab",
        b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /large.bin HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\n" * 3000,
    ]
    async with serving(site) as server:
        for data in phases:
            for how in ("reset", "close", "half"):
                sock = socket.create_connection(("127.0.0.1", server.port))
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.send(data)
                await asyncio.sleep(0.005)
                if how == "reset":
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                elif how == "half":
                    sock.shutdown(socket.SHUT_WR)
                    await asyncio.sleep(0.005)
                sock.close()
            assert (await server.get("/a.txt")).text == "content of a\n"
        await until(lambda: not server.server.connections)
        assert (await server.get("/slow")).text == "slow"


async def test_half_closed_clients_get_their_answers(site):
    write(
        site / "slow.page.py",
        "import asyncio\nasync def page(page):\n    await asyncio.sleep(0.02)\n    return 'slow'\n",
    )
    async with serving(site) as server, await server.connect() as client:
        slow = b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n"
        client.writer.write(slow + GET.encode() + b"\r\n" + GET.encode())
        client.writer.write_eof()
        assert (await client.answer()).text == "slow"
        assert (await client.answer()).text == "content of a\n"
        assert await client.ended()


# -- by property -------------------------------------------------------------------

PIECES = st.sampled_from(
    (
        *(b"GET ", b"POST ", b"/a.txt", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\r\n\r\n", b"\n"),
        *(b"Host: h\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"5", b"\r"),
        *(b"3\r\nabc\r\n", b"Connection: close\r\n", b"\0", b"\t", b" ", b":", b";", b"\xff"),
        *(b"0\r\n\r\n", b"/../"),
    )
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(PIECES, st.binary(max_size=6)), max_size=24))
def test_any_bytes_are_a_request_or_refused(parts):
    """And what is taken for a request is one to a strict reader, to its last byte."""
    parser = parsing.HeadParser(Options())
    data = b"".join(parts)
    try:
        end = parser.end(data)
        if not end:
            return
        request = parser.parse(data[:end])
    except BadRequest as refusal:
        assert 400 <= refusal.status < 600
        return
    head = data[:end]
    assert head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n")
    assert b"\0" not in head
    assert not any(line.startswith((b" ", b"\t")) for line in head.split(b"\r\n"))
    assert ".." not in request.path.split("/")
    assert not (request.chunked and request.length)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.data())
def test_chunks_are_read_however_they_are_cut(parts, data):
    whole = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\nT: 1\r\n\r\nnext"
    body, buffer = parsing.ChunkedBody(1000), bytearray()
    done = False
    while whole:
        size = data.draw(st.integers(1, len(whole)))
        buffer += whole[:size]
        whole = whole[size:]
        if not done:
            done = body.feed(buffer)
    assert done
    assert body.value() == b"".join(parts)
    assert bytes(buffer) == b"next"
