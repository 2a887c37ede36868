"""Socket calls at random: whatever is cancelled when, every byte comes once and in order."""

import asyncio
import contextlib
import random
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sock_calls import HANG, pair
from test_sock_readiness import looks

pytestmark = pytest.mark.every_reactor

steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 300_000)),
        st.tuples(st.just("receive"), st.sampled_from([1, 10, 5000, 16_384, 70_000, 1 << 18])),
        st.tuples(st.just("into"), st.sampled_from([1, 10, 5000, 70_000])),
        st.tuples(st.just("turn"), st.integers(1, 3)),
        st.tuples(st.just("look"), st.integers(1, 2)),
        st.tuples(st.just("cancel receive"), st.booleans()),
        st.tuples(st.just("cancel send"), st.booleans()),
        st.tuples(st.just("read directly"), st.integers(1, 20_000)),
        st.tuples(st.just("watch"), st.booleans()),
    ),
    max_size=60,
)


class Conversation:
    """One direction of a pair of sockets, with one call at most pending at each end."""

    def __init__(self, one, other, rng):
        self.loop = asyncio.get_running_loop()
        self.one, self.other, self.rng = one, other, rng
        self.chunks = []  # [data, how sure it is that all of it was sent]
        self.received = bytearray()
        self.sending = self.receiving = self.buffer = None

    async def step(self, what, amount):
        await getattr(self, what.replace(" ", "_"))(amount)
        self.collect()

    def collect(self):
        if self.sending and self.sending.done():
            assert self.sending.result() is None
            self.chunks[-1][1] = True
            self.sending = None
        if self.receiving and self.receiving.done():
            result = self.receiving.result()
            self.received += result if self.buffer is None else self.buffer[:result]
            self.receiving = None

    async def send(self, size):
        if self.sending is None:
            self.chunks.append([self.rng.randbytes(16) + self.rng.randbytes(size), False])
            self.sending = asyncio.create_task(self.loop.sock_sendall(self.one, self.chunks[-1][0]))

    async def receive(self, limit):
        if self.receiving is None:
            self.buffer = None
            self.receiving = asyncio.create_task(self.loop.sock_recv(self.other, limit))

    async def into(self, size):
        if self.receiving is None:
            self.buffer = bytearray(size)
            self.receiving = asyncio.create_task(self.loop.sock_recv_into(self.other, self.buffer))

    async def turn(self, n):
        for _ in range(n):
            await asyncio.sleep(0)

    async def look(self, n):
        await looks(n)

    async def cancel(self, task, later):
        if task is None:
            return
        task.cancel()
        if later:
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def cancel_receive(self, later):
        task = self.receiving
        await self.cancel(task, later)
        if task and task.cancelled():
            self.receiving = None

    async def cancel_send(self, later):
        task = self.sending
        await self.cancel(task, later)
        if task and task.cancelled():
            self.sending = None

    async def read_directly(self, n):
        if self.receiving is None:
            with contextlib.suppress(BlockingIOError):
                self.received += self.other.recv(n)

    async def watch(self, on):
        if on:
            self.loop.add_reader(self.other, int)
        else:
            self.loop.remove_reader(self.other)

    async def finish(self):
        self.loop.remove_reader(self.other)
        while self.sending:
            await self.receive(1 << 18)
            await asyncio.wait([self.sending, self.receiving], return_when="FIRST_COMPLETED")
            self.collect()
        self.one.shutdown(socket.SHUT_WR)
        while True:
            await self.receive(1 << 18)
            task = self.receiving
            await task
            self.collect()
            if not task.result():
                break

    def check(self):
        """All that was sent came, in order; of what was cancelled, the beginning."""
        at = 0
        for i, (data, sure) in enumerate(self.chunks):
            end = len(data)
            if not sure:
                following = [chunk[:16] for chunk, _ in self.chunks[i + 1 :]]
                ends = [self.received.find(mark, at) for mark in following]
                end = min([e for e in ends if e >= 0], default=len(self.received)) - at
                assert end <= len(data)
            assert self.received[at : at + end] == data[:end]
            at += end
        assert at == len(self.received)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=steps, seed=st.integers(0, 1 << 30))
def test_any_program_moves_every_byte_once(loop, kind, program, seed):
    async def main():
        one, other = pair(kind)
        with one, other:
            conversation = Conversation(one, other, random.Random(seed))
            async with asyncio.timeout(HANG):
                for what, amount in program:
                    await conversation.step(what, amount)
                await conversation.finish()
            conversation.check()

    loop.run_until_complete(main())
    assert loop.stats()["watched"] == 1


async def test_a_crowd_with_random_cancellations():
    """Many connections, each with an echo; requests are given up and taken up again."""
    loop = asyncio.get_running_loop()
    rng = random.Random(5)

    async def echo(sock):
        with sock:
            while data := await loop.sock_recv(sock, 1 << 18):
                await loop.sock_sendall(sock, data)

    async def ask(sock):
        with sock:
            for size in [rng.choice([1, 100, 30_000]) for _ in range(30)]:
                data = rng.randbytes(size)
                sending = asyncio.create_task(loop.sock_sendall(sock, data))
                found = bytearray()
                while len(found) < size:
                    task = asyncio.create_task(loop.sock_recv(sock, size - len(found)))
                    for _ in range(rng.randrange(4)):
                        await asyncio.sleep(0)
                    if rng.random() < 0.3:
                        task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        found += await task
                assert found == data
                await sending

    pairs = [pair(rng.choice(["tcp", "unix"])) for _ in range(40)]
    async with asyncio.timeout(HANG), asyncio.TaskGroup() as group:
        for one, other in pairs:
            group.create_task(echo(other))
            group.create_task(ask(one))
