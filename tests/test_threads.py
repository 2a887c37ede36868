"""call_soon_threadsafe(): each callback once, in its thread's order, waking a sleeping loop."""

import asyncio
import concurrent.futures
import threading
import time

import pytest


def in_threads(n, function):
    threads = [threading.Thread(target=function, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    return threads


@pytest.mark.parametrize("pause", [0, 2e-5], ids=["storm", "loop sleeps between"])
def test_each_callback_runs_once_in_its_threads_order(loop, pause):
    n_threads, n = 6, 4000 if not pause else 150
    seen, ended = [], []

    def shout(thread):
        for i in range(n):
            loop.call_soon_threadsafe(seen.append, (thread, i))
            if pause:
                time.sleep(pause)
        loop.call_soon_threadsafe(end)

    def end():
        ended.append(1)
        if len(ended) == n_threads:
            loop.stop()

    threads = in_threads(n_threads, shout)
    loop.run_forever()
    for thread in threads:
        thread.join()
    assert len(seen) == n_threads * n
    for thread in range(n_threads):
        assert [i for t, i in seen if t == thread] == list(range(n))


async def test_wakes_a_loop_that_sleeps():
    """Thousands of times: the loop goes to sleep while another thread schedules."""
    loop, rounds = asyncio.get_running_loop(), 3000
    asked = threading.Semaphore(0)
    answers = []
    done = loop.create_future()

    def answer():
        answers.append(1)
        if len(answers) == rounds:
            done.set_result(None)
        else:
            asked.release()

    def other():
        for i in range(rounds):
            asked.acquire()
            if i % 3 == 0:
                time.sleep(0)  # let the loop fall asleep now and then, and race otherwise
            loop.call_soon_threadsafe(answer)

    (thread,) = in_threads(1, lambda _: other())
    asked.release()
    await asyncio.wait_for(done, 50)
    await loop.run_in_executor(None, thread.join)
    assert len(answers) == rounds


async def test_no_system_call_while_the_loop_is_awake():
    loop = asyncio.get_running_loop()
    before = loop.stats()["wakeups"]

    def shout(_):
        for _ in range(1000):
            loop.call_soon_threadsafe(int)

    # this thread is inside a callback: the loop is awake all the time
    for thread in in_threads(3, shout):
        thread.join()
    assert loop.stats()["wakeups"] == before
    assert loop.stats()["ready"] == 3000
    await asyncio.sleep(0)


def test_one_wake_is_enough_for_many_callbacks(loop):
    seen = []
    go = threading.Event()

    def shout():
        go.wait()
        time.sleep(0.05)  # the loop is asleep by now, and this thread holds on to the GIL
        for i in range(100):
            loop.call_soon_threadsafe(seen.append, i)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=shout)
    thread.start()
    loop.call_soon(go.set)
    loop.run_forever()
    thread.join()
    assert seen == list(range(100))
    assert 1 <= loop.stats()["wakeups"] <= 20


def test_scheduled_before_the_loop_runs(loop):
    seen = []
    (thread,) = in_threads(1, lambda _: loop.call_soon_threadsafe(seen.append, 1))
    thread.join()
    loop.call_soon_threadsafe(loop.stop)
    loop.run_forever()
    assert seen == [1]


def test_scheduled_between_two_runs(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()
    seen = []
    (thread,) = in_threads(1, lambda _: loop.call_soon_threadsafe(seen.append, 1))
    thread.join()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == [1]


def test_closed_loop_refuses(loop_factory):
    loop = loop_factory()
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.call_soon_threadsafe(print)


def test_closing_while_threads_schedule(loop_factory):
    """Each call is either taken or refused; none of them may crash or hang."""
    for _ in range(20):
        loop = loop_factory()
        refused, started = [], threading.Barrier(4)

        def shout(_, loop=loop, refused=refused, started=started):
            started.wait()
            try:
                while True:
                    loop.call_soon_threadsafe(int)
            except RuntimeError as error:
                refused.append(str(error))

        threads = in_threads(3, shout)
        started.wait()
        loop.call_later(0.002, loop.stop)
        loop.run_forever()
        loop.close()
        for thread in threads:
            thread.join()
        assert refused == ["Event loop is closed"] * 3


def test_stop_from_another_thread(loop):
    def stop(_):
        time.sleep(0.01)
        loop.call_soon_threadsafe(loop.stop)

    (thread,) = in_threads(1, stop)
    loop.run_forever()
    thread.join()
    assert not loop.is_running()


def test_run_coroutine_threadsafe(loop):
    async def double(x):
        await asyncio.sleep(0.001)
        return 2 * x

    results = []

    def ask(i):
        results.append(asyncio.run_coroutine_threadsafe(double(i), loop).result(30))
        if len(results) == 5:
            loop.call_soon_threadsafe(loop.stop)

    threads = in_threads(5, ask)
    loop.run_forever()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 2, 4, 6, 8]


async def test_executor():
    loop = asyncio.get_running_loop()
    results = await asyncio.gather(*(loop.run_in_executor(None, pow, i, 2) for i in range(50)))
    assert results == [i * i for i in range(50)]
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        assert await loop.run_in_executor(executor, threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(divmod, 1, 0)


def test_two_loops_that_call_each_other(loop_factory):
    """Ping-pong between two threads, each asleep while the other works."""
    rounds, loops = 1000, [loop_factory(), loop_factory()]
    seen = [0, 0]

    def hit(me):
        seen[me] += 1
        other = loops[1 - me]
        if seen[me] < rounds:
            other.call_soon_threadsafe(hit, 1 - me)
        else:
            for loop in loops:
                loop.call_soon_threadsafe(loop.stop)

    threads = in_threads(2, lambda i: loops[i].run_forever())
    loops[0].call_soon_threadsafe(hit, 0)
    for thread in threads:
        thread.join(50)
    assert seen[0] == rounds
    for loop in loops:
        loop.close()
