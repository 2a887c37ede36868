"""examples/kvstore: requests, replies, the log after a crash, and a disk that fails.

Most tests have the server in the test's own loop, on both backends.  `Recorder` stands between
the committer and the disk: it knows what had been synced at any moment, and what the file would
be if the machine had stopped there.  The others run the program as a user does, with a disk that
is full (by RLIMIT_FSIZE, so that the kernel says so), with kill -9, and with redis-cli and
redis-benchmark.
"""

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiounify

ROOT = Path(aiounify.__file__).parents[1]
EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from kvstore import log  # noqa: E402
from kvstore.commands import pattern  # noqa: E402
from kvstore.commit import Committer  # noqa: E402
from kvstore.disk import Disk, SyncError  # noqa: E402
from kvstore.resp import Limits, ProtocolError, parse  # noqa: E402
from kvstore.server import Server  # noqa: E402
from kvstore.store import Store  # noqa: E402

STRESS = os.environ.get("AIOUNIFY_STRESS") == "1"


def encode(*args):
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        data = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class ReplyError(Exception):
    """An error reply."""


class Client:
    """One connection, which sends and reads on its own."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, *args):
        self.writer.write(encode(*args))

    async def reply(self):
        line = await self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            n = int(rest)
            return None if n < 0 else (await self.reader.readexactly(n + 2))[:-2]
        if kind == b":":
            return int(rest)
        if kind == b"*":
            return [await self.reply() for _ in range(int(rest))]
        if kind == b"-":
            raise ReplyError(rest.decode())
        assert kind == b"+", line
        return rest.decode()

    async def __call__(self, *args):
        self.send(*args)
        return await self.reply()

    async def close(self):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def until(condition):
    """Until something is so; the test's own limit of time ends what never is."""
    while not condition():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def served(directory, **options):
    """A server in this loop, and a function that connects to it."""
    server = Server(directory, **options)
    address = await server.listen("127.0.0.1", 0)
    clients = []

    async def connect():
        clients.append(Client(*await asyncio.open_connection(*address)))
        return clients[-1]

    server.address = address
    try:
        yield server, connect
    finally:
        for client in clients:
            await client.close()
        await server.close()


class Recorder(Disk):
    """The disk, with a gate before each sync, failures on demand, and what had been synced."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail = None
        self.under_way = asyncio.Event()
        #: Bytes of the file that are certain.
        self.durable = 0
        self.synced = []

    async def append(self, fd, data, offset, *, durable):
        self.under_way.set()
        if self.fail is not None:
            await self.gate.wait()
            raise self.fail
        await super().append(fd, data, offset, durable=False)
        if durable:
            await self.sync(fd)
            self.durable = offset + len(data)
            self.synced.append(data)

    async def sync(self, fd):
        await self.gate.wait()
        await super().sync(fd)


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
        assert server.store.used == Store_used(server.store)
    async with served(tmp_path) as (_, connect):
        r = await connect()
        assert sorted(await r("KEYS", "*")) == [b"k", b"stays"]
        assert await r("GET", "k") == b"new"


def Store_used(store):  # noqa: N802
    fresh = Store()
    fresh.data, fresh.expires = dict(store.data), dict(store.expires)
    fresh.replayed()
    return fresh.used


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


# -- what is acknowledged is on the disk


@pytest.fixture
def recorder(monkeypatch):
    """The disk of the next server."""
    found = []

    def make():
        found.append(Recorder())
        return found[-1]

    monkeypatch.setattr("kvstore.commit.Disk", make)
    return lambda: found[-1]


async def quiet(turns=20):
    """Time enough for replies that should not come."""
    for _ in range(turns):
        await asyncio.sleep(0.002)


async def test_no_reply_before_the_sync(tmp_path, recorder):
    async with served(tmp_path) as (_, connect):
        disk = recorder()
        writer, reader = await connect(), await connect()
        await writer("SET", "old", 1)
        disk.gate.clear()
        writer.send("SET", "k", 1)
        waiting = asyncio.ensure_future(writer.reply())
        await quiet()
        assert not waiting.done(), "acknowledged before the sync"
        # what is not on the disk is not shown either, and what is does not wait
        assert await reader("GET", "old") == b"1"
        reader.send("GET", "k")
        reader.send("PING")
        reading = asyncio.ensure_future(reader.reply())
        await quiet()
        assert not reading.done(), "shown before it was on the disk"
        disk.gate.set()
        assert await waiting == "OK"
        assert await reading == b"1"
        assert await reader.reply() == "PONG"


async def test_commands_of_one_sync_share_the_next(tmp_path, recorder):
    async with served(tmp_path) as (server, connect):
        disk = recorder()
        clients = [await connect() for _ in range(20)]
        disk.gate.clear()
        clients[0].send("SET", "k0", 0)
        await disk.under_way.wait()
        for i, client in enumerate(clients[1:], 1):
            client.send("SET", f"k{i}", i)
        await until(lambda: len(server.store.group.records) == 19)
        disk.gate.set()
        for client in clients:
            assert await client.reply() == "OK"
        assert len(disk.synced) == 2


def crash_image(path, durable, rng):
    """The file as it may be after a crash: what was synced, and of the rest anything."""
    data = path.read_bytes()
    tail = bytearray(data[durable:])
    for start in range(0, len(tail), 64):
        if rng.random() < 0.5:
            tail[start : start + 64] = bytes(len(tail[start : start + 64]))
    return data[:durable] + tail[: rng.randint(0, len(tail))]


async def recovered(directory, image):
    """What a server finds in such a file."""
    directory.mkdir()
    (directory / "kvstore.log").write_bytes(image)
    async with served(directory) as (server, _):
        return dict(server.store.data)


async def test_whatever_was_not_synced_may_be_lost_without_harm(tmp_path, recorder):
    rng = random.Random(1)
    async with served(tmp_path / "db") as (server, connect):
        disk = recorder()
        disk.durable = server.committer.end
        clients = [await connect() for _ in range(5)]
        acknowledged, sent = [0] * 5, [0] * 5
        path = server.committer.path

        async def load(i):
            while acknowledged[i] < 40:
                sent[i] += 1
                await clients[i]("MSET", f"a{i}", sent[i], f"b{i}", f"{sent[i]}" + "x" * 100)
                acknowledged[i] = sent[i]

        images = []

        async def crash():
            while min(acknowledged) < 40:
                await asyncio.sleep(rng.uniform(0, 0.005))
                image = crash_image(path, disk.durable, rng)
                images.append((image, list(acknowledged), list(sent)))

        await asyncio.gather(crash(), *(load(i) for i in range(5)))
    assert images
    for number, (image, low, high) in enumerate(images[:: max(1, len(images) // 25)]):
        found = await recovered(tmp_path / f"image{number}", image)
        for i in range(5):
            n = int(found.get(b"a%d" % i, b"0"))
            assert low[i] <= n <= high[i]
            assert found.get(b"b%d" % i, b"0").rstrip(b"x") == b"%d" % n


async def test_a_torn_tail_is_cut_at_the_last_whole_batch(tmp_path):
    async with served(tmp_path / "db") as (server, connect):
        r = await connect()
        for i in range(5):
            await r("SET", f"k{i}", i)
        path, size = server.committer.path, server.committer.end
        await r("SET", "last", "x" * 50)
        whole = path.read_bytes()
    for end in range(size, len(whole)):
        directory = tmp_path / str(end)
        directory.mkdir()
        (directory / "kvstore.log").write_bytes(whole[:end])
        committer = Committer(store := Store(), directory)
        assert committer.open() == end - size
        assert sorted(store.data) == [b"k%d" % i for i in range(5)]
        assert (directory / "kvstore.log").stat().st_size == size
        os.close(committer._fd)


async def test_a_damaged_middle_is_refused_and_kept(tmp_path):
    async with served(tmp_path) as (server, connect):
        r = await connect()
        await r("SET", "first", 1)
        place = server.committer.end
        await r("SET", "second", 2)
        await r("SET", "third", 3)
        path = server.committer.path
    data = bytearray(path.read_bytes())
    data[place + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(log.CorruptError, match=f"damaged at byte {place} of {len(data)}"):
        Server(tmp_path)
    assert path.read_bytes() == data, "nothing is changed without being asked"
    async with served(tmp_path, lossy=True) as (server, connect):
        assert await (await connect())("KEYS", "*") == [b"first"]
    (aside,) = tmp_path.glob("*.damaged-*")
    assert aside.read_bytes() == data[place:]


async def test_every_changed_byte_is_noticed(tmp_path):
    async with served(tmp_path / "db") as (server, connect):
        r = await connect()
        for i in range(4):
            await r("SET", f"k{i}", i)
        place = server.committer.end
    whole = (tmp_path / "db" / "kvstore.log").read_bytes()
    path = tmp_path / "kvstore.log"
    for i in range(len(whole)):
        data = bytearray(whole)
        data[i] ^= 1 << (i % 8)
        path.write_bytes(data)
        committer = Committer(store := Store(), tmp_path)
        if i < place:
            with pytest.raises(log.CorruptError):
                committer.open()
        else:  # of what is written when the server ends, and says that the rest is on the disk
            assert committer.open() == len(whole) - place
            assert len(store.data) == 4
            os.close(committer._fd)


def test_files_that_are_no_logs(tmp_path):
    async def opened():
        Server(tmp_path)

    for content in (b"", b"something else, and long enough to be a log of ours"):
        (tmp_path / "kvstore.log").write_bytes(content)
        with pytest.raises(log.CorruptError):
            asyncio.run(opened())


async def test_a_value_that_looks_like_a_batch_is_no_batch(tmp_path):
    async with served(tmp_path / "db") as (server, connect):
        r = await connect()
        await r("SET", "k", 1)
        size = server.committer.end
        await r("SET", "fake", log.batch(b"no salt", 9, 1 << 60, b"") * 3)
        data = server.committer.path.read_bytes()
    torn = data[:size] + bytes(40) + data[size + 40 : server.committer.end]
    assert set(await recovered(tmp_path / "torn", torn)) == {b"k"}


async def test_two_servers_in_one_directory(tmp_path):
    async with served(tmp_path):
        with pytest.raises(BlockingIOError, match="another server uses this directory"):
            Server(tmp_path)


# -- a disk that fails


async def test_a_full_disk_takes_changes_back_and_is_asked_again(tmp_path, recorder, monkeypatch):
    monkeypatch.setattr("kvstore.commit._RETRY", 0.0)
    async with served(tmp_path) as (server, connect):
        disk = recorder()
        first, second = await connect(), await connect()
        await first("MSET", "k", "old", "n", 1, "gone", "here")
        await first("EXPIRE", "k", 1000)
        before, expires = dict(server.store.data), dict(server.store.expires)
        disk.fail = OSError(28, "No space left on device")
        disk.gate.clear()
        disk.under_way.clear()
        first.send("SET", "k", "new")
        first.send("PING")
        await disk.under_way.wait()
        second.send("INCR", "n")
        second.send("FLUSHALL")
        second.send("APPEND", "k", "more")
        second.send("DEL", "gone")
        second.send("GET", "n")
        await until(lambda: len(server.store.group.records) == 3)
        disk.gate.set()
        with pytest.raises(ReplyError, match=r"MISCONF.*No space left.*not changed"):
            await first.reply()
        assert await first.reply() == "PONG"
        for _ in range(5):
            with pytest.raises(ReplyError, match="MISCONF"):
                await second.reply()
        assert server.store.data == before
        assert server.store.expires == expires
        assert server.store.used == Store_used(server.store)
        disk.fail = None
        assert await first("SET", "k", "new") == "OK"
        assert await second("GET", "k") == b"new"
    assert (await recovered(tmp_path / "x", (tmp_path / "kvstore.log").read_bytes()))[
        b"k"
    ] == b"new"


async def test_a_failed_sync_is_not_tried_again(tmp_path, recorder):
    async with served(tmp_path) as (server, connect):
        disk = recorder()
        r = await connect()
        await r("SET", "k", "old")
        disk.fail = SyncError(5, "Input/output error")
        with pytest.raises(ReplyError, match="MISCONF syncing the log failed"):
            await r("SET", "k", "new")
        disk.fail = None
        synced = len(disk.synced)
        for _ in range(3):
            with pytest.raises(ReplyError, match="MISCONF"):
                await r("SET", "k", "new")
        assert len(disk.synced) == synced, "the file was written to again"
        assert await r("GET", "k") == b"old"
        # a new file, with everything that anybody was told
        await r("BGREWRITEAOF")
        await until(lambda: not server.committer.rewriting)
        assert server.committer.last_rewrite == "ok"
        assert await r("SET", "k", "new") == "OK"
    assert (await recovered(tmp_path / "x", (tmp_path / "kvstore.log").read_bytes()))[
        b"k"
    ] == b"new"


_KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
_FUTURE = 1 << 60
_CHANGES = st.one_of(
    st.tuples(st.just("put"), _KEYS, st.binary(max_size=9)),
    st.tuples(st.just("put"), _KEYS, st.binary(max_size=9), st.just(_FUTURE)),
    st.tuples(st.just("append"), _KEYS, st.binary(max_size=9)),
    st.tuples(st.just("delete"), _KEYS),
    st.tuples(st.just("expire"), _KEYS, st.sampled_from([0, _FUTURE + 1])),
    st.tuples(st.just("flush")),
)


@given(st.lists(st.tuples(st.lists(_CHANGES, max_size=8), st.booleans()), max_size=8))
@settings(max_examples=200)
def test_groups_are_in_the_log_or_were_never_there(groups):
    store, replica = Store(), Store()
    for changes, written in groups:
        before = dict(store.data), dict(store.expires), store.used
        for name, *arguments in changes:
            if name == "expire" and store.get(arguments[0]) is None:
                continue
            getattr(store, name)(*arguments)
        group, store.group = store.group, type(store.group)(store.group.number + 1)
        if written:
            replica.replay(log.changes(b"".join(group.records)))
        else:
            store.undo(group)
            assert (store.data, store.expires, store.used) == before
        assert store.used == Store_used(store)
    assert (replica.data, replica.expires) == (store.data, store.expires)


# -- rewriting


async def test_rewriting_while_writing_loses_nothing(tmp_path, recorder):
    async with served(tmp_path) as (server, connect):
        r = await connect()
        for i in range(2000):
            r.send("SET", f"key{i}", "x" * 200)
            r.send("APPEND", f"key{i % 50}", "y")
        for _ in range(4000):
            await r.reply()
        await r("FLUSHALL")
        for i in range(2000):
            r.send("SET", f"key{i}", "z" * 100)
        for _ in range(2000):
            await r.reply()
        size = server.committer.end
        await r("BGREWRITEAOF")
        with pytest.raises(ReplyError, match="already in progress"):
            await r("BGREWRITEAOF")
        n = 0
        while server.committer.rewriting or n < 100:
            n += 1
            r.send("APPEND", f"key{n % 100}", n % 10)
            r.send("INCR", "count")
            r.send("SET", f"later{n}", n, "EX", 1000)
            r.send("DEL", f"key{2000 - n}")
            for _ in range(4):
                await r.reply()
        assert server.committer.last_rewrite == "ok"
        assert server.committer.base_size < size
        expected = dict(server.store.data)
        assert expected[b"count"] == b"%d" % n
        assert not (tmp_path / "kvstore.new").exists()
    found = await recovered(tmp_path / "x", (tmp_path / "kvstore.log").read_bytes())
    assert found == expected


async def test_a_rewrite_that_fails_leaves_the_old_log(tmp_path, monkeypatch):
    async with served(tmp_path) as (server, connect):
        r = await connect()
        await r("SET", "k", 1)

        def no_rename(self, path):
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("kvstore.commit._NewLog.install", no_rename)
        await r("BGREWRITEAOF")
        await until(lambda: not server.committer.rewriting)
        assert server.committer.last_rewrite == "err: Too many open files"
        assert not (tmp_path / "kvstore.new").exists()
        assert await r("INCR", "k") == 2
    assert (await recovered(tmp_path / "x", (tmp_path / "kvstore.log").read_bytes()))[b"k"] == b"2"


async def test_an_unfinished_rewrite_is_removed(tmp_path):
    (tmp_path / "kvstore.new").write_bytes(b"half of it")
    async with served(tmp_path):
        assert not (tmp_path / "kvstore.new").exists()


async def test_stopping_while_rewriting(tmp_path):
    async with served(tmp_path) as (server, connect):
        r = await connect()
        for i in range(3000):
            r.send("SET", f"key{i}", "x" * 100)
        for _ in range(3000):
            await r.reply()
        await r("BGREWRITEAOF")
        await asyncio.sleep(random.uniform(0, 0.01))
    assert not (tmp_path / "kvstore.new").exists()
    async with served(tmp_path) as (server, _):
        assert len(server.store.data) == 3000


async def test_the_log_is_rewritten_by_itself(tmp_path):
    async with served(tmp_path, rewrite_least=10_000) as (server, connect):
        r = await connect()
        for _ in range(200):
            await r("SET", "k", "x" * 200)
        await until(lambda: server.committer.base_size >= 200 and server.committer.end < 20_000)
        assert await r("GET", "k") == b"x" * 200


@pytest.mark.parametrize("policy", ["everysec", "no"])
async def test_other_policies(tmp_path, policy):
    async with served(tmp_path, policy=policy) as (server, connect):
        r = await connect()
        assert await r("SET", "k", 1) == "OK"
        assert server.committer.synced < server.committer.end
        if policy == "everysec":
            await until(lambda: server.committer.synced == server.committer.end)
        await r("SET", "k", 2)
    async with served(tmp_path) as (_, connect):
        assert await (await connect())("GET", "k") == b"2"


# -- the program


class Program:
    """examples/kvstore as a user runs it."""

    def __init__(self, loop, directory, *arguments):
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", EXAMPLES / "kvstore"),
                *("--loop", loop, "--dir", directory, "--port", "0", *arguments),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.decode())
            if b"listening on" in line:
                host, _, port = line.split()[-1].decode().rpartition(":")
                self.address = host, int(port)
                return
        self.process.wait()

    def ask(self, *args):
        """One request, its reply as it came."""
        with socket.create_connection(self.address, 30) as sock:
            sock.sendall(encode(*args))
            return sock.recv(65536)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()


def test_a_disk_that_is_full_by_the_kernel(backend, tmp_path):
    with Program(backend, tmp_path) as program:
        pid = program.process.pid
        assert program.ask("SET", "k", "old") == b"+OK\r\n"
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (2000, hard))
        # a part of it fits: a short write first
        found = program.ask("SET", "k", "x" * 5000)
        assert found.startswith(b"-MISCONF writing to the log failed (File too large)"), found
        assert program.ask("SET", "k", "small").startswith(b"-MISCONF")
        assert program.ask("GET", "k") == b"$3\r\nold\r\n"
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        deadline = time.monotonic() + 30
        while (found := program.ask("SET", "k", "y" * 3000)) != b"+OK\r\n":
            assert found.startswith(b"-MISCONF")
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert program.process.returncode == 0
    with Program(backend, tmp_path) as program:
        assert program.ask("STRLEN", "k") == b":3000\r\n"


@pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
def test_on_other_event_loops(loop_name, tmp_path):
    if loop_name == "uvloop":
        pytest.importorskip("uvloop")
    with Program(loop_name, tmp_path) as program:
        assert program.ask("SET", "k", 1) == b"+OK\r\n"
        assert program.ask("BGREWRITEAOF").startswith(b"+Background")
        assert program.ask("SHUTDOWN") == b""
        assert program.process.wait(30) == 0
    with Program(loop_name, tmp_path) as program:
        assert program.ask("GET", "k") == b"$1\r\n1\r\n"


def test_damage_is_told_to_the_user(backend, tmp_path):
    with Program(backend, tmp_path) as program:
        for i in range(3):
            assert program.ask("SET", f"k{i}", i) == b"+OK\r\n"
    path = tmp_path / "kvstore.log"
    data = bytearray(path.read_bytes())
    data[80] ^= 255
    path.write_bytes(data)
    with Program(backend, tmp_path) as program:
        assert program.process.returncode == 1
        text = "".join(program.lines)
        assert "damaged at byte" in text
        assert "--lossy" in text
        assert "Traceback" not in text


def test_running_out_of_descriptors(backend, tmp_path):
    with Program(backend, tmp_path) as program:
        pid = program.process.pid
        assert program.ask("SET", "k", 1) == b"+OK\r\n"
        used = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 3, hard))
        with contextlib.ExitStack() as stack:
            waiting = [
                stack.enter_context(socket.create_connection(program.address, 30))
                for _ in range(10)
            ]
            for i, sock in enumerate(waiting[:3]):
                sock.sendall(encode("INCRBY", "k", i))
                assert sock.recv(100).startswith(b":")
            waiting[0].sendall(encode("BGREWRITEAOF"))
            assert waiting[0].recv(100).startswith(b"+Background")
            while b"status:err: Too many open files" not in info(waiting[0]):
                time.sleep(0.01)
            waiting[1].sendall(encode("INCR", "k"))
            assert waiting[1].recv(100) == b":5\r\n"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert program.ask("GET", "k") == b"$1\r\n5\r\n"


def info(sock):
    sock.sendall(encode("INFO"))
    found = b""
    while not found.endswith(b"avg_ttl=0\r\n\r\n"):
        found += sock.recv(65536)
    return found


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
def test_redis_cli(backend, tmp_path):
    with Program(backend, tmp_path) as program:
        host, port = program.address

        def cli(*args, text=None):
            done = subprocess.run(
                ["redis-cli", "-h", host, "-p", str(port), *args],
                input=text,
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            return done.stdout

        assert cli("SET", "a key", "a value") == "OK\n"
        assert cli("GET", "a key") == "a value\n"
        assert cli("-3", "GET", "a key").endswith("a value\n")
        assert cli(text="set x 1\nincr x\nget x\n") == "OK\n2\n2\n"
        assert sorted(cli("--scan").split("\n")) == ["", "a key", "x"]
        assert "redis_version" in cli("INFO")
        wire = b"".join(encode("SET", f"k{i}", i) for i in range(5000)).decode()
        assert "errors: 0, replies: 5000" in cli("--pipe", text=wire)
        assert cli("DBSIZE") == "5002\n"


@pytest.mark.skipif(shutil.which("redis-benchmark") is None, reason="redis-benchmark missing")
def test_redis_benchmark(backend, tmp_path):
    with Program(backend, tmp_path) as program:
        host, port = program.address
        for more in (["-c", "50"], ["-c", "10", "-P", "16", "-r", "1000"]):
            done = subprocess.run(
                [
                    *("redis-benchmark", "-h", host, "-p", str(port), "-q", "--csv", *more),
                    *("-t", "ping,set,get,incr,mset", "-n", "2000"),
                ],
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            )
            assert not done.stderr.replace("WARNING: Could not fetch server CONFIG", "").strip()
            assert done.stdout.count("\n") == 7, done.stdout


def test_no_acknowledged_write_is_lost_by_kills(backend, tmp_path, run_program):
    kills = 200 if STRESS else 10
    done = run_program("kvstore_kills", backend, str(kills), str(tmp_path), timeout=60 + 6 * kills)
    assert f"{kills} kills" in done.stdout
    assert "none lost" in done.stdout
