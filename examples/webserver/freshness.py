"""For how long an answer of another server may be kept: RFC 9111, as functions of its headers.

The server is a shared cache: `private` answers are not kept, and s-maxage counts more than max-age.
An answer that says nothing is not guessed about; it is good for as long as the page says, or not
at all.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["lifetime", "storable"]

# RFC 9110, 15.1: those that may be kept without being told how long
_KEPT_UNASKED = frozenset((200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501))
_LONGEST = 2**31  # RFC 9111, 1.2.2


def _directives(headers: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in headers.get("cache-control", "").split(","):
        name, _, value = item.strip().partition("=")
        if name:
            found.setdefault(name.lower(), value.strip('" '))
    return found


def _number(text: str) -> float | None:
    return float(min(int(text), _LONGEST)) if text.isascii() and text.isdigit() else None


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def storable(status: int, headers: Mapping[str, str]) -> bool:
    """Whether it may be kept at all, be it to ask again with its ETag."""
    said = _directives(headers)
    return (
        status not in (206, 304)
        and status >= 200
        and "no-store" not in said
        and "private" not in said
        and headers.get("vary", "").strip() != "*"
    )


def lifetime(
    status: int, headers: Mapping[str, str], now: float, delay: float, ttl: float | None
) -> float:
    """Seconds for which it is good from `now` on (time.time()), 0 or less for none.

    `delay` is how long the answer took, `ttl` what holds if it does not say.
    """
    if not storable(status, headers):
        return 0.0
    said = _directives(headers)
    if "no-cache" in said or (
        "cache-control" not in headers and headers.get("pragma") == "no-cache"
    ):
        return 0.0
    date = _date(headers.get("date", ""))
    for name in ("s-maxage", "max-age"):
        if name in said:
            fresh = _number(said[name])
            if fresh is None:
                return 0.0  # RFC 9111, 4.2.1: what is not understood is stale
            break
    else:
        if "expires" in headers:
            end = _date(headers["expires"])
            if end is None:
                return 0.0  # "Expires: 0"
            fresh = end - (now if date is None else date)
        else:
            return ttl if ttl is not None and status in _KEPT_UNASKED else 0.0
    # RFC 9111, 4.2.3
    apparent = max(0.0, now - date) if date is not None else 0.0
    told = _number(headers.get("age", "0").strip()) or 0.0
    return fresh - max(apparent, told + delay)
