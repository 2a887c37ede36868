"""Cancelled waiters of each primitive: nothing they were given is lost, nobody else sleeps on.

Waiters are cancelled some turns after they were let go, so also in the turn in which they were
woken and have not run.
"""

import asyncio

import pytest
from conftest import NO_URING
from hypothesis import example, given, settings
from hypothesis import strategies as st

import aiounify
from aiounify import sync
from aiounify.futex import Futex, wait_any

PLAN = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6)
BACKENDS = ["epoll"] + ([] if NO_URING else ["uring"])


async def asleep():
    for _ in range(5):
        await asyncio.sleep(0)


async def cancelled(plan, wait, go):
    """Start a waiter for each of the plan, go(), cancel; which of them came to their end."""
    tasks = [asyncio.create_task(wait()) for _ in plan]
    await asleep()
    await go(len(plan))
    for task, (turns, cancel) in zip(tasks, plan, strict=True):
        for _ in range(turns):
            await asyncio.sleep(0)
        if cancel:
            task.cancel()
    async with asyncio.timeout(20):  # for ever, if a wake was swallowed
        done = await asyncio.gather(*tasks, return_exceptions=True)
    for result, (_, cancel) in zip(done, plan, strict=True):
        if isinstance(result, BaseException):
            assert cancel and isinstance(result, asyncio.CancelledError), result
    return [result for result in done if not isinstance(result, BaseException)]


async def semaphore(plan):
    places = sync.Semaphore(0)

    async def go(n):
        for _ in range(n):
            places.release()

    ended = await cancelled(plan, places.acquire, go)
    assert places.get_value() == len(plan) - len(ended)
    assert places._waiters.load() == 0
    places.close()


async def one_place(plan):
    """Each gives the place to the next."""
    places = sync.BoundedSemaphore(1)
    await places.acquire()

    async def wait():
        async with places:
            await asyncio.sleep(0)

    async def go(_):
        places.release()

    await cancelled(plan, wait, go)
    assert places.get_value() == 1
    places.close()


async def event(plan):
    flag = sync.Event()

    async def go(_):
        flag.set()
        flag.clear()

    await cancelled(plan, flag.wait, go)
    flag.close()


async def condition(plan):
    changed, news = sync.Condition(), 0

    async def wait():
        async with changed:
            await changed.wait_for(lambda: news)
            assert changed._core.word.mine

    async def go(n):
        nonlocal news
        async with changed:
            news = 1
            changed.notify(n)

    await cancelled(plan, wait, go)
    assert not changed.locked()
    changed.close()


async def barrier(plan):
    """Whoever leaves before the round is complete is not counted."""
    meeting = sync.Barrier(len(plan) + 1)
    indices = []

    async def go(_):
        indices.append(await meeting.wait())

    indices += await cancelled(plan, meeting.wait, go)
    assert len(set(indices)) == len(indices)
    assert meeting.n_waiting == 0 and not meeting.broken
    meeting.close()


async def readers_and_writers(plan):
    lock, inside = sync.RWLock(), 0
    await lock.write.acquire()
    turn = 0

    async def wait():
        nonlocal inside, turn
        turn += 1
        if turn % 2:
            async with lock.read:
                await asyncio.sleep(0)
        else:
            async with lock.write:
                inside += 1
                assert inside == 1
                inside -= 1

    async def go(_):
        lock.write.release()

    await cancelled(plan, wait, go)
    assert lock.write.acquire_blocking(0.5)  # neither kind is left behind
    lock.write.release()
    lock.close()


async def getters(plan):
    queue = sync.Queue()

    async def go(n):
        for i in range(n):
            await queue.put(bytes([i]))

    got = await cancelled(plan, queue.get, go)
    while not queue.empty():
        got.append(queue.get_nowait())
    assert sorted(got) == [bytes([i]) for i in range(len(plan))]
    assert queue._queue.getters == 0
    queue.close()


async def putters(plan):
    queue, number, got = sync.Queue(1), 0, []
    await queue.put(b"first")

    async def wait():
        nonlocal number
        number += 1
        mine = bytes([number])
        await queue.put(mine)
        return mine

    async def go(n):
        for _ in range(n):
            got.append(await queue.get())
            if queue.empty():
                await asyncio.sleep(0)
            if queue.empty():
                return

    tasks = asyncio.create_task(cancelled(plan, wait, go))
    while not tasks.done():
        await asyncio.sleep(0)
        if not queue.empty() and got:
            got.append(queue.get_nowait())
    put = await tasks
    while not queue.empty():
        got.append(queue.get_nowait())
    assert sorted(got) == sorted([b"first", *put])
    assert queue._queue.putters == 0
    queue.close()


async def any_of_words(plan):
    """One wake for each waiter; what a cancelled one got, another gets."""
    words = [Futex(bytearray(64), 8) for _ in range(3)]

    async def go(_):
        words[1].store(1)
        words[1].wake(len(plan))

    ended = await cancelled(plan, lambda: wait_any((word, 0) for word in words), go)
    assert set(ended) <= {1}
    for word in words:
        word.release()


CASES = [
    semaphore,
    one_place,
    event,
    condition,
    barrier,
    readers_and_writers,
    getters,
    putters,
    any_of_words,
]


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_cancelled_waiters(case, near, monkeypatch):
    """On epoll with words in threads, and in the loop's own thread."""
    monkeypatch.setattr(aiounify.EventLoop, "_futexes_near", near)

    @given(PLAN, st.sampled_from(BACKENDS))
    @example(
        # A wait for two words, one of which has a result that nobody has taken yet.
        [(0, False), (3, False), (0, False), (0, False), (1, True), (1, True)],
        "epoll",
    )
    @settings(max_examples=12, deadline=None)
    def check(plan, backend):
        aiounify.run(case(plan), loop_factory=lambda: aiounify.new_event_loop(backend))

    check()
