"""aiounify.futex: words, waits for one and for many, in the ring and in threads."""

# ruff: noqa: ASYNC110, ASYNC222, RUF059

import asyncio
import contextlib
import gc
import mmap
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import NO_URING

import aiounify
from aiounify import _kernel_probe, _waiting
from aiounify.futex import Futex, wait_any


@pytest.fixture(params=["as it is", "threads", "loop", "no futex_waitv"], autouse=True)
def means(request, monkeypatch):
    """Each way to wait, forced."""
    if request.param != "as it is":
        monkeypatch.setattr(aiounify.EventLoop, "_futexes_in_ring", False)
        # on epoll: whether the loop's own thread waits; the ring's loop has threads in both
        monkeypatch.setattr(aiounify.EventLoop, "_futexes_near", request.param == "loop")
    if request.param == "no futex_waitv":
        missing = aiounify.Feature(False, "needs Linux 5.16")
        monkeypatch.setattr(_kernel_probe, "futex_waitv_offered", lambda: missing)
    return request.param


@pytest.fixture
def memory():
    with mmap.mmap(-1, 1 << 16) as shared:
        yield shared
        gc.collect()  # futexes hold the buffer


def later(futex, value=1, n=1, **how):
    def change():
        time.sleep(0.02)
        futex.store(value)
        futex.wake(n, **how)

    thread = threading.Thread(target=change)
    thread.start()
    return thread


def futexes():
    return asyncio.get_running_loop()._attached["futexes"]


async def test_woken(memory, means):
    futex = Futex(memory, 8)
    thread = later(futex)
    while futex.load() == 0:
        await futex.wait(0)
    thread.join()
    ring = asyncio.get_running_loop().backend == "uring" and means == "as it is"
    assert futexes().in_ring == ring
    near = asyncio.get_running_loop().backend == "epoll" and means == "loop"
    assert ring or means == "as it is" or futexes().in_loop == near
    assert futexes().threads_used == (0 if ring or near else 1)
    futex.release()


async def test_woken_without_a_change(memory):
    futex = Futex(memory)
    task = asyncio.create_task(futex.wait(0))
    await asyncio.sleep(0)
    while not futex.wake():  # a thread may not have reached the kernel yet
        await asyncio.sleep(0.001)
    assert await task
    futex.release()


async def test_another_value_is_no_wait(memory):
    futex = Futex(memory)
    assert not await futex.wait(3)
    assert not futex.wait_blocking(3)
    futex.release()


async def test_cancelled(memory):
    futex = Futex(memory)
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await futex.wait(0)
    thread = later(futex)
    while futex.load() == 0:
        await futex.wait(0)
    thread.join()
    futex.release()


def sleeping_on(futex):
    """How many threads of this process are in futex(2) for this word: proc_pid_syscall(5)."""
    found = 0
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            number, *arguments = (thread / "syscall").read_text().split()
            found += number == "202" and int(arguments[0], 16) == futex.address
    return found


async def test_a_cancelled_waiter_passes_the_wake_on(memory, means):
    """Both in the same turn: which of the two comes first must not matter."""
    futex = Futex(memory)
    for _ in range(10):
        first, second = (asyncio.create_task(futex.wait(0)) for _ in range(2))
        await asyncio.sleep(0.002)
        # The word does not change, so who does not sleep yet would miss the wake that is passed on.
        while means == "no futex_waitv" and sleeping_on(futex) < 2:
            await asyncio.sleep(0.001)
        while not futex.wake(1):
            await asyncio.sleep(0.001)
        first.cancel()
        done, _ = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        if not second.done():
            if not first.cancelled():  # it was woken before, and said so
                second.cancel()
            else:
                async with asyncio.timeout(10):
                    assert await second
        await asyncio.wait([first, second])
    futex.release()


async def test_mask(memory):
    futex = Futex(memory)
    one, two = (asyncio.create_task(futex.wait(0, mask=mask)) for mask in (1, 2))
    await asyncio.sleep(0.03)
    while not futex.wake(5, mask=2):
        await asyncio.sleep(0.001)
    assert await two
    await asyncio.sleep(0)
    assert not one.done()
    assert futex.wake(5, mask=4) == 0
    while not futex.wake(5, mask=3):
        await asyncio.sleep(0.001)
    assert await one
    with pytest.raises(ValueError, match="mask"):
        await futex.wait(0, mask=0)
    with pytest.raises(ValueError, match="mask"):
        futex.wake(mask=0)
    futex.release()


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 300])
async def test_wait_any(memory, means, n):
    if means == "no futex_waitv" and n > 2:
        pytest.skip("a thread for each word")
    words = [Futex(memory, 4 * i) for i in range(n)]
    thread = later(words[n - 1])
    assert await wait_any((word, 0) for word in words) == n - 1
    thread.join()
    assert await wait_any([(words[0], 5), (words[n - 1], 0)]) == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await wait_any((word, word.load()) for word in words)
    with pytest.raises(ValueError, match="at least one"):
        await wait_any([])
    for word in words:
        word.release()


async def test_many_words_one_wake(memory, means):
    n = 20 if means == "no futex_waitv" else 1000
    words = [Futex(memory, 4 * i) for i in range(n)]
    tasks = [asyncio.create_task(word.wait(0)) for word in words]
    await asyncio.sleep(0.05)
    words[n // 2].store(1)
    words[n // 2].wake()
    await tasks[n // 2]
    assert sum(task.done() for task in tasks) == 1
    if futexes().threads_used and means == "threads":
        assert futexes().threads_used == -(-n // 127)
    for word in words:
        word.store(1)
        word.wake()
    await asyncio.gather(*tasks)
    for word in words:
        word.release()


async def test_memory_stays_for_the_wait(memory):
    buffer = bytearray(64)
    futex = Futex(buffer)
    with pytest.raises(BufferError):
        buffer.clear()
    task = asyncio.create_task(futex.wait(0))
    await asyncio.sleep(0)
    futex.release()
    with pytest.raises(BufferError):
        buffer.clear()
    task.cancel()
    await asyncio.wait([task])
    async with asyncio.timeout(10):
        while True:
            try:
                buffer.clear()
                break
            except BufferError:
                await asyncio.sleep(0.001)
    with pytest.raises(ValueError, match="released"):
        futex.load()
    with pytest.raises(ValueError, match="released"):
        await futex.wait(0)


def test_loop_closed_while_waiting(loop_factory, memory):
    loop = loop_factory()
    futex = Futex(memory)
    task = loop.create_task(futex.wait(0))
    loop.run_until_complete(asyncio.sleep(0.01))
    task.cancel()
    loop.close()
    futex.release()
    del task


def test_blocking(memory):
    futex = Futex(memory)
    with pytest.raises(TimeoutError):
        futex.wait_blocking(0, 0.01)
    thread = later(futex)
    futex.wait_blocking(0, 20)
    thread.join()
    assert futex.load() == 1
    futex.release()


def test_blocking_is_interrupted_by_signals(memory):
    futex = Futex(memory)

    def handler(*_):
        raise InterruptedError("as Ctrl-C")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(InterruptedError):
            futex.wait_blocking(0, 20)
    finally:
        signal.signal(signal.SIGALRM, before)
    futex.release()


def test_atomics(memory):
    futex = Futex(memory, 4)
    assert futex.add(-1) == 0
    assert futex.load() == 0xFFFFFFFF
    assert futex.exchange(5) == 0xFFFFFFFF
    assert not futex.compare_exchange(4, 6)
    assert futex.compare_exchange(5, 6)
    assert futex.load() == 6
    assert memory[:12] == b"\0\0\0\0\6\0\0\0\0\0\0\0"  # neighbours are left alone
    assert "value=6" in repr(futex)
    with pytest.raises(OverflowError):
        futex.store(1 << 32)
    futex.release()
    assert repr(futex) == "<Futex released>"


def test_requeue(memory):
    one, two = Futex(memory), Futex(memory, 64)
    woken = []
    threads = [
        threading.Thread(target=lambda: woken.append(one.wait_blocking(0, 20))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    with pytest.raises(BlockingIOError):
        one.requeue(two, 3)
    moved = 0
    while moved < 2:
        moved += one.requeue(two, 0, 0, 5)
    two.wake(5)
    while any(thread.is_alive() for thread in threads):
        two.wake(5)  # after a look around they wait where they did before
        one.wake(5)
        time.sleep(0.01)
    assert woken == [True, True]
    one.release()
    two.release()


def test_bad_input(memory):
    with pytest.raises(BufferError, match="writable"):
        Futex(b"read-only")
    with pytest.raises(ValueError, match="aligned"):
        Futex(memory, 2)
    with pytest.raises(ValueError, match="no 32-bit word"):
        Futex(memory, 1 << 16)
    with pytest.raises(ValueError, match="no 32-bit word"):
        Futex(memory, -4)
    with pytest.raises(ValueError, match="closed"):
        closed = mmap.mmap(-1, 4096)
        closed.close()
        Futex(closed)
    with pytest.raises(TypeError):
        Futex(5)


def test_another_event_loop(memory):
    futex = Futex(memory)

    async def main():
        with pytest.raises(RuntimeError, match="aiounify event loop"):
            await futex.wait(0)

    _run(main())
    futex.release()


def _run(main):
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main)


def test_between_processes(loop_factory, memory):
    futex = Futex(memory)
    pid = os.fork()
    if not pid:
        while futex.load() == 0:
            futex.wait_blocking(0)
        futex.store(2)
        futex.wake()
        os._exit(0)

    async def main():
        await asyncio.sleep(0.01)
        futex.store(1)
        futex.wake()
        while futex.load() != 2:
            await futex.wait(1)

    loop = loop_factory()
    loop.run_until_complete(main())
    loop.close()
    os.waitpid(pid, 0)
    futex.release()


def test_forced_means_are_what_they_say(means):
    assert _waiting.SLICE_NS == 250_000_000
    if means == "as it is" and not NO_URING:
        assert aiounify.features()["uring_futex_wait"].detail


async def test_a_fork_wakes_the_loop_it_is_a_copy_of(memory):
    futex = Futex(memory)
    for value in range(6):
        task = asyncio.create_task(futex.wait(value))
        await asyncio.sleep(0)
        pid = os.fork()
        if not pid:
            try:
                futex.store(value + 1)
                futex.wake()
            except BaseException:
                os._exit(1)
            os._exit(0)
        async with asyncio.timeout(20):
            await task
        assert os.waitpid(pid, 0)[1] == 0
    futex.release()


def test_an_epoll_loop_waits_itself_while_that_is_worth_it(memory, means, monkeypatch):
    """It begins when its sleeps end by futexes, and ceases when they do not; nothing is lost."""
    if means != "threads" or not _kernel_probe.futex_waitv_offered().on:
        pytest.skip("one means, and Linux 5.16")
    monkeypatch.setattr(aiounify.EventLoop, "_futexes_near", None)
    futex, slow = Futex(memory), Futex(memory, 64)

    async def round_trip():
        seen = futex.load()
        thread = later(futex, seen + 1)
        await futex.wait(seen)
        thread.join()

    async def main():
        asleep = asyncio.create_task(slow.wait(0))
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            await round_trip()
            while not futexes().in_loop:
                await round_trip()
            near = asyncio.create_task(Futex(memory, 128).wait(0))
            await asyncio.sleep(0)
            while futexes().in_loop:
                await loop.run_in_executor(None, time.sleep, 0.0001)
            assert not near.done()
            other = Futex(memory, 128)  # its wait is a thread's now
            other.store(1)
            other.wake()
            await near
            slow.store(1)
            slow.wake()
            await asleep
            await round_trip()

    loop = aiounify.new_event_loop("epoll")
    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    for one in (futex, slow):
        one.release()
