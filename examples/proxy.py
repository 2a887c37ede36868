"""A proxy for TCP and HTTP whose bytes never come to Python.

    python examples/proxy.py --listen 127.0.0.1:8080              # HTTP: CONNECT and http:// URLs
    python examples/proxy.py --listen 127.0.0.1:5433 --to db:5432 # TCP, to one place

    curl -x http://127.0.0.1:8080 https://example.org/

Once both ends are connected, each direction is one splice() through a pipe that is used again for
later connections; it is awaited once and goes on natively.  A direction is read only when what it
gave before has gone out: a slow reader slows its writer, and nothing is stored here but what the
pipe holds.  The end of one direction is passed on (shutdown) and leaves the other alone; a
connection that is reset resets the other one.

Of HTTP it reads one head: CONNECT makes a tunnel, a request with an http:// URL is rewritten for
its server, with `Connection: close`, and its answer passed on.  What is wrong is answered: 400 for
a head that is none, 403 for what --allow does not name, 408, 431, 501 for other forms, 502 for a
host that is unknown or refuses, 503 when there are no descriptors, 504 when it does not answer.

SIGTERM or Ctrl-C stops listening, waits --grace seconds for what goes on, and ends the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fnmatch
import re
import resource
import signal
import socket
import struct
import sys
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiounify
from aiounify.files import Pipe, splice

# Of one connection: two sockets, two pipes, and what each splice() duplicates.
_DESCRIPTORS = 10
_SPARE = 64
_POOLED = 64
_HEAD = 16 << 10
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# What belongs to the connection with the proxy and not to the request (RFC 9110, 7.6.1).
_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "upgrade",
        "host",
    )
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

Place = tuple[str, int]


class RefusedError(Exception):
    """What an HTTP client is told, with its status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass
class Limits:
    """Seconds, and numbers of connections."""

    connections: int = 1000
    per_client: int = 0  # 0: as many as there are
    head: float = 10.0
    connect: float = 10.0
    idle: float = 300.0
    grace: float = 10.0
    allow: list[str] = field(default_factory=list)


@dataclass
class Request:
    """Where to go, what to send there first, and how much of the client's follows it."""

    place: Place
    tunnel: bool
    first: bytes
    body: int | None  # None: all, up to its end


def split_place(text: str, port: int | None = None) -> Place:
    """`host:port`, `[::1]:port`; ValueError if it is neither."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:/@\[\]]+))(?::([0-9]{1,5}))?", text)
    if found is None or (found[3] is None and port is None):
        raise ValueError(f"{text!r} is not HOST:PORT")
    number = int(found[3]) if found[3] is not None else port or 0
    if number > 65535:
        raise ValueError(f"{number} is not a port")
    return found[1] or found[2], number


def parse(head: bytes) -> Request:
    """One head, with the empty line at its end; RefusedError if it cannot be served."""
    text = head.decode("latin-1")
    first, *lines = text.removesuffix("\r\n\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]):
        raise RefusedError(400, "the first line is no request")
    if words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise RefusedError(400, "the version is not HTTP/1.1 or HTTP/1.0")
    if any(c in text.replace("\r\n", "") for c in "\r\n\0"):
        raise RefusedError(400, "a bare CR, LF or NUL is in the head")
    fields: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):  # also a folded line, and space before ":"
            raise RefusedError(400, "a header line is malformed")
        fields.append((name, value.strip(" \t")))
    if words[0] == "CONNECT":
        try:
            place = split_place(words[1])
        except ValueError as exc:
            raise RefusedError(400, str(exc)) from None
        return Request(place, True, b"", None)
    return _forward(words, fields)


def _forward(words: list[str], fields: list[tuple[str, str]]) -> Request:
    try:
        url = urlsplit(words[1])
        if url.scheme.lower() != "http" or not url.netloc:
            raise RefusedError(501, "this proxy serves CONNECT and http:// URLs")
        place = split_place(url.netloc.rpartition("@")[2], 80)
    except ValueError as exc:
        raise RefusedError(400, str(exc)) from None
    given = [(name.lower(), value) for name, value in fields]
    lengths = {value for name, value in given if name == "content-length"}
    codings = [value.lower() for name, value in given if name == "transfer-encoding"]
    if len(lengths) > 1 or (lengths and codings):
        raise RefusedError(400, "the length of the body is ambiguous")
    if codings and codings != ["chunked"]:
        raise RefusedError(501, "of transfer codings this proxy knows chunked")
    length = lengths.pop() if lengths else "0"
    if not re.fullmatch("[0-9]{1,18}", length):
        raise RefusedError(400, "Content-Length is no number")
    drop = set(_HOP)
    for name, value in given:
        if name == "connection":
            drop.update(word.strip().lower() for word in value.split(","))
    drop -= {"content-length", "transfer-encoding"}  # these tell where the request ends
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    kept = [f"{name}: {value}" for name, value in fields if name.lower() not in drop]
    host = url.netloc.rpartition("@")[2]
    lines = [f"{words[0]} {path} HTTP/1.1", f"Host: {host}", *kept, "Connection: close", "", ""]
    return Request(
        place, False, "\r\n".join(lines).encode("latin-1"), None if codings else int(length)
    )


class Pipes:
    """Pipes that are used again: each costs two descriptors and three system calls."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []

    @contextlib.contextmanager
    def one(self):  # type: ignore[no-untyped-def]
        pipe = self._free.pop() if self._free else Pipe()
        try:
            yield pipe
        finally:
            # what one connection left must not reach another
            if pipe.pending or len(self._free) >= _POOLED:
                pipe.close()
            else:
                self._free.append(pipe)

    def close(self) -> None:
        while self._free:
            self._free.pop().close()


def _progress(*ends: socket.socket) -> tuple[int, ...]:
    """Bytes that were acknowledged to and received from each end, as the kernel counts them.

    tcpi_bytes_acked and tcpi_bytes_received of TCP_INFO, Linux 4.1.
    """
    return tuple(
        n
        for end in ends
        for n in struct.unpack_from(
            "QQ", end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136), 120
        )
    )


def _reset(end: socket.socket) -> None:
    """Make close() send RST: the peer must not take what it got for all."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Proxy:
    """One listening socket.  `to` is where all connections go; None: HTTP tells."""

    def __init__(self, limits: Limits | None = None, to: Place | None = None) -> None:
        self.limits = limits or Limits()
        self.to = to
        self.pipes = Pipes()
        self.served = 0
        self._room = asyncio.Semaphore(self.limits.connections)
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[str, int] = {}
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._said: set[str] = set()

    def say_once(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            print(f"proxy: {what}", file=sys.stderr, flush=True)

    async def listen(self, host: str, port: int) -> Place:
        """Begin; returns the address."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=1024)
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(self._listener))
        name = self._listener.getsockname()
        return name[0], name[1]

    async def stop_listening(self) -> None:
        """Accept no more; what goes on is left alone."""
        if self._accepting is not None and self._listener is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
            self._listener.close()

    async def close(self, grace: float = 0.0) -> None:
        """Stop listening, give what goes on `grace` seconds, end the rest."""
        await self.stop_listening()
        if self._tasks and grace > 0:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.pipes.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()  # the others wait in the kernel's queue
            try:
                client, address = await loop.sock_accept(listener)
            except OSError as exc:
                self._room.release()
                if exc.errno in _FULL:
                    self.say_once(f"accept: {exc.strerror}; waiting for descriptors")
                    await asyncio.sleep(0.1)
                elif exc.errno not in (errno.ECONNABORTED, errno.EPROTO):
                    raise
                continue
            except asyncio.CancelledError:
                self._room.release()
                raise
            self.served += 1
            task = asyncio.create_task(self._serve(client, address[0]))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()
        if not task.cancelled() and (exc := task.exception()) is not None:
            self.say_once(f"{type(exc).__name__}: {exc}")

    async def _serve(self, client: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        self._clients[host] = self._clients.get(host, 0) + 1
        with client:
            try:
                if 0 < self.limits.per_client < self._clients[host]:
                    raise RefusedError(503, "too many connections from this address")
                if self.to is not None:
                    await self._through(client, Request(self.to, True, b"", None), b"")
                    return
                head, rest = await self._head(client)
                request = parse(head)
                if self.limits.allow and not self._allowed(request.place):
                    raise RefusedError(403, "this proxy does not go there")
                await self._through(client, request, rest)
            except RefusedError as exc:
                if self.to is not None:
                    _reset(client)
                    return
                body = f"{exc}\n".encode()
                text = (
                    f"HTTP/1.1 {exc.status} {_REASONS[exc.status]}\r\nContent-Type: text/plain\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(self.limits.head):
                        await loop.sock_sendall(client, text.encode() + body)
                        client.shutdown(socket.SHUT_WR)
                        # Unread data at close() would make a RST that overtakes the answer.
                        for _ in range(64):
                            if not await loop.sock_recv(client, 65536):
                                break
            except OSError:
                _reset(client)  # a peer has gone
            finally:
                self._clients[host] -= 1
                if not self._clients[host]:
                    del self._clients[host]

    def _allowed(self, place: Place) -> bool:
        names = (place[0].lower(), f"{place[0].lower()}:{place[1]}")
        return any(fnmatch.fnmatchcase(n, p.lower()) for p in self.limits.allow for n in names)

    async def _head(self, client: socket.socket) -> tuple[bytes, bytes]:
        loop = asyncio.get_running_loop()
        got = b""
        try:
            async with asyncio.timeout(self.limits.head):
                while (end := got.find(b"\r\n\r\n")) < 0:
                    if len(got) >= _HEAD:
                        raise RefusedError(431, "the head is longer than 16 KiB")
                    more = await loop.sock_recv(client, _HEAD)
                    if not more:
                        raise ConnectionResetError(errno.ECONNRESET, "ended within the head")
                    got += more
        except TimeoutError:
            raise RefusedError(408, "the head did not come in time") from None
        if end >= _HEAD:
            raise RefusedError(431, "the head is longer than 16 KiB")
        return got[: end + 4], got[end + 4 :]

    async def _connect(self, place: Place) -> socket.socket:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.connect):
                last: OSError | None = None
                for family, kind, proto, _, address in await loop.getaddrinfo(
                    *place, type=socket.SOCK_STREAM
                ):
                    target = socket.socket(family, kind, proto)
                    try:
                        target.setblocking(False)
                        await loop.sock_connect(target, address)
                    except OSError as exc:
                        target.close()
                        last = exc
                    except BaseException:
                        target.close()
                        raise
                    else:
                        return target
                raise last or OSError("no address")
        except TimeoutError as exc:
            if exc.errno is None:
                raise RefusedError(504, f"{place[0]}:{place[1]} does not answer") from None
            raise RefusedError(504, f"{place[0]}:{place[1]}: {exc.strerror}") from None
        except (OSError, UnicodeError) as exc:
            if getattr(exc, "errno", None) in _FULL:
                self.say_once(f"connect: {exc}")
                raise RefusedError(503, "no descriptors are left") from None
            raise RefusedError(502, f"{place[0]}:{place[1]}: {exc}") from None

    async def _through(self, client: socket.socket, request: Request, rest: bytes) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            target = stack.enter_context(await self._connect(request.place))
            try:
                to = stack.enter_context(self.pipes.one())
                back = stack.enter_context(self.pipes.one())
            except OSError as exc:
                self.say_once(f"pipe: {exc}")
                raise RefusedError(503, "no descriptors are left") from None
            for end in (client, target):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            body = request.body
            if body is not None:
                rest = rest[:body]
                body -= len(rest)

            async def forth() -> None:
                if request.first or rest:
                    await loop.sock_sendall(target, request.first + rest)
                await splice(client, target, body, through=to)
                if body is None and request.tunnel:
                    _shut(target)

            async def fro() -> None:
                if request.tunnel and self.to is None:
                    await loop.sock_sendall(client, b"HTTP/1.1 200 Connection established\r\n\r\n")
                await splice(target, client, through=back)
                _shut(client)

            directions = [asyncio.create_task(forth()), asyncio.create_task(fro())]
            try:
                await self._both(directions, client, target, request.tunnel)
            except BaseException:
                _reset(client)
                _reset(target)
                raise
            finally:
                for task in directions:
                    task.cancel()
                await asyncio.wait(directions)

    async def _both(
        self,
        directions: list[asyncio.Task[None]],
        client: socket.socket,
        target: socket.socket,
        tunnel: bool,
    ) -> None:
        """Until both have ended; OSError if one failed, or nothing moved for the idle time."""
        before = _progress(client, target)
        waiting = set(directions)
        while waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=self.limits.idle, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            if not tunnel and directions[1].done():
                return  # the answer is whole; what the client still sends has no meaning
            if not done:
                now = _progress(client, target)
                if now == before:
                    raise OSError(errno.ETIMEDOUT, "idle")
                before = now


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_WR)
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:  # it has closed meanwhile
            raise


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def _place(text: str) -> Place:
    try:
        return split_place(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="proxy.py", description="TCP and HTTP proxy by splice().", allow_abbrev=False
    )
    parser.add_argument("--listen", type=_place, default=("127.0.0.1", 8080), metavar="HOST:PORT")
    parser.add_argument("--to", type=_place, metavar="HOST:PORT", help="TCP: where all goes")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="HTTP: only there; *.example.org is allowed too; may be repeated",
    )
    parser.add_argument("--connections", type=int, default=1000, help="at a time (1000)")
    parser.add_argument("--per-client", type=int, default=0, help="of one address; 0: any number")
    for name, value in (("head", 10), ("connect", 10), ("idle", 300), ("grace", 10)):
        parser.add_argument(
            f"--{name}",
            type=_positive,
            default=float(value),
            metavar="S",
            help=f"seconds ({value})",
        )
    options = parser.parse_args(argv)
    if options.connections < 1:
        parser.error("--connections must be at least 1")
    if options.to and options.allow:
        parser.error("--allow is for HTTP, without --to")
    return options


def _fitting(wanted: int) -> int:
    """As many connections as there are descriptors for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    most = max(1, (soft - _SPARE) // _DESCRIPTORS)
    if most < wanted:
        print(f"proxy: {soft} descriptors are enough for {most} connections", file=sys.stderr)
    return min(wanted, most)


async def serve(options: argparse.Namespace) -> int:
    limits = Limits(
        _fitting(options.connections),
        options.per_client,
        options.head,
        options.connect,
        options.idle,
        options.grace,
        options.allow,
    )
    proxy = Proxy(limits, options.to)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        host, port = await proxy.listen(*options.listen)
    except OSError as exc:
        print(f"proxy: cannot listen: {exc.strerror or exc}", file=sys.stderr)
        return 1
    print(f"listening on {host}:{port}", flush=True)
    await stop.wait()
    stop.clear()
    await proxy.stop_listening()
    print("stopping", flush=True)
    closing = asyncio.create_task(proxy.close(limits.grace))
    again = asyncio.create_task(stop.wait())
    await asyncio.wait([closing, again], return_when=asyncio.FIRST_COMPLETED)
    if not closing.done():  # a second signal: at once
        closing.cancel()
        await asyncio.wait([closing])
        await proxy.close()
    again.cancel()
    await asyncio.wait([again])
    return 0


if __name__ == "__main__":
    sys.exit(aiounify.run(serve(arguments())))
