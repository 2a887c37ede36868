"""examples/spider.py: what it asks for, what it leaves alone, and how it goes on when killed."""

import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiounify

EXAMPLES = Path(__file__).parents[1] / "examples"


def _load():
    spec = importlib.util.spec_from_file_location("example_spider", EXAMPLES / "spider.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


spider = _load()
sys.path.remove(str(EXAMPLES))


class Site:
    """Pages by path: HTML text, or (status, headers, body).  Counts what is asked for."""

    def __init__(self, pages):
        self.pages = pages
        self.asked = Counter()
        self.delay = 0.0

    async def answer(self, reader, writer):
        try:
            await self.converse(reader, writer)
        finally:
            writer.close()

    async def converse(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ")[1].decode()
                self.asked[path] += 1
                await asyncio.sleep(self.delay)
                page = self.pages.get(path, (404, {}, b"none"))
                if isinstance(page, str):
                    page = (200, {"Content-Type": "text/html; charset=utf-8"}, page.encode())
                status, headers, body = page
                lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                writer.write(
                    f"HTTP/1.1 {status} x\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                await writer.drain()

    @contextlib.asynccontextmanager
    async def serving(self):
        server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            await server.wait_closed()


def links(*targets):
    return "".join(f'<a href="{target}">x</a>' for target in targets)


async def crawl(url, path, *argv):
    """In this process: the exit status."""
    loop = asyncio.get_running_loop()
    try:
        options = spider.arguments([url, str(path), "--rate", "10000", *map(str, argv)])
        return await spider.main(options)
    finally:
        for number in (spider.signal.SIGINT, spider.signal.SIGTERM):
            loop.remove_signal_handler(number)


def lines(path):
    """Path -> line; the lines after the first."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert "spider" in found[0]
    return {record["url"].split("/", 3)[3]: record for record in found[1:]}


# -- the crawl ----------------------------------------------------------------------


async def test_a_site(tmp_path, capsys):
    site = Site(
        {
            "/robots.txt": (200, {}, b"User-agent: *\nDisallow: /private\n"),
            "/": "<title>The\n site</title>"
            + links("a#x", "/b", "HTTP://elsewhere.invalid/", "private/x", "mailto:a@b", "/gone")
            + '<a rel="nofollow" href="/nofollow">n</a><img src="i.png">',
            "/a": '<base href="/d/">' + links("c", "../b"),
            "/b": (302, {"Location": "/moved"}, b""),
            "/moved": links("/"),
            "/d/c": links("../b", "/loop"),
            "/loop": (301, {"Location": "/loop"}, b""),
            "/i.png": (200, {"Content-Type": "image/png"}, b"<a href=/never>"),
        }
    )
    path = tmp_path / "journal"
    async with site.serving() as url:
        assert await crawl(url, path) == 1
    asked = {"/robots.txt", "/", "/a", "/b", "/moved", "/d/c", "/loop", "/i.png", "/gone"}
    assert site.asked == dict.fromkeys(asked, 1)
    found = lines(path)
    assert found[""]["title"] == "The site"
    assert found["private/x"]["skipped"] == "robots.txt"
    depths = {name: record["depth"] for name, record in found.items()}
    assert depths.pop("") == 0
    assert (depths.pop("d/c"), depths.pop("loop")) == (2, 3)
    assert depths == dict.fromkeys(("a", "b", "moved", "private/x", "gone", "i.png"), 1)
    out = capsys.readouterr().out
    assert f"dead: {url}/gone (404)\n  on {url}/\n" in out


async def test_limits(tmp_path):
    chain = Site({"/": links("/1", "/x"), **{f"/{n}": links(f"/{n + 1}") for n in range(1, 20)}})
    chain.pages["/x"] = "x" * 5000 + links("/far")
    async with chain.serving() as url:
        assert await crawl(url, tmp_path / "depth", "--depth", 3, "--body", 100) == 0
        assert set(lines(tmp_path / "depth")) == {"", "1", "x", "2", "3"}
        assert lines(tmp_path / "depth")["x"]["cut"] is True
        assert await crawl(url, tmp_path / "pages", "--pages", 4) == 3
        assert len(lines(tmp_path / "pages")) == 4
        # with a higher limit it goes on
        before = Counter(chain.asked)
        assert await crawl(url, tmp_path / "pages", "--pages", 100, "--depth", 30) == 1  # /20, /far
        assert len(lines(tmp_path / "pages")) == 23
        new = chain.asked - before
        assert sum(new.values()) == 20  # 19, and robots.txt
        chain.delay = 0.05
        assert await crawl(url, tmp_path / "time", "--time", 0.12) == 3


async def test_crawl_delay(tmp_path, monkeypatch):
    site = Site(
        {"/robots.txt": (200, {}, b"User-agent: *\nCrawl-delay: 1\n"), "/": links("/a", "/b")}
    )
    loop, waits = asyncio.get_running_loop(), []
    begun = loop.time()

    async def turn(host):
        waits.append(host.delay)

    monkeypatch.setattr(spider.Host, "turn", turn)
    async with site.serving() as url:
        await crawl(url, tmp_path / "j")
    assert waits[1:] == [1.0, 1.0, 1.0]
    monkeypatch.undo()
    host = spider.Host("http://x", spider.Limits(rate=50))
    for _ in range(3):
        await host.turn()
    assert loop.time() - begun >= 0.04


@pytest.mark.parametrize(("status", "pages"), [(404, 1), (403, 1), (500, 0)])
async def test_robots_that_are_not_there(status, pages, tmp_path):
    site = Site({"/robots.txt": (status, {}, b""), "/": "x"})
    async with site.serving() as url:
        await crawl(url, tmp_path / "j")
    assert site.asked["/"] == pages


async def test_servers_that_fail(tmp_path):
    async def garbage(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
        writer.close()

    server = await asyncio.start_server(garbage, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    site = Site({"/": links(f"http://127.0.0.1:{port}/")})
    async with site.serving() as url:
        assert await crawl(url, tmp_path / "j", "--host", f"127.0.0.1:{port}") == 0
        found = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
        assert found[-1]["skipped"] == "robots.txt"  # which did not come whole
        client = spider.Client("x")
        with pytest.raises(spider.HttpError, match="within an answer"):
            await client.get(f"http://127.0.0.1:{port}/")
        await client.close()
    server.close()
    await server.wait_closed()


# -- the journal --------------------------------------------------------------------


async def test_every_torn_tail_is_cut(tmp_path):
    site = Site({"/": links("/a", "/b"), "/a": links("/c"), "/b": "", "/c": ""})
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    async with site.serving() as url:
        assert await crawl(url, whole) == 0
        data = whole.read_bytes()
        for cut in {*range(0, len(data), 37), len(data) - 1, len(data)}:
            torn.write_bytes(data[:cut])
            kept = max(0, data[:cut].count(b"\n") - 1)
            site.asked.clear()
            assert await crawl(url, torn) == 0
            assert lines(torn).keys() == lines(whole).keys()
            assert torn.read_bytes().startswith(data[:cut][: data[:cut].rfind(b"\n") + 1])
            del site.asked["/robots.txt"]
            assert site.asked.total() == 4 - kept


async def test_files_that_are_no_journals(tmp_path, capsys):
    for text in (b"important text", b"important\ntext\n", b'{"spider":"http://other/"}\n', b"[]\n"):
        (tmp_path / "j").write_bytes(text)
        assert await crawl("http://127.0.0.1:1/", tmp_path / "j") == 2
        assert (tmp_path / "j").read_bytes() == text
    assert await crawl("http://127.0.0.1:1/", tmp_path / "missing" / "j") == 2
    assert capsys.readouterr().err.count("spider: ") == 5


async def test_killed_and_gone_on(tmp_path):
    """SIGKILL three times: what has a line is not asked for again, and in the end all is there."""
    count = 60
    pages = {f"/{n}": links(f"/{2 * n + 1}", f"/{2 * n + 2}") for n in range(count)}
    for n in range(count, 2 * count + 1):
        pages[f"/{n}"] = "leaf"
    site = Site(pages)
    site.delay = 0.002
    path = tmp_path / "journal"
    package = str(Path(aiounify.__file__).parents[1])
    backend = asyncio.get_running_loop().backend

    async def start(url):
        return await asyncio.create_subprocess_exec(
            *(sys.executable, EXAMPLES / "spider.py", f"{url}/0", path),
            *("--rate", "100000", "--depth", "20"),
            env={**os.environ, "PYTHONPATH": package, "AIOUNIFY_BACKEND": backend},
            stdout=subprocess.PIPE,
        )

    async with site.serving() as url:
        for share in (10, 45, 80):
            child = await start(url)
            while len(site.asked) < share:  # noqa: ASYNC110 - another process asks
                await asyncio.sleep(0.001)
            child.kill()
            await child.communicate()
            await asyncio.sleep(0.02)  # what it had sent may still be counted
            data = path.read_bytes()
            recorded = [
                json.loads(line)["url"] for line in data.splitlines(True)[1:] if line[-1:] == b"\n"
            ]
            before = Counter(site.asked)
            again = [f"/{url.rpartition('/')[2]}" for url in recorded]
            site.pages.update({name: (500, {}, b"again") for name in again})
        child = await start(url)
        out, _ = await child.communicate()
        assert child.returncode == 0, out
    assert set(lines(path)) == {name[1:] for name in pages}
    assert all(site.asked[name] == before[name] for name in again)
    assert len(path.read_text().splitlines()) == len(pages) + 1  # none twice
    await asyncio.get_running_loop().shutdown_default_executor()


# -- URLs and pages -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("HTTP://Example.ORG:80", "http://example.org/"),
        ("https://a:443/x/../y/./z/..#f", "https://a/y/"),
        ("http://a:81/%7euser/%2f%zz?q=ä b", "http://a:81/~user/%2F%25zz?q=%C3%A4%20b"),
        ("http://user:pass@a/", "http://a/"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://[::1]:8080/", "http://[::1]:8080/"),
        ("http://a/../..", "http://a/"),
        ("ftp://a/", None),
        ("http://", None),
        ("http://a:b/", None),
        ("javascript:x", None),
    ],
)
def test_normalised(given, expected):
    assert spider.normalised(given) == expected


@given(st.text(max_size=40), st.text(max_size=20))
def test_normalised_is_normal(path, query):
    once = spider.normalised(f"http://a/{path}?{query}")
    if once is not None:
        assert spider.normalised(once) == once
        assert once.isascii()
        assert not set(once) & set(' \r\n\t<>"')


@given(st.text(max_size=200))
def test_any_text_is_a_page(text):
    _, found = spider.read_page("http://a/b", text + '<a href="c">')
    assert all(spider.normalised(url) == url for url in found)


def test_bad_arguments(backend):
    for argv in (
        ["nothing", "j"],
        ["http://x/", "j", "--pages", "0"],
        ["http://x/", "j", "--rate", "0"],
    ):
        with pytest.raises(SystemExit) as failed:
            spider.arguments(argv)
        assert failed.value.code == 2
