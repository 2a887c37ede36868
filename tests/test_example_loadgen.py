"""examples/loadgen.py: what it counts is what the server and wrk count."""

import asyncio
import contextlib
import importlib.util
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import complaints
from hypothesis import given
from hypothesis import strategies as st

import aiounify

EXAMPLES = Path(__file__).parents[1] / "examples"


def _load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


loadgen = _load("loadgen")
http = sys.modules["http_client"]
sys.path.remove(str(EXAMPLES))


class Server(asyncio.Protocol):
    """Answers each request with the same bytes; counts for all connections together."""

    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

    def __init__(self, counts, delay=0.0, every=1, close=False):
        self.counts, self.delay, self.every, self.close = counts, delay, every, close
        self.got = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.got += data
        while b"\r\n\r\n" in self.got:
            self.got = self.got.partition(b"\r\n\r\n")[2]
            self.counts["requests"] += 1
            late = self.delay if self.counts["requests"] % self.every == 0 else 0
            asyncio.get_running_loop().call_later(late, self.send) if late else self.send()

    def send(self):
        if self.transport.is_closing():
            return
        self.counts["bytes"] += len(self.answer)
        self.transport.write(self.answer)
        if self.close:
            self.transport.close()


@contextlib.asynccontextmanager
async def serving(kind=Server, **how):
    counts = {"requests": 0, "bytes": 0}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: kind(counts, **how), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", counts
    finally:
        server.close()
        await server.wait_closed()


async def measured(url, *argv):
    run = loadgen.Run(loadgen.arguments([url, *map(str, argv)]))
    await run.measure()
    return run.result()


# -- what is counted ---------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 7])
async def test_counts_are_the_servers(depth):
    async with serving() as (url, counts):
        found = await measured(url, "-n", 1000, "-c", 6, "-p", depth)
    assert found["requests"] == found["answers"] == counts["requests"] == 1000
    assert found["bytes"] == counts["bytes"]
    assert found["statuses"] == {"200": 1000}
    assert not found["errors"]


async def test_duration_waits_for_what_is_out():
    async with serving() as (url, counts):
        found = await measured(url, "-d", 0.2, "-c", 3, "-p", 4)
    assert 0 < found["answers"] == found["requests"] == counts["requests"]
    assert found["bytes"] == counts["bytes"]
    assert not found["errors"]


async def test_delays_are_lower_bounds():
    async with serving(delay=0.05, every=10) as (url, _):
        found = await measured(url, "-n", 100, "-c", 2)
    latency = found["latency_us"]
    assert latency["p99"] >= 49_000
    assert latency["max"] >= 49_000
    assert latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    async with serving(delay=0.03) as (url, _):
        found = await measured(url, "-n", 20, "-c", 5)
    assert found["latency_us"]["p50"] >= 29_000


async def test_latencies_are_counted_from_when_requests_were_due():
    """One connection, an answer takes 20 ms, and 500 a second are due: the last waits for all."""
    async with serving(delay=0.02) as (url, counts):
        found = await measured(url, "-n", 20, "-c", 1, "-r", 500)
    assert counts["requests"] == 20
    # the last of 20 answers cannot come before 0.4 s, and its request was due after 38 ms
    assert found["latency_us"]["max"] >= 350_000
    assert found["latency_us"]["p50"] >= 150_000


@pytest.mark.parametrize("argv", [(), ("-p", 3), ("-r", 400)])
async def test_latencies_add_up(argv):
    """To no less than the server made them wait, and to no more than there was time for."""
    async with serving(delay=0.01, every=4) as (url, counts):
        found = await measured(url, "-n", 120, "-c", 5, *argv)
    assert found["answers"] == counts["requests"] == 120
    assert found["rate"] == pytest.approx(found["answers"] / found["seconds"])
    total = found["latency_us"]["mean"] * found["answers"] / 1e6
    assert total >= 30 * 0.0099
    if "-r" not in argv:  # else waiting for a connection is part of it
        depth = 3 if argv else 1
        assert total <= 5 * depth * found["seconds"] + 120e-6  # each is rounded


async def test_a_rate_is_not_exceeded():
    async with serving() as (url, counts):
        found = await measured(url, "-n", 40, "-c", 8, "-r", 200)
    assert counts["requests"] == 40
    assert found["seconds"] >= 39 / 200


# -- errors ------------------------------------------------------------------------


async def test_closed_connections_are_made_again():
    async with serving(close=True) as (url, counts):
        found = await measured(url, "-n", 30, "-c", 3)
    assert found["answers"] + found["errors"].get("lost", 0) == found["requests"] == 30
    assert found["answers"] == counts["requests"] >= 10


class _Closing(Server):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


async def test_what_was_pipelined_behind_a_close_is_lost():
    async with serving(_Closing) as (url, _):
        found = await measured(url, "-n", 20, "-c", 1, "-p", 4)
    assert found["answers"] == 5
    assert found["errors"] == {"lost": 15}


class _Garbage(Server):
    answer = b"SMTP ready\r\n\r\n"


async def test_not_http_and_time_outs():
    async with serving(_Garbage) as (url, _):
        found = await measured(url, "-n", 3, "-c", 1)
    assert found["errors"] == {"protocol": 3}
    async with serving(delay=60) as (url, _):
        found = await measured(url, "-n", 2, "-c", 2, "--timeout", 0.1)
    assert found["errors"] == {"timeout": 2}


# -- buckets and parser ---------------------------------------------------------------


@given(st.integers(0, 1 << 40))
def test_buckets(value):
    h = loadgen.Histogram
    top = h.highest(h.bucket(value))
    assert value <= top <= value + value // 64
    assert h.bucket(top) == h.bucket(value)
    assert h.bucket(top + 1) == h.bucket(value) + 1


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=200), st.floats(0.1, 100))
def test_percentiles(values, share):
    h = loadgen.Histogram()
    for value in values:
        h.add(value)
    exact = sorted(values)[max(0, -int(-share * len(values) // 100) - 1)]
    assert exact <= h.percentile(share) <= exact + exact // 64
    assert h.percentile(100) == max(values)


def _responses():
    body = st.binary(max_size=60)
    plain = body.map(
        lambda b: (b, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(b), b))
    )
    head = b"HTTP/1.1 404 \r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = st.lists(st.binary(min_size=1, max_size=30), max_size=4).map(
        lambda parts: (
            b"".join(parts),
            head
            + b"".join(b"%x;x=y\r\n%b\r\n" % (len(p), p) for p in parts)
            + b"0\r\nT: r\r\n\r\n",
        )
    )
    interim = plain.map(lambda r: (r[0], b"HTTP/1.1 103 Early\r\nA: b\r\n\r\n" + r[1]))
    return st.lists(st.one_of(plain, chunked, interim), max_size=5)


@given(_responses(), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_parser_in_pieces(responses, sizes):
    text, parser, got = b"".join(wire for _, wire in responses), http.Parser(1 << 20), []
    while text:
        for size in sizes:
            got += [response.body for response in parser.feed(text[:size])]
            text = text[size:]
    assert got == [body for body, _ in responses]
    assert parser.end() is None


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"x" * (1 << 17),
    ],
)
def test_parser_refuses(text):
    with pytest.raises(http.HttpError):
        list(http.Parser().feed(text))


# -- as a process -------------------------------------------------------------------------


async def _process(backend, url, *argv, stop=None):
    package = str(Path(aiounify.__file__).parents[1])
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", EXAMPLES / "loadgen.py", url, *argv),
        env={**os.environ, "PYTHONPATH": package, "AIOUNIFY_BACKEND": backend},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if stop is not None:
        await stop()
        child.send_signal(signal.SIGINT)
    out, err = await child.communicate()
    return child.returncode, out.decode(), err.decode()


async def test_program():
    backend = asyncio.get_running_loop().backend
    async with serving() as (url, counts):
        status, out, err = await _process(backend, url, "-n", "50", "--json")
        assert (status, complaints(err)) == (0, [])  # no terminal: nothing is shown
        found = json.loads(out)
        assert found["answers"] == counts["requests"] == 50
        assert found["bytes"] == counts["bytes"]

        async def asked():
            while counts["requests"] < 60:  # noqa: ASYNC110 - another process asks
                await asyncio.sleep(0.01)

        status, out, err = await _process(backend, url, "-d", "60", stop=asked)
        assert (status, complaints(err)) == (0, [])
        assert out.startswith(f"{counts['requests'] - 50} answers in ")
    status, out, err = await _process(backend, url, "-d", "0.2")
    assert status == 1
    assert "no answer" in err
    await asyncio.get_running_loop().shutdown_default_executor()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
async def test_wrk_counts_the_same():
    """The same server, as many connections: bytes of an answer, and rates of one order."""
    async with serving() as (url, counts):
        child = await asyncio.create_subprocess_exec(
            *("wrk", "-t1", "-c4", "-d1s", url), stdout=subprocess.PIPE
        )
        text = (await child.communicate())[0].decode()
        assert child.returncode == 0
        requests = int(re.search(r"(\d+) requests in", text)[1])
        amount, unit = re.search(r"([\d.]+)([KMG]?)B read", text).groups()
        read = float(amount) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[unit]
        assert requests <= counts["requests"] <= requests + 4
        counts.update(requests=0, bytes=0)
        found = await measured(url, "-c", 4, "-d", 1)
    assert found["answers"] == counts["requests"]
    # wrk rounds to two decimals of its unit
    assert found["bytes"] / found["answers"] == pytest.approx(read / requests, rel=0.01)
    assert found["statuses"] == {"200": found["answers"]}


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
async def test_wrk_measures_the_same(capsys):
    """A third of the answers is late: the percentiles above it are the server's delay, for both.

    How exact they are depends on the machine, so they are printed; that they are of one
    order is what would not hold if one of them counted wrongly.
    """
    async with serving(delay=0.05, every=3) as (url, _):
        child = await asyncio.create_subprocess_exec(
            *("wrk", "--latency", "-t1", "-c4", "-d1s", url), stdout=subprocess.PIPE
        )
        text = (await child.communicate())[0].decode()
        found = await measured(url, "-c", 4, "-d", 1)
    units = {"us": 1, "ms": 1e3, "s": 1e6}

    def microseconds(pattern):
        value, unit = re.search(pattern + r"\s+([\d.]+)(us|ms|s)\s", text).groups()
        return float(value) * units[unit]

    shares, latency = ("p75", "p90", "p99"), found["latency_us"]
    theirs = {share: microseconds(f"{share[1:]}%") for share in shares}
    ours = {share: latency[share] for share in shares}
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])
    with capsys.disabled():
        print(f"\nwrk: {rate:.0f}/s {theirs}; loadgen: {found['rate']:.0f}/s {ours}")
    assert min(ours.values()) >= 49_000
    for share in shares:  # wrk adds shorter ones for what it could not ask meanwhile
        assert 0.1 < ours[share] / theirs[share] < 10
    assert 0.1 < found["rate"] / rate < 10
    # four connections that do nothing but wait: rate x mean latency is four, less the work
    assert 0.4 <= found["rate"] * latency["mean"] / 1e6 <= 4.1
    assert microseconds(r"Latency\s+\S+\s+\S+") >= 49_000  # the longest


# -- the view on a terminal ---------------------------------------------------------------


async def _on_a_terminal(backend, columns, url, *argv):
    """What a terminal of so many columns was sent, and the result."""
    loop, package = asyncio.get_running_loop(), str(Path(aiounify.__file__).parents[1])
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    os.set_blocking(ours, False)
    shown = bytearray()

    def read():
        with contextlib.suppress(OSError):  # EIO: its other end is closed
            shown.extend(os.read(ours, 65536))

    loop.add_reader(ours, read)
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", EXAMPLES / "loadgen.py", url, *argv),
            env={**os.environ, "PYTHONPATH": package, "AIOUNIFY_BACKEND": backend},
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        out, _ = await child.communicate()
        read()
    finally:
        loop.remove_reader(ours)
        os.close(theirs)
        os.close(ours)
    assert child.returncode == 0, shown
    return shown.decode(), out.decode()


@pytest.mark.parametrize("columns", [200, 80, 30, 0])
async def test_the_view_on_a_terminal(columns):
    """One line, which never wraps, drawn anew until it is cleared for the result."""
    backend = asyncio.get_running_loop().backend
    async with serving(delay=0.05) as (url, _):
        # ten rounds of 50 ms, and the view is drawn each 250 ms at the latest
        shown, out = await _on_a_terminal(backend, columns, url, "-n", "60", "-c", "4")
    first, *views = shown.split("\r\x1b[K")
    assert first == ""
    assert views.pop() == ""  # nothing is left of it
    assert views
    for view in views:
        assert len(view) < (columns or 80)
        assert "\n" not in view
        assert (
            not columns
            or columns < 80
            or re.match(
                r" +\d+\.\d s  \d+ answers  \d+/s  p50 \d+\.\d\d ms  p99 \d+\.\d\d ms  0 errors  ",
                view,
            )
        )
    counted = [int(n) for view in views for n in re.findall(r"s  (\d+) answers", view)]
    assert counted == sorted(counted)
    assert counted[-1] <= 60
    if columns == 200:
        bars = [view.rpartition("errors  ")[2] for view in views]
        assert [len(bar) for bar in bars] == list(range(1, len(bars) + 1))
        assert all(set(bar) <= set(loadgen._BARS) and "█" in bar for bar in bars)
    assert out.startswith("60 answers in ")
    assert "\x1b" not in out
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_nothing_is_shown_if_that_is_asked_for():
    backend = asyncio.get_running_loop().backend
    async with serving(delay=0.05) as (url, _):
        shown, out = await _on_a_terminal(backend, 80, url, "-n", "20", "-c", "2", "--quiet")
    assert shown == ""
    assert out.startswith("20 answers in ")
    await asyncio.get_running_loop().shutdown_default_executor()


@given(st.lists(st.integers(0, 10**6), max_size=40), st.integers(1, 300), st.floats(0, 10**6))
def test_the_view_fits_any_terminal(rates, columns, now):
    run = loadgen.Run.__new__(loadgen.Run)
    run.histogram, run.errors, run.start = loadgen.Histogram(), loadgen.Counter(), 0.0
    view = run.view(now, rates, columns)
    assert len(view) <= columns
    assert len(view) < columns or columns == 1
    if len(view) < columns - 2 and rates:  # there was room for all
        assert view.endswith(loadgen._BARS[8 * rates[-1] // (max(rates) or 1)])


def test_bad_arguments(backend):
    for argv in (
        ["https://x/"],
        ["nothing"],
        ["http://x/ y"],
        ["http://x/", "-n", "0"],
        ["http://x/", "-H", "a"],
    ):
        with pytest.raises(SystemExit) as failed:
            loadgen.arguments(argv)
        assert failed.value.code == 2
