"""select(): any mixture, in order, nothing lost or doubled; and the protocol of sources."""
# ruff: noqa: ASYNC221 - the tests cause what is awaited

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import random
import signal
import socket
import time
import weakref
from collections import Counter

import pytest

import aiounify
from aiounify import process, select
from aiounify.events import EventFD, readable, received
from aiounify.signals import signals
from aiounify.sources import EMPTY, Arrivals, FutureSource, Source, as_source
from aiounify.timers import after, every

STRESS = "AIOUNIFY_STRESS" in os.environ


async def test_one_shot_of_every_kind():
    a, b = socket.socketpair()
    r, w = os.pipe()
    loop = asyncio.get_running_loop()
    async with signals(signal.SIGUSR1) as usr1, EventFD() as counter:
        pid = os.posix_spawn(
            "/bin/cat",
            ["cat"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, r, 0), (os.POSIX_SPAWN_CLOSE, w)],
        )
        child = process.wait(pid)
        tick, alarm = every(60.0), after(0.001)
        queue: asyncio.Queue[str] = asyncio.Queue()
        getting = asyncio.create_task(queue.get())
        future = loop.create_future()
        thread: concurrent.futures.Future[str] = concurrent.futures.Future()
        data, ready, arrivals = received(a), readable(b), Arrivals()
        with a, b:
            async with select(
                usr1, counter, child, tick, getting, future, thread, data, ready, arrivals
            ) as events:
                causes = {
                    usr1: lambda: os.kill(os.getpid(), signal.SIGUSR1),
                    counter: lambda: counter.add(2),
                    child: lambda: os.close(w),
                    alarm: lambda: events.add(alarm),
                    getting: lambda: queue.put_nowait("item"),
                    future: lambda: future.set_result("result"),
                    thread: lambda: thread.set_result("from a thread"),
                    data: lambda: b.send(b"bytes"),
                    ready: lambda: a.send(b"x"),
                    arrivals: lambda: arrivals.put("value"),
                }
                assert len(events) == len(causes)
                for cause, act in causes.items():
                    act()
                    source, value = await events
                    assert source is cause
                    if source is ready:
                        assert b.recv(1) == b"x"
                    assert value is not EMPTY
                # those with one value have left
                assert set(events.sources) == {usr1, counter, tick, data, ready, arrivals}
    os.close(r)


async def test_a_loser_loses_nothing():
    first, second = Arrivals(), Arrivals()
    second.put("b")
    first.put("a")
    assert await select(first, second) == (first, "a")
    assert len(second) == 1
    assert await select(first, second) == (second, "b")
    waits = asyncio.create_task(second.wait())
    await asyncio.sleep(0)
    assert not waits.done()
    second.put("c")
    assert await waits == "c"
    assert not first._is_armed and not second._is_armed


async def test_a_forgotten_selection_withdraws():
    source, counter = Arrivals(), EventFD()
    done = asyncio.get_running_loop().create_future()
    done.set_result(1)
    selection = select(source, counter, done)
    assert (await selection)[0] is done
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await selection
    assert source._is_armed and counter._is_armed
    gone = weakref.ref(selection)
    del selection
    assert gone() is None
    assert not source._is_armed and not counter._is_armed
    counter.close()


async def test_the_order_is_that_of_becoming_ready():
    sources = [Arrivals() for _ in range(20)]
    order = random.Random(1).sample(sources, 20)
    selection = select(*sources)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await selection
    for number, source in enumerate(order):
        source.put(number)
    assert [await selection for _ in range(20)] == [(s, n) for n, s in enumerate(order)]
    selection.close()


async def test_a_busy_source_does_not_keep_the_others_away():
    busy, quiet = Arrivals(), Arrivals()
    for number in range(1000):
        busy.put(number)
    quiet.put("x")
    selection = select(busy, quiet)
    given = [(await selection)[0] for _ in range(4)]
    assert given.count(quiet) == 1
    # nor the loop from its turn
    turns = asyncio.get_running_loop().stats()["turns"]
    for _ in range(500):
        await selection
    assert asyncio.get_running_loop().stats()["turns"] - turns >= 5
    selection.close()


async def test_one_wake_up_for_a_batch():
    sources = [Arrivals() for _ in range(100)]
    loop = asyncio.get_running_loop()
    got = []

    async def consume():
        async for source, value in select(*sources):
            got.append((source, value))
            if len(got) == 100:
                break

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.001)
    before = loop.stats()["callbacks"]
    for number, source in enumerate(sources):
        source.put(number)
    await task
    # the task's one step (and one more for each streak), not a callback for each event
    assert loop.stats()["callbacks"] - before < 10
    assert [value for _, value in got] == list(range(100))


async def test_no_task_for_a_source():
    counter, arrivals = EventFD(), Arrivals()
    selection = select(counter, arrivals, every(60.0), after(60.0))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await selection
    assert len(asyncio.all_tasks()) == 1
    selection.close()
    counter.close()


async def test_ends_and_failures():
    ends, fails, goes_on = Arrivals(), Arrivals(), Arrivals()
    for source in (ends, fails, goes_on):
        source.put(1)
    ends.end()
    fails.end(OSError(5, "broken"))
    selection = select(ends, fails, goes_on)
    assert Counter([(await selection)[0] for _ in range(3)]) == Counter([ends, fails, goes_on])
    with pytest.raises(OSError, match="broken"):
        await selection
    assert selection.sources == [goes_on]
    goes_on.end()
    with pytest.raises(EOFError, match="no source"):
        await selection
    assert [item async for item in selection] == []
    fails = Arrivals()
    fails.end(OSError(5, "broken"))
    ((source, value),) = [item async for item in select(fails, ends, return_exceptions=True)]
    assert source is fails and isinstance(value, OSError)


async def test_futures_that_fail_or_are_cancelled():
    loop = asyncio.get_running_loop()
    bad, cancelled = loop.create_future(), loop.create_future()
    bad.set_exception(ValueError("bad"))
    cancelled.cancel()
    got = {source: value async for source, value in select(bad, cancelled, return_exceptions=True)}
    assert isinstance(got[bad], ValueError)
    assert isinstance(got[cancelled], asyncio.CancelledError)
    with pytest.raises(ValueError, match="bad"):
        await select(bad)


async def test_tasks_it_made_are_its_own_and_those_it_was_given_are_not():
    mine = asyncio.create_task(asyncio.sleep(60))
    ended = []

    async def owned():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    coroutine = owned()
    async with select(mine, coroutine) as selection:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await selection
    assert ended == [True]
    assert not mine.done()
    mine.cancel()
    assert (await select(asyncio.sleep(0, "value")))[1] == "value"


async def test_add_and_remove_while_another_task_awaits():
    first, second = Arrivals(), Arrivals()
    selection = select(first)
    waits = asyncio.ensure_future(selection)
    await asyncio.sleep(0)
    selection.add(second)
    selection.remove(first)
    first.put("kept")
    second.put("given")
    assert await waits == (second, "given")
    assert await first == "kept"
    with pytest.raises(KeyError):
        selection.remove(first)
    with pytest.raises(ValueError, match="already"):
        selection.add(second)
    waits = asyncio.ensure_future(selection)
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another task"):
        await selection
    selection.remove(second)
    with pytest.raises(EOFError):
        await waits
    assert second not in selection and len(selection) == 0


async def test_what_cannot_be_awaited():
    for bad in (object(), 5, None, "x", lambda: None):
        with pytest.raises(TypeError, match="readable"):
            select(bad)


def test_another_event_loop():
    async def main():
        await select(Arrivals())

    with pytest.raises(RuntimeError, match="aiounify"):
        asyncio.run(main())


def test_a_loop_closed_with_a_selection(loop):
    counter = EventFD()

    async def main():
        selection = select(counter, every(60.0), Arrivals())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await selection
        return selection

    selection = loop.run_until_complete(main())
    loop.close()
    del selection
    gc.collect()
    counter.close()


async def test_a_source_written_in_python():
    class Chunks(Source[bytes]):
        def __init__(self, fd):
            self.fd = fd

        def take(self):
            try:
                data = os.read(self.fd, 4)
            except BlockingIOError:
                return EMPTY
            if not data:
                raise StopAsyncIteration
            return data

        def _begin(self):
            self._loop._add_reader(self.fd, self._readable)

        def _withdraw(self):
            self._loop._remove_reader(self.fd)

        def _readable(self):
            self._withdraw()
            self._fire()

    r, w = os.pipe2(os.O_NONBLOCK)
    chunks = Chunks(r)
    task = asyncio.create_task(chunks.wait())
    await asyncio.sleep(0)
    os.write(w, b"abcdef")
    assert await task == b"abcd"
    os.close(w)
    assert [value async for _, value in select(chunks)] == [b"ef"]
    os.close(r)


async def test_a_source_by_its_methods_alone():
    class Plain:
        def __init__(self):
            self.values = []
            self.ready = []

        def take(self):
            return self.values.pop(0) if self.values else EMPTY

        def arm(self, ready):
            self.ready.append(ready)

        def disarm(self, ready):
            if ready in self.ready:
                self.ready.remove(ready)

        def put(self, value):
            self.values.append(value)
            armed, self.ready = self.ready, []
            for ready in armed:
                ready()

    plain = Plain()
    asyncio.get_running_loop().call_later(0.001, plain.put, 1)
    assert await select(plain, after(60.0)) == (plain, 1)
    selection = select(plain)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await selection
    selection.close()
    assert plain.ready == []


async def test_what_is_armed_in_python():
    source, calls = Arrivals(), []

    def fails():
        raise ValueError("from what was armed")

    reports = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reports.append(context["exception"]))
    kept = lambda: calls.append("kept")  # noqa: E731
    dropped = lambda: calls.append("dropped")  # noqa: E731
    for each in (fails, kept, dropped):
        source.arm(each)
    source.disarm(dropped)
    source.disarm(dropped)
    source.put(1)
    source.put(2)
    assert calls == ["kept"]
    assert [str(each) for each in reports] == ["from what was armed"]


async def test_as_source():
    source = Arrivals()
    assert as_source(source) == (source, None)
    future = asyncio.get_running_loop().create_future()
    made, task = as_source(future)
    assert isinstance(made, FutureSource) and task is None
    made, task = as_source(asyncio.sleep(0, 3))
    assert task is not None
    assert await made == 3


# -- nothing lost, nothing doubled, nothing out of order --------------------------------


@pytest.mark.parametrize("seed", range(40 if STRESS else 4))
async def test_nothing_is_lost_or_doubled_under_random_cancellation(seed):
    """Kernel and queue sources, consumed by selections and lone waits that are cancelled at
    random moments: every event arrives once, and each source's in their order."""
    choose = random.Random(seed)
    loop = asyncio.get_running_loop()
    number = 400
    queues = [Arrivals() for _ in range(3)]
    semaphore, counter = EventFD(semaphore=True), EventFD()
    a, b = socket.socketpair(type=socket.SOCK_SEQPACKET)
    data = received(a, 100)
    ticks = every(0.001)
    first_tick = ticks.deadline_ns
    sources = [*queues, semaphore, counter, data, ticks]
    sent, got = Counter(), {source: [] for source in sources}
    tick_count = 0

    async with signals(signal.SIGRTMIN, signal.SIGRTMIN + 1) as realtime:
        sources.append(realtime)
        got[realtime] = []

        def receive(source, value):
            nonlocal tick_count
            if source is ticks:
                tick_count += 1 + value.missed
                assert value.due_ns == first_tick + (tick_count - 1) * 1_000_000
            else:
                got[source].append(value)

        async def consume_all():
            """A selection that lives as long as this task."""
            async with select(*choose.sample(sources, len(sources))) as selection:
                async for source, value in selection:
                    receive(source, value)

        async def consume_some():
            while True:
                some = choose.sample(sources, choose.randint(1, len(sources)))
                receive(*await select(*some))

        async def consume_one():
            while True:
                source = choose.choice(sources)
                receive(source, await source)

        tasks = []
        for step in range(number):
            source = choose.choice(sources)
            sent[source] += 1
            if source in queues:
                source.put(sent[source])
            elif source is semaphore or source is counter:
                source.add(1)
            elif source is data:
                b.send(b"%d" % sent[data])
            elif source is realtime:
                os.kill(os.getpid(), signal.SIGRTMIN)
            while len(tasks) < 3:
                kind = choose.choice([consume_all, consume_some, consume_one])
                tasks.append(asyncio.create_task(kind()))
            match choose.randrange(4):
                case 0:
                    await asyncio.sleep(0)
                case 1:
                    tasks.pop(choose.randrange(len(tasks))).cancel()
                case 2 if step % 7 == 0:
                    await asyncio.sleep(0.001)
        # what is left, without cancellation
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(20), select(*sources) as selection:
            while (
                any(len(got[s]) < sent[s] for s in (*queues, semaphore, data, realtime))
                or sum(got[counter]) < sent[counter]
            ):
                receive(*await selection)
            loop.call_later(0.005, queues[0].put, None)
            while (item := await selection)[1] is not None:
                receive(*item)  # ticks only: what else came would be one too many

    for source in queues:
        assert got[source] == list(range(1, sent[source] + 1))
    assert got[data] == [b"%d" % i for i in range(1, sent[data] + 1)]
    assert got[semaphore] == [1] * sent[semaphore]
    assert sum(got[counter]) == sent[counter]
    assert len(got[realtime]) == sent[realtime]
    for each in (a, b, semaphore, counter):
        each.close()


async def test_children_are_told_once_under_cancellation():
    pids = [os.posix_spawn("/bin/sh", ["sh", "-c", f"exit {i}"], os.environ) for i in range(20)]
    children = [process.wait(pid) for pid in pids]
    got = []
    deadline = time.monotonic() + 20
    selection = select(*children)
    while len(got) < 20 and time.monotonic() < deadline:
        try:
            async with asyncio.timeout(0.0005):
                got.append(await selection)
        except TimeoutError:
            continue
    assert sorted(value.returncode for _, value in got) == list(range(20))
    assert [source for source, _ in got] != [] and len(selection) == 0


def test_select_is_made_when_asked_for():
    assert aiounify.select is select
    assert "select" in dir(aiounify)
