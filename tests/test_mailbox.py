"""Mailbox: from any thread to one loop, in order, bounded, nothing lost or doubled."""

import asyncio
import contextlib
import gc
import itertools
import random
import threading
import time
from collections import deque

import pytest

import aiounify
from aiounify import Mailbox, select
from aiounify.mailbox import MailboxClosed, _Sender
from aiounify.timers import every


@contextlib.contextmanager
def thread(function, *args):
    """A thread that is joined at the end of the block, and whose exception is raised there."""
    failed = []

    def run():
        try:
            function(*args)
        except BaseException as exc:
            failed.append(exc)

    running = threading.Thread(target=run)
    running.start()
    try:
        yield running
    finally:
        running.join(40)
    assert not running.is_alive()
    if failed:
        raise failed[0]


def loop_thread(main, backend):
    return thread(lambda: aiounify.run(main, loop_factory=lambda: aiounify.new_event_loop(backend)))


async def joined(threads):
    """Leave the blocks of threads without blocking this loop."""
    await asyncio.to_thread(threads.close)


async def until(condition):
    async with asyncio.timeout(40):
        while not condition():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.001)


# -- one loop -------------------------------------------------------------------------


async def test_put_and_get():
    box = Mailbox()
    assert not len(box)
    assert box
    with pytest.raises(asyncio.QueueEmpty):
        box.get_nowait()
    box.put_nowait(1)
    await box.put(None)
    assert (len(box), box.maxsize) == (2, 0)
    assert box.get_nowait() == 1
    assert await box.get() is None
    getting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    box.put_nowait(2)
    assert await getting == 2
    box.put_nowait(3)
    assert await box == 3


async def test_bound():
    box = Mailbox(2)
    box.put_nowait(1)
    await box.put(2)
    with pytest.raises(asyncio.QueueFull, match="2 of 2"):
        box.put_nowait(3)
    putting = [asyncio.create_task(box.put(i)) for i in (3, 4, 5)]
    await asyncio.sleep(0)
    assert len(box) == 2
    assert await box.get() == 1
    # the slot is promised to the first who waited
    with pytest.raises(asyncio.QueueFull):
        box.put_nowait(6)
    assert [await box.get() for _ in range(4)] == [2, 3, 4, 5]
    await asyncio.gather(*putting)
    box.put_nowait(6)
    box.put_nowait(7)
    with pytest.raises(asyncio.QueueFull):
        box.put_nowait(8)


def test_refuses_a_negative_bound():
    with pytest.raises(ValueError, match="not -1"):
        Mailbox(-1)


async def test_a_cancelled_put_puts_nothing_and_passes_its_slot_on():
    box = Mailbox(1)
    box.put_nowait(0)
    first, second, third = (asyncio.create_task(box.put(i)) for i in (1, 2, 3))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    assert box.get_nowait() == 0
    await asyncio.sleep(0)  # the second has its slot, or is about to be told
    second.cancel()
    async with asyncio.timeout(40):
        assert await box.get() in (2, 3)
    await asyncio.wait([first, second, third])
    assert first.cancelled()
    box.close()
    rest = [message async for message in box]
    assert len(rest) + second.cancelled() == 1


@pytest.mark.parametrize("when", range(4))
async def test_a_cancelled_get_takes_nothing(when):
    box = Mailbox()
    getting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    box.put_nowait("message")
    for _ in range(when):
        await asyncio.sleep(0)
    getting.cancel()
    await asyncio.wait([getting])
    if getting.cancelled():
        assert box.get_nowait() == "message"
    else:
        assert getting.result() == "message"
        assert not len(box)


async def test_several_receivers_share():
    box = Mailbox()
    seen = [[], []]

    async def receive(mine):
        async for message in box:
            mine.append(message)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(receive(mine)) for mine in seen]
    for i in range(100):
        box.put_nowait(i)
        if i % 10 == 0:
            await asyncio.sleep(0)
    box.close()
    await asyncio.gather(*tasks)
    assert sorted(seen[0] + seen[1]) == list(range(100))
    assert seen == [sorted(mine) for mine in seen]


async def test_a_full_mailbox_does_not_keep_the_loop():
    box, turns = Mailbox(), []
    for i in range(1000):
        box.put_nowait(i)
    box.close()
    ticking = asyncio.get_running_loop()

    def tick():
        turns.append(len(box))
        if len(box):
            ticking.call_soon(tick)

    tick()
    assert [message async for message in box] == list(range(1000))
    assert len(turns) >= 1000 // 64


async def test_in_a_selection():
    first, second, ticks = Mailbox(), Mailbox(1), every(60.0)

    def send():
        for i in range(200):
            first.put_nowait(i)
            second.put_blocking(-i)
        first.put_nowait("last")

    seen = {first: [], second: []}
    threads = contextlib.ExitStack()
    threads.enter_context(thread(send))
    async with select(first, second, ticks) as events, asyncio.timeout(40):
        while seen[first][-1:] != ["last"] or len(seen[second]) < 200:
            source, value = await events
            seen[source].append(value)
        await joined(threads)
        first.close()
        second.close()
        events.remove(ticks)
        with pytest.raises(EOFError):
            await events
    assert seen == {first: [*range(200), "last"], second: [-i for i in range(200)]}


# -- closing --------------------------------------------------------------------------


async def test_close_ends_behind_what_is_there():
    box = Mailbox()
    box.put_nowait(1)
    box.close()
    box.close()
    assert box.closed
    assert "closed" in repr(box)
    with pytest.raises(MailboxClosed, match="it was closed"):
        box.put_nowait(2)
    with pytest.raises(MailboxClosed):
        await box.put(2)
    assert [message async for message in box] == [1]
    with pytest.raises(EOFError):
        await box.get()
    with pytest.raises(EOFError):
        box.get_nowait()


async def test_close_wakes_the_receiver_from_another_thread():
    box = Mailbox()
    getting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    with thread(box.close):
        pass
    with pytest.raises(EOFError):
        await asyncio.wait_for(getting, 40)


async def test_close_wakes_those_who_wait_for_room(backend):
    box = Mailbox(1)
    box.put_nowait(0)
    refused = []

    def block():
        try:
            box.put_blocking(1)
        except MailboxClosed as exc:
            refused.append(exc)

    async def wait():
        with pytest.raises(MailboxClosed):
            await box.put(2)
        refused.append(None)

    with contextlib.ExitStack() as threads:
        threads.enter_context(thread(block))
        threads.enter_context(loop_thread(wait(), backend))
        mine = asyncio.create_task(wait())
        await until(lambda: len(box._waiting) == 3)
        box.close()
        await mine
        await until(lambda: len(refused) == 3)
    assert [message async for message in box] == [0]


def test_a_closed_loop_closes_its_mailboxes(loop_factory):
    loop = loop_factory()
    box, other = Mailbox(1), Mailbox()

    async def receive():
        box.put_nowait(0)
        return await box.get()

    assert loop.run_until_complete(receive()) == 0
    box.put_nowait(1)
    refused = []

    def block():
        with pytest.raises(MailboxClosed, match="loop that receives from it is closed") as caught:
            box.put_blocking(2)
        refused.append(caught.value)

    with thread(block):
        while not box._waiting:
            time.sleep(0.001)
        loop.close()
    assert refused
    with pytest.raises(MailboxClosed, match="loop that receives from it is closed"):
        box.put_nowait(3)
    assert box.get_nowait() == 1
    other.put_nowait(1)  # was not received there


def test_no_hold_of_mailboxes_nor_loops(loop_factory):
    loop = loop_factory()

    async def receive():
        for _ in range(10):
            box = Mailbox()
            box.put_nowait(0)
            await box.get()

    loop.run_until_complete(receive())
    assert len(loop._belongings) == 1
    gc.collect()
    from aiounify.mailbox import _received

    assert not len(_received[loop])
    loop.close()


def test_accepted_until_closed_is_received(backend):
    """Close against senders: what was accepted comes, what was refused does not."""
    for _ in range(30):
        box, accepted, received = Mailbox(), [], []
        go = threading.Barrier(4)

        def send(box=box, accepted=accepted, go=go):
            go.wait()
            with contextlib.suppress(MailboxClosed):
                for i in itertools.count():
                    message = (threading.get_ident(), i)
                    box.put_nowait(message)
                    accepted.append(message)

        async def receive(box=box, received=received):
            async for message in box:
                received.append(message)

        def close(box=box, go=go):
            go.wait()
            box.close()

        with contextlib.ExitStack() as threads:
            threads.enter_context(loop_thread(receive(), backend))
            for function in (send, send, send, close):
                threads.enter_context(thread(function))
        assert sorted(received) == sorted(accepted)


# -- what happens between two steps of another thread, made to happen --------------------


async def test_a_sender_that_came_before_the_bell():
    box = Mailbox()

    class Bell(deque):
        def append(self, loop):
            box._messages.append("put before the bell was there")
            super().append(loop)

    box._bell = Bell()
    async with asyncio.timeout(40):
        assert await box.get() == "put before the bell was there"
    assert not box._bell


async def test_closed_before_the_bell():
    box = Mailbox()

    class Bell(deque):
        def append(self, loop):
            box.close()
            super().append(loop)

    box._bell = Bell()
    async with asyncio.timeout(40):
        with pytest.raises(EOFError):
            await box.get()


async def test_nobody_overtakes_those_who_wait():
    box = Mailbox(2)
    given = threading.Lock()
    given.acquire()
    box._waiting.append(_Sender(given.release))  # has lined up, and has not looked yet
    with pytest.raises(asyncio.QueueFull):
        box.put_nowait(1)
    async with asyncio.timeout(40):
        await box.put(2)  # lines up behind it, and both are given a slot
    assert given.acquire(blocking=False)
    assert not box._room


# -- threads and loops -----------------------------------------------------------------


@pytest.mark.parametrize("maxsize", [0, 1, 7])
async def test_many_senders_of_every_kind(maxsize):
    """Threads, loops of both backends and tasks of this one; each one's order is kept."""
    n, box = 150, Mailbox(maxsize)
    backends = ["epoll", "auto"]

    def nowait(name):
        i = 0
        while i < n:
            try:
                box.put_nowait((name, i))
                i += 1
            except asyncio.QueueFull:
                time.sleep(0.001)

    def blocking(name):
        for i in range(n):
            box.put_blocking((name, i))

    async def waiting(name):
        for i in range(n):
            await box.put((name, i))

    async def foreign():
        await asyncio.gather(waiting("f0"), waiting("f1"))

    threads = contextlib.ExitStack()
    for i, function in enumerate([nowait, blocking, blocking]):
        threads.enter_context(thread(function, f"t{i}"))
    for name in backends:
        threads.enter_context(loop_thread(waiting(name), name))
    threads.enter_context(thread(lambda: asyncio.run(foreign())))  # asyncio's own loop
    mine = asyncio.create_task(waiting("mine"))
    seen = {}
    for _ in range(n * (3 + len(backends) + 3)):
        name, i = await asyncio.wait_for(box.get(), 40)
        if maxsize:
            assert len(box) <= maxsize
        seen.setdefault(name, []).append(i)
    await mine
    await joined(threads)
    assert not len(box)
    assert len(seen) == 3 + len(backends) + 3
    assert all(mine == list(range(n)) for mine in seen.values())
    if maxsize:
        assert len(box._room) == maxsize


@pytest.mark.parametrize("maxsize", [0, 1, 3])
async def test_random_cancellation(maxsize):
    """Senders and receivers cancelled at random: a put that raised has put nothing."""
    rng = random.Random(maxsize)
    box, done, received = Mailbox(maxsize), [], []

    async def send(name, seed):
        rng = random.Random(seed)
        for i in range(120):
            message = (name, i)
            putting = asyncio.create_task(box.put(message))
            if rng.random() < 0.5:
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                putting.cancel()
            await asyncio.wait([putting])
            if not putting.cancelled():
                putting.result()
                done.append(message)

    def block(name, seed):
        rng = random.Random(seed)
        for i in range(120):
            try:
                box.put_blocking((name, i), rng.choice([0, 1e-5, 1e-3]))
                done.append((name, i))
            except TimeoutError:
                pass

    async def receive():
        while True:
            getting = asyncio.create_task(box.get())
            if rng.random() < 0.5:
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                getting.cancel()
            await asyncio.wait([getting])
            if not getting.cancelled():
                try:
                    received.append(getting.result())
                except EOFError:
                    return

    threads = contextlib.ExitStack()
    threads.enter_context(loop_thread(send("a", 1), "epoll"))
    threads.enter_context(loop_thread(send("b", 2), "auto"))
    threads.enter_context(thread(block, "c", 3))
    receiving = asyncio.create_task(receive())
    await send("mine", 4)
    await joined(threads)
    box.close()
    await asyncio.wait_for(receiving, 40)
    assert sorted(received) == sorted(done)
    for name in ("a", "b", "c", "mine"):
        assert [i for n, i in received if n == name] == [i for n, i in done if n == name]
    if maxsize:
        assert len(box._room) == maxsize
    assert not box._waiting


def test_ping_pong_of_two_loops(backend):
    rounds, there, back = 500, Mailbox(1), Mailbox(1)

    async def echo():
        async for message in there:
            await back.put(message + 1)
        back.close()

    async def ask():
        for i in range(rounds):
            await there.put(i)
            assert await back.get() == i + 1
        there.close()
        with pytest.raises(EOFError):
            await back.get()

    with loop_thread(echo(), backend), loop_thread(ask(), "epoll"):
        pass


def test_a_sender_whose_loop_was_closed_gives_its_slot_to_the_next(backend):
    box = Mailbox(1)
    box.put_nowait(0)
    dead = aiounify.new_event_loop(backend)
    putting = dead.create_task(box.put("dead"))
    dead.call_soon(dead.call_soon, dead.stop)
    dead.run_forever()
    assert len(box._waiting) == 1
    dead.close()

    async def main():
        assert await box.get() == 0
        box.put_nowait(1)
        with pytest.raises(asyncio.QueueFull):
            box.put_nowait(2)
        assert await box.get() == 1

    aiounify.run(main())
    putting.get_coro().close()  # the slot was given back already, and is not once more
    assert len(box._room) == 1
    putting._log_destroy_pending = False


async def test_put_blocking_times_out():
    box = Mailbox(1)

    def block():
        box.put_blocking(0, 0)
        for timeout in (0, -1, 0.001):
            with pytest.raises(TimeoutError, match="1 of 1"):
                box.put_blocking(1, timeout)

    with thread(block):
        pass
    assert await box.get() == 0
    assert not box._waiting
    box.put_nowait(1)


async def test_put_blocking_is_refused_in_a_loop():
    box = Mailbox()
    with pytest.raises(RuntimeError, match=r"await mailbox\.put"):
        box.put_blocking(1)
    assert not len(box)


async def test_belongs_to_one_loop():
    box = Mailbox()
    getting = asyncio.create_task(box.get())
    await asyncio.sleep(0)

    async def elsewhere():
        with pytest.raises(RuntimeError, match="received in another event loop"):
            await box.get()
        with pytest.raises(RuntimeError, match="received in another event loop"):
            await select(box)

    with thread(lambda: aiounify.run(elsewhere())):
        pass
    box.put_nowait(1)
    assert await getting == 1


def test_another_event_loop():
    async def main():
        box = Mailbox()
        await box.put(1)
        with pytest.raises(RuntimeError, match="aiounify"):
            await box.get()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


# -- cost -------------------------------------------------------------------------------


async def test_no_system_call_while_the_receiver_is_awake():
    box, n = Mailbox(), 2000
    loop = asyncio.get_running_loop()
    getting = asyncio.create_task(box.get())
    await asyncio.sleep(0)  # it waits by now

    def send():
        for i in range(n):
            box.put_nowait(i)

    before = loop.stats()
    # this thread is inside a callback: the loop is awake all the time
    with thread(send), thread(send):
        pass
    after = loop.stats()
    assert after["wakeups"] == before["wakeups"]
    assert after["syscalls"] == before["syscalls"]
    # one callback for all of it: the bell was there for the first sender only
    assert after["ready"] - before["ready"] == 1
    assert await getting == 0
    for _ in range(2 * n - 1):
        await box.get()
    assert loop.stats()["wakeups"] == before["wakeups"]


async def test_one_wakeup_for_a_loop_that_sleeps():
    box = Mailbox()
    loop = asyncio.get_running_loop()
    before = loop.stats()["wakeups"]
    with thread(box.put_nowait, 1):
        pass
    assert await box.get() == 1
    assert loop.stats()["wakeups"] == before

    asleep = threading.Event()

    def send():
        asleep.wait()
        box.put_nowait(2)

    with thread(send):
        loop.call_soon(asleep.set)
        assert await box.get() == 2
    assert loop.stats()["wakeups"] - before <= 1
