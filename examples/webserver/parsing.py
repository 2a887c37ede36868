"""From received bytes to requests: httptools reads the header, this file draws the lines.

Rules:

* Where a request ends is decided here and nowhere else, so that no two readers can differ about it:
  the header up to its empty line, the body by one Content-Length or by chunks.  The ways to say
  both, neither or something in between (RFC 9112, 6.3 and 11.2) are refused, not repaired.
* The parser of httptools is lenient in places, and changes with its versions.  Before it sees
  a header, the whole of it must match a grammar without folded lines, bare CR or LF, control
  characters or spaces before colons.
* Nothing here reads or writes: bytes in, requests or BadRequest out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httptools

from .request import BadRequest, Request

if TYPE_CHECKING:
    from .options import Options

__all__ = ["ChunkedBody", "HeadParser", "SizedBody"]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/(\d)\.(\d)\r\n")
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n")
_TRAILER = re.compile(rb"(" + _TOKEN + rb"):[\t\x20-\x7e\x80-\xff]*")
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::\d{0,5})?")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,12})(?:;[\t\x20-\x7e\x80-\xff]*)?")
# RFC 9110, 6.5.1: who merges trailers into the header must not get these from there
_NO_TRAILERS = frozenset((b"content-length", b"host", b"trailer", b"transfer-encoding"))
_CHUNK_LINE = 256  # longest size line, with its extensions, which nobody uses


class _Sink:
    """What the parser calls."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[str, str]] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # RFC 9110, 5.5: white space around is no part of the value
        self.headers.append((name.decode("ascii").lower(), value.decode("latin-1").strip("\t ")))


class HeadParser:
    """Headers of requests, one after the other."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def end(self, buffer: bytes | bytearray) -> int:
        """Where the header ends that the buffer begins with, or 0 if it goes on.

        BadRequest if it is too long, or cannot become a request any more.
        """
        end = buffer.find(b"\r\n\r\n") + 4
        if end > 3:
            if end > self._options.head_limit:
                raise BadRequest(431, "the header is too long")
            return end
        if len(buffer) > self._options.head_limit:
            raise BadRequest(431, "the header is too long")
        # what waits for the end in vain: lines that end otherwise
        if b"\n" in buffer[:1] or buffer.find(b"\n\n") >= 0 or buffer.find(b"\n\r\n") > 0:
            raise BadRequest(400, "lines have to end with CR LF")
        return 0

    def parse(self, head: bytes) -> Request:
        """A whole header, as `end` found it."""
        line = _LINE.match(head)
        if line is None:
            raise BadRequest(400, "not a request line")
        if line[3] != b"1" or line[4] not in b"01":
            raise BadRequest(505, "the version has to be HTTP/1.0 or HTTP/1.1")
        if len(line[2]) > self._options.target_limit:
            raise BadRequest(414, "the target is too long")
        if _FIELDS.fullmatch(head, line.end()) is None:
            raise BadRequest(400, "not a header")
        sink = _Sink()
        parser = httptools.HttpRequestParser(sink)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # nothing is upgraded to: the request is answered as it stands
        except httptools.HttpParserInvalidMethodError:
            raise BadRequest(501, "unknown method") from None
        except httptools.HttpParserError as exc:
            raise BadRequest(400, f"not a request: {exc}") from None
        if len(sink.headers) > self._options.header_count:
            raise BadRequest(431, "too many header lines")
        method, version = line[1].decode(), f"1.{chr(line[4][0])}"
        if method == "CONNECT":
            raise BadRequest(501, "not a proxy")
        if sink.target == b"*" and method == "OPTIONS":
            sink.target = b"/"
        request = Request(method, sink.target, version, sink.headers, head)
        _frame(request, self._options)
        return request


def _frame(request: Request, options: Options) -> None:
    """How long the body is and whether the connection goes on."""
    hosts = request.all("host")
    if len(hosts) > 1 or (not hosts and request.version == "1.1"):
        raise BadRequest(400, "one Host is needed")
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        raise BadRequest(400, "not a host")
    lengths, codings = request.all("content-length"), request.all("transfer-encoding")
    if lengths and codings:
        raise BadRequest(400, "Content-Length and Transfer-Encoding")
    if codings:
        if request.version == "1.0":
            raise BadRequest(400, "Transfer-Encoding in HTTP/1.0")
        if len(codings) > 1 or codings[0].lower() != "chunked":
            raise BadRequest(400, "only the transfer coding chunked is known")
        request.chunked = True
    if lengths:
        if len(lengths) > 1:
            raise BadRequest(400, "more than one Content-Length")
        if not lengths[0].isascii() or not lengths[0].isdigit() or len(lengths[0]) > 18:
            raise BadRequest(400, "not a Content-Length")
        request.length = int(lengths[0])
        if request.length > options.body_limit:
            raise BadRequest(413, "the body is too long")
    said = {word.strip("\t ").lower() for word in request.header("connection").split(",")}
    request.keep_alive = "close" not in said and (request.version == "1.1" or "keep-alive" in said)
    expected = request.header("expect").lower()
    if expected and request.version == "1.1":
        if expected != "100-continue":
            raise BadRequest(417, "only 100-continue can be expected")
        request.continues = request.chunked or request.length > 0


class SizedBody:
    """A body of a known length."""

    def __init__(self, length: int) -> None:
        self._left = length
        self._parts: list[bytes] = []

    def feed(self, buffer: bytearray) -> bool:
        """Take what belongs to it from the front of the buffer; whether it is complete."""
        part = bytes(buffer[: self._left])
        del buffer[: self._left]
        self._left -= len(part)
        self._parts.append(part)
        return not self._left

    def value(self) -> bytes:
        """The whole."""
        return b"".join(self._parts)


class ChunkedBody:
    """A body in chunks; RFC 9112, 7.1."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._left = 0  # of the chunk, with the CR LF behind it
        self._overhead = 0  # bytes of size lines and trailers
        self._trailers = False

    def feed(self, buffer: bytearray) -> bool:
        """Take what belongs to it from the front of the buffer; whether it is complete."""
        while buffer:
            if self._left > 2:
                part = bytes(buffer[: self._left - 2])
                del buffer[: len(part)]
                self._left -= len(part)
                self._parts.append(part)
            elif self._left:
                if not b"\r\n".startswith(buffer[:2]):
                    raise BadRequest(400, "a chunk is longer than it says")
                if len(buffer) < 2:
                    return False
                del buffer[:2]
                self._left = 0
            else:
                line = self._line(buffer)
                if line is None:
                    return False
                if self._trailers:
                    if not line:
                        return True
                    found = _TRAILER.fullmatch(line)
                    if found is None or found[1].lower() in _NO_TRAILERS:
                        raise BadRequest(400, "not a trailer")
                else:
                    self._chunk(line)
        return False

    def _line(self, buffer: bytearray) -> bytes | None:
        """The next line without its end; None if it is not complete."""
        end = buffer.find(b"\n", 0, _CHUNK_LINE)
        if end < 0:
            if len(buffer) >= _CHUNK_LINE:
                raise BadRequest(400, "a line of a chunked body is too long")
            return None
        if end == 0 or buffer[end - 1] != 13:
            raise BadRequest(400, "lines have to end with CR LF")
        line = bytes(buffer[: end - 1])
        del buffer[: end + 1]
        self._overhead += end + 1
        # many chunks of a byte each are work without content
        if self._overhead > 4096 + 2 * self._limit:
            raise BadRequest(413, "the body is mostly chunk sizes")
        return line

    def _chunk(self, line: bytes) -> None:
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise BadRequest(400, "not a chunk size")
        size = int(found[1], 16)
        self._size += size
        if self._size > self._limit:
            raise BadRequest(413, "the body is too long")
        if size:
            self._left = size + 2
        else:
            self._trailers = True

    def value(self) -> bytes:
        """The whole."""
        return b"".join(self._parts)
