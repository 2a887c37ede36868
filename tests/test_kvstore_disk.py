"""examples/kvstore: what is acknowledged is on the disk, also when the disk fails.

`Recorder` stands between the committer and the disk: it knows what had been synced at any moment,
and what the file would be if the machine had stopped there.
"""

import asyncio
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvstore import log
from kvstore.commit import Committer
from kvstore.disk import SyncError
from kvstore.server import Server
from kvstore.store import Store
from kvstore_served import (
    Recorder,
    ReplyError,
    quiet,
    served,
    until,
    used_by,
)

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
        assert server.store.used == used_by(server.store)
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
        assert store.used == used_by(store)
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
