"""Four processes read, write, notify and meet; others are killed at it. BACKEND OPERATIONS [SEED].

Checked: no reader beside a writer, and what writers change is whole, or OwnerDied said that it may
not be; a condition's count adds up and whoever waits for it goes on; an event that is set wakes
all; a bounded semaphore never has more places than at first, and none is lost by cancelling; a
barrier's indices differ, and it breaks when one who waits is killed, and only then.
"""

# ruff: noqa: ASYNC251

import asyncio
import mmap
import os
import random
import signal
import struct
import sys
import time

from forked_loop import start

from aiounify import sync

WORKERS = 4
backend, operations = sys.argv[1], int(sys.argv[2])
seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
n = max(1, operations // (WORKERS * 5))

rw, condition, event = sync.RWLock(), sync.Condition(), sync.Event()
places, meeting, deadly = sync.BoundedSemaphore(2), sync.Barrier(WORKERS), sync.Barrier(2)
shared = mmap.mmap(-1, 4096)  # at 0, 8: equal, by the writers; at 16: by the condition


def get(at):
    return struct.unpack_from("<Q", shared, at)[0]


def put(at, value):
    struct.pack_into("<Q", shared, at, value)


async def perhaps_cancelled(body, dice):
    """Run it as a task; cancelled now and then.  Whether it came to its end."""
    task = asyncio.create_task(body())
    if dice.random() < 0.1:
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(0)
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def write():
    try:
        await rw.write.acquire()
    except sync.OwnerDied:
        put(8, get(0))
        rw.make_consistent()
    try:
        assert get(0) == get(8), "written by half, and nobody died"
        put(0, get(0) + 1)
        put(8, get(8) + 1)
    finally:
        rw.write.release()


async def read():
    try:
        await rw.read.acquire()
    except sync.OwnerDied:
        await write()
        return
    try:
        assert get(0) == get(8), "a reader beside a writer"
        await asyncio.sleep(0)
        assert get(0) == get(8), "a writer beside a reader"
    finally:
        rw.read.release()


async def hold(count=True):
    try:
        await condition.acquire()
    except sync.OwnerDied:
        condition.make_consistent()


async def count():
    await hold()
    put(16, get(16) + 1)
    condition.notify_all()
    condition.release()


async def change():
    """Wait until anybody has counted; for the last there is nobody else, so not for ever."""
    await hold()
    try:
        seen = get(16)
        async with asyncio.timeout(0.002):
            while get(16) == seen and seen < n * WORKERS:
                try:
                    await condition.wait()
                except sync.OwnerDied:
                    condition.make_consistent()
    except TimeoutError:
        pass
    finally:
        condition.release()


async def place():
    async with places:
        assert 0 <= places.get_value() < 2
        await asyncio.sleep(0)


async def worker(number):
    dice = random.Random(seed * 1000 + number)

    async def some(body):
        for _ in range(n):
            await perhaps_cancelled(body, dice)

    async def counting():
        for i in range(n):
            await count()
            if i % 20 == 0:
                await perhaps_cancelled(change, dice)

    await asyncio.gather(some(read), some(write), some(place), counting())
    for _ in range(max(2, n // 50)):
        # one that was cancelled as the round ended has met, and nobody meets without it
        before = meeting._round.load()
        while not await perhaps_cancelled(meeting.wait, dice) and meeting._round.load() == before:
            pass
    await event.wait()


async def victim():
    """Reads, writes, waits and is waited for until it is killed; takes no place."""

    async def for_ever(body):
        while True:
            await body()

    async def waits():
        await hold()
        try:
            await condition.wait()
        except sync.OwnerDied:
            condition.make_consistent()
        condition.release()

    async def half():
        # as write(), with a chance to be killed in the middle
        try:
            await rw.write.acquire()
        except sync.OwnerDied:
            put(8, get(0))
            rw.make_consistent()
        put(0, get(0) + 1)
        time.sleep(0.0002)
        put(8, get(8) + 1)
        rw.write.release()

    await asyncio.gather(
        *(for_ever(body) for body in (read, half, waits)), event.wait(), deadly.wait()
    )


dice = random.Random(seed)
workers = [start(backend, worker, i) for i in range(WORKERS)]
left, kills, broken = set(workers), 0, 0
deadline = time.monotonic() + (45 if operations < 10**6 else 2900)
released = False
while left:
    pid = start(backend, victim)
    time.sleep(0.05 + dice.random() * 0.2)
    waits = deadly.n_waiting == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
    if waits:
        try:
            deadly.wait_blocking(20)
            sys.exit("a barrier was met by the dead")
        except sync.BrokenBarrierError:
            broken += 1
    deadly.reset()
    if get(16) == n * WORKERS and not released:
        event.set()
        released = True
    for worker_pid in list(left):
        done, status = os.waitpid(worker_pid, os.WNOHANG)
        if done:
            left.discard(done)
            if status:
                sys.exit(f"a worker ended with status {status}")
    if time.monotonic() > deadline:
        sys.exit(f"no progress: counted {get(16)} of {n * WORKERS}, {len(left)} still at work")
assert get(16) == n * WORKERS, f"counted {get(16)} of {n * WORKERS}"
assert places.get_value() == 2, f"{places.get_value()} places"
assert not meeting.broken
assert broken, "no barrier was tried"
print(f"{operations} operations, {kills} processes killed, {broken} barriers broken")
