"""Requests to other servers, for pages: connections are used again, answers kept while they are
fresh.

asyncio's streams carry it and httptools reads the answers; freshness.py says how long they are
good.

Rules:

* An answer is complete or an error.  Less than its Content-Length, a chunk that is missing, an
  end in the header: FetchError.  More than it said: the answer stands, as a client cannot know
  whether it is a second one, and the connection is not used again.
* One deadline for all of it, from the look-up of the name on.  A connection whose request was
  given up is closed.
* A connection that was kept may have been closed by the other side in the same moment.  Then, and
  only if not a byte came, the request is sent again, once, on a new one: GET may be repeated.
* Redirections are answers; they are not followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httptools

from . import freshness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .options import Options

__all__ = ["Client", "FetchError", "Fetched"]

_HEAD_LIMIT = 64 * 1024
_PIECE = 64 * 1024
_IDLE = 30.0  # seconds for which a connection is kept
_PER_ORIGIN = 16  # connections that are open, idle or not
_KEPT = 512  # answers
_KEPT_BYTES = 32 * 1024 * 1024
_URL = re.compile(r"https?://[\x21-\x7e]+")
_FIELD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class FetchError(OSError):
    """There was an answer, but it is none of HTTP, or not complete."""


class Fetched:
    """An answer: `status`, `headers` by names in lower case, `body`."""

    def __init__(self, url: str, status: int, headers: dict[str, str], body: bytes) -> None:
        self.url = url
        self.status = status
        self.headers = headers
        self.body = body
        self._good_until = 0.0  # time.monotonic()

    def text(self) -> str:
        """The body as text, by the charset that the answer names, else UTF-8."""
        _, _, charset = self.headers.get("content-type", "").partition("charset=")
        return self.body.decode(charset.split(";")[0].strip('" ') or "utf-8", "replace")

    def json(self) -> Any:
        """The body as what it means in JSON."""
        return json.loads(self.body)

    def fresh_for(self) -> float:
        """Seconds for which it still is good; 0 if it has to be asked for again."""
        return max(0.0, self._good_until - time.monotonic())

    def keep(self, seconds: float) -> None:
        """It is good for so long from now on."""
        self._good_until = time.monotonic() + seconds


class _Answer:
    """What httptools calls while it reads one answer."""

    def __init__(self, limit: int) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.status = 0
        self.done = False
        self.keep = False
        self.too_much = False
        self._limit = limit
        self._size = 0
        self._head = 0

    def on_message_begin(self) -> None:
        if self.done:
            self.too_much = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value)
        if self._head > _HEAD_LIMIT:
            raise FetchError("the header is too long")
        if self.done:
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        if not self.done:
            self.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._limit:
            raise FetchError(f"the body is longer than {self._limit} bytes")
        if not self.done:
            self.parts.append(body)

    def on_message_complete(self) -> None:
        if self.status in (100, 102, 103):  # more is to come
            self.headers.clear()
            self.status = 0
        else:
            self.done = True
            self.keep = self.parser.should_keep_alive()  # it does not know afterwards

    def ends_with_connection(self) -> bool:
        """Whether its length is not said in it."""
        return (
            self.status >= 200
            and "content-length" not in self.headers
            and "chunked" not in self.headers.get("transfer-encoding", "").lower()
        )


class _Link:
    """A connection to another server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.since = 0.0
        self.used = False
        self._watching: asyncio.Task[bytes] | None = None

    async def ask(self, request: bytes, limit: int) -> tuple[_Answer, bool]:
        """Send a request and read its answer; whether the connection can be used again."""
        self.writer.write(request)
        await self.writer.drain()
        answer = _Answer(limit)
        received = False
        while not answer.done:
            data = await self.reader.read(_PIECE)
            if not data:
                if answer.ends_with_connection():
                    return answer, False
                if not received:
                    raise ConnectionResetError("the other server closed the connection")
                raise FetchError("the answer ended before it was complete")
            received = True
            try:
                answer.parser.feed_data(data)
            except httptools.HttpParserUpgrade:
                raise FetchError("the other server changed the protocol") from None
            except httptools.HttpParserCallbackError as exc:
                cause = exc.__context__
                raise cause if isinstance(cause, FetchError) else FetchError(str(exc)) from None
            except httptools.HttpParserError as exc:
                if not answer.done:
                    raise FetchError(f"not an answer of HTTP: {exc}") from None
                answer.too_much = True
        return answer, answer.keep and not answer.too_much

    def rest(self) -> None:
        """Be kept: whatever the other side does now, saying something or ending, spoils it."""
        self.used = True
        self.since = time.monotonic()
        self._watching = asyncio.get_running_loop().create_task(self.reader.read(1))

    async def wake(self) -> bool:
        """Be used again, if it was left alone."""
        watching, self._watching = self._watching, None
        if watching is None or watching.done() or time.monotonic() - self.since >= _IDLE:
            _forget(watching)
            return False
        watching.cancel()
        try:
            await asyncio.wait([watching])
        except asyncio.CancelledError:  # not the one of `watching`
            self.close()
            raise
        if not watching.cancelled():
            _forget(watching)
        return watching.cancelled()

    def close(self) -> None:
        _forget(self._watching)
        self.writer.close()


def _forget(watching: asyncio.Task[bytes] | None) -> None:
    if watching is not None and not watching.cancel() and not watching.cancelled():
        watching.exception()  # that the connection was reset is no news


class Client:
    """Connections by origin, and answers by URL."""

    def __init__(self, options: Options) -> None:
        self._timeout = options.fetch_timeout
        self._limit = options.fetch_limit
        self._idle: dict[tuple[str, str, int], list[_Link]] = {}
        self._room: dict[tuple[str, str, int], asyncio.Semaphore] = {}
        self._kept: OrderedDict[tuple[object, ...], Fetched] = OrderedDict()
        self._kept_bytes = 0
        self._tls: ssl.SSLContext | None = None

    async def get(self, url: str, headers: Mapping[str, str], ttl: float | None = None) -> Fetched:
        """The answer for a URL, from memory while it is fresh.

        OSError if there is no connection, FetchError if what came is not an answer,
        TimeoutError if it took too long.
        """
        if _URL.fullmatch(url) is None:
            raise ValueError(f"not a URL with http:// or https://: {url!r}")
        for name, value in headers.items():
            if _FIELD.fullmatch(name) is None or not value.isprintable():
                raise ValueError(f"not a header: {name}: {value!r}")
        key = (url, *sorted((name.lower(), value) for name, value in headers.items()))
        known = self._kept.get(key)
        if known is not None and known.fresh_for() > 0:
            self._kept.move_to_end(key)
            return known
        asked = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "aiounify"}
        asked |= {"-".join(p.capitalize() for p in n.split("-")): v for n, v in headers.items()}
        if known is not None:
            if "etag" in known.headers:
                asked["If-None-Match"] = known.headers["etag"]
            if "last-modified" in known.headers:
                asked["If-Modified-Since"] = known.headers["last-modified"]
        began = time.monotonic()
        async with asyncio.timeout(self._timeout):
            answer = await self._ask(url, asked)
        delay = time.monotonic() - began
        if answer.status == 304 and known is not None:
            merged = {**known.headers, **answer.headers}
            merged["content-length"] = str(len(known.body))
            found = Fetched(url, known.status, merged, known.body)
        else:
            found = Fetched(url, answer.status, answer.headers, b"".join(answer.parts))
        found.keep(freshness.lifetime(found.status, found.headers, time.time(), delay, ttl))
        self._keep(key, found)
        return found

    def _keep(self, key: tuple[object, ...], found: Fetched) -> None:
        before = self._kept.pop(key, None)
        if before is not None:
            self._kept_bytes -= len(before.body)
        asked_again = "etag" in found.headers or "last-modified" in found.headers
        if freshness.storable(found.status, found.headers) and (
            found.fresh_for() > 0 or asked_again
        ):
            self._kept[key] = found
            self._kept_bytes += len(found.body)
            while len(self._kept) > _KEPT or self._kept_bytes > _KEPT_BYTES:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1].body)

    async def _ask(self, url: str, headers: Mapping[str, str]) -> _Answer:
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        if not host:
            raise ValueError(f"no host in {url!r}")
        port = parts.port or (443 if secure else 80)
        origin = (parts.scheme, host, port)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        name = parts.netloc.rpartition("@")[2]
        lines = [f"GET {target} HTTP/1.1", f"Host: {name}"]
        lines += [f"{key}: {value}" for key, value in headers.items()]
        request = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
        async with self._room.setdefault(origin, asyncio.Semaphore(_PER_ORIGIN)):
            while True:
                link = await self._take(origin) or await self._connect(host, port, secure)
                again = False
                try:
                    answer, again = await link.ask(request, self._limit)
                except (ConnectionError, BrokenPipeError):
                    if link.used:
                        continue
                    raise
                finally:
                    if not again:
                        link.close()
                if again:
                    link.rest()
                    self._idle.setdefault(origin, []).append(link)
                return answer

    async def _take(self, origin: tuple[str, str, int]) -> _Link | None:
        """A connection that was kept, if there is one that still stands."""
        links = self._idle.get(origin, [])
        while links:
            link = links.pop()
            if await link.wake():
                return link
            link.close()
        return None

    async def _connect(self, host: str, port: int, secure: bool) -> _Link:
        if secure and self._tls is None:
            self._tls = ssl.create_default_context()
        return _Link(*await asyncio.open_connection(host, port, ssl=self._tls if secure else None))

    async def close(self) -> None:
        """Close the connections that are kept."""
        links = [link for kept in self._idle.values() for link in kept]
        self._idle.clear()
        for link in links:
            link.close()
        for link in links:
            with contextlib.suppress(OSError):
                await link.writer.wait_closed()
