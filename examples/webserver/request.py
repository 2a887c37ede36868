"""One request as it was read: method, target, header, body.

The target is decoded once, here, and what could lead out of the directory that is served is refused
before anything looks at the file system: a part that is "." or "..", written out or encoded, and
NUL.  Whoever uses `path` may rely on that; links are another matter, see static.py.
"""

from __future__ import annotations

import os
from urllib.parse import parse_qsl, unquote_to_bytes

__all__ = ["BadRequest", "Request"]

_HEX = frozenset(b"0123456789abcdefABCDEF")


class BadRequest(Exception):  # noqa: N818 - it is an answer
    """What is answered with a status of 400 and above, and the end of the connection."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Request:
    """What one client asked for."""

    __slots__ = (
        "body",
        "chunked",
        "continues",
        "headers",
        "keep_alive",
        "length",
        "method",
        "path",
        "query",
        "raw",
        "target",
        "version",
    )

    def __init__(
        self, method: str, target: bytes, version: str, headers: list[tuple[str, str]], raw: bytes
    ) -> None:
        self.method = method
        self.target = target
        self.version = version  # "1.0" or "1.1"
        self.headers = headers  # names in lower case
        self.raw = raw  # the header as it came
        self.length = 0
        self.chunked = False
        self.continues = False  # waits for "100 Continue"
        self.keep_alive = True
        self.body = b""
        self.path, self.query = _split(target)

    def all(self, name: str) -> list[str]:
        """Every value of a header, in order."""
        return [value for key, value in self.headers if key == name]

    def header(self, name: str) -> str:
        """A header's values as one list, or "" if it is not there."""
        return ", ".join(self.all(name))

    def parameters(self) -> dict[str, str]:
        """The query, decoded; the last value of a name that is repeated."""
        return dict(parse_qsl(self.query, keep_blank_values=True, errors="surrogateescape"))


def _split(target: bytes) -> tuple[str, str]:
    """The path, decoded, and the query as it came."""
    if not target.startswith(b"/"):
        scheme, colon, rest = target.partition(b"://")
        if not colon or scheme.lower() not in (b"http", b"https"):
            raise BadRequest(400, "the target is neither a path nor an address")
        # a client that takes us for a proxy; RFC 9112, 3.2.2 has us accept it
        _, slash, rest = rest.partition(b"/")
        target = slash + rest or b"/"
    encoded, _, query = target.partition(b"?")
    if b"#" in target:
        raise BadRequest(400, "a fragment in the target")
    at = encoded.find(b"%")
    while at >= 0:
        if len(encoded) < at + 3 or not _HEX.issuperset(encoded[at + 1 : at + 3]):
            raise BadRequest(400, "a broken percent escape")
        at = encoded.find(b"%", at + 1)
    path = os.fsdecode(unquote_to_bytes(encoded))
    if "\0" in path or not {".", ".."}.isdisjoint(path.split("/")):
        raise BadRequest(400, "a path that leads elsewhere")
    return path, query.decode("latin-1")
