"""The web server's pages: what they depend on, errors while they are built, the status pages."""

import asyncio
import contextlib
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from serving import module, serving, until, write

SITE = Path(module("server").__file__).parent / "site"


@pytest.fixture
def site(tmp_path):
    return tmp_path / "site"


def page(root, name, *lines, **constants):
    """Write a page whose coroutine has these lines."""
    text = "import asyncio, itertools, os, time\ncount = itertools.count(1)\n"
    text += "".join(f"{k} = {v!r}\n" for k, v in constants.items())
    text += "async def page(page):\n" + "".join(f"    {line}\n" for line in lines)
    return write(root / f"{name}.page.py", text)


async def test_built_once_until_a_file_changes(site):
    write(site / "_t.txt", "one")
    page(site, "p", "return f\"{next(count)} {await page.text('_t.txt')}\"")
    async with serving(site) as server, await server.connect() as client:
        for _ in range(3):
            answer = await client.get("/p")
            assert answer.text == "1 one"
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert answer.headers["cache-control"] == "no-cache"
        write(site / "other.txt", "unrelated")
        assert (await client.get("/p")).text == "1 one"
        assert server.server.counts.built == 1
        for i in range(2, 30):
            (site / "_t.txt").write_text(f"text {i}")
            assert (await client.get("/p")).text == f"{i} text {i}"
            assert (await client.get("/p")).text == f"{i} text {i}"


async def test_conditions(site):
    write(site / "_t.txt", "one")
    page(site, "p", "return await page.text('_t.txt')")
    async with serving(site) as server, await server.connect() as client:
        tag = (await client.get("/p")).headers["etag"]
        for _ in range(3):
            answer = await client.get("/p", f"If-None-Match: {tag}")
            assert answer.status == 304
            assert answer.headers["etag"] == tag
        assert (await client.get("/p", method="HEAD")).headers["content-length"] == "3"
        (site / "_t.txt").write_text("two")
        answer = await client.get("/p", f"If-None-Match: {tag}")
        assert (answer.status, answer.text) == (200, "two")


async def test_absence_and_listings_are_dependencies(site):
    site.mkdir()
    page(site, "stat", "return str(await page.stat('new.txt') is not None)")
    page(site, "list", "return ' '.join(n for n in await page.listdir() if n.endswith('.txt'))")
    async with serving(site) as server, await server.connect() as client:
        for _ in range(3):
            assert (await client.get("/stat")).text == "False"
            assert (await client.get("/list")).text == ""
            write(site / "new.txt", "", age=0)
            assert (await client.get("/stat")).text == "True"
            assert (await client.get("/list")).text == "new.txt"
            (site / "new.txt").unlink()


async def test_pages_of_pages(site):
    write(site / "sub" / "_t.txt", "one")
    page(site / "sub", "inner", "return await page.text('_t.txt')")
    page(site, "middle", "return b'<' + await page.page('sub/inner') + b'>'")
    page(site, "outer", "return b'[' + await page.page('/middle') + b']'")
    async with serving(site) as server, await server.connect() as client:
        for i in range(5):
            (site / "sub" / "_t.txt").write_text(str(i))
            assert (await client.get("/outer")).text == f"[<{i}>]"
            assert (await client.get("/middle")).text == f"<{i}>"
        page(site / "sub", "inner", "return 'another'")
        assert (await client.get("/outer")).text == "[<another>]"


async def test_pages_that_contain_each_other(site, caplog):
    page(site, "a", "return await page.page('/b')")
    page(site, "b", "return await page.page('/a')")
    async with serving(site) as server:
        assert (await server.get("/a")).status == 500
        page(site, "b", "return 'b'")
        assert (await server.get("/a")).text == "b"


async def test_an_error_is_no_page(site, caplog):
    page(site, "p", "await page.text('_t.txt')", "return 'whole'")
    page(site, "none", "return None")
    page(site, "header", "return 'x', {'X': 'a\\r\\nY: b'}")
    page(site, "gone", "raise page.error(410, 'it is <gone>')")
    write(site / "syntax.page.py", "async def page(page)\n")
    write(site / "import.page.py", "import no_such_module\n")
    write(site / "empty.page.py", "")
    async with serving(site) as server, await server.connect() as client:
        for name in ("p", "none", "header", "syntax", "import", "empty"):
            for _ in range(2):
                answer = await client.get(f"/{name}")
                assert answer.status == 500, name
                assert "Traceback" not in answer.text
                assert answer.headers["cache-control"] == "no-store"
        assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 12
        for _ in range(2):
            answer = await client.get("/gone")
            assert answer.status == 410
            assert "&lt;gone&gt;" in answer.text
        write(site / "_t.txt", "")
        assert (await client.get("/p")).text == "whole"
        (site / "_t.txt").unlink()  # a dependency that vanishes
        assert (await client.get("/p")).status == 500
        write(site / "syntax.page.py", "async def page(page):\n    return 'right now'\n", age=0)
        assert (await client.get("/syntax")).text == "right now"


async def test_a_page_that_takes_too_long(site, caplog):
    page(site, "p", "await asyncio.sleep(60)")
    async with serving(site, build_timeout=0.1) as server:
        assert (await server.get("/p")).status == 504


async def test_what_a_page_returns(site):
    page(site, "bytes", "return b'b', {'content-type': 'text/plain', 'x-a': 1}")
    page(site, "status", "return 404, 'not here', {'X': 'y'}")
    page(site, "large", "return 'large' * 200_000")
    async with serving(site) as server, await server.connect() as client:
        for _ in range(2):
            answer = await client.get("/bytes")
            assert (answer.text, answer.headers["content-type"]) == ("b", "text/plain")
            assert answer.headers["x-a"] == "1"
            answer = await client.get("/status")
            assert (answer.status, answer.text, answer.headers["x"]) == (404, "not here", "y")
            assert (await client.get("/large")).text == "large" * 200_000
            head = await client.get("/large", method="HEAD")
            assert head.headers["content-length"] == "1000000"


async def test_query_and_headers_are_declared(site, caplog):
    page(
        site,
        "p",
        "return f\"{next(count)} {page.query.get('a')} {page.headers.get('accept-language')}\"",
        QUERY=("a",),
        HEADERS=("Accept-Language",),
    )
    page(site, "undeclared", "return page.query.get('a')")
    async with serving(site) as server, await server.connect() as client:
        assert (await client.get("/p?a=1&b=2")).text == "1 1 None"
        assert (await client.get("/p?b=3&a=1")).text == "1 1 None"
        assert (await client.get("/p?a=2")).text == "2 2 None"
        answer = await client.get("/p?a=%C3%A4%0a", "Accept-Language: de")
        assert answer.text == "3 \u00e4\n de"
        assert answer.headers["vary"] == "Accept-Language"
        assert (await client.get("/p?a=2")).text == "2 2 None"
        assert (await client.get("/undeclared?a=1")).status == 500
        assert "declare it there" in caplog.text


async def test_declarations_that_change(site):
    page(site, "p", "return page.query.get('a', '')", QUERY=("a",))
    async with serving(site) as server, await server.connect() as client:
        assert (await client.get("/p?a=1&b=2")).text == "1"
        page(site, "p", "return page.query.get('b', '')", QUERY=("b",))
        assert (await client.get("/p?a=1&b=2")).text == "2"


async def test_post_is_not_kept(site):
    text = "async def page(page):\n    return 'form'\n"
    text += "async def post(page):\n    return f'{len(page.body)} {page.query[\"a\"]}'\n"
    write(site / "sub" / "index.page.py", "QUERY = ('a',)\n" + text)
    async with serving(site) as server, await server.connect() as client:
        for body in (b"", b"x", b"y" * 500_000):
            client.writer.write(
                b"POST /sub/?a=b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            client.writer.write(body)
            assert (await client.answer()).text == f"{len(body)} b"
        assert (await client.get("/sub/")).text == "form"


async def test_a_module_that_pages_share(site):
    write(site / "_lib.py", "def twice(x):\n    return x * 2\n")
    page(site, "p", "return (await page.module('_lib.py')).twice('x')")
    async with serving(site) as server, await server.connect() as client:
        assert (await client.get("/p")).text == "xx"
        (site / "_lib.py").write_text("def twice(x):\n    return x * 3\n")
        assert (await client.get("/p")).text == "xxx"
        assert (await client.get("/_lib.py")).status == 404


async def test_pages_stay_inside(site, tmp_path, caplog):
    write(tmp_path / "secret.txt", "secret")
    for i, name in enumerate(("../secret.txt", "/../secret.txt", "a/../../secret.txt")):
        page(site, f"p{i}", f"return await page.text({name!r})")
    async with serving(site) as server:
        for i in range(3):
            answer = await server.get(f"/p{i}")
            assert answer.status == 500
            assert "secret" not in answer.text


async def test_values_and_threads(site):
    page(site, "v", "return str(await page.value('n', 0.2, lambda: next(count)))")
    made = page(site, "w", "return str(await page.value('m', 60, make))")
    make = "async def make():\n    await asyncio.sleep(0.01)\n    return next(count)\n"
    write(made, made.read_text() + make)
    page(site, "t", "return await page.run_blocking(lambda *a: time.sleep(0.01) or a[0], 'x')")
    page(site, "e", "page.expires_in(0)", "return str(next(count))")
    async with serving(site) as server, await server.connect() as client:
        assert (await client.get("/v")).text == "1"
        assert int((await client.get("/v")).text) <= 2
        await asyncio.sleep(0.25)
        last = 0
        for _ in range(100):
            last = int((await client.get("/v")).text)
        assert last >= 2
        found = await asyncio.gather(*(server.get("/w") for _ in range(10)))
        assert {answer.text for answer in found} == {"1"}
        assert (await client.get("/t")).text == "x"
        assert [(await client.get("/e")).text for _ in range(3)] == ["1", "2", "3"]


async def test_concurrent_misses_build_once(site):
    page(site, "p", "await asyncio.sleep(0.05)", "return str(next(count))")
    async with serving(site) as server:
        found = await asyncio.gather(*(server.get("/p") for _ in range(20)))
        assert {answer.text for answer in found} == {"1"}


async def test_a_client_that_leaves_does_not_spoil_it_for_the_others(site):
    page(site, "p", "await asyncio.sleep(0.1)", "return str(next(count))")
    async with serving(site) as server:
        first = await server.connect()
        first.writer.write(b"GET /p HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: server.server.counts.built)
        second = asyncio.create_task(server.get("/p"))
        await asyncio.sleep(0.02)
        async with first:
            pass
        assert (await second).status == 200


async def test_files_come_before_pages(site):
    page(site, "p", "return 'page'")
    page(site / "sub", "index", "return 'index page'")
    async with serving(site) as server, await server.connect() as client:
        for _ in range(2):
            assert (await client.get("/p")).text == "page"
            assert (await client.get("/sub/")).text == "index page"
            write(site / "p", "file")
            write(site / "sub" / "index.html", "index file")
            assert (await client.get("/p")).text == "file"
            assert (await client.get("/sub/")).text == "index file"
            (site / "p").unlink()
            (site / "sub" / "index.html").unlink()
        (site / "p.page.py").unlink()
        assert (await client.get("/p")).status == 404
        (site / "sub" / "index.page.py").unlink()
        assert "<table>" in (await client.get("/sub/")).text


# -- the demo and the status ---------------------------------------------------------


async def test_the_demo(monkeypatch):
    async with serving(SITE) as server, await server.connect() as client:
        address = f"http://127.0.0.1:{server.port}/style.css"
        monkeypatch.setenv("SERVE_PROXY_URL", address)
        answer = await client.get("/")
        assert answer.status == 200
        assert "One wait for everything" in answer.text
        links = set(re.findall(r'(?:href|src)="(/[^"]*)"', answer.text))
        assert {"/clock", "/files", "/notes/", "/proxy", "/_status"} <= links
        for link in links:
            found = await client.get(link)
            assert found.status == 200, (link, found.text)
        assert "good for 10 s" in (await client.get("/proxy")).text
        assert (await client.get("/notes/note?name=missing")).status == 404
        assert (
            "Guten Tag, a&amp;b"
            in (await client.get("/hello?name=a%26b", "Accept-Language: de-DE")).text
        )


async def test_metrics(site):
    write(site / "a.txt", "a")
    page(site, "p", "return 'p'")
    async with serving(site) as server, await server.connect() as client:
        for _ in range(100):
            await client.get("/a.txt")
            await client.get("/p")
        answer = await client.get("/_metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found, kinds = {}, {}
        for line in answer.text.splitlines():
            if line.startswith("# TYPE "):
                kinds[line.split()[2]] = line.split()[3]
            elif not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                assert re.fullmatch(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})?', name), line
                assert name not in found
                found[name] = float(value)
                stem = re.sub(r"(_bucket|_sum|_count)?(\{.*)?$", "", name)
                assert stem in kinds or name.partition("{")[0] in kinds, line
        assert found['aiounify_http_answers_total{from="memory"}'] == 198
        assert found["aiounify_pages_built_total"] == 1
        assert found["aiounify_connections_open"] == 1
        assert found["aiounify_pages_kept"] == 1
        assert (
            found['aiounify_http_seconds_bucket{le="+Inf"}'] == found["aiounify_http_seconds_count"]
        )
        assert found['aiounify_loop_turns_total{worker="0"}'] > 0


async def test_status(site):
    write(site / "_t.txt", "one")
    page(site, "inner", "return await page.text('_t.txt')")
    page(site, "p", "return await page.page('/inner')")
    async with serving(site, tick=0.05) as server, await server.connect() as client:
        await client.get("/p")
        answer = await client.get("/_status")
        assert answer.status == 200
        assert server.server.loop.backend in answer.text
        drawings = re.findall(r"<svg.*?</svg>", answer.text, re.DOTALL)
        assert drawings
        names = ["".join(ET.fromstring(drawing).itertext()) for drawing in drawings]
        assert any("p.page.py" in n and "inner.page.py" in n and "_t.txt" in n for n in names)
        assert (await client.get("/_status", method="POST")).status == 405
        # events
        client.writer.write(b"GET /_status/events HTTP/1.1\r\nHost: h\r\n\r\n")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"text/event-stream" in head
        event = await client.reader.readuntil(b"\n\n")
        told = json.loads(event.partition(b"data: ")[2])
        assert "pages built" in told["parts"]
        assert "<svg" in told["graphs"]
        await client.reader.readuntil(b"\n\n")
        await server.server.stop(10)  # ends the stream as a whole
        rest = await asyncio.wait_for(client.reader.read(), 20)
        assert rest.endswith(b"0\r\n\r\n")
    async with serving(site, status=False) as server:
        assert (await server.get("/_status")).status == 404
        assert (await server.get("/_metrics")).status == 404


async def test_a_reader_of_events_that_goes(site):
    site.mkdir()
    async with serving(site, tick=0.05) as server:
        async with await server.connect() as client:
            client.writer.write(b"GET /_status/events HTTP/1.0\r\nHost: h\r\n\r\n")
            assert b"Connection: close" in await client.reader.readuntil(b"\r\n\r\n")
            await client.reader.readuntil(b"\n\n")
        await until(lambda: not server.server.connections)
        with contextlib.suppress(ConnectionError):
            await server.get("/")
