"""The web server's requests to other servers: connections, freshness, servers that lie or hang."""

import asyncio
import contextlib
import time
from email.utils import formatdate

import pytest
from serving import Options, module, serving, write

fetch = module("fetch")
freshness = module("freshness")


class Origin:
    """A server that answers as it is told, and writes down what it was asked."""

    def __init__(self):
        self.asked = []
        self.connections = 0
        self.answers = []
        self.again = None  # for when there is nothing else

    async def _client(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.asked.append(head)
                answer = self.answers.pop(0) if self.answers else self.again
                if callable(answer):
                    answer = await answer(writer)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @contextlib.asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/a?b=c"
        try:
            yield self
        finally:
            server.close()


@contextlib.asynccontextmanager
async def origin(**settings):
    """An origin, and a client for it."""
    client = fetch.Client(Options(**settings))
    async with Origin().running() as server:
        try:
            yield server, client
        finally:
            await client.close()
            for _ in range(5):
                await asyncio.sleep(0)


def answer(body=b"", *headers, status="200 OK", length=None):
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def test_a_connection_is_used_again():
    async with origin() as (server, client):
        server.again = answer(b"body", "Content-Type: text/plain; charset=latin-1")
        for _ in range(5):
            found = await client.get(server.url, {"X-A": "b"})
            assert (found.status, found.text()) == (200, "body")
            assert found.headers["content-type"].startswith("text/plain")
        assert server.connections == 1
        assert len(server.asked) == 5
        assert server.asked[0].startswith("GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")
        assert "\r\nX-A: b\r\n" in server.asked[0]


async def test_a_connection_that_the_other_side_closed_meanwhile():
    async with origin() as (server, client):

        async def last(writer):
            writer.write(answer(b"1"))
            await writer.drain()

        server.answers = [last, answer(b"2")]
        assert (await client.get(server.url, {})).body == b"1"
        assert (await client.get(server.url, {})).body == b"2"

        async def nothing(writer):
            return None

        server.answers = [nothing, answer(b"3")]  # ends the kept one without an answer
        assert (await client.get(server.url, {})).body == b"3"
        server.again = nothing
        with pytest.raises(ConnectionError):
            await client.get(server.url, {})


@pytest.mark.parametrize(
    "data",
    [
        answer(b"short", length=100),
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"no answer at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        answer(b"x" * 3000),
    ],
    ids=["short", "head", "chunk", "chunk size", "lengths", "noise", "header", "101", "large"],
)
async def test_answers_that_are_none(data):
    async with origin(fetch_limit=2000, fetch_timeout=5) as (server, client):

        async def send(writer):
            writer.write(data)
            await writer.drain()

        server.again = send
        with pytest.raises(fetch.FetchError):
            await client.get(server.url, {})
        server.again = answer(b"fine")
        assert (await client.get(server.url, {})).body == b"fine"


async def test_more_than_was_said():
    """What comes behind an answer is not taken for the next one."""
    async with origin() as (server, client):
        server.answers = [answer(b"one") + answer(b"evil"), answer(b"two")]
        assert (await client.get(server.url, {})).body == b"one"
        assert (await client.get(server.url, {})).body == b"two"
        assert server.connections == 2

        async def late(writer):
            writer.write(answer(b"three"))
            await writer.drain()
            await asyncio.sleep(0.01)
            return answer(b"evil")

        server.answers = [late, answer(b"four")]
        assert (await client.get(server.url, {})).body == b"three"
        await asyncio.sleep(0.05)
        assert (await client.get(server.url, {})).body == b"four"


async def test_lengths_of_all_kinds():
    async with origin() as (server, client):

        async def until_the_end(writer):
            writer.write(b"HTTP/1.0 200 OK\r\n\r\nto the end")
            await writer.drain()

        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        hint = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(b"real")
        server.answers = [chunked, b"HTTP/1.1 204 No Content\r\n\r\n", hint, until_the_end]
        assert (await client.get(server.url, {})).body == b"hello"
        assert (await client.get(server.url, {})).status == 204
        found = await client.get(server.url, {})
        assert (found.status, found.body) == (200, b"real")
        assert "link" not in found.headers
        assert (await client.get(server.url, {})).body == b"to the end"


async def test_servers_that_hang():
    async with origin(fetch_timeout=0.1) as (server, client):

        async def hang(writer):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            await asyncio.sleep(30)

        server.again = hang
        with pytest.raises(TimeoutError):
            await client.get(server.url, {})
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


async def test_what_is_fresh_is_not_asked_for():
    async with origin() as (server, client):
        server.answers = [answer(b"1", "Cache-Control: max-age=60"), answer(b"2")]
        first = await client.get(server.url, {})
        assert 59 < first.fresh_for() <= 60
        assert (await client.get(server.url, {})) is first
        assert (await client.get(server.url, {"Accept": "text/plain"})).body == b"2"
        assert len(server.asked) == 2


async def test_what_is_stale_is_asked_for_by_its_tag():
    async with origin() as (server, client):
        server.answers = [
            answer(b"1", 'ETag: "t"', "Cache-Control: no-cache"),
            b'HTTP/1.1 304 Not Modified\r\nETag: "t"\r\nCache-Control: max-age=9\r\n\r\n',
        ]
        assert (await client.get(server.url, {})).fresh_for() == 0
        found = await client.get(server.url, {})
        assert (found.status, found.body) == (200, b"1")
        assert found.fresh_for() > 8
        assert '\r\nIf-None-Match: "t"\r\n' in server.asked[1]
        assert (await client.get(server.url, {})) is found


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 7),
        ({"cache-control": "max-age=60"}, 60),
        ({"cache-control": "Max-Age=60, public"}, 60),
        ({"cache-control": 'max-age="60"'}, 60),
        ({"cache-control": "max-age=60, s-maxage=10"}, 10),
        ({"cache-control": "max-age=60", "age": "20"}, 40),
        ({"cache-control": "max-age=60", "date": formatdate(NOW - 30, usegmt=True)}, 30),
        ({"cache-control": "max-age=60", "date": formatdate(NOW + 30, usegmt=True)}, 60),
        ({"cache-control": "max-age=60", "expires": "0"}, 60),
        ({"expires": formatdate(NOW + 30, usegmt=True)}, 30),
        (
            {
                "expires": formatdate(NOW + 30, usegmt=True),
                "date": formatdate(NOW - 10, usegmt=True),
            },
            30,
        ),
        ({"expires": "0"}, 0),
        ({"expires": formatdate(NOW - 30, usegmt=True)}, -30),
        ({"cache-control": "no-store, max-age=60"}, 0),
        ({"cache-control": "private, max-age=60"}, 0),
        ({"cache-control": "no-cache, max-age=60"}, 0),
        ({"cache-control": "max-age=forever"}, 0),
        ({"cache-control": "max-age=-1"}, 0),
        ({"cache-control": "max-age=60", "vary": "*"}, 0),
        ({"pragma": "no-cache"}, 0),
    ],
)
def test_lifetimes(headers, seconds):
    assert freshness.lifetime(200, headers, NOW, 0.0, 7) == pytest.approx(seconds, abs=0.01)


def test_lifetimes_of_others():
    assert freshness.lifetime(500, {}, NOW, 0.0, 7) == 0
    assert freshness.lifetime(404, {}, NOW, 0.0, 7) == 7
    assert freshness.lifetime(206, {"cache-control": "max-age=9"}, NOW, 0.0, 7) == 0
    assert freshness.lifetime(200, {"cache-control": "max-age=60"}, NOW, 2.0, None) == 58
    assert freshness.lifetime(200, {}, NOW, 0.0, None) == 0


async def test_urls_and_headers_that_are_none():
    client = fetch.Client(Options())
    for url in (
        "ftp://a/",
        "http://a/\r\nX: y",
        "http://a/b c",
        "/a",
        "http:///a",
        "http://\u00e4/",
    ):
        with pytest.raises(ValueError, match=r"URL|host"):
            await client.get(url, {})
    for headers in ({"A": "b\r\nC: d"}, {"A b": "c"}, {"": "x"}):
        with pytest.raises(ValueError, match="header"):
            await client.get("http://127.0.0.1:1/", headers)
    with pytest.raises(OSError, match=r"1|refused"):
        await client.get("http://127.0.0.1:1/", {})


async def test_pages_that_fetch(tmp_path, caplog):
    async with Origin().running() as other:
        write(
            tmp_path / "p.page.py",
            f"async def page(page):\n    return (await page.fetch({other.url!r})).body\n",
        )
        async with serving(tmp_path, fetch_timeout=0.2) as server, await server.connect() as client:
            other.answers = [answer(b"1", "Cache-Control: max-age=1"), answer(b"2"), answer(b"3")]
            began = time.monotonic()
            assert (await client.get("/p")).text == "1"
            if (await client.get("/p")).text != "1":
                assert time.monotonic() - began > 1
            await asyncio.sleep(1.05)
            assert (await client.get("/p")).text == "2"
            assert (await client.get("/p")).text == "3"  # must not be kept

            async def lie(writer):
                writer.write(answer(b"half", length=8))
                await writer.drain()

            other.answers = [lie]
            other.again = answer(b"4")
            assert (await client.get("/p")).status == 500
            assert (await client.get("/p")).text == "4"

            async def hang(writer):
                await asyncio.sleep(1)

            other.answers = [hang]
            assert (await client.get("/p")).status == 504
            assert (await client.get("/p")).text == "4"
            await asyncio.sleep(1)
