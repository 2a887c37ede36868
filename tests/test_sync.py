"""aiounify.sync: what each primitive promises, in one process and between two."""

# ruff: noqa: ASYNC110, ASYNC222, PTH108, PTH110

import asyncio
import errno
import multiprocessing as mp
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiounify
from aiounify import sync
from aiounify.sync import foreign, segment


async def asleep(n=1):
    """Let tasks run until they sleep."""
    for _ in range(n * 5):
        await asyncio.sleep(0)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def forked(body):
    """Run body() in a forked process, which ends with it; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        body()
    finally:
        os._exit(0)


def pipe():
    """A pair of functions: say() in one process ends hear() in another."""
    read, write = os.pipe()

    def hear():
        os.read(read, 1)

    def close():
        os.close(read)
        os.close(write)

    return lambda: os.write(write, b"x"), hear, close


# -- lock ----------------------------------------------------------------------------


async def test_lock_excludes_and_hands_over():
    lock, inside = sync.Lock(), 0

    async def work():
        nonlocal inside
        for _ in range(20):
            async with lock:
                inside += 1
                assert inside == 1
                await asyncio.sleep(0)
                inside -= 1

    await asyncio.gather(*(work() for _ in range(10)))
    assert not lock.locked()
    lock.close()


async def test_lock_is_its_threads():
    lock = sync.Lock()
    await lock.acquire()

    def elsewhere():
        with pytest.raises(RuntimeError, match="does not hold"):
            lock.release()
        assert not lock.acquire_blocking(0.01)

    await asyncio.to_thread(elsewhere)
    with pytest.raises(RuntimeError, match="release it first"):
        lock.close()
    lock.release()
    with pytest.raises(RuntimeError, match="does not hold"):
        lock.release()
    lock.close()
    lock.close()
    with pytest.raises(ValueError, match="released"):
        await lock.acquire()


@pytest.mark.parametrize("waiting", [False, True])
async def test_lock_tells_that_its_owner_died(waiting):
    lock = sync.Lock()
    say, hear, close = pipe()

    def body():
        lock.acquire_blocking()
        say()
        time.sleep(100)

    pid = forked(body)
    hear()
    task = asyncio.create_task(lock.acquire()) if waiting else None
    await asleep()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(sync.OwnerDied):
        await (task or lock.acquire())
    assert lock.locked()
    lock.release()
    with pytest.raises(sync.OwnerDied):  # nobody has repaired anything
        async with lock:
            pytest.fail("entered")
    with pytest.raises(sync.OwnerDied):
        lock.acquire_blocking()
    lock.make_consistent()
    lock.release()
    async with lock:
        pass
    with lock:
        pass
    lock.close()
    close()


async def test_owner_thread_that_ends_has_died_too():
    lock = sync.Lock()
    thread = threading.Thread(target=lock.acquire_blocking)
    thread.start()
    thread.join()
    with pytest.raises(sync.OwnerDied):
        await lock.acquire()
    lock.make_consistent()
    lock.release()
    lock.close()


async def test_several_locks_of_one_thread_survive_its_death():
    locks = [sync.Lock() for _ in range(5)]
    say, hear, close = pipe()

    def body():
        for lock in locks:
            lock.acquire_blocking()
        locks[2].release()
        locks[4].release()
        say()
        time.sleep(100)

    pid = forked(body)
    hear()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for i, lock in enumerate(locks):
        if i in (2, 4):
            assert await lock.acquire()
        else:
            with pytest.raises(sync.OwnerDied):
                await lock.acquire()
        lock.make_consistent()
        lock.release()
        lock.close()
    close()


@given(
    plan=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6),
    data=st.data(),
)
@settings(max_examples=15, deadline=None)
def test_cancelled_waiters_of_a_lock_swallow_nothing(plan, data):
    """Cancel waiters after some turns, also in the one in which they were woken."""
    backend = data.draw(st.sampled_from(["epoll"] + ([] if foreign_uring() else ["uring"])))

    async def main():
        lock = sync.Lock()
        await lock.acquire()
        entered = 0

        async def wait():
            nonlocal entered
            async with lock:
                entered += 1

        tasks = [asyncio.create_task(wait()) for _ in plan]
        await asleep()
        lock.release()
        for task, (turns, cancel) in zip(tasks, plan, strict=True):
            for _ in range(turns):
                await asyncio.sleep(0)
            if cancel:
                task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert entered == sum(1 for one in done if one is None)
        assert all(d is None for d, (_, cancel) in zip(done, plan, strict=True) if not cancel)
        assert not lock.locked()
        lock.close()

    aiounify.run(main(), loop_factory=lambda: aiounify.new_event_loop(backend))


def foreign_uring():
    from conftest import NO_URING

    return NO_URING


async def test_a_killed_waiter_swallows_no_wake():
    """One that was woken and killed before it ran; stopped, so that this is certain."""
    lock = sync.Lock()
    say, hear, close = pipe()
    await lock.acquire()

    def body():
        say()
        lock.acquire_blocking()

    pid = forked(body)
    hear()
    while not lock._core.word.announce() or "futex" not in wchan(pid):
        await asyncio.sleep(0.01)
        if not wchan(pid):
            break
    task = asyncio.create_task(lock.acquire())
    await asleep()
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(0.05)
    lock.release()  # wakes the stopped one: it was first
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    async with asyncio.timeout(20):
        try:
            await task
        except sync.OwnerDied:
            lock.make_consistent()
    lock.release()
    lock.close()
    close()


def wchan(pid):
    try:
        with open(f"/proc/{pid}/wchan") as file:
            return file.read()
    except OSError:
        return ""


# -- semaphore, event, condition --------------------------------------------------------


async def test_semaphore_counts():
    semaphore = sync.Semaphore(2)
    await semaphore.acquire()
    await semaphore.acquire()
    assert semaphore.locked() and semaphore.get_value() == 0
    assert not semaphore.acquire_blocking(0.01)
    waiters = [asyncio.create_task(semaphore.acquire()) for _ in range(3)]
    await asleep()
    waiters[0].cancel()
    semaphore.release()
    semaphore.release()
    await asyncio.gather(*waiters[1:])
    assert semaphore.get_value() == 0
    assert semaphore._waiters.load() == 0
    semaphore.close()


@pytest.mark.parametrize("kind", [sync.Semaphore, sync.BoundedSemaphore])
async def test_places_of_a_killed_process_are_lost_and_nothing_else(kind):
    """As those of POSIX semaphores and of multiprocessing's: exactly what it held."""
    semaphore = kind(5)
    say, hear, close = pipe()

    def body():
        for _ in range(4):
            semaphore.acquire_blocking()
        semaphore.release()
        say()
        time.sleep(100)

    pid = forked(body)
    hear()
    assert semaphore.get_value() == 2
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert semaphore.get_value() == 2
    await semaphore.acquire()
    await semaphore.acquire()
    task = asyncio.create_task(semaphore.acquire())
    await asleep()
    assert not task.done()
    semaphore.release()
    assert await task
    for _ in range(5):
        semaphore.release()
    assert semaphore.get_value() == 5
    if kind is sync.BoundedSemaphore:
        with pytest.raises(ValueError, match="more often"):
            semaphore.release()
    semaphore.close()
    close()


async def test_a_killed_waiter_of_a_semaphore_takes_no_place():
    semaphore = sync.Semaphore(0)
    pids = [forked(semaphore.acquire_blocking) for _ in range(3)]
    await until(lambda: semaphore._waiters.load() == 3)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    semaphore.release()
    assert semaphore.get_value() == 1
    assert await semaphore.acquire()
    semaphore.close()


async def test_a_place_of_a_killed_process_is_given_back_by_another():
    semaphore = sync.BoundedSemaphore(1)
    pid = forked(lambda: (semaphore.acquire_blocking(), time.sleep(100)))
    await until(semaphore.locked)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not semaphore.acquire_blocking(0.01)  # it has no owner who could have died
    semaphore.release()
    async with semaphore:
        pass
    semaphore.close()


async def test_bounded_semaphore_refuses():
    semaphore = sync.BoundedSemaphore(1)
    async with semaphore:
        pass
    with semaphore, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await semaphore.acquire()
    with pytest.raises(ValueError, match="more often"):
        semaphore.release()
    with pytest.raises(ValueError, match="0 to"):
        sync.Semaphore(-1)
    semaphore.close()


async def test_event_wakes_all_even_if_cleared_at_once():
    event = sync.Event()
    waiters = [asyncio.create_task(event.wait()) for _ in range(5)]
    await asleep()
    assert not event.wait_blocking(0.01)
    event.set()
    event.clear()
    assert await asyncio.gather(*waiters) == [True] * 5
    assert not event.is_set()
    event.set()
    event.set()
    assert event.is_set() and await event.wait() and event.wait_blocking(0)
    event.close()


async def test_condition_between_a_coroutine_and_a_process():
    condition, turns = sync.Condition(), sync.Semaphore(0)

    def body():
        with condition:
            condition.wait_for_blocking(lambda: turns.get_value() == 1)
            turns.release()
            condition.notify_all()

    pid = forked(body)
    await asyncio.sleep(0.01)
    async with condition:
        turns.release()
        condition.notify()
        await condition.wait_for(lambda: turns.get_value() == 2)
    os.waitpid(pid, 0)
    with pytest.raises(RuntimeError, match="without holding"):
        condition.notify()
    with pytest.raises(RuntimeError, match="without holding"):
        await condition.wait()
    condition.close()
    turns.close()


async def test_condition_cancelled_holds_the_lock_again():
    condition = sync.Condition()
    held = []

    async def wait():
        async with condition:
            try:
                await condition.wait()
            finally:
                held.append(condition._core.word.mine)

    task = asyncio.create_task(wait())
    await asleep()
    async with condition:
        task.cancel()
        await asleep()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held == [True] and not condition.locked()
    async with condition:
        assert not condition.wait_blocking(0.01)
    condition.close()


# -- barrier, readers and writers ----------------------------------------------------------


async def test_barrier_meets_again_and_again():
    barrier = sync.Barrier(3)

    async def walk():
        return [await barrier.wait() for _ in range(5)]

    walks = await asyncio.gather(walk(), walk(), walk())
    for indices in zip(*walks, strict=True):
        assert sorted(indices) == [0, 1, 2]
    assert barrier.n_waiting == 0 and not barrier.broken
    barrier.close()


async def test_barrier_cancelled_broken_and_reset():
    barrier = sync.Barrier(2)
    task = asyncio.create_task(barrier.wait())
    await asleep()
    assert barrier.n_waiting == 1
    task.cancel()
    await asyncio.wait([task])
    assert barrier.n_waiting == 0 and not barrier.broken
    with pytest.raises(sync.BrokenBarrierError):
        barrier.wait_blocking(0.01)
    assert barrier.broken
    with pytest.raises(sync.BrokenBarrierError):
        await barrier.wait()
    barrier.reset()
    task = asyncio.create_task(barrier.wait())
    await asleep()
    barrier.reset()
    with pytest.raises(sync.BrokenBarrierError):
        await task
    assert not barrier.broken
    await asyncio.gather(barrier.wait(), barrier.wait())
    barrier.abort()
    assert barrier.broken
    barrier.close()


async def test_barrier_breaks_when_a_waiter_is_killed():
    barrier = sync.Barrier(3)
    pid = forked(barrier.wait_blocking)
    await until(lambda: barrier.n_waiting == 1)
    task = asyncio.create_task(barrier.wait())
    await until(lambda: barrier.n_waiting == 2)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(sync.BrokenBarrierError):
        await task
    barrier.close()


async def test_readers_share_and_writers_do_not():
    lock = sync.RWLock()
    async with lock.read, lock.read:
        assert not await asyncio.to_thread(lock.write.acquire_blocking, 0.01)
        writer = asyncio.create_task(lock.write.acquire())
        await asleep()
        reader = asyncio.create_task(lock.read.acquire())  # behind the writer
        await asleep()
        assert not writer.done() and not reader.done()
    await writer
    await asleep()
    assert not reader.done()
    lock.write.release()
    await reader
    lock.read.release()
    with pytest.raises(RuntimeError, match="reading"):
        lock.read.release()
    with pytest.raises(RuntimeError, match="writing"):
        lock.write.release()
    with lock.read:
        task = asyncio.create_task(lock.write.acquire())
        await asleep()
        task.cancel()
        await asyncio.wait([task])
        assert lock.read.acquire_blocking(1)
        lock.read.release()
    lock.close()


async def test_a_killed_reader_does_not_stop_the_writer():
    lock = sync.RWLock()
    say, hear, close = pipe()

    def body():
        lock.read.acquire_blocking()
        say()
        time.sleep(100)

    pid = forked(body)
    hear()
    task = asyncio.create_task(lock.write.acquire())
    await asleep()
    assert not task.done()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert await task
    lock.write.release()
    lock.close()
    close()


async def test_a_killed_writer_is_told():
    lock = sync.RWLock()
    say, hear, close = pipe()

    def body():
        lock.write.acquire_blocking()
        say()
        time.sleep(100)

    pid = forked(body)
    hear()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(sync.OwnerDied):
        await lock.read.acquire()
    with pytest.raises(sync.OwnerDied):
        async with lock.write:
            pytest.fail("entered")
    with pytest.raises(sync.OwnerDied):
        await lock.write.acquire()
    lock.make_consistent()
    lock.write.release()
    async with lock.read:
        pass
    lock.close()
    close()


# -- queue ----------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=60))
@settings(max_examples=25, deadline=None)
def test_queue_is_a_queue(messages):
    queue, model = sync.Queue(capacity=128), []
    for message in messages:
        try:
            queue.put_nowait(message)
            model.append(message)
        except asyncio.QueueFull:
            assert model.pop(0) == queue.get_nowait()
        assert queue.qsize() == len(model)
    while model:
        assert model.pop(0) == queue.get_nowait()
    with pytest.raises(asyncio.QueueEmpty):
        queue.get_nowait()
    assert queue.empty()
    queue.close()


async def test_queue_waits_for_room_and_messages():
    queue = sync.Queue(2)
    getters = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asleep()
    getters[1].cancel()
    await queue.put(b"1")
    await queue.put(bytearray(b"2"))
    assert await asyncio.gather(getters[0], getters[2]) in ([b"1", b"2"], [b"2", b"1"])
    await queue.put(b"")
    await queue.put(b"4")
    assert queue.full()
    with pytest.raises(asyncio.QueueFull):
        queue.put_nowait(b"")
    with pytest.raises(TimeoutError):
        queue.put_blocking(b"5", 0.01)
    putter = asyncio.create_task(queue.put(b"5"))
    await asleep()
    assert [await queue.get(), await queue.get()] == [b"", b"4"]
    await putter
    assert queue.get_blocking() == b"5"
    with pytest.raises(TimeoutError):
        queue.get_blocking(0.01)
    assert queue._queue.getters == 0 and queue._queue.putters == 0
    with pytest.raises(ValueError, match="never fits"):
        await queue.put(bytes(1 << 20))
    with pytest.raises(ValueError, match="maxsize"):
        sync.Queue(-1)
    with pytest.raises(ValueError, match="capacity"):
        sync.Queue(capacity=0)
    queue.close()


async def test_a_killed_getter_takes_along_what_it_had_and_nothing_else():
    queue = sync.Queue()
    say, hear, close = pipe()

    def body():
        assert queue.get_blocking() == b"1"
        say()
        queue.get_blocking()

    pid = forked(body)
    queue.put_nowait(b"1")
    hear()
    await until(lambda: queue._queue.getters == 1)  # it waits for the next one
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    await queue.put(b"2")
    await queue.put(b"3")
    assert [await queue.get(), await queue.get()] == [b"2", b"3"] and queue.empty()
    queue.close()
    close()


# -- how memory is shared ---------------------------------------------------------------------


def _spawned(lock, queue, semaphore):
    async def main():
        async with lock:
            await queue.put(b"spawned")
        semaphore.release()

    aiounify.run(main())


@pytest.mark.parametrize("method", ["spawn", "fork"])
async def test_handles_go_to_processes(method):
    context = mp.get_context(method)
    lock, queue, semaphore = sync.Lock(), sync.Queue(), sync.Semaphore(0, f"test-{os.getpid()}")
    assert lock.name is None and semaphore.name
    with lock:  # the child has to wait
        child = context.Process(
            target=_spawned if method == "spawn" else _in_thread, args=(lock, queue, semaphore)
        )
        child.start()
    assert await queue.get() == b"spawned"
    await semaphore.acquire()
    await asyncio.to_thread(child.join)
    assert child.exitcode == 0
    child.close()
    for one in (lock, queue, semaphore):
        one.close()
    with pytest.raises(ValueError, match="closed"):
        lock.__reduce__()


def _in_thread(*args):
    asyncio._set_running_loop(None)  # the forked child still has the parent's
    _spawned(*args)


def test_named_memory_goes_with_its_last_user():
    name = f"test-{os.getpid()}"
    path = f"/dev/shm/aiounify.{name}"
    first, second = sync.Semaphore(3, name), sync.Semaphore(5, name)
    first.acquire_blocking()
    assert second.get_value() == 2
    with pytest.raises(ValueError, match="another kind"):
        sync.Lock(name)
    first.close()
    assert os.path.exists(path)
    say, hear, close = pipe()

    def body():
        say()
        time.sleep(100)

    pid = forked(body)
    hear()
    second.close()
    assert os.path.exists(path)  # the child's
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    third = sync.Semaphore(7, name)  # nobody uses it: it starts anew
    assert third.get_value() == 7
    third.close()
    assert not os.path.exists(path)
    close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not shared memory of aiounify"),
        (b"something else, and long enough for a header", "not shared memory of aiounify"),
        (struct.pack("<8sIIQ", b"aiounify", 99, 1, 128), "another version"),
        (struct.pack("<8sIIQ", b"aiounify", 1, 1, 128), "bytes long and says"),
    ],
)
def test_memory_of_others_is_refused_and_left_alone(content, message):
    name = f"test-{os.getpid()}"
    path = f"/dev/shm/aiounify.{name}"
    with open(path, "wb") as file:
        file.write(content)
    try:
        with pytest.raises(ValueError, match=message):
            sync.Lock(name)
        assert os.path.exists(path)
    finally:
        os.unlink(path)
    with pytest.raises(ValueError, match="letters"):
        sync.Lock("../escape")


class Received:
    """A descriptor as it comes out of a pickle."""

    def __init__(self, fd):
        self.fd = fd

    def detach(self):
        return self.fd


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"aiounifx", "what was received is not shared memory of aiounify"),
        (8, struct.pack("<I", 2), r"made by another version of aiounify \(layout 2, not 1\)"),
        (12, struct.pack("<I", 2), r"another kind of primitive \(2, not 1\)"),
        (16, struct.pack("<Q", 4096), "is 128 bytes long and says 4096"),
    ],
)
def test_received_memory_that_is_not_ours_is_refused(offset, value, message):
    """The header was written by another process: of another version, or gone mad."""
    lock = sync.Lock()
    pid = forked(lambda: os.pwrite(lock._segment.fd, value, offset))
    os.waitpid(pid, 0)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(ValueError, match=message):
        segment._rebuild(sync.Lock, Received(os.dup(lock._segment.fd)), None)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    with pytest.raises(ValueError, match="not shared memory of aiounify"):
        segment._rebuild(sync.Lock, Received(os.memfd_create("empty")), None)
    lock.close()


def test_queue_memory_with_sizes_that_lie_is_refused():
    queue = sync.Queue()
    struct.pack_into("<I", queue._segment.memory, segment.HEADER + 192, 1 << 20)
    with pytest.raises(ValueError, match="do not fit"):
        queue._map(queue._segment.memory)
    queue.close()


# -- multiprocessing's own ------------------------------------------------------------------


@pytest.fixture(params=["layout", "asking"])
def means(request, monkeypatch):
    if request.param == "asking":
        monkeypatch.setattr(foreign, "why_not", lambda: "as if it were another C library")
    elif foreign.why_not():
        pytest.skip(foreign.why_not())


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore"])
async def test_multiprocessing_lock(means, kind):
    lock = getattr(mp.get_context("fork"), kind)()
    say, hear, close = pipe()
    let_go, wait_for_that, close_that = pipe()

    def body():
        lock.acquire()
        say()
        wait_for_that()
        lock.release()

    pid = forked(body)
    hear()
    cancelled = asyncio.create_task(sync.acquire(lock))
    await asleep()
    cancelled.cancel()
    other = asyncio.create_task(sync.acquire(lock))
    await asleep()
    let_go()
    assert await other
    lock.release()
    os.waitpid(pid, 0)
    assert lock.acquire(block=False)  # the cancelled one took nothing
    lock.release()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    close()
    close_that()


async def test_multiprocessing_event(means):
    event = mp.get_context("fork").Event()
    tasks = [asyncio.create_task(sync.acquire(event)) for _ in range(3)]
    await asleep(3)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    pid = forked(event.set)
    assert await asyncio.gather(*tasks[1:]) == [True, True]
    assert await sync.acquire(event)
    os.waitpid(pid, 0)


async def test_what_is_not_multiprocessings():
    with pytest.raises(TypeError, match="not Lock"):
        await sync.acquire(asyncio.Lock())


def test_features_say_by_what_means():
    found = aiounify.features()
    assert found["multiprocessing_locks"].on == (not foreign.why_not())
    assert found["robust_locks"].on
    assert errno.errorcode and sys.platform == "linux"


# -- everything at once ----------------------------------------------------------------------


def test_stress(run_program, backend):
    """Four processes, cancellation and SIGKILL at random; millions with AIOUNIFY_STRESS=1."""
    operations = 1_000_000 if os.environ.get("AIOUNIFY_STRESS") else 20_000
    done = run_program(
        "sync_stress", backend, operations, timeout=50 if operations < 10**6 else 3000
    )
    assert "operations" in done.stdout


def test_stress_of_meetings(run_program, backend):
    """Four processes and what they wait for each other with; millions with AIOUNIFY_STRESS=1."""
    operations = 1_000_000 if os.environ.get("AIOUNIFY_STRESS") else 2_000
    done = run_program("sync_meet", backend, operations, timeout=50 if operations < 10**6 else 3000)
    assert "operations" in done.stdout


def test_stress_of_holders(run_program, backend):
    """Processes killed holding, taking and awaiting places; millions with AIOUNIFY_STRESS=1."""
    operations = 1_000_000 if os.environ.get("AIOUNIFY_STRESS") else 3_000
    done = run_program(
        "sync_holders", backend, operations, timeout=50 if operations < 10**6 else 3000
    )
    assert "holding a place" in done.stdout


@pytest.mark.parametrize("jobs", [30])
def test_worker_pool_example(backend, jobs):
    """The example: a worker is killed, that is noticed, and nothing is lost."""
    example = Path(__file__).parents[1] / "examples" / "worker_pool.py"
    root = Path(aiounify.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "error", example, "3", str(jobs)],
        env={**os.environ, "PYTHONPATH": str(root), "AIOUNIFY_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, f"{done.stdout}\n{done.stderr}"
    assert "worker 1 ended by signal 9" in done.stdout
    assert "the lock's owner died: total 0, booked 1" in done.stdout
    assert f"{jobs} jobs done by" in done.stdout
