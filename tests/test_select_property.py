"""select() against a model, under any mixture of events, selections and cancellations."""

import asyncio
import os
import signal
import socket
from collections import Counter, deque

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiounify
from aiounify import select
from aiounify.events import EventFD, received
from aiounify.signals import signals
from aiounify.sources import Arrivals

STRESS = "AIOUNIFY_STRESS" in os.environ

# Numbers are taken modulo what there is at that moment.
small = st.integers(0, 11)
STEP = st.one_of(
    st.tuples(st.just("event"), small),
    st.tuples(st.just("wait"), small),
    st.tuples(st.just("select"), st.lists(small, min_size=1, max_size=6)),
    st.tuples(st.just("iterate"), st.lists(small, min_size=1, max_size=6)),
    st.tuples(st.just("cancel"), small),
    st.tuples(st.just("turns"), st.integers(1, 4)),
)


class World:
    """Sources of every kind, what was sent to each and what was got from it, in order."""

    def __init__(self, realtime: signals) -> None:
        self.queues = [Arrivals[int](), Arrivals[int]()]
        self.semaphore, self.counter = EventFD(semaphore=True), EventFD()
        self.here, self.there = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self.data = received(self.here, 100)
        self.realtime = realtime
        self.sources = [*self.queues, self.semaphore, self.counter, self.data, realtime]
        self.sent: Counter[object] = Counter()
        self.got: dict[object, list[object]] = {source: [] for source in self.sources}
        self.tasks: deque[asyncio.Task[None]] = deque()

    def close(self) -> None:
        for each in (self.semaphore, self.counter, self.here, self.there):
            each.close()

    def pick(self, numbers: list[int]) -> list[object]:
        return list(dict.fromkeys(self.sources[n % len(self.sources)] for n in numbers))

    def cause(self, source: object) -> None:
        self.sent[source] += 1
        number = self.sent[source]
        if isinstance(source, Arrivals):
            source.put(number)
        elif isinstance(source, EventFD):
            source.add(1)
        elif source is self.data:
            self.there.send(b"%d" % number)
        else:
            os.kill(os.getpid(), signal.SIGRTMIN)

    async def wait(self, source: object) -> None:
        self.got[source].append(await source)

    async def once(self, sources: list[object]) -> None:
        source, value = await select(*sources)
        self.got[source].append(value)

    async def iterate(self, sources: list[object]) -> None:
        async with select(*sources) as selection:
            async for source, value in selection:
                self.got[source].append(value)

    def is_complete(self) -> bool:
        return all(
            (sum(self.got[s]) if s is self.counter else len(self.got[s])) >= self.sent[s]
            for s in self.sources
        )

    def check(self) -> None:
        for queue in self.queues:
            assert self.got[queue] == list(range(1, self.sent[queue] + 1))
        assert self.got[self.data] == [b"%d" % i for i in range(1, self.sent[self.data] + 1)]
        assert self.got[self.semaphore] == [1] * self.sent[self.semaphore]
        assert sum(self.got[self.counter]) == self.sent[self.counter]
        assert len(self.got[self.realtime]) == self.sent[self.realtime]


async def scenario(steps: list[tuple[str, object]]) -> None:
    async with signals(signal.SIGRTMIN) as realtime:
        world = World(realtime)
        for step, what in steps:
            match step:
                case "event":
                    world.cause(world.sources[what % len(world.sources)])
                case "wait":
                    source = world.sources[what % len(world.sources)]
                    world.tasks.append(asyncio.create_task(world.wait(source)))
                case "select":
                    world.tasks.append(asyncio.create_task(world.once(world.pick(what))))
                case "iterate":
                    world.tasks.append(asyncio.create_task(world.iterate(world.pick(what))))
                case "cancel" if world.tasks:
                    world.tasks.rotate(what)
                    world.tasks.popleft().cancel()
                case "turns":
                    for _ in range(what):
                        await asyncio.sleep(0)
        for task in world.tasks:
            task.cancel()
        if world.tasks:
            await asyncio.wait(world.tasks)
        # whatever is left comes to one that is not cancelled, and nothing else does
        rest = asyncio.create_task(world.iterate(world.sources))
        async with asyncio.timeout(20):
            while not world.is_complete():
                assert not rest.done(), rest.exception()
                await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        rest.cancel()
        await asyncio.wait([rest])
        world.check()
        world.close()


def test_no_event_is_lost_or_doubled(backend):
    @settings(
        max_examples=2000 if STRESS else 60,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(STEP, max_size=60))
    def run(steps):
        loop.run_until_complete(scenario(steps))

    loop = aiounify.new_event_loop(backend)
    try:
        run()
    finally:
        loop.close()
