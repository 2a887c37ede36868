"""aiounify.futex: words, waits for one and for many, in the ring and in threads."""

# ruff: noqa: ASYNC110, ASYNC222, RUF059

import asyncio
import contextlib
import errno
import gc
import mmap
import os
import signal
import sys
import threading
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
from conftest import NO_URING

import aiounify
from aiounify import _kernel_probe, _waiting
from aiounify import futex as futex_module
from aiounify.futex import Futex, wait_any, wait_any_blocking


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
    task = asyncio.create_task(futex.wait(0))
    await asyncio.sleep(0)
    thread = later(futex)
    await task
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


async def test_requeue_moves_coroutines_too(memory, means):
    """The kernel moves what waits in the ring for good, and what threads and loops sleep for as
    long as they sleep; whoever comes back sees that the word has changed."""
    one, two = Futex(memory), Futex(memory, 64)
    tasks = [asyncio.create_task(one.wait(0, to=two)) for _ in range(3)]
    await asyncio.sleep(0.02)
    one.store(1)
    moved = one.requeue(two, 1, 0)
    if futexes().in_ring:
        assert moved == 3
        assert one.wake(5) == 0
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        assert two.wake(2) == 2
        assert two.wake(5) == 1
        assert await asyncio.gather(*tasks) == [True] * 3
    async with asyncio.timeout(20):
        while not all(task.done() for task in tasks):
            two.wake(5)
            # A thread with other words to wait for stays where it was moved to; one more word
            # makes it look at all of them.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await Futex(memory, 128).wait(0)
    one.release()
    two.release()


async def test_a_moved_and_cancelled_waiter_passes_the_wake_on(memory):
    one, two = Futex(memory), Futex(memory, 64)
    for value in range(10):
        first, second = (asyncio.create_task(one.wait(value, to=two)) for _ in range(2))
        await asyncio.sleep(0.002)
        one.store(value + 1)
        one.requeue(two, value + 1, 0)
        two.wake(1)
        first.cancel()
        if not futexes().in_ring:  # of those that were not moved nobody has been woken
            one.wake(2)
        async with asyncio.timeout(20):
            await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
            if first.done() and first.cancelled():
                await second
        second.cancel()
        await asyncio.wait([first, second])
    one.release()
    two.release()


async def test_a_wait_for_what_has_changed_lets_others_run(memory):
    """It does not begin, so it does not suspend; but not for ever."""
    futex, turns = Futex(memory), 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(1000):
        assert not await futex.wait(5)
    assert turns >= 10
    task.cancel()
    await asyncio.wait([task])
    futex.release()


@pytest.mark.parametrize("waitv", [True, False])
def test_any_of_many_blocking(memory, monkeypatch, waitv):
    if not waitv:
        monkeypatch.setattr(futex_module, "_sleep_any", lambda *_: -errno.ENOSYS)
    words = [Futex(memory, 4 * i) for i in range(128)]
    thread = later(words[100])
    assert wait_any_blocking(((word, 0) for word in words), 20) == 100
    thread.join()
    words[100].store(0)
    assert wait_any_blocking([(words[3], 0), (words[4], 1)]) == 1
    with pytest.raises(TimeoutError):
        wait_any_blocking([(word, 0) for word in words], 0.02)
    for pairs in ([], [(words[0], 0)] * 129):
        with pytest.raises(ValueError, match="1 to 128"):
            wait_any_blocking(pairs)
    for word in words:
        word.release()


def epoll_sets():
    """The descriptors in each epoll set of this process: proc_pid_fdinfo(5)."""
    found = []
    for entry in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            lines = entry.read_text().splitlines()
            found.append({int(line.split()[1]) for line in lines if line.startswith("tfd:")})
    return found


async def test_the_epoll_set_is_replaced_while_the_loop_sleeps_for_futexes(memory, means):
    """A registration that outlives its descriptor makes the reactor make a new set."""
    loop = asyncio.get_running_loop()
    if loop.backend != "epoll" or means != "loop":
        pytest.skip("the loop's own thread waits on epoll only")
    futex, (read, write), (other, other_write) = Futex(memory), os.pipe(), os.pipe()
    task = asyncio.create_task(futex.wait(0))
    await asyncio.sleep(0)
    loop.add_reader(read, int)
    await asyncio.sleep(0)
    kept = os.dup(read)
    os.close(read)
    loop.remove_reader(read)
    assert any(read in found for found in epoll_sets())
    os.write(write, b"x")
    async with asyncio.timeout(20):
        while any(read in found for found in epoll_sets()):
            await asyncio.sleep(0.001)
        assert not task.done() and futexes().in_loop
        heard = loop.create_future()
        loop.add_reader(other, lambda: heard.done() or heard.set_result(None))
        os.write(other_write, b"x")
        await heard  # through the new set, by the thread that watches it
        loop.remove_reader(other)
        thread = later(futex)
        await task
        thread.join()
    for fd in (kept, write, other, other_write):
        os.close(fd)
    futex.release()


# -- looking before the sleep (spin.h) ------------------------------------------------------


@pytest.mark.parametrize("spins", [0, 2])
async def test_looking_before_the_sleep_loses_nothing(memory, means, monkeypatch, spins):
    if means not in ("as it is", "loop"):
        pytest.skip("threads that wait do not look")
    monkeypatch.setattr(aiounify.EventLoop, "_futexes_spin", spins)
    loop = asyncio.get_running_loop()
    there, back, (read, write) = Futex(memory), Futex(memory, 64), os.pipe()

    def echo():
        for seen in range(300):
            while there.load() == seen:
                there.wait_blocking(seen, 20)
            back.add(1)
            back.wake()

    thread = threading.Thread(target=echo)
    thread.start()
    async with asyncio.timeout(60):
        for seen in range(300):
            there.add(1)
            there.wake()
            while back.load() == seen:
                await back.wait(seen)
        thread.join()
        for n in range(100):  # what is not a futex comes through as well
            waiting = asyncio.create_task(there.wait(300))
            heard = loop.create_future()
            if n % 3 == 0:
                call = lambda heard=heard: loop.call_soon_threadsafe(heard.set_result, None)  # noqa: E731
                thread = threading.Thread(target=call)
                thread.start()
            elif n % 3 == 1:
                loop.add_reader(read, lambda heard=heard: heard.set_result(os.read(read, 1)))
                thread = threading.Thread(target=os.write, args=(write, b"x"))
                thread.start()
            else:
                loop.call_later(0.0001, heard.set_result, None)
            await heard
            loop.remove_reader(read)
            thread.join()
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
    os.close(read)
    os.close(write)
    there.release()
    back.release()


@pytest.mark.parametrize("waits", [True, False])
def test_looks_that_find_nothing_become_rare(memory, means, monkeypatch, waits):
    """Each look of the ring's loop is one system call more than the sleep itself."""
    if NO_URING or means != "as it is":
        pytest.skip("counted by the ring's system calls")

    async def sleeps():
        loop, futex = asyncio.get_running_loop(), Futex(memory)
        waiting = asyncio.create_task(futex.wait(0)) if waits else None
        await asyncio.sleep(0.01)
        before = loop.stats()
        for _ in range(200):
            await asyncio.sleep(0.001)
        after = loop.stats()
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait([waiting])
        futex.release()
        return sum(
            (after[name] - before[name]) * sign for name, sign in (("syscalls", 1), ("waits", -1))
        )

    extra = {}
    for spins in (0, 1, 2):
        monkeypatch.setattr(aiounify.EventLoop, "_futexes_spin", spins)
        extra[spins] = aiounify.run(sleeps(), loop_factory=lambda: aiounify.new_event_loop("uring"))
    if waits:
        looks = extra[2] - extra[0]  # before each sleep
        assert looks >= 50
        assert extra[1] - extra[0] <= looks / 2
    else:
        assert abs(extra[2] - extra[0]) < 50


# -- bad input ---------------------------------------------------------------------------


def test_bad_offset(memory):
    with pytest.raises(ValueError, match="offset 2 is not aligned to 4 bytes"):
        Futex(memory, 2)
    with pytest.raises(ValueError, match="offset 0 is not aligned"):
        Futex(memoryview(memory)[1:64])
    with pytest.raises(ValueError, match="no 32-bit word at offset 65536 of a buffer of 65536"):
        Futex(memory, 1 << 16)
    with pytest.raises(ValueError, match="no 32-bit word at offset 65534"):
        Futex(memory, (1 << 16) - 2)
    with pytest.raises(ValueError, match="no 32-bit word at offset -4"):
        Futex(memory, -4)
    with pytest.raises(TypeError):
        Futex(5)


def test_read_only_buffers(memory):
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ) as unwritable:
        for buffer in (b"12345678", memoryview(memory).toreadonly(), unwritable):
            with pytest.raises(BufferError, match="needs a writable, contiguous buffer"):
                Futex(buffer)
    with pytest.raises(BufferError, match="contiguous"):
        Futex(memoryview(memory)[::2])


async def test_closed_memory(memory):
    closed = mmap.mmap(-1, 4096)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        Futex(closed)
    view = memoryview(memory)
    view.release()
    with pytest.raises(ValueError, match="released"):
        Futex(view)
    shared = SharedMemory(create=True, size=4096)
    futex = Futex(shared.buf)
    with pytest.raises(BufferError):  # nobody takes the memory away under a futex
        shared.close()
    task = asyncio.create_task(futex.wait(0))
    await asyncio.sleep(0)
    futex.release()
    with pytest.raises(BufferError):  # nor under a wait
        shared.close()
    task.cancel()
    await asyncio.wait([task])
    async with asyncio.timeout(20):
        while True:
            try:
                shared.close()
                break
            except BufferError:
                await asyncio.sleep(0.001)
    shared.unlink()
    with pytest.raises(ValueError, match="SharedMemory that was closed"):
        Futex(shared.buf)
    with pytest.raises(ValueError, match="released futex"):
        futex.wake()
    with pytest.raises(ValueError, match="released futex"):
        wait_any_blocking([(futex, 0)])
    with pytest.raises(ValueError, match="released futex"):
        await wait_any([(futex, 0)])


async def test_an_mmap_is_not_closed_under_a_wait():
    memory = mmap.mmap(-1, 4096)
    futex = Futex(memory)
    task = asyncio.create_task(futex.wait(0))
    await asyncio.sleep(0)
    with pytest.raises(BufferError, match="exported pointers"):
        memory.close()
    futex.store(1)
    futex.wake()
    await task
    futex.release()
    memory.close()


async def test_half_of_a_64_bit_datum(memory):
    """Two words in one datum: neither carries into, waits for or is woken by the other."""
    low, high = Futex(memory), Futex(memory, 4)

    def both():
        return int.from_bytes(memory[:8], sys.byteorder)

    little = sys.byteorder == "little"
    memory[:8] = (0xFFFFFFFF if little else 0xFFFFFFFF << 32).to_bytes(8, sys.byteorder)
    assert low.load() == 0xFFFFFFFF and high.load() == 0
    task = asyncio.create_task(high.wait(0))
    await asyncio.sleep(0.01)
    assert low.add(1) == 0xFFFFFFFF
    assert both() == 0
    assert low.exchange(7) == 0 and low.compare_exchange(7, 8)
    assert low.wake(5) == 0
    await asyncio.sleep(0.01)
    assert not task.done() and high.load() == 0
    # whoever writes the datum as a whole changes both, and the next look sees it
    memory[:8] = (1 << 32 | 9).to_bytes(8, sys.byteorder)
    high.wake()
    async with asyncio.timeout(20):
        while not task.done():
            high.wake()
            await asyncio.sleep(0.001)
    assert {low.load(), high.load()} == {1, 9}
    low.release()
    high.release()


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
