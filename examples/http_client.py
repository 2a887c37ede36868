"""A small HTTP/1.1 client for the examples: a parser of responses, and GET over streams.

`Parser` takes bytes as they come and gives whole responses: it reads heads, Content-Length,
chunked bodies and bodies that end with the connection, and refuses what could be read in two ways.
`Client` keeps connections that may be used again, a few for each server.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

_HEAD = 64 << 10
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEX = re.compile(rb"[0-9A-Fa-f]{1,15}")
# How a body ends.
_LENGTH, _CHUNK, _CHUNK_END, _TRAILER, _CLOSE = range(5)


class HttpError(Exception):
    """The answer is not HTTP, is cut short, or came without a question."""


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    keep_alive: bool
    body: bytes = b""
    size: int = 0  # of the body, also of what was not kept
    cut: bool = False  # the body is longer than the limit, and is left there


class Parser:
    """Responses of one connection.  `limit`: bytes of a body that are kept; 0 keeps none.

    With `stop` a body that is longer than the limit ends its response there, `cut`, and the
    connection can give no other.
    """

    def __init__(self, limit: int = 0, *, stop: bool = False) -> None:
        self._limit, self._stop = limit, stop
        self._data = bytearray()
        self._now: Response | None = None
        self._how = _LENGTH
        self._left = 0
        self._kept = bytearray()

    @property
    def within(self) -> bool:
        """A response has begun and not ended."""
        return bool(self._data) or self._now is not None

    def feed(self, data: bytes, *, head: bool = False) -> Iterator[Response]:
        """The responses that these bytes complete; with `head`, of a request by HEAD."""
        self._data += data
        while True:
            if self._now is None and not self._begin(head):
                return
            response = self._now
            if response is None:  # an interim one (1xx)
                continue
            if not self._body(response):
                return
            self._now = None
            response.body = bytes(self._kept)
            self._kept.clear()
            yield response

    def end(self) -> Response | None:
        """The connection has ended: the response that this completes, if it does."""
        response, self._now = self._now, None
        if response is not None and self._how == _CLOSE:
            response.body = bytes(self._kept)
            return response
        if response is not None or self._data:
            raise HttpError("the connection ended within an answer")
        return None

    def _begin(self, head: bool) -> bool:
        end = self._data.find(b"\r\n\r\n")
        if end < 0 or end > _HEAD:
            if len(self._data) > _HEAD:
                raise HttpError("the head of an answer is longer than 64 KiB")
            return False
        first, *lines = bytes(self._data[:end]).split(b"\r\n")
        del self._data[: end + 4]
        found = _STATUS.fullmatch(first)
        if found is None:
            raise HttpError(f"no status line: {first[:60]!r}")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not _NAME.fullmatch(name) or b"\r" in value or b"\n" in value:
                raise HttpError(f"a malformed header line: {line[:60]!r}")
            key, text = name.decode().lower(), value.strip(b" \t").decode("latin-1")
            if key in headers and key == "content-length" and headers[key] != text:
                raise HttpError("two lengths of one body")
            if key in headers and key != "content-length":
                text = f"{headers[key]}, {text}"
            headers[key] = text
        status = int(found[2])
        if 100 <= status < 200:
            if status == 101:
                raise HttpError("the server switches to another protocol")
            return True
        options = headers.get("connection", "").lower()
        alive = "close" not in options if found[1] == b"1" else "keep-alive" in options
        self._now = Response(status, headers, alive)
        self._how, self._left = _LENGTH, 0
        if head or status in (204, 304):
            return True
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None:
            if coding.lower() != "chunked" or length is not None:
                raise HttpError("a body whose end cannot be told")
            self._how = _CHUNK
        elif length is not None:
            if not re.fullmatch("[0-9]{1,18}", length):
                raise HttpError(f"Content-Length is no number: {length!r}")
            self._left = int(length)
        else:
            self._how, self._now.keep_alive = _CLOSE, False
        return True

    def _take(self, response: Response, n: int) -> bool:
        """So much of the body; True if that is all that is wanted of it."""
        response.size += n
        room = self._limit - len(self._kept)
        if room > 0:
            self._kept += self._data[: min(room, n)]
        del self._data[:n]
        if self._stop and response.size > self._limit:
            response.cut, response.keep_alive = True, False
        return response.cut

    def _body(self, response: Response) -> bool:
        while True:
            if self._how == _CLOSE:
                return self._take(response, len(self._data))
            if self._how == _LENGTH or (self._how == _CHUNK and self._left):
                n = min(self._left, len(self._data))
                self._left -= n
                if self._take(response, n):
                    return True
                if self._left:
                    return False
                if self._how == _LENGTH:
                    return True
                self._how = _CHUNK_END
            end = self._data.find(b"\r\n")
            if end < 0:
                if len(self._data) > _HEAD:
                    raise HttpError("a line of a chunked body is too long")
                return False
            line = bytes(self._data[:end])
            del self._data[: end + 2]
            if self._how == _TRAILER:
                if not line:
                    return True
            elif self._how == _CHUNK_END:
                if line:
                    raise HttpError("a chunk is longer than it says")
                self._how = _CHUNK
            else:
                size = line.partition(b";")[0].strip(b" \t")
                if not _HEX.fullmatch(size):
                    raise HttpError(f"no length of a chunk: {line[:60]!r}")
                self._left = int(size, 16)
                if not self._left:
                    self._how = _TRAILER


_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Client:
    """GET, with connections that are used again; close() it."""

    def __init__(self, agent: str, *, timeout: float = 30.0, limit: int = 1 << 20) -> None:
        self.agent, self.timeout, self.limit = agent, timeout, limit
        self._idle: dict[tuple[str, str, int], deque[_Connection]] = {}

    async def get(self, url: str) -> Response:
        """One answer; redirects are not followed.

        OSError (TimeoutError too) if there is none, HttpError if it is not HTTP, ValueError for
        a URL that cannot be asked for.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http:// or https:// URL")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        key = parts.scheme, parts.hostname, port
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if re.search(r"[\x00-\x20\x7f-\uffff]", path + parts.netloc):
            raise ValueError(f"{url!r} has characters that must be quoted")
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
            f"User-Agent: {self.agent}\r\nAccept: */*\r\n\r\n"
        ).encode()
        async with asyncio.timeout(self.timeout):
            while idle := self._idle.get(key):
                reader, writer = idle.pop()
                try:
                    return await self._ask(key, reader, writer, request)
                except (ConnectionError, EOFError):
                    continue  # the server had closed it meanwhile
            context = ssl.create_default_context() if parts.scheme == "https" else None
            reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
            try:
                return await self._ask(key, reader, writer, request)
            except EOFError:
                raise HttpError("the connection ended without an answer") from None

    async def _ask(
        self,
        key: tuple[str, str, int],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: bytes,
    ) -> Response:
        parser = Parser(self.limit, stop=True)
        again = False
        try:
            writer.write(request)
            while True:
                data = await reader.read(65536)
                if not data:
                    response = parser.end()
                    if response is None:
                        raise EOFError
                    return response
                for response in parser.feed(data):
                    again = response.keep_alive and not parser.within
                    return response
        finally:
            if again:
                self._idle.setdefault(key, deque()).append((reader, writer))
            else:
                writer.close()

    async def close(self) -> None:
        for idle in self._idle.values():
            while idle:
                idle.pop()[1].close()
        await asyncio.sleep(0)  # the transports close in the next turn
