"""Answers: what is sent for a request, ready to be written.

An answer knows the bytes before and behind the Date, and either a body in memory or a piece of a
descriptor.  Those that may be given again without looking at the request a second time carry
what they rest on (`basis`): objects whose `valid` says whether the answer is still the truth.

Ownership: an answer does not keep a descriptor open.  Who sends it acquires `held` before anything
is awaited, and releases it afterwards.
"""

from __future__ import annotations

import html
import http
import os
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

__all__ = ["Answer", "Held", "Ready", "empty", "error", "page", "redirect"]

_REASONS = {status.value: status.phrase for status in http.HTTPStatus}
SERVER = "aiounify"


class Held(Protocol):
    """A cached file or page: it can become untrue, and it can be kept open."""

    #: the changes tell when it becomes untrue; else `valid` has to find out
    watched: bool

    @property
    def valid(self) -> bool:
        """Whether it is still the truth, as of the last look at the changes."""

    def acquire(self) -> Any:
        """Keep its descriptor open."""

    def release(self) -> None:
        """Let go of the descriptor."""


class Answer:
    """A status, headers, and one of: a body in memory, pieces of a descriptor, a stream."""

    __slots__ = (
        "absent",
        "basis",
        "body",
        "close",
        "fd",
        "head",
        "held",
        "lasting",
        "length",
        "pieces",
        "ready",
        "status",
        "stream",
        "tail",
        "warm_until",
    )

    def __init__(
        self,
        status: int,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        length: int | None = None,
        basis: tuple[Held, ...] = (),
        absent: tuple[str, ...] = (),
    ) -> None:
        self.status = status
        self.body = body
        self.close = False
        self.basis = basis
        #: names that were not there, so that another one was taken
        self.absent = absent
        #: may be given again while it is true
        self.lasting = bool(basis)
        #: by (with body, value of Connection): see Ready
        self.ready: dict[tuple[bool, str], Ready] = {}
        self.fd = -1
        self.held: Held | None = None
        #: what follows the body: bytes, or begin and end in the descriptor
        self.pieces: list[bytes | tuple[int, int]] = []
        #: the time, of the server's clock, until which its file is taken to be in memory
        self.warm_until = 0.0
        self.stream: AsyncGenerator[bytes, None] | None = None
        self.length = len(body) if length is None else length  # of the whole body; -1: not known
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", f"Server: {SERVER}"]
        self.head = "\r\n".join([*lines, "Date: "]).encode("latin-1")
        more = "".join(f"\r\n{name}: {value}" for name, value in headers)
        if self.length >= 0 and status not in (204, 304):
            more += f"\r\nContent-Length: {self.length}"
        self.tail = more.encode("latin-1")

    def from_file(self, held: Held, fd: int, pieces: list[bytes | tuple[int, int]]) -> Answer:
        """Let pieces of a descriptor be the body."""
        self.held, self.fd, self.pieces = held, fd, pieces
        return self

    def rest(self, body: bool, connection: str) -> bytes:
        """What follows the date: the other headers, and the body if it is in memory."""
        extra = b"\r\nConnection: " + connection.encode() if connection else b""
        return b"".join((self.tail, extra, b"\r\n\r\n", self.body if body else b""))

    @property
    def watched(self) -> bool:
        """Whether it is valid for as long as nothing changes; else it has to be asked."""
        return all(held.watched for held in self.basis)

    @property
    def valid(self) -> bool:
        """Whether all that it rests on still is what it was; looks at names that were absent."""
        for held in self.basis:
            if not held.valid:
                return False
        return not any(map(os.path.lexists, self.absent))


class Ready:
    """The bytes of an answer, made anew when the date is another one."""

    __slots__ = ("answer", "check", "date", "generation", "rest", "whole")

    def __init__(self, answer: Answer, body: bool, connection: str) -> None:
        self.answer = answer
        #: the generation of the changes at which it was known to be true
        self.generation = -1
        #: asked even if nothing changed: what expires, or cannot be watched
        self.check: Answer | None = None
        self.date = b""
        self.rest = answer.rest(body, connection)
        self.whole = b""

    def at(self, date: bytes) -> bytes:
        """Header and body."""
        if self.date is not date:
            self.date = date
            self.whole = self.answer.head + date + self.rest
        return self.whole


# -- those that have nothing behind them ---------------------------------------------


def page(status: int, title: str, text: str, headers: Iterable[tuple[str, str]] = ()) -> Answer:
    """A small HTML page."""
    title = html.escape(title)
    body = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        f"<h1>{title}</h1>\n<p>{html.escape(text)}</p>\n</html>\n"
    )
    kind = ("Content-Type", "text/html; charset=utf-8")
    return Answer(status, [kind, *headers], body.encode("utf-8", "replace"))


def error(status: int, why: str, headers: Iterable[tuple[str, str]] = ()) -> Answer:
    """An error, as a page; it is not to be kept by caches."""
    title = f"{status} {_REASONS.get(status, 'Unknown')}"
    return page(
        status, title, why[:1].upper() + why[1:] + ".", [("Cache-Control", "no-store"), *headers]
    )


def redirect(location: str) -> Answer:
    """It is somewhere else, for good; the location has no characters that need quoting."""
    return page(301, "301 Moved Permanently", f"See {location}.", [("Location", location)])


def empty(status: int, headers: Iterable[tuple[str, str]] = ()) -> Answer:
    """No body at all."""
    return Answer(status, headers)
