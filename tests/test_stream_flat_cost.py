"""What an event costs does not depend on how many connections are open: 50,000 held on one loop.

Counted are the system calls that the loop makes and, where the machine has a counter for them, the
instructions that this process executes outside the kernel.  Nothing is timed.

The other ends are held by tests/programs/hold_connections.py, so that the limit of descriptors is
needed once for each end.  Where it cannot be raised so far, there are as many as it allows, and the
test is skipped with their number after it has passed.
"""

import asyncio
import gc
import socket
import subprocess
import sys

import pytest
from conftest import PROGRAMS, SANITIZED
from stream_peers import (
    connect,
    moderate,
    resident,
    run,
    socket_pair,
    transports,
    turns,
    until,
)
from test_stream_load import BACKENDS, Silent, descriptors, open_files, serve

from aiounify.bench import _perf

HELD = 50_000
ROUNDS = 200


class Echo(Silent):
    """Answers, and tells the test that it has."""

    __slots__ = ("others", "told")

    def __init__(self):
        super().__init__()
        self.told, self.others = None, ()

    def data_received(self, data):
        for other in self.others:
            other.transport.abort()
        self.transport.write(data)
        self.told.set_result(None)


class Cost:
    """System calls of the loop and user instructions of the process."""

    def __init__(self):
        try:
            self.counter = _perf.Counter(True)
        except OSError:  # not on this machine, or not for this user
            self.counter = None

    def now(self):
        calls = asyncio.get_running_loop().stats()["syscalls"]
        return calls, self.counter.read() or 0 if self.counter is not None else 0

    async def of(self, work):
        """What it costs to await work() once, on average."""
        for _ in range(ROUNDS // 10):
            await work()
        gc.collect()
        gc.disable()  # it visits all that there is, and is not what is measured
        try:
            before = self.now()
            for _ in range(ROUNDS):
                await work()
            after = self.now()
        finally:
            gc.enable()
        return [(now - then) / ROUNDS for now, then in zip(after, before, strict=True)]


@pytest.fixture
def hold():
    """Tell the process that holds the other ends what to do; returns when it is done."""
    with subprocess.Popen(
        [sys.executable, PROGRAMS / "hold_connections.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        async def tell(command):
            def ask():
                process.stdin.write(f"{command}\n")
                process.stdin.flush()
                return int(process.stdout.readline())

            return await asyncio.get_running_loop().run_in_executor(None, ask)

        yield tell
        process.kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", BACKENDS)
def test_50000_connections_held(kind, hold, record_property):
    with open_files(HELD + 1000) as limit:
        n = min(HELD, limit - 1000)
        run(kind, held, n, hold, record_property, seconds=250)
        gc.collect()
        assert not transports()
    if n < HELD:
        pytest.skip(f"passed with {n} connections: no more descriptors are allowed")


async def held(n, hold, record_property):
    loop = asyncio.get_running_loop()
    made = []

    def make():
        made.append(Silent())
        return made[-1]

    server, (_, port) = await serve("tcp", make, moderate(socket.create_server(("", 0))))
    one, other = socket_pair("tcp")
    _, echo = await loop.create_connection(Echo, sock=one)

    async def message():
        """There and back, on a connection that stays."""
        echo.told = loop.create_future()
        other.send(b"x")
        await echo.told
        assert other.recv(1) == b"x"

    async def connection():
        """Accepted, and aborted."""
        n = len(made)
        peer = connect("tcp", ("127.0.0.1", port))
        await until(lambda: len(made) > n)
        protocol = made.pop()
        protocol.transport.abort()
        await until(lambda: protocol.lost)
        peer.close()

    async def loss():
        """Two have something to say in the same turn; the first one ends the other."""
        pairs = [socket_pair("tcp") for _ in range(2)]
        protocols = [(await loop.create_connection(Echo, sock=one))[1] for one, _ in pairs]
        for protocol in protocols:
            protocol.told = loop.create_future()
            protocol.others = [other for other in protocols if other is not protocol]
        await turns(1)
        for _, other in pairs:
            other.send(b"x")
        await asyncio.wait([p.told for p in protocols], return_when=asyncio.FIRST_COMPLETED)
        for protocol in protocols:
            protocol.transport.abort()
        await until(lambda: all(protocol.lost for protocol in protocols))
        for _, other in pairs:
            other.close()

    cost, kinds_of_work = Cost(), (message, connection, loss)
    few = [await cost.of(work) for work in kinds_of_work]
    gc.collect()
    opened, memory = descriptors(), resident()
    while len(made) < n:
        more = min(n - len(made), 2000)
        total = len(made) + more
        assert await hold(f"connect {port} {more}") == more
        await until(lambda: len(made) == total, "connections")  # noqa: B023 - awaited here
    gc.collect()
    each = (resident() - memory) / n
    record_property("resident bytes for each idle connection", each)
    many = [await cost.of(work) for work in kinds_of_work]
    for work, (few_calls, few_instructions), (calls, instructions) in zip(
        kinds_of_work, few, many, strict=True
    ):
        name = work.__name__
        record_property(f"system calls, {name}", (few_calls, calls))
        record_property(f"instructions, {name}", (few_instructions, instructions))
        print(f"{name}: {few_calls} {calls} calls, {few_instructions} {instructions} instructions")
        assert calls < few_calls * 1.1 + 1, name
        assert instructions < few_instructions * 1.5 + 1000, name
    print(f"{each:.0f} bytes for each of {n} idle connections")
    if not SANITIZED:
        assert each < 4096
    # all of them have something to say at once, and all of them go at once
    assert await hold(f"send {n}") == n
    await until(lambda: sum(protocol.heard for protocol in made) == n, "messages")
    assert await hold("close") == n
    await until(lambda: sum(protocol.heard for protocol in made) == 2 * n, "ends")
    assert all(protocol.heard == 2 for protocol in made)
    for protocol in made:
        protocol.transport.close()
    await until(lambda: all(protocol.lost for protocol in made), "the last one")
    made.clear()
    await until(lambda: descriptors() == opened, "descriptors")
    echo.transport.abort()
    await until(lambda: echo.lost)
    other.close()
    server.close()
    await server.wait_closed()
    await turns(3)
