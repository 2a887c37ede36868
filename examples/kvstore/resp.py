"""Requests out of bytes, replies into bytes: the wire format of RESP2, and nothing else.

A request is an array of bulk strings (`*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\n`) or a line of
words ("inline", for people with telnet).  `parse()` takes all whole requests of what was received
at once:

* The fast way splits everything at the line ends, in C, and then only checks that each length
  says what the split found.  It fits whenever no value contains a line end.
* The exact way goes by the lengths.  It begins where the fast one stopped, and reports what is
  wrong.

A request that comes in many pieces is kept as the arguments that have come (`Partial`), so that
nothing is looked at twice.  Lengths are checked before anything is kept for them: a client that
announces a gigabyte costs nothing.
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

    #: The requests before them.
    done: list[list[bytes]]


class Limits:
    """What a client may send: bytes of a value (and key), and arguments of a command."""

    __slots__ = ("arguments", "bulk", "request")

    def __init__(
        self, bulk: int = 64 << 20, arguments: int = 65536, request: int = 256 << 20
    ) -> None:
        self.bulk = bulk
        self.arguments = arguments
        self.request = request


class Partial:
    """A request of which some arguments have come."""

    __slots__ = ("args", "left", "size")

    def __init__(self, left: int) -> None:
        self.args: list[bytes] = []
        #: How many arguments are to come.
        self.left = left
        #: Bytes of those that came.
        self.size = 0


def parse(
    data: bytes, limits: Limits, partial: Partial | None = None
) -> tuple[list[list[bytes]], int, int, Partial | None]:
    """All whole requests, how many bytes were used, and what is missing of the next one.

    The bytes that were not used are to be given again, with the partial request that was
    returned, when there are at least as many as the third value says.  Raises ProtocolError at what
    is no request; the requests before it are in the exception's `done`.
    """
    requests: list[list[bytes]] = []
    at = 0 if partial is not None else _fast(data, limits, requests)
    try:
        while at < len(data):
            if partial is None:
                if data[at] != 42:  # *
                    end = _line_end(data, at, b"\n", _LINE_MAX, "too big inline request")
                    if end < 0:
                        return requests, at, len(data) - at + 1, None
                    if words := _words(data[at:end].rstrip(b"\r")):
                        requests.append(words)
                    at = end + 1
                    continue
                end = _line_end(data, at, b"\r\n", 32, "invalid multibulk length")
                if end < 0:
                    return requests, at, len(data) - at + 1, None
                n = _number(data[at + 1 : end], "multibulk")
                if n > limits.arguments:
                    raise ProtocolError(
                        f"invalid multibulk length: at most {limits.arguments} arguments"
                    )
                at = end + 2
                if n <= 0:
                    continue
                partial = Partial(n)
            at, need = _arguments(data, at, limits, partial)
            if need:
                return requests, at, need, partial
            requests.append(partial.args)
            partial = None
    except ProtocolError as exc:
        exc.done = requests
        raise
    return requests, at, 1 if partial is not None else 0, partial


def _fast(data: bytes, limits: Limits, requests: list[list[bytes]]) -> int:
    """Take requests the fast way; where the first one begins that it cannot take."""
    if len(data) > 1024 and data.count(b"\r\n", 0, 512) < 8:
        return 0  # long values, which the exact way does not search
    parts = data.split(b"\r\n")
    last = len(parts) - 1
    i = 0
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
    if i == last and not parts[last]:
        return len(data)
    return sum([len(part) for part in parts[:i]]) + 2 * i


def _arguments(data: bytes, at: int, limits: Limits, partial: Partial) -> tuple[int, int]:
    """Take arguments; where they end, and how many bytes the next one needs (0: all are there)."""
    size = len(data)
    while partial.left:
        if at >= size:
            return at, 1
        if data[at] != 36:  # $
            raise ProtocolError(f"expected '$', got {chr(data[at])!r}")
        line = _line_end(data, at, b"\r\n", 32, "invalid bulk length")
        if line < 0:
            return at, size - at + 1
        length = _number(data[at + 1 : line], "bulk")
        if length < 0 or length > limits.bulk:
            raise ProtocolError(f"invalid bulk length: at most {limits.bulk} bytes")
        if partial.size + length > limits.request:
            raise ProtocolError(f"request too large: at most {limits.request} bytes")
        end = line + 2 + length
        if end + 2 > size:
            return at, end + 2 - at
        if data[end : end + 2] != b"\r\n":
            raise ProtocolError("a bulk string has another length than announced")
        partial.args.append(data[line + 2 : end])
        partial.left -= 1
        partial.size += length + 40  # and what an object costs
        at = end + 2
    return at, 0


def _line_end(data: bytes, at: int, mark: bytes, most: int, what: str) -> int:
    """Where a line ends, or -1 if that has not come."""
    end = data.find(mark, at, at + most)
    if end < 0 and len(data) - at >= most:
        raise ProtocolError(what)
    return end


def _number(text: bytes, what: str) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 10:
        raise ProtocolError(f"invalid {what} length")
    return int(text)


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
