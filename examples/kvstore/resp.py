"""Requests out of bytes, replies into bytes: the wire format of RESP2, and nothing else.

A request is an array of bulk strings (`*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\n`) or a line of
words ("inline", for people with telnet).  `parse()` takes all whole requests of what was received
at once:

* The fast way splits everything at the line ends, in C, and then only checks that each length
  says what the split found.  It fits whenever no value contains a line end.
* The exact way goes by the lengths.  It begins where the fast one stopped, and reports what is
  wrong.

Lengths are checked before anything is kept for them: a client that announces a gigabyte costs
nothing.
"""

from __future__ import annotations

__all__ = [
    "EMPTY",
    "NIL",
    "OK",
    "Limits",
    "ProtocolError",
    "array",
    "bulk",
    "error",
    "integer",
    "parse",
]

OK = b"+OK\r\n"
NIL = b"$-1\r\n"
EMPTY = b"*0\r\n"

# heads of the usual requests and of short values, for comparison without a conversion
_COUNTS = {b"*%d" % n: n for n in range(1, 65)}
_LENGTHS = [b"$%d" % n for n in range(4096)]
_LINE_MAX = 65536


class ProtocolError(Exception):
    """The bytes are no request; the connection cannot go on."""


class Limits:
    """What a client may send: bytes of a value (and key), and arguments of a command."""

    __slots__ = ("arguments", "bulk", "request")

    def __init__(
        self, bulk: int = 64 << 20, arguments: int = 65536, request: int = 256 << 20
    ) -> None:
        self.bulk = bulk
        self.arguments = arguments
        self.request = request


def parse(data: bytes, limits: Limits) -> tuple[list[list[bytes]], int, int]:
    """All whole requests, how many bytes they took, and how many the next one needs at least.

    Raises ProtocolError at what is no request; requests before it are in the exception's `done`.
    """
    requests: list[list[bytes]] = []
    parts = data.split(b"\r\n")
    last = len(parts) - 1
    i = at = 0
    longest = min(len(_LENGTHS), limits.bulk + 1)
    most = limits.arguments
    while i < last:
        n = _COUNTS.get(parts[i])
        if n is None or n > most:
            break
        end = i + 2 * n + 1
        if end > last:
            break
        args = parts[i + 2 : end : 2]
        k = i + 1
        for arg in args:
            size = len(arg)
            if size >= longest or parts[k] != _LENGTHS[size]:
                break
            k += 2
        else:
            requests.append(args)
            i = end
            continue
        break
    if i >= last and not parts[last]:
        return requests, len(data), 0
    for part in parts[:i]:
        at += len(part) + 2
    need = 0
    while at < len(data):
        try:
            args_end = _exact(data, at, limits)
        except ProtocolError as exc:
            exc.done = requests  # type: ignore[attr-defined]
            raise
        if isinstance(args_end, int):
            need = args_end
            break
        args, at = args_end
        if args:
            requests.append(args)
    return requests, at, need


def _exact(data: bytes, at: int, limits: Limits) -> tuple[list[bytes], int] | int:
    """One request from an offset and where it ends, or how many bytes it needs at least."""
    start = at
    if data[at] != 42:  # *
        return _inline(data, at)
    line = data.find(b"\r\n", at, at + 32)
    if line < 0:
        if len(data) - at >= 32:
            raise ProtocolError("invalid multibulk length")
        return len(data) - start + 1
    n = _number(data[at + 1 : line], "multibulk")
    if n > limits.arguments:
        raise ProtocolError(f"invalid multibulk length: at most {limits.arguments} arguments")
    at = line + 2
    args: list[bytes] = []
    for _ in range(n):
        if at >= len(data):
            return at - start + 4
        if data[at] != 36:  # $
            raise ProtocolError(f"expected '$', got {chr(data[at])!r}")
        line = data.find(b"\r\n", at, at + 32)
        if line < 0:
            if len(data) - at >= 32:
                raise ProtocolError("invalid bulk length")
            return len(data) - start + 1
        size = _number(data[at + 1 : line], "bulk")
        if size < 0 or size > limits.bulk:
            raise ProtocolError(f"invalid bulk length: at most {limits.bulk} bytes")
        at = line + 2
        end = at + size
        if end - start > limits.request:
            raise ProtocolError(f"request too large: at most {limits.request} bytes")
        if end + 2 > len(data):
            return end + 2 - start
        if data[end : end + 2] != b"\r\n":
            raise ProtocolError("a bulk string has another length than announced")
        args.append(data[at:end])
        at = end + 2
    return args, at


def _number(text: bytes, what: str) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 10:
        raise ProtocolError(f"invalid {what} length")
    return int(text)


def _inline(data: bytes, at: int) -> tuple[list[bytes], int] | int:
    end = data.find(b"\n", at, at + _LINE_MAX)
    if end < 0:
        if len(data) - at >= _LINE_MAX:
            raise ProtocolError("too big inline request")
        return len(data) - at + 1
    return _words(data[at:end].rstrip(b"\r")), end + 1


def _words(line: bytes) -> list[bytes]:
    """Words of a line; in double quotes with \\n \\r \\t \\xNN, in single quotes as they are."""
    words: list[bytes] = []
    i, n = 0, len(line)
    while i < n:
        if line[i : i + 1].isspace():
            i += 1
            continue
        word = bytearray()
        quote = 0
        while i < n:
            c = line[i]
            if quote:
                if c == 92 and quote == 34 and i + 1 < n:
                    escape = line[i + 1 : i + 2]
                    code = line[i + 2 : i + 4]
                    if escape == b"x" and len(code) == 2 and _is_hex(code):
                        word.append(int(code, 16))
                        i += 4
                    else:
                        word += {b"n": b"\n", b"r": b"\r", b"t": b"\t"}.get(escape, escape)
                        i += 2
                    continue
                if c == 92 and quote == 39 and line[i + 1 : i + 2] == b"'":
                    word.append(39)
                    i += 2
                    continue
                if c == quote:
                    quote = 0
                    i += 1
                    if i < n and not line[i : i + 1].isspace():
                        raise ProtocolError("unbalanced quotes in request")
                    break
                word.append(c)
            elif c in (34, 39) and not word:
                quote = c
            elif line[i : i + 1].isspace():
                break
            else:
                word.append(c)
            i += 1
        if quote:
            raise ProtocolError("unbalanced quotes in request")
        words.append(bytes(word))
    return words


def _is_hex(code: bytes) -> bool:
    return all(c in b"0123456789abcdefABCDEF" for c in code)


def bulk(value: bytes | None) -> bytes:
    """A value, or none."""
    return NIL if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def integer(n: int) -> bytes:
    """A number."""
    return b":%d\r\n" % n


def array(replies: list[bytes]) -> bytes:
    """Replies that are encoded already, as one."""
    return b"*%d\r\n" % len(replies) + b"".join(replies)


def error(text: str) -> bytes:
    """An error; its first word is its kind (ERR, WRONGTYPE ...)."""
    return b"-%b\r\n" % text.replace("\r", " ").replace("\n", " ").encode("utf-8", "replace")
