"""Conditional requests and ranges: RFC 9110, 13 and 14, as functions of what was asked and what is.

A strong ETag is made of nanosecond mtime, size and inode, so that a file that was written twice in
one second, or replaced by one of the same size, is another one.  The date of Last-Modified is good
to a second only and therefore weak: If-Range is compared with it only if the file is older than
that second.
"""

from __future__ import annotations

import itertools
import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .request import Request

__all__ = ["RANGES_AT_MOST", "failed", "not_modified", "ranges"]

# More are a way to make a server do much work for a small request.
RANGES_AT_MOST = 16

_TAGS = re.compile(r'(?:W/)?"[^"]*"')
_RANGE = re.compile(r"(\d{0,18})-(\d{0,18})")


def _seconds(date: str) -> int | None:
    """A date of HTTP as seconds since 1970, or None if it is none."""
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _listed(tags: str, etag: str, *, weakly: bool) -> bool:
    if tags.strip() == "*":
        return True
    for tag in _TAGS.findall(tags):
        if tag == etag or (weakly and tag.removeprefix("W/") == etag.removeprefix("W/")):
            return weakly or not tag.startswith("W/")
    return False


def failed(request: Request, etag: str, modified: int | None) -> bool:
    """Whether If-Match or If-Unmodified-Since forbid to answer: status 412."""
    tags = request.header("if-match")
    if tags:
        return not _listed(tags, etag, weakly=False)
    date = request.header("if-unmodified-since")
    if date and modified is not None:
        since = _seconds(date)
        return since is not None and modified > since
    return False


def not_modified(request: Request, etag: str, modified: int | None) -> bool:
    """Whether the client has it already: status 304."""
    tags = request.header("if-none-match")
    if tags:
        return _listed(tags, etag, weakly=True)
    date = request.header("if-modified-since")
    if date and modified is not None:
        since = _seconds(date)
        return since is not None and modified <= since
    return False


def ranges(
    request: Request, size: int, etag: str, modified: int | None
) -> list[tuple[int, int]] | None:
    """The parts that are wanted, as begin and end; None for all of it; [] if none exists.

    What is not understood, too many parts and parts that overlap are as if nothing was asked.
    """
    asked = request.header("range")
    if not asked or request.method != "GET":
        return None
    condition = request.header("if-range")
    if condition and not _same(condition, etag, modified):
        return None
    unit, equals, listed = asked.partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    found: list[tuple[int, int]] = []
    specs = [spec.strip() for spec in listed.split(",")]
    specs = [spec for spec in specs if spec]
    if not specs or len(specs) > RANGES_AT_MOST:
        return None
    for spec in specs:
        match = _RANGE.fullmatch(spec)
        if match is None or spec == "-":
            return None
        first, last = match.groups()
        if not first:
            begin, end = max(0, size - int(last)), size
        else:
            begin, end = int(first), min(size, int(last) + 1) if last else size
            if last and int(last) < int(first):
                return None
        if begin < end:
            found.append((begin, end))
    in_order = sorted(found)
    if any(a[1] > b[0] for a, b in itertools.pairwise(in_order)):
        return None
    return found


def _same(condition: str, etag: str, modified: int | None) -> bool:
    if condition.startswith(('"', "W/")):
        return condition == etag and not etag.startswith("W/")
    return modified is not None and _seconds(condition) == modified
