"""Streams of requests, good and bad, for a running web server, and what its answers may be.

The server is a process of its own.  A stream goes through one connection in pieces, which is then
shut down for writing; what comes back has to be whole, well-formed answers and an end.  h11 reads
the same stream as a second opinion: it is the more tolerant reader (bare LF, folded lines, spaces
around a length), so the server may answer fewer requests than h11 finds, never more and never
others.  Where the server is the more tolerant one is listed at `reference`.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path

import h11
from hypothesis import strategies as st

import aiounify

FILES = {"/a.txt": b"content of a\n", "/b.txt": b"content of b\n" * 20, "/hidden.txt": b"HIDDEN"}
PATIENCE = 20.0


class FaultError(AssertionError):
    """What the server may not do."""


class Server:
    """`python -m aiounify serve` on a small site."""

    def __init__(self, folder, *arguments, backend="auto"):
        for name, content in FILES.items():
            (folder / name[1:]).write_bytes(content)
        (folder / "echo.page.py").write_text(
            "async def page(page):\n    return 'only posts'\n"
            "async def post(page):\n    return page.body, {'Content-Type': 'text/plain'}\n"
        )
        package = str(Path(aiounify.__file__).parents[1])
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                "aiounify",
                "serve",
                str(folder),
                "--port",
                "0",
                "--backend",
                backend,
                *arguments,
            ],
            env={**os.environ, "PYTHONPATH": package},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        line = self.process.stdout.readline().decode()
        found = re.match(r"serving .*:(\d+)/", line)
        if found is None:
            self.process.kill()
            raise FaultError(line + self.process.stdout.read().decode())
        self.address = ("127.0.0.1", int(found[1]))
        os.set_blocking(self.process.stdout.fileno(), False)

    def complaint(self):
        """What it has said of errors of its own since the last time."""
        said = (self.process.stdout.read() or b"").decode()
        return said if "Traceback" in said or "rror" in said else ""

    def close(self):
        """SIGTERM, which has to end it with status 0."""
        self.process.terminate()
        try:
            status = self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            said = (self.process.stdout.read() or b"").decode()
            self.process.stdout.close()
        if status or "Traceback" in said:
            raise FaultError(f"the server ended with {status}: {said}")

    def exchange(self, stream, cuts=()):
        """Send a stream in pieces and end it; everything that comes back."""
        sock = socket.create_connection(self.address)
        with sock, selectors.DefaultSelector() as ready:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            edges = [0, *sorted(cut for cut in set(cuts) if 0 < cut < len(stream)), len(stream)]
            for begin, end in itertools.pairwise(edges):
                try:
                    sock.sendall(stream[begin:end])
                except OSError:  # it has ended the connection, and may
                    break
                if end < len(stream):
                    time.sleep(0.0005)  # so that the pieces arrive as pieces
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            parts = []
            sock.setblocking(False)
            ready.register(sock, selectors.EVENT_READ)
            deadline = time.monotonic() + PATIENCE
            while True:
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise FaultError(f"the connection does not end; so far {b''.join(parts)!r}")
                try:
                    data = sock.recv(65536)
                except ConnectionResetError:
                    return b"".join(parts), True
                if not data:
                    return b"".join(parts), False
                parts.append(data)


# -- the second opinion ---------------------------------------------------------------


def reference(stream):
    """What h11 finds: the requests (method, target), and whether the stream went on well.

    More tolerant than h11 is the server in this, which is put right before h11 sees it:
    bytes from 128 on in a target; more than one empty line before a request.
    HTTP/1.0 with keep-alive, which h11 does not do, is done here.
    """
    found = []
    rest = re.sub(rb"[\x80-\xff]", b"x", stream)
    while True:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        while rest.startswith(b"\r\n"):
            rest = rest[2:]
        if not rest:  # which h11 takes for the end
            return found, True
        connection.receive_data(rest)
        again = False
        while True:
            try:
                event = connection.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return found, True
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.EndOfMessage):
                    found.append((request.method.decode(), request.target))
                    said = [v for k, v in request.headers if k == b"connection"]
                    words = {w.strip().lower() for v in said for w in v.split(b",")}
                    keep = b"close" not in words
                    if request.http_version == b"1.0":
                        keep = keep and b"keep-alive" in words
                    again = keep
                    rest = connection.trailing_data[0]
                    break
            except h11.RemoteProtocolError:
                return found, False
        if not again:
            return found, True


# -- answers --------------------------------------------------------------------------


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict
    body: bytes


_STATUS = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [\x20-\x7e]+\r\n")
_HEADER = re.compile(rb"([A-Za-z-]+): ([\x20-\x7e]+)\r\n")


def answers(received, methods):
    """The answers in what came back, strictly read; `methods` says which have no body."""
    found, at, order = [], 0, list(methods)
    while at < len(received):
        line = _STATUS.match(received, at)
        if line is None:
            raise FaultError(
                f"not an answer: {received[at : at + 200]!r} after {len(found)} answers"
            )
        status, at, headers = int(line[1]), line.end(), {}
        while field := _HEADER.match(received, at):
            name = field[1].decode().lower()
            if name in headers:
                raise FaultError(f"{name} twice: {received!r}")
            headers[name], at = field[2], field.end()
        if received[at : at + 2] != b"\r\n":
            raise FaultError(f"not a header: {received[at : at + 100]!r}")
        at += 2
        if status < 200:
            if headers or status != 100:
                raise FaultError(f"an interim answer {status} with {headers}")
            continue
        if "date" not in headers:
            raise FaultError("no date")
        method = order[len(found)] if len(found) < len(order) else "GET"
        # an error that ends the connection has its body whatever the method was
        bare = method == "HEAD" and received[at : at + 5] in (b"HTTP/", b"")
        if bare or status in (204, 304):
            body = b""
        elif "transfer-encoding" in headers:
            raise FaultError("no answer of this site is chunked")
        else:
            size = int(headers["content-length"])
            body = received[at : at + size]
            if len(body) != size:
                raise FaultError(f"{size} bytes of body were promised, and {len(body)} came")
            at += size
        found.append(Answer(status, headers, body))
    return found


def check(server, stream, cuts=(), valid=False):
    """One stream; FaultError if the server does what it may not.  The answers.

    `valid`: every request in it is good, and all of them have to be answered.
    """
    requests, well = reference(stream)
    received, reset = server.exchange(stream, cuts)
    found = answers(received, [method for method, _ in requests])
    if server.process.poll() is not None:
        raise FaultError(f"the server has ended with {server.process.returncode}")
    if complaint := server.complaint():
        raise FaultError(complaint)
    good = 0
    for index, answer in enumerate(found):
        closes = answer.headers.get("connection") == b"close"
        if (answer.status == 400 or closes) and index + 1 < len(found):
            raise FaultError(f"answers after {answer.status}, which ended the connection")
        if answer.status == 400 and not closes:
            raise FaultError("a 400 that does not say that the connection ends")
        refused = closes and answer.status >= 400
        good += not refused
        if answer.status == 200 and index < len(requests):
            path = requests[index][1].decode("latin-1").partition("?")[0]
            wanted = FILES.get(path)
            if wanted is not None and answer.body not in (wanted, b""):
                raise FaultError(f"for {requests[index]} came {answer.body!r}")
    if good > len(requests) or len(found) > len(requests) + 1:
        raise FaultError(f"{len(found)} answers, {good} of them good, where h11 reads {requests}")
    if b"HIDDEN" in received and not any(b"hidden" in target for _, target in requests):
        raise FaultError("a body was taken for a request")
    if valid and (not well or reset or len(found) != len(requests) or good != len(found)):
        raise FaultError(f"{len(found)} answers to {len(requests)} good requests: {received!r}")
    return found


def check_pieces(server, stream, cuts):
    """The same stream whole and in pieces; Fault if that makes a difference.  The answers."""
    whole = check(server, stream)
    found = check(server, stream, cuts)
    # who expects "100 Continue" is answered by what has arrived by then
    if b"xpect" not in stream and [one.status for one in found] != [one.status for one in whole]:
        raise FaultError(f"{found} for pieces, {whole} for the whole")
    return found


# -- streams --------------------------------------------------------------------------

SMUGGLED = b"GET /hidden.txt HTTP/1.1\r\nHost: h\r\n\r\n"
TARGETS = (b"/a.txt", b"/b.txt", b"/echo", b"/", b"/none", b"/a.txt?x=1", b"http://h/a.txt")
WRONG_TARGETS = (b"/../x", b"/%2e%2e/x", b"*", b"a", b"/%0", b"/a\x80", b"//a.txt", b"/\x00", b"")
HEADERS = (
    b"Accept: */*",
    b"Connection: keep-alive",
    b"X-Empty:",
    b"Accept-Encoding: gzip",
    b"Cookie: a=b; c=d",
    b"User-Agent: \xe4",
)
WRONG_HEADERS = (
    b"Connection: close",
    b"Connection: upgrade\r\nUpgrade: h2c",
    b"Expect: 100-continue",
    b"Expect: more",
    b"Range: bytes=1-2",
    b"Range: bytes=2-1,x",
    b"If-None-Match: *",
    b"Host: other",
    b"Host : h",
    b" X: folded",
    b"X: a\r\n b",
    b"X: a\rY: b",
    b"X: a\nY: b",
    b"X: \0",
    b"no colon",
    b": no name",
    b"\xff: x",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: 38",
    b"Content-Length : 5",
    b"Content-Length: +5",
    b"Content-Length: 5,5",
    b"Content-Length: 5, 6",
    b"Content-Length: 0x5",
    b"Content-Length: -1",
    b"Content-Length: 05",
    b"Content-Length:\t5 ",
    b"Content-Length: 5\x0b",
    b"Content-Length:",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: \xb2",
    b"Content\x00-Length: 5",
    b"Content_Length: 5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding\x00: chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"X: y\r\n\r\nTransfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"X: y\rTransfer-Encoding: chunked",
)
BODIES = (
    b"",
    b"hello",
    SMUGGLED,
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"0\r\n\r\n" + SMUGGLED,
    b"5\r\nhello\r\n0\r\n" + SMUGGLED,
    b"26\r\n" + SMUGGLED + b"\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"6\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"5_0\r\nhello\r\n0\r\n\r\n",
    b"00000005\r\nhello\r\n000\r\n\r\n",
    b"FFFFFFFFFFFFFFFB\r\nhello\r\n0\r\n\r\n",
    b"100000005\r\nhello\r\n0\r\n\r\n",
    b"-1\r\nhello\r\n0\r\n\r\n",
    b"\r\n\r\n",
    b"5;\x00\r\nhello\r\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    b"0\r\nbad trailer\r\n\r\n",
    b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
)


@st.composite
def good_request(draw):
    """One that has to be answered, and after which the connection goes on."""
    lines = draw(st.lists(st.sampled_from(HEADERS), max_size=3))
    kind = draw(st.sampled_from(("none", "none", "length", "chunks")))
    method = draw(st.sampled_from((b"GET", b"HEAD") if kind == "none" else (b"GET", b"POST")))
    body = b""
    if kind != "none":
        content = draw(st.sampled_from((b"", b"hello", SMUGGLED, bytes(range(256)))))
        if kind == "length":
            lines.append(b"Content-Length: %d" % len(content))
            body = content
        else:
            lines.append(b"Transfer-Encoding: chunked")
            step = draw(st.integers(1, 100))
            for at in range(0, len(content), step):
                piece = content[at : at + step]
                body += b"%x\r\n%b\r\n" % (len(piece), piece)
            body += b"0\r\n\r\n"
    lines.insert(draw(st.integers(0, len(lines))), b"Host: h")
    target = draw(st.sampled_from(TARGETS))
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", *lines, b"", b""]) + body


@st.composite
def crooked_request(draw):
    """Made of pieces that are wrong alone or together."""
    method = draw(st.sampled_from((b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"get", b"G\0T")))
    target = draw(st.sampled_from(TARGETS + WRONG_TARGETS))
    version = draw(
        st.sampled_from((b"HTTP/1.1",) * 6 + (b"HTTP/1.0", b"HTTP/1.2", b"HTTP/01.1", b"http/1.1"))
    )
    space = draw(st.sampled_from((b" ",) * 8 + (b"  ", b"\t")))
    end = draw(st.sampled_from((b"\r\n",) * 10 + (b"\n", b"\r", b"\r\r\n")))
    lines = draw(st.lists(st.sampled_from(WRONG_HEADERS + HEADERS), max_size=3))
    if draw(st.booleans()) or draw(st.booleans()):
        lines.insert(draw(st.integers(0, len(lines))), b"Host: h")
    head = end.join([space.join((method, target, version)), *lines, b"", b""])
    return head + draw(st.sampled_from(BODIES))


@st.composite
def mutated(draw):
    """Good requests in which some bytes are others."""
    stream = bytearray(b"".join(draw(st.lists(good_request(), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(stream)))
        how = draw(st.sampled_from(("put", "change", "remove", "double")))
        some = draw(
            st.sampled_from((b"\0", b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"0", b"\xff"))
        )
        if how == "put":
            stream[at:at] = some
        elif how == "change":
            stream[at : at + 1] = some
        elif how == "remove":
            del stream[at : at + draw(st.integers(1, 9))]
        else:
            stream[at:at] = stream[at : at + draw(st.integers(1, 40))]
    return bytes(stream)


good = st.lists(good_request(), min_size=1, max_size=5).map(b"".join)
bad = st.one_of(
    st.lists(st.one_of(crooked_request(), good_request()), min_size=1, max_size=4).map(b"".join),
    st.lists(crooked_request(), min_size=1, max_size=3).map(b"".join),
    mutated(),
    st.binary(max_size=200),
)
cuts = st.lists(st.integers(1, 600), max_size=6)
