"""examples/kvstore: requests, commands and connections; the server is in the test's own loop."""

import asyncio
import contextlib
import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvstore.commands import pattern
from kvstore.resp import Limits, ProtocolError, parse
from kvstore_served import (
    ReplyError,
    encode,
    quiet,
    served,
    until,
    used_by,
)

# -- requests


@given(
    st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5), min_size=1, max_size=8),
    st.data(),
)
@settings(max_examples=100)
def test_requests_come_out_as_they_went_in_however_they_are_cut(requests, data):
    wire = b"".join(encode(*args) for args in requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=4)))
    found, rest, need, partial = [], b"", 0, None
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        rest += wire[start:end]
        if len(rest) < need:
            continue
        some, used, need, partial = parse(rest, Limits(), partial)
        found += some
        rest = rest[used:]
        assert need <= len(wire), "it may wait for no more than there is"
        assert need > len(rest) or (not rest and not partial), "it must wait for more than that"
    assert found == requests
    assert rest == b""
    assert partial is None


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_requests_or_an_error(data):
    with contextlib.suppress(ProtocolError):
        requests, used, need, partial = parse(data, Limits())
        assert used <= len(data)
        assert all(args for args in requests)
        assert need > len(data) - used or (used == len(data) and partial is None)


@pytest.mark.parametrize(
    ("wire", "what"),
    [
        (b"*2\r\n$3\r\nGET\r\n:1\r\n", "expected '\\$'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$99999999999\r\n", "invalid bulk length"),
        (b"*1\r\n$1001\r\n", "invalid bulk length"),
        (b"*1\r\n$ 3\r\nGET\r\n", "invalid bulk length"),
        (b"*1\r\n$+3\r\nGET\r\n", "invalid bulk length"),
        (b"*1_0\r\n", "invalid multibulk length"),
        (b"*11\r\n", "at most 10 arguments"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*" + b"1" * 40, "invalid multibulk length"),
        (b"*1\r\n$4\r\nPINGxx", "another length"),
        (b'GET "a\r\n', "unbalanced quotes"),
        (b"x" * 70000, "too big inline"),
        (b"*4\r\n" + 3 * (b"$900\r\n" + b"x" * 900 + b"\r\n"), "request too large"),
    ],
)
def test_what_is_no_request_is_refused(wire, what):
    limits = Limits(bulk=1000, arguments=10, request=2000)
    with pytest.raises(ProtocolError, match=what):
        parse(encode("PING") + wire, limits)
    try:
        parse(encode("PING") + wire, limits)
    except ProtocolError as exc:
        assert exc.done == [[b"PING"]]


def test_lines_of_words():
    wire = b"SET  key \"a b\\x41\\n\"\r\n\r\nGET 'it\\'s'\nPING\r\n*0\r\n"
    requests, used, *_ = parse(wire, Limits())
    assert requests == [[b"SET", b"key", b"a bA\n"], [b"GET", b"it's"], [b"PING"]]
    assert used == len(wire)


def test_an_announced_length_costs_nothing():
    requests, used, need, _ = parse(b"*1\r\n$60000000\r\nabc", Limits())
    assert (requests, used) == ([], 4)
    assert need == len(b"$60000000\r\n") + 60_000_002


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        (b"*", [b"", b"a\nb"], []),
        (b"h?llo", [b"hello"], [b"hllo", b"heello"]),
        (b"h[ae]llo", [b"hallo"], [b"hillo"]),
        (b"h[^e]llo", [b"hallo"], [b"hello"]),
        (b"[a-c]*", [b"b1"], [b"d"]),
        (b"\\*a", [b"*a"], [b"ba"]),
        (b"a.b", [b"a.b"], [b"axb"]),
        (b"[", [b"["], [b"a"]),
        (b"a**b", [b"ab", b"axyb"], [b"a"]),
    ],
)
def test_globs(glob, yes, no):
    found = pattern(glob)
    assert all(found.fullmatch(key) for key in yes)
    assert not any(found.fullmatch(key) for key in no)


# -- commands


async def test_strings(tmp_path):
    async with served(tmp_path) as (_, connect):
        r = await connect()
        assert await r("PING") == "PONG"
        assert await r("PING", "a b") == b"a b"
        assert await r("SET", "k", b"\r\n\0\xff") == "OK"
        assert await r("GET", "k") == b"\r\n\0\xff"
        assert await r("SET", "k", "2", "NX") is None
        assert await r("SET", "new", "2", "XX") is None
        assert await r("SET", "k", "3", "GET") == b"\r\n\0\xff"
        assert await r("GETSET", "k", "4") == b"3"
        assert await r("INCR", "k") == 5
        assert await r("INCRBY", "k", -7) == -2
        assert await r("DECRBY", "k", 1) == -3
        assert await r("DECR", "n") == -1
        assert await r("APPEND", "s", "ab") == 2
        assert await r("APPEND", "s", "cd") == 4
        assert await r("STRLEN", "s") == 4
        assert await r("MSET", "a", 1, "b", 2) == "OK"
        assert await r("MGET", "a", "none", "b") == [b"1", None, b"2"]
        assert await r("EXISTS", "a", "a", "none") == 2
        assert await r("DEL", "a", "none", "b", "b") == 2
        assert await r("GETDEL", "s") == b"abcd"
        assert await r("TYPE", "k") == "string"
        assert await r("TYPE", "s") == "none"
        assert await r("DBSIZE") == 2
        assert await r("FLUSHALL") == "OK"
        assert await r("DBSIZE") == 0
        assert await r("GET", "k") is None


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (["GET"], "wrong number of arguments for 'get'"),
        (["NOTHING", "x"], "unknown command 'NOTHING'"),
        (["SET", "k", "v", "EX", "0"], "invalid expire time in 'set'"),
        (["SET", "k", "v", "EX"], "syntax"),
        (["SET", "k", "v", "EX", "1", "PX", "1"], "syntax"),
        (["SET", "k", "v", "NX", "XX"], "syntax"),
        (["SET", "k", "v", "EX", "9223372036854775807"], "invalid expire"),
        (["SET", "k", "v", "EX", "1_0"], "not an integer"),
        (["INCR", "text"], "not an integer"),
        (["INCRBY", "most", "1"], "overflow"),
        (["MSET", "a", "1", "b"], "wrong number"),
        (["EXPIRE", "text", "x"], "not an integer"),
        (["EXPIRE", "text", "9223372036854775"], "invalid expire time in 'expire'"),
        (["EXPIRE", "text", "1", "NX", "GT"], "not compatible"),
        (["SELECT", "1"], "there is one database"),
        (["HELLO", "3"], "NOPROTO"),
        (["SCAN", "77"], "cursor is not known"),
        (["SCAN", "x"], "invalid cursor"),
        (["SCAN", "0", "COUNT", "0"], "syntax"),
        (["CONFIG", "SET", "x", "y"], "command line"),
        (["CLIENT", "SETNAME", "a b"], "cannot contain"),
    ],
)
async def test_wrong_requests_change_nothing(tmp_path, request_, what):
    async with served(tmp_path) as (server, connect):
        r = await connect()
        await r("MSET", "text", "abc", "most", 2**63 - 1)
        before = dict(server.store.data)
        with pytest.raises(ReplyError, match=what):
            await r(*request_)
        assert server.store.data == before
        assert await r("PING") == "PONG"


async def test_times_to_live(tmp_path, monkeypatch):
    now = [1_000_000_000_000]
    for module in ("kvstore.store", "kvstore.commands"):
        monkeypatch.setattr(sys.modules[module], "now_ms", lambda: now[0])
    async with served(tmp_path) as (server, connect):
        r = await connect()
        await r("SET", "k", "v", "PX", 1500)
        assert await r("PTTL", "k") == 1500
        assert await r("TTL", "k") == 2
        assert await r("EXPIRE", "k", 100, "LT") == 0
        assert await r("EXPIRE", "k", 100, "GT") == 1
        assert await r("TTL", "k") == 100
        assert await r("PERSIST", "k") == 1
        assert await r("PERSIST", "k") == 0
        assert await r("TTL", "k") == -1
        assert await r("TTL", "none") == -2
        assert await r("PEXPIREAT", "k", now[0] + 500, "XX") == 0
        assert await r("PEXPIREAT", "k", now[0] + 500) == 1
        await r("SET", "k", "w", "KEEPTTL")
        assert await r("PTTL", "k") == 500
        await r("APPEND", "k", "x")
        assert await r("PTTL", "k") == 500
        await r("SETEX", "gone", 1, "v")
        await r("MSET", "stays", "v", "late", "v")
        await r("EXPIRE", "late", -1)
        now[0] += 499
        assert await r("GET", "k") == b"wx"
        now[0] += 1
        assert await r("GET", "k") is None
        assert await r("APPEND", "k", "new") == 3
        now[0] += 1000
        assert await r("KEYS", "*") == [b"stays", b"k"]
        assert server.store.used == used_by(server.store)
    async with served(tmp_path) as (_, connect):
        r = await connect()
        assert sorted(await r("KEYS", "*")) == [b"k", b"stays"]
        assert await r("GET", "k") == b"new"


async def test_a_scan_leaves_nothing_out(tmp_path):
    async with served(tmp_path) as (_, connect):
        r = await connect()
        for i in range(100):
            r.send("SET", f"key:{i}", i)
        for _ in range(100):
            await r.reply()
        seen, cursor = [], b"0"
        while True:
            cursor, keys = await r("SCAN", cursor, "COUNT", 7, "MATCH", "key:*")
            seen += keys
            await r("SET", f"other:{len(seen)}", 1)
            await r("DEL", "key:50")
            if cursor == b"0":
                break
        assert len(seen) == len(set(seen))
        assert {b"key:%d" % i for i in range(100) if i != 50} <= set(seen)


async def test_what_clients_ask_for(tmp_path):
    async with served(tmp_path) as (_, connect):
        r = await connect()
        assert await r("SELECT", 0) == "OK"
        assert (await r("HELLO", 2))[:2] == [b"server", b"aiounify-kvstore"]
        assert await r("CLIENT", "SETNAME", "me") == "OK"
        assert await r("CLIENT", "GETNAME") == b"me"
        assert b"name=me" in await r("CLIENT", "LIST")
        assert await r("CONFIG", "GET", "append*") == [
            b"appendfsync", b"always", b"appendonly", b"yes",
        ]  # fmt: skip
        assert b"aof_fsync:always" in await r("INFO")
        assert [b"get", 2] in [entry[:2] for entry in await r("COMMAND")]
        assert await r("COMMAND", "COUNT") == len(await r("COMMAND"))
        assert await r("QUIT") == "OK"
        assert await r.reader.read() == b""


# -- connections


async def test_bytes_that_are_no_request_end_the_connection_after_the_replies(tmp_path):
    async with served(tmp_path) as (_, connect):
        r = await connect()
        r.writer.write(encode("SET", "a", 1) + encode("GET", "a") + b"*1\r\n$x\r\nrest")
        assert await r.reply() == "OK"
        assert await r.reply() == b"1"
        with pytest.raises(ReplyError, match="Protocol error: invalid bulk length"):
            await r.reply()
        assert await r.reader.read() == b""


async def test_a_client_that_shuts_its_side_gets_its_replies(tmp_path):
    async with served(tmp_path) as (_, connect):
        r = await connect()
        r.writer.write(encode("SET", "a", 1) + encode("GET", "a"))
        r.writer.write_eof()
        assert await r.reader.read() == b"+OK\r\n$1\r\n1\r\n"


async def test_more_clients_than_allowed(tmp_path):
    async with served(tmp_path, max_clients=2) as (server, connect):
        first, _, third = await connect(), await connect(), await connect()
        with pytest.raises(ReplyError, match="max number of clients"):
            await third.reply()
        assert await third.reader.read() == b""
        assert await first("PING") == "PONG"
        await first.close()
        await until(lambda: len(server.sessions) != 2)
        assert await (await connect())("PING") == "PONG"


async def test_memory_limit(tmp_path):
    async with served(tmp_path, max_memory=5000) as (_, connect):
        r = await connect()
        await r("SET", "a", "x" * 6000)
        with pytest.raises(ReplyError, match="OOM"):
            await r("SET", "b", "x")
        assert len(await r("GET", "a")) == 6000
        assert await r("DEL", "a") == 1
        assert await r("SET", "b", "x") == "OK"


async def test_value_limit(tmp_path):
    async with served(tmp_path, limits=Limits(bulk=100)) as (_, connect):
        r = await connect()
        await r("SET", "a", "x" * 100)
        with pytest.raises(ReplyError, match="maximum allowed size"):
            await r("APPEND", "a", "x")
        with pytest.raises(ReplyError, match="invalid bulk length: at most 100"):
            await r("SET", "a", "x" * 101)


async def test_a_client_that_does_not_read_is_not_read_from(tmp_path):
    async with served(tmp_path) as (server, connect):
        slow, other = await connect(), await connect()
        await slow("SET", "big", "x" * 1_000_000)
        (session,) = [s for s in server.sessions if s.transport.get_extra_info("peername")[1]
                      == slow.writer.get_extra_info("sockname")[1]]  # fmt: skip
        slow.reader._transport.pause_reading()
        for _ in range(200):
            slow.send("GET", "big")
        slow.send("PING")
        slow.writer.write_eof()
        await until(lambda: session.stopped)
        for _ in range(50):
            assert await other("GET", "none") is None
        # two chunks of replies at most, not two hundred values
        assert session.transport.get_write_buffer_size() < 8_000_000
        slow.reader._transport.resume_reading()
        for _ in range(200):
            assert len(await slow.reply()) == 1_000_000
        assert await slow.reply() == "PONG"
        assert await slow.reader.read() == b""


async def test_stopping_under_load_loses_nothing_that_was_acknowledged(tmp_path):
    acknowledged = {}
    async with served(tmp_path) as (server, connect):
        clients = [await connect() for _ in range(10)]

        async def load(i, client):
            n = 0
            with contextlib.suppress(ConnectionError):
                while True:
                    n += 1
                    client.send("SET", f"k{i}", n)
                    client.send("PING")
                    assert await client.reply() == "OK"
                    acknowledged[i] = n
                    assert await client.reply() == "PONG"

        tasks = [asyncio.ensure_future(load(i, client)) for i, client in enumerate(clients)]
        await until(lambda: len(acknowledged) == 10 and min(acknowledged.values()) > 5)
        server.stop()
        await server.run()
        await asyncio.gather(*tasks)
        assert not server.sessions
        server.close = quiet
    async with served(tmp_path) as (server, _):
        for i, n in acknowledged.items():
            assert n <= int(server.store.data[b"k%d" % i]) <= n + 1


async def test_a_request_in_many_pieces(tmp_path):
    async with served(tmp_path) as (server, connect):
        r = await connect()
        pairs = {f"key{i}": b"\r\n" * (i % 50) for i in range(3000)}
        wire = encode("MSET", *[x for pair in pairs.items() for x in pair]) + encode("PING")
        at = 0
        while at < len(wire):
            n = random.choice([1, 7, 1000, 5000])
            r.writer.write(wire[at : at + n])
            at += n
            await asyncio.sleep(0)
        assert await r.reply() == "OK"
        assert await r.reply() == "PONG"
        assert server.store.data == {k.encode(): v for k, v in pairs.items()}


async def test_a_long_pipeline_is_answered_in_order(tmp_path):
    async with served(tmp_path) as (_, connect):
        r = await connect()
        kinds = [random.choice(["set", "get", "ping", "big"]) for _ in range(3000)]
        await r("SET", "big", "y" * 5000)
        for i, kind in enumerate(kinds):
            r.send(*{"set": ("SET", "k", i), "get": ("GET", "k"), "ping": ("PING", i),
                     "big": ("GET", "big")}[kind])  # fmt: skip
        now = None
        for i, kind in enumerate(kinds):
            found = await r.reply()
            if kind == "set":
                assert found == "OK"
                now = b"%d" % i
            else:
                assert found == {"get": now, "ping": b"%d" % i, "big": b"y" * 5000}[kind]
