"""The commands: one function each, from the arguments to the reply.

`COMMANDS` maps a name to (function, fewest arguments, most arguments or -1, what it touches), the
name counting as an argument.  What it touches says which replies wait for the disk, see
server.py:

* `NOTHING`: no data.  `KEY`: reads the key that is its first argument.  `DATA`: reads more than
  that.
* `WRITE`: may change data; refused while the log cannot be written.  `GROWS`: a write that needs
  memory.

A function gets the session and the request and must not wait.  What is wrong with a request is
raised as `CommandError` before anything was changed.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from kvstore.resp import EMPTY, NIL, OK, array, bulk, error, integer
from kvstore.store import now_ms

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.server import Session

__all__ = ["COMMANDS", "DATA", "GROWS", "KEY", "NOTHING", "WRITE", "CommandError", "pattern"]

NOTHING, KEY, DATA, WRITE, GROWS = range(5)

_INT_MAX = 2**63 - 1
_SYNTAX = "ERR syntax error"
_NO_INT = "ERR value is not an integer or out of range"

Request = list[bytes]
Function = "Callable[[Session, Request], bytes]"

COMMANDS: dict[bytes, tuple[Callable[[Session, Request], bytes], int, int, int]] = {}


class CommandError(Exception):
    """The text of an error reply."""


def command(
    names: str, least: int, most: int, touches: int = NOTHING
) -> Callable[[Callable[[Session, Request], bytes]], Callable[[Session, Request], bytes]]:
    """Enter a function under its names."""

    def enter(function: Callable[[Session, Request], bytes]) -> Callable[[Session, Request], bytes]:
        for name in names.split():
            COMMANDS[name.encode()] = (function, least, most, touches)
        return function

    return enter


def _int(text: bytes, message: str = _NO_INT) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 19 or (len(digits) > 1 and digits[:1] == b"0"):
        raise CommandError(message)
    n = int(text)
    if not -_INT_MAX - 1 <= n <= _INT_MAX:
        raise CommandError(message)
    return n


def _when(text: bytes, unit: int, relative: bool, name: str) -> int:
    n = _int(text)
    at = n * unit + (now_ms() if relative else 0)
    if n <= 0 or at > _INT_MAX:
        raise CommandError(f"ERR invalid expire time in '{name}' command")
    return at


def pattern(glob: bytes) -> re.Pattern[bytes]:
    """A glob of Redis's: * ? [abc] [^a-z] and backslash."""
    out = bytearray()
    i, n = 0, len(glob)
    while i < n:
        c = glob[i : i + 1]
        if c == b"*":
            if out[-3:] != b".*?":
                out += b".*?"
        elif c == b"?":
            out += b"."
        elif c == b"[" and (end := glob.find(b"]", i + 2)) > 0:
            inside = glob[i + 1 : end]
            out += b"["
            if inside[:1] == b"^":
                out += b"^"
                inside = inside[1:]
            out += re.sub(rb"([\\\[\]&~|^])", rb"\\\1", inside) + b"]"
            i = end
        elif c == b"\\" and i + 1 < n:
            i += 1
            out += re.escape(glob[i : i + 1])
        else:
            out += re.escape(c)
        i += 1
    try:
        return re.compile(bytes(out), re.DOTALL)
    except re.error:
        raise CommandError("ERR invalid pattern") from None


# -- strings


@command("GET", 2, 2, KEY)
def _get(session: Session, args: Request) -> bytes:
    return bulk(session.store.get(args[1]))


@command("SET", 3, -1, GROWS)
def _set(session: Session, args: Request) -> bytes:
    store = session.store
    if len(args) == 3:
        store.put(args[1], args[2])
        return OK
    key, value = args[1], args[2]
    expires, condition, give, keep = 0, b"", False, False
    i = 3
    while i < len(args):
        word = args[i].upper()
        if word in (b"NX", b"XX") and not condition:
            condition = word
        elif word == b"GET":
            give = True
        elif word == b"KEEPTTL" and not expires:
            keep = True
        elif word in _TIMES and not expires and not keep and i + 1 < len(args):
            i += 1
            expires = _when(args[i], *_TIMES[word], "set")
        else:
            raise CommandError(_SYNTAX)
        i += 1
    old = store.get(key)
    if (condition == b"NX" and old is not None) or (condition == b"XX" and old is None):
        return bulk(old) if give else NIL
    store.put(key, value, store.expiry(key) if keep and old is not None else expires)
    return bulk(old) if give else OK


_TIMES = {b"EX": (1000, True), b"PX": (1, True), b"EXAT": (1000, False), b"PXAT": (1, False)}


@command("SETNX", 3, 3, GROWS)
def _setnx(session: Session, args: Request) -> bytes:
    if session.store.get(args[1]) is not None:
        return integer(0)
    session.store.put(args[1], args[2])
    return integer(1)


@command("SETEX", 4, 4, GROWS)
def _setex(session: Session, args: Request) -> bytes:
    session.store.put(args[1], args[3], _when(args[2], 1000, True, "setex"))
    return OK


@command("PSETEX", 4, 4, GROWS)
def _psetex(session: Session, args: Request) -> bytes:
    session.store.put(args[1], args[3], _when(args[2], 1, True, "psetex"))
    return OK


@command("GETSET", 3, 3, GROWS)
def _getset(session: Session, args: Request) -> bytes:
    old = session.store.get(args[1])
    session.store.put(args[1], args[2])
    return bulk(old)


@command("GETDEL", 2, 2, WRITE)
def _getdel(session: Session, args: Request) -> bytes:
    old = session.store.get(args[1])
    session.store.delete(args[1])
    return bulk(old)


@command("MGET", 2, -1, DATA)
def _mget(session: Session, args: Request) -> bytes:
    return array([bulk(session.store.get(key)) for key in args[1:]])


@command("MSET", 3, -1, GROWS)
def _mset(session: Session, args: Request) -> bytes:
    if len(args) % 2 == 0:
        raise CommandError("ERR wrong number of arguments for 'mset' command")
    for i in range(1, len(args), 2):
        session.store.put(args[i], args[i + 1])
    return OK


@command("STRLEN", 2, 2, KEY)
def _strlen(session: Session, args: Request) -> bytes:
    return integer(len(session.store.get(args[1]) or b""))


@command("APPEND", 3, 3, GROWS)
def _append(session: Session, args: Request) -> bytes:
    old = session.store.get(args[1])
    if old is not None and len(old) + len(args[2]) > session.server.limits.bulk:
        raise CommandError("ERR string exceeds maximum allowed size (--max-value)")
    return integer(session.store.append(args[1], args[2]))


def _add(session: Session, key: bytes, n: int) -> bytes:
    store = session.store
    old = store.get(key)
    value = n if old is None else _int(old) + n
    if not -_INT_MAX - 1 <= value <= _INT_MAX:
        raise CommandError("ERR increment or decrement would overflow")
    store.put(key, b"%d" % value, store.expiry(key) if old is not None else 0)
    return integer(value)


@command("INCR", 2, 2, GROWS)
def _incr(session: Session, args: Request) -> bytes:
    return _add(session, args[1], 1)


@command("DECR", 2, 2, GROWS)
def _decr(session: Session, args: Request) -> bytes:
    return _add(session, args[1], -1)


@command("INCRBY", 3, 3, GROWS)
def _incrby(session: Session, args: Request) -> bytes:
    return _add(session, args[1], _int(args[2]))


@command("DECRBY", 3, 3, GROWS)
def _decrby(session: Session, args: Request) -> bytes:
    return _add(session, args[1], -_int(args[2]))


# -- keys


@command("DEL UNLINK", 2, -1, WRITE)
def _del(session: Session, args: Request) -> bytes:
    return integer(sum([session.store.delete(key) for key in args[1:]]))


@command("EXISTS TOUCH", 2, -1, DATA)
def _exists(session: Session, args: Request) -> bytes:
    return integer(sum([session.store.get(key) is not None for key in args[1:]]))


@command("TYPE", 2, 2, KEY)
def _type(session: Session, args: Request) -> bytes:
    return b"+none\r\n" if session.store.get(args[1]) is None else b"+string\r\n"


def _expire_at(session: Session, args: Request, unit: int, relative: bool) -> bytes:
    n = _int(args[2])
    at = n * unit + (now_ms() if relative else 0)
    if not -_INT_MAX <= at <= _INT_MAX:
        name = args[0].decode("ascii", "replace").lower()
        raise CommandError(f"ERR invalid expire time in '{name}' command")
    store, key = session.store, args[1]
    flags = {word.upper() for word in args[3:]}
    if flags - {b"NX", b"XX", b"GT", b"LT"}:
        raise CommandError(f"ERR Unsupported option {sorted(flags)[0].decode('ascii', 'replace')}")
    if (b"NX" in flags and len(flags) > 1) or {b"GT", b"LT"} <= flags:
        raise CommandError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if store.get(key) is None:
        return integer(0)
    now = store.expiry(key)
    if (
        (b"NX" in flags and now)
        or (b"XX" in flags and not now)
        or (b"GT" in flags and (not now or at <= now))
        or (b"LT" in flags and now and at >= now)
    ):
        return integer(0)
    if at <= now_ms():
        store.delete(key)
    else:
        store.expire(key, at)
    return integer(1)


@command("EXPIRE", 3, -1, WRITE)
def _expire(session: Session, args: Request) -> bytes:
    return _expire_at(session, args, 1000, True)


@command("PEXPIRE", 3, -1, WRITE)
def _pexpire(session: Session, args: Request) -> bytes:
    return _expire_at(session, args, 1, True)


@command("EXPIREAT", 3, -1, WRITE)
def _expireat(session: Session, args: Request) -> bytes:
    return _expire_at(session, args, 1000, False)


@command("PEXPIREAT", 3, -1, WRITE)
def _pexpireat(session: Session, args: Request) -> bytes:
    return _expire_at(session, args, 1, False)


def _left(session: Session, key: bytes) -> int:
    if session.store.get(key) is None:
        return -2
    expires = session.store.expiry(key)
    return max(0, expires - now_ms()) if expires else -1


@command("TTL", 2, 2, KEY)
def _ttl(session: Session, args: Request) -> bytes:
    left = _left(session, args[1])
    return integer(left if left < 0 else (left + 500) // 1000)


@command("PTTL", 2, 2, KEY)
def _pttl(session: Session, args: Request) -> bytes:
    return integer(_left(session, args[1]))


@command("PERSIST", 2, 2, WRITE)
def _persist(session: Session, args: Request) -> bytes:
    store, key = session.store, args[1]
    if store.get(key) is None or not store.expiry(key):
        return integer(0)
    store.expire(key, 0)
    return integer(1)


@command("KEYS", 2, 2, DATA)
def _keys(session: Session, args: Request) -> bytes:
    matches = pattern(args[1]).fullmatch
    return array([bulk(key) for key in session.store.all_keys() if matches(key)])


@command("SCAN", 2, -1, DATA)
def _scan(session: Session, args: Request) -> bytes:
    """A scan goes through the keys that were there when it began, so that none is left out."""
    cursor, count, matches, strings = _int(args[1], "ERR invalid cursor"), 10, None, True
    for i in range(2, len(args), 2):
        word = args[i].upper()
        if i + 1 == len(args):
            raise CommandError(_SYNTAX)
        if word == b"COUNT":
            count = _int(args[i + 1])
            if count < 1:
                raise CommandError(_SYNTAX)
        elif word == b"MATCH":
            matches = pattern(args[i + 1]).fullmatch
        elif word == b"TYPE":
            strings = args[i + 1].lower() == b"string"
        else:
            raise CommandError(_SYNTAX)
    keys = session.scan_from(cursor)
    if keys is None:
        raise CommandError(
            "ERR this cursor is not known: a scan goes on in the connection in which it began, "
            "and a connection remembers its last 8"
        )
    found, rest = keys[-count:], keys[:-count]
    cursor = session.scan_on(cursor, rest)
    get = session.store.get
    there = [
        bulk(key)
        for key in found
        if strings and get(key) is not None and (matches is None or matches(key))
    ]
    return array([bulk(b"%d" % cursor), array(there)])


@command("DBSIZE", 1, 1, DATA)
def _dbsize(session: Session, args: Request) -> bytes:
    session.store.sweep(1 << 60)
    return integer(len(session.store.data))


@command("FLUSHALL FLUSHDB", 1, 2, WRITE)
def _flush(session: Session, args: Request) -> bytes:
    if len(args) == 2 and args[1].upper() not in (b"SYNC", b"ASYNC"):
        raise CommandError(_SYNTAX)
    session.store.flush()
    return OK


# -- connections


@command("PING", 1, 2)
def _ping(session: Session, args: Request) -> bytes:
    return b"+PONG\r\n" if len(args) == 1 else bulk(args[1])


@command("ECHO", 2, 2)
def _echo(session: Session, args: Request) -> bytes:
    return bulk(args[1])


@command("SELECT", 2, 2)
def _select(session: Session, args: Request) -> bytes:
    if _int(args[1]) != 0:
        raise CommandError("ERR DB index is out of range: there is one database, 0")
    return OK


@command("QUIT", 1, 1)
def _quit(session: Session, args: Request) -> bytes:
    session.ending = True
    return OK


@command("HELLO", 1, -1)
def _hello(session: Session, args: Request) -> bytes:
    if len(args) > 1 and args[1] != b"2":
        raise CommandError("NOPROTO this server speaks RESP2 only")
    if len(args) > 2 and not (len(args) == 4 and args[2].upper() == b"SETNAME"):
        raise CommandError(_SYNTAX)
    if len(args) == 4:
        session.name = args[3]
    facts: list[bytes | int] = [
        b"server",
        b"aiounify-kvstore",
        b"version",
        b"7.0.0",
        b"proto",
        2,
        b"id",
        session.id,
    ]
    facts += [b"mode", b"standalone", b"role", b"master", b"modules"]
    replies = [integer(f) if isinstance(f, int) else bulk(f) for f in facts]
    return array([*replies, EMPTY])


@command("CLIENT", 2, -1)
def _client(session: Session, args: Request) -> bytes:
    word = args[1].upper()
    if word == b"ID":
        return integer(session.id)
    if word == b"GETNAME":
        return bulk(session.name or None)
    if word == b"SETNAME" and len(args) == 3:
        if any(c <= 32 or c > 126 for c in args[2]):
            raise CommandError(
                "ERR Client names cannot contain spaces, newlines or special characters."
            )
        session.name = args[2]
        return OK
    if word in (b"SETINFO", b"NO-EVICT", b"NO-TOUCH"):
        return OK
    if word in (b"LIST", b"INFO"):
        which = session.server.sessions if word == b"LIST" else [session]
        return bulk(b"".join(other.describe() for other in which))
    raise CommandError("ERR unknown CLIENT subcommand, or its arguments are wrong")


@command("COMMAND", 1, -1)
def _command(session: Session, args: Request) -> bytes:
    if len(args) > 1 and args[1].upper() == b"COUNT":
        return integer(len(COMMANDS))
    if len(args) > 1:
        return EMPTY  # DOCS and the like: nothing is said about them
    replies = []
    for name, (_, least, most, touches) in COMMANDS.items():
        flags = [b"+write\r\n" if touches >= WRITE else b"+readonly\r\n"] if touches else []
        flags.append(b"+fast\r\n")
        arity = least if most == least else -least
        key = integer(1 if touches in (KEY, WRITE, GROWS) else 0)
        replies.append(array([bulk(name.lower()), integer(arity), array(flags), key, key, key]))
    return array(replies)


# -- the server


@command("CONFIG", 2, -1)
def _config(session: Session, args: Request) -> bytes:
    word = args[1].upper()
    if word == b"GET" and len(args) > 2:
        wanted = [pattern(arg.lower()) for arg in args[2:]]
        pairs = session.server.settings().items()
        found = [x for pair in pairs if any(p.fullmatch(pair[0]) for p in wanted) for x in pair]
        return array([bulk(text) for text in found])
    if word == b"RESETSTAT":
        return OK
    if word == b"SET":
        raise CommandError("ERR options are given on the command line, see --help")
    raise CommandError("ERR unknown CONFIG subcommand, or its arguments are wrong")


@command("INFO", 1, -1)
def _info(session: Session, args: Request) -> bytes:
    return bulk(session.server.info().encode())


@command("TIME", 1, 1)
def _time(session: Session, args: Request) -> bytes:
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return array([bulk(b"%d" % seconds), bulk(b"%d" % (rest // 1000))])


@command("BGREWRITEAOF", 1, 1)
def _bgrewriteaof(session: Session, args: Request) -> bytes:
    if not session.server.committer.rewrite():
        raise CommandError("ERR Background append only file rewriting already in progress")
    return b"+Background append only file rewriting started\r\n"


@command("SHUTDOWN", 1, 2)
def _shutdown(session: Session, args: Request) -> bytes:
    if len(args) == 2 and args[1].upper() not in (b"SAVE", b"NOSAVE"):
        raise CommandError(_SYNTAX)
    session.ending = True
    session.server.stop()
    return b""


def unknown(args: Request) -> bytes:
    """The reply to a command that there is not."""
    name = args[0][:64].decode("utf-8", "replace")
    return error(f"ERR unknown command '{name}'")
