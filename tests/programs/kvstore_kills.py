"""SIGKILL at random moments under load: no acknowledged write may be missing afterwards.

Arguments: backend, kills, directory.  Each round starts examples/kvstore on what the round before
left, checks everything that was ever acknowledged, loads it with clients that record their
acknowledgements, and kills it.  In some rounds the log is rewritten meanwhile; in some it is
killed while it starts; now and then it is ended by SIGTERM.

What may be found of a client's key is what was acknowledged last or what was sent after that: a
reply may be lost with the server.  Of MSET both keys or none have the new value.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "kvstore"
CLIENTS = 8


def encode(*args):
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        data = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


async def reply(reader):
    line = await reader.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server is gone")
    kind, rest = line[:1], line[1:-2]
    if kind == b"$":
        n = int(rest)
        return None if n < 0 else (await reader.readexactly(n + 2))[:-2]
    if kind == b":":
        return int(rest)
    if kind == b"*":
        return [await reply(reader) for _ in range(int(rest))]
    assert kind == b"+", line
    return rest


class Record:
    """What one client knows: of each kind of key, the number acknowledged and the number sent."""

    def __init__(self, name):
        self.name = name
        self.acknowledged = {"set": 0, "incr": 0, "append": 0, "pair": 0, "del": 0}
        self.sent = dict(self.acknowledged)

    def request(self, kind, n):
        name = self.name
        pad = "x" * (n * 37 % 300)
        return {
            "set": encode("SET", f"{name}:set", f"{n}:{pad}"),
            "incr": encode("INCR", f"{name}:incr"),
            "append": encode("APPEND", f"{name}:append", f"{n % 10}"),
            "pair": encode("MSET", f"{name}:a", n, f"{name}:b", f"{n}:{pad}"),
            "del": encode("SET", f"{name}:del", n) if n % 2 else encode("DEL", f"{name}:del"),
        }[kind]

    async def load(self, host, port):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            while True:
                # one of each kind in flight, pipelined in an order of its own
                kinds = random.sample(list(self.sent), random.randint(1, len(self.sent)))
                for kind in kinds:
                    self.sent[kind] += 1
                writer.write(b"".join(self.request(kind, self.sent[kind]) for kind in kinds))
                for kind in kinds:
                    await reply(reader)
                    self.acknowledged[kind] = self.sent[kind]
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def check(self, reader, writer):
        keys = ["set", "incr", "append", "a", "b", "del"]
        writer.write(encode("MGET", *[f"{self.name}:{key}" for key in keys]))
        values = dict(zip(keys, await reply(reader), strict=True))
        found = {
            "set": int((values["set"] or b"0").partition(b":")[0]),
            "incr": int(values["incr"] or b"0"),
            "append": len(values["append"] or b""),
            "pair": int(values["a"] or b"0"),
        }
        assert found["pair"] == int((values["b"] or b"0").partition(b":")[0]), values
        text = b"".join(b"%d" % (n % 10) for n in range(1, found["append"] + 1))
        assert (values["append"] or b"") == text, values["append"]
        low, high = self.acknowledged["del"], self.sent["del"]
        possible = {b"%d" % n if n % 2 else None for n in range(low, high + 1)}
        assert values["del"] in possible, (values["del"], low, high)
        for n in range(low, high + 1):
            if (b"%d" % n if n % 2 else None) == values["del"]:
                found["del"] = n
        for kind, n in found.items():
            low, high = self.acknowledged[kind], self.sent[kind]
            assert low <= n <= high, f"{self.name}:{kind} is {n}, acknowledged {low}, sent {high}"
            self.acknowledged[kind] = self.sent[kind] = n


def start(backend, directory):
    return subprocess.Popen(
        [
            *(sys.executable, EXAMPLE, "--loop", backend, "--dir", directory, "--port", "0"),
            *("--rewrite-least", "200k"),
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1])},
    )


def address(process):
    for line in process.stdout:
        if b"listening on" in line:
            host, _, port = line.split()[-1].decode().rpartition(":")
            return host, int(port)
    raise AssertionError(f"the server did not start: status {process.wait()}")


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


async def one_round(process, host, port, records, *, again, gently):
    reader, writer = await asyncio.open_connection(host, port)
    for record in records:
        await record.check(reader, writer)
    tasks = [asyncio.create_task(record.load(host, port)) for record in records]
    await asyncio.sleep(random.uniform(0, 0.25))
    if again:
        writer.write(encode("BGREWRITEAOF"))
        await asyncio.sleep(random.uniform(0, 0.02))
    if gently:
        process.terminate()
        assert await asyncio.to_thread(process.wait) == 0
        process.stdout.close()
    else:
        kill(process)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await asyncio.gather(*tasks)


def main():
    backend, kills, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    seed = int(os.environ.get("KVSTORE_SEED", time.time_ns() % 1_000_000))
    random.seed(seed)
    records = [Record(f"c{i}") for i in range(CLIENTS)]
    try:
        for number in range(kills):
            if number % 10 == 9:  # while it starts
                process = start(backend, directory)
                time.sleep(random.uniform(0, 0.4))
                kill(process)
            for gently in (False, True) if number % 10 == 4 else (False,):
                process = start(backend, directory)
                where = address(process)
                again = number % 3 == 2
                try:
                    asyncio.run(one_round(process, *where, records, again=again, gently=gently))
                finally:
                    if process.poll() is None:
                        kill(process)
        process = start(backend, directory)

        async def last(host, port):
            reader, writer = await asyncio.open_connection(host, port)
            for record in records:
                await record.check(reader, writer)
            writer.close()
            await writer.wait_closed()

        try:
            asyncio.run(last(*address(process)))
        finally:
            process.terminate()
            assert process.wait() == 0
            process.stdout.close()
    except BaseException:
        print(f"KVSTORE_SEED={seed}", file=sys.stderr)
        raise
    total = sum(sum(record.acknowledged.values()) for record in records)
    print(f"{backend}: {kills} kills, {total} acknowledged changes, none lost")


main()
