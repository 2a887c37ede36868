"""The web server's static files: conditions, ranges, encodings, directories, what is not served."""

import asyncio
import contextlib
import os
import resource
import ssl
import subprocess
from email.utils import formatdate
from pathlib import Path

import pytest
from serving import Client, module, serving, until, write

CERTIFICATE = Path(__file__).parent / "programs" / "certificate.pem"
LARGE = bytes(range(256)) * 4096


@pytest.fixture
def site(tmp_path):
    root = tmp_path / "site"
    write(root / "a.txt", "0123456789")
    write(root / "large.bin", LARGE)
    write(root / "empty", "")
    write(tmp_path / "secret.txt", "secret\n")
    return root


async def test_headers(site):
    async with serving(site) as server:
        answer = await server.get("/a.txt")
        assert answer.status == 200
        assert answer.body == b"0123456789"
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["content-length"] == "10"
        assert answer.headers["accept-ranges"] == "bytes"
        modified = int((site / "a.txt").stat().st_mtime)
        assert answer.headers["last-modified"] == formatdate(modified, usegmt=True)
        assert "connection" not in answer.headers
        assert "vary" not in answer.headers
        head = await server.get("/a.txt", method="HEAD")
        assert (head.status, head.headers) == (200, answer.headers)
        head = await server.get("/large.bin", method="HEAD")
        assert head.headers["content-length"] == str(len(LARGE))
        assert head.headers["content-type"] == "application/octet-stream"
        assert (await server.get("/empty")).body == b""
        assert (await server.get("/missing")).status == 404
        assert (await server.get("/a.txt/b")).status == 404
        assert (await server.get("/" + "a" * 300)).status == 404
        assert (await server.get("//a.txt")).status == 404


async def test_the_same_answer_again_and_again(site):
    """From what is remembered, on one connection and on others, small and large."""
    async with serving(site) as server:
        for _ in range(2):
            async with await server.connect() as client:
                for _ in range(3):
                    assert (await client.get("/a.txt")).body == b"0123456789"
                    assert (await client.get("/large.bin")).body == LARGE
                    assert (await client.get("/a.txt", method="HEAD")).body == b""
                    assert (await client.get("/large.bin", method="HEAD")).body == b""
        assert server.server.counts.hits == 20
        assert server.server.counts.misses == 4


async def test_what_changes_is_served_anew(site):
    async with serving(site) as server, await server.connect() as client:
        tags = set()
        for i in range(50):
            text = f"version {i % 2}"
            (site / "a.txt").write_text(text)
            answer = await client.get("/a.txt")
            assert answer.text == text
            assert answer.headers["etag"] not in tags
            tags.add(answer.headers["etag"])
            write(site / "new.txt", text, age=0)
            (site / "new.txt").replace(site / "large.bin")
            assert (await client.get("/large.bin")).text == text
            (site / "large.bin").unlink()
            assert (await client.get("/large.bin")).status == 404
            assert (await client.get("/large.bin")).status == 404


async def test_conditions(site):
    async with serving(site) as server, await server.connect() as client:
        answer = await client.get("/a.txt")
        tag, date = answer.headers["etag"], answer.headers["last-modified"]
        modified = int((site / "a.txt").stat().st_mtime)
        before, after = formatdate(modified - 1, usegmt=True), formatdate(modified + 9, usegmt=True)
        for header, status in (
            (f"If-None-Match: {tag}", 304),
            (f"If-None-Match: W/{tag}", 304),
            (f'If-None-Match: "a", {tag}', 304),
            ("If-None-Match: *", 304),
            ('If-None-Match: "a,b"', 200),
            (f"If-Modified-Since: {date}", 304),
            (f"If-Modified-Since: {after}", 304),
            (f"If-Modified-Since: {before}", 200),
            ("If-Modified-Since: yesterday", 200),
            ("If-Modified-Since: Mon, 99 Foo 2020 00:00:00 GMT", 200),
            (f"If-Match: {tag}", 200),
            ("If-Match: *", 200),
            (f"If-Match: W/{tag}", 412),
            ('If-Match: "a"', 412),
            (f"If-Unmodified-Since: {date}", 200),
            (f"If-Unmodified-Since: {before}", 412),
        ):
            for _ in range(2):
                answer = await client.get("/a.txt", header)
                assert answer.status == status, header
                assert answer.body == (b"0123456789" if status == 200 else answer.body), header
                if status == 304:
                    assert answer.headers["etag"] == tag
                    assert "content-length" not in answer.headers
        # the tag counts, the date does not
        answer = await client.get("/a.txt", 'If-None-Match: "a"', f"If-Modified-Since: {after}")
        assert answer.status == 200
        write(site / "a.txt", "9876543210", age=3600)
        assert (await client.get("/a.txt", f"If-None-Match: {tag}")).body == b"9876543210"


async def test_ranges(site):
    async with serving(site) as server, await server.connect() as client:
        for name, content in (("/a.txt", b"0123456789"), ("/large.bin", LARGE)):
            size = len(content)
            tag = (await client.get(name)).headers["etag"]
            for asked, begin, end in (
                ("0-0", 0, 1),
                ("2-5", 2, 6),
                ("5-", 5, size),
                ("-3", size - 3, size),
                ("-99999999", 0, size),
                ("8-99999999", 8, size),
            ):
                answer = await client.get(name, f"Range: bytes={asked}")
                assert answer.status == 206, asked
                assert answer.body == content[begin:end], asked
                assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{size}"
                head = await client.get(name, f"Range: bytes={asked}", method="HEAD")
                assert head.status == 200
            for asked in ("bytes=99999999-", "bytes=-0"):
                answer = await client.get(name, f"Range: {asked}")
                assert answer.status == 416
                assert answer.headers["content-range"] == f"bytes */{size}"
            for asked in (
                "lines=1-2",
                "bytes=5-2",
                "bytes=a-b",
                "bytes=-",
                "bytes",
                "bytes=1-5,3-8",
            ):
                assert (await client.get(name, f"Range: {asked}")).body == content, asked
            many = "bytes=" + ",".join(f"{i}-{i}" for i in range(0, 100, 2))
            assert (await client.get(name, f"Range: {many}")).status == 200
            assert (await client.get(name, "Range: bytes=1-2", f"If-Range: {tag}")).status == 206
            assert (await client.get(name, "Range: bytes=1-2", 'If-Range: "a"')).body == content
            assert (await client.get(name, "Range: bytes=1-2", f"If-Range: W/{tag}")).status == 200
            date = (await client.get(name)).headers["last-modified"]
            assert (await client.get(name, "Range: bytes=1-2", f"If-Range: {date}")).status == 206


async def test_several_ranges(site):
    async with serving(site) as server, await server.connect() as client:
        for name, content in (("/a.txt", b"0123456789"), ("/large.bin", LARGE)):
            answer = await client.get(name, "Range: bytes=1-2, 4-4,-2")
            assert answer.status == 206
            kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
            assert kind == "multipart/byteranges"
            parts = answer.body.split(f"--{boundary}".encode())
            assert parts[0] == b""
            assert parts[-1] == b"--\r\n"
            found = [part.removeprefix(b"\r\n").partition(b"\r\n\r\n") for part in parts[1:-1]]
            size = len(content)
            for (head, _, body), (begin, end) in zip(
                found, ((1, 3), (4, 5), (size - 2, size)), strict=True
            ):
                assert body == content[begin:end] + b"\r\n"
                assert f"Content-Range: bytes {begin}-{end - 1}/{size}" in head.decode()


async def test_encodings(site):
    write(site / "s.css", "plain", age=100)
    async with serving(site) as server, await server.connect() as client:

        async def got(accept):
            for _ in range(2):
                answer = await client.get(
                    "/s.css", *([f"Accept-Encoding: {accept}"] * bool(accept))
                )
            assert answer.headers["content-type"] == "text/css; charset=utf-8"
            return answer.text, answer.headers.get("content-encoding"), answer.headers.get("vary")

        assert await got("gzip, br") == ("plain", None, None)
        write(site / "s.css.gz", "as gzip", age=50)
        vary = "Accept-Encoding"
        assert await got("gzip, br") == ("as gzip", "gzip", vary)
        assert await got("*") == ("as gzip", "gzip", vary)
        assert await got("gzip;q=0.5") == ("as gzip", "gzip", vary)
        assert await got("gzip;q=0, br") == ("plain", None, vary)
        assert await got("") == ("plain", None, vary)
        write(site / "s.css.br", "as brotli", age=50)
        assert await got("gzip, br") == ("as brotli", "br", vary)
        assert await got("gzip") == ("as gzip", "gzip", vary)
        write(site / "s.css", "changed", age=0)  # newer than both: they are stale
        assert await got("gzip, br") == ("changed", None, vary)
        write(site / "s.css.gz", "anew", age=0)
        assert await got("gzip, br") == ("anew", "gzip", vary)
        (site / "s.css.br").unlink()
        (site / "s.css.gz").unlink()
        assert await got("gzip, br") == ("changed", None, None)


async def test_directories(site):
    write(site / "sub" / "a b&c.txt", "1")
    write(site / "sub" / "_hidden", "1")
    write(site / "sub" / ".hidden", "1")
    write(site / "sub" / "hello.page.py", "async def page(page):\n    return 'hello'\n")
    async with serving(site) as server, await server.connect() as client:
        answer = await client.get("/sub?x=y")
        assert answer.status == 301
        assert answer.headers["location"] == "/sub/?x=y"
        for _ in range(2):
            answer = await client.get("/sub/")
            assert answer.status == 200
            assert '<a href="./a%20b%26c.txt">a b&amp;c.txt</a>' in answer.text
            assert '<a href="./hello">' in answer.text
            assert "hidden" not in answer.text
        write(site / "sub" / "new.txt", "1")
        assert "new.txt" in (await client.get("/sub/")).text
        write(site / "sub" / "index.html", "the index")
        assert (await client.get("/sub/")).text == "the index"
        (site / "sub" / "index.html").unlink()
        assert "new.txt" in (await client.get("/sub/")).text
        assert (await client.get("/missing/")).status == 404
        assert (await client.get("/a.txt/")).status == 404
    async with serving(site, listing=False) as server:
        assert (await server.get("/sub/")).status == 404
    evil = site / "a\r\nX: y"
    evil.mkdir()
    async with serving(site) as server:
        answer = await server.get("/a%0d%0aX:%20y")
        assert answer.status == 301
        assert answer.headers["location"] == "/a%0D%0AX%3A%20y/"
        assert "x" not in answer.headers


async def test_what_is_not_served(site, tmp_path):
    write(site / ".git" / "config", "secret")
    write(site / "_page.html", "secret")
    write(site / "sub" / "_page.html", "secret")
    write(site / "p.page.py", "secret = 1\n")
    write(site / ".well-known" / "x", "known")
    write(tmp_path / "site-2" / "secret.txt", "secret")
    (site / "link.txt").symlink_to(tmp_path / "secret.txt")
    (site / "link").symlink_to(tmp_path)
    (site / "prefix").symlink_to(tmp_path / "site-2")
    (site / "inside.txt").symlink_to("a.txt")
    (site / "loop").symlink_to("loop")
    os.mkfifo(site / "fifo")
    async with serving(site) as server, await server.connect() as client:
        for name, status in {
            "/.git/config": 404,
            "/.git": 404,
            "/_page.html": 404,
            "/sub/_page.html": 404,
            "/p.page.py": 404,
            "/p%2epage.py": 404,
            "/link.txt": 403,
            "/link/secret.txt": 403,
            "/link/": 403,
            "/prefix/secret.txt": 403,
            "/prefix/": 403,
            "/fifo": 403,
            "/loop": 404,
            "/.well-known/x": 200,
            "/inside.txt": 200,
        }.items():
            answer = await client.get(name)
            assert answer.status == status, name
            assert "secret" not in answer.text.replace("/secret", ""), name
        # a file that was served becomes a link to the outside
        assert (await client.get("/a.txt")).status == 200
        (site / "a.txt").unlink()
        (site / "a.txt").symlink_to(tmp_path / "secret.txt")
        assert (await client.get("/a.txt")).status == 403
    async with serving(site) as server, await server.connect() as client:
        (site / "gone").write_text("1")
        (site / "gone").chmod(0)
        if os.geteuid():
            assert (await client.get("/gone")).status == 403


async def test_a_file_that_is_truncated_while_it_is_sent(site):
    path = write(site / "huge.bin", b"x" * 40_000_000)
    async with serving(site) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=4096)
        writer.write(b"GET /huge.bin HTTP/1.1\r\nHost: h\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: 40000000\r\n" in head
        os.truncate(path, 1_000_000)
        size = 0
        with contextlib.suppress(ConnectionResetError):
            while data := await reader.read(65536):
                size += len(data)
        assert size < 40_000_000
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        assert len((await server.get("/huge.bin")).body) == 1_000_000
        await until(lambda: not server.server.connections)


async def test_no_more_descriptors(site, caplog):
    for i in range(30):
        write(site / f"{i}.txt", str(i))
    async with serving(site) as server, await server.connect() as client:
        assert (await client.get("/0.txt")).status == 200
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        now = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - names, no Path each
        held = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (now + 8, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            for i in range(1, 30):
                answer = await client.get(f"/{i}.txt")
                assert answer.status == 503
                assert answer.headers["retry-after"] == "1"
            assert (await client.get("/0.txt")).status == 200
        finally:
            for fd in held:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await client.get("/1.txt")).text == "1"
        assert len([r for r in caplog.records if r.levelname == "ERROR"]) <= 1


async def test_tls(site):
    write(site / "huge.bin", b"x" * 3_000_000)
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    context.check_hostname = False
    async with serving(site, tls_cert=CERTIFICATE) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
        client = Client(reader, writer)
        for _ in range(2):
            assert (await client.get("/a.txt")).body == b"0123456789"
            assert (await client.get("/huge.bin")).body == b"x" * 3_000_000
            assert (await client.get("/large.bin", "Range: bytes=5-9,20-29")).status == 206
        writer.close()
        await writer.wait_closed()
        assert b"HTTP/1.1" not in await server.talk(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        done = await asyncio.to_thread(
            subprocess.run,
            ["curl", "-sk", f"https://127.0.0.1:{server.port}/large.bin"],
            capture_output=True,
            check=True,
            timeout=30,
        )
        assert done.stdout == LARGE
        await until(lambda: not server.server.connections)


def test_types():
    of = module("mime").of
    assert of("a/b.html") == "text/html; charset=utf-8"
    assert of("A.JS") == "text/javascript; charset=utf-8"
    assert of("a.svg") == "image/svg+xml"
    assert of("a.tar.gz") == "application/gzip"
    assert of("a.b/c") == of("") == of("html") == "application/octet-stream"


async def test_file_names_of_any_bytes(site):
    name = os.fsdecode(b"\xff\xfe.txt")
    write(site / name, "odd")
    write(site / "\u00e4 %.txt", "umlaut")
    async with serving(site) as server:
        assert (await server.get("/%ff%fe.txt")).text == "odd"
        assert (await server.get("/%c3%a4%20%25.txt")).text == "umlaut"
        assert (await server.get("/")).status == 200
