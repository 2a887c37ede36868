"""Four processes use a lock, a semaphore and a queue; some are killed. BACKEND OPERATIONS [SEED].

Checked: never two owners of the lock; no waiter waits for ever; what the lock guards adds up, or
OwnerDied said that it may not; each message of those who live is received once, or was taken by a
process that was killed: one that says so, or at most one for each of the killed, which it had in
its hand before it could say anything.
"""

# ruff: noqa: SIM105

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

lock, queue, results = sync.Lock(), sync.Queue(capacity=1024), sync.Queue(capacity=1 << 20)
semaphore = sync.Semaphore(2)
n = operations // (WORKERS * 5)
taken = mmap.mmap(-1, max(1, n * WORKERS))  # for each message: 1 once a victim has it
shared = mmap.mmap(-1, 4096)  # owner's pid at 0; two counters at 8 and 16 that are to be equal


def get(at):
    return struct.unpack_from("<Q", shared, at)[0]


def put(at, value):
    struct.pack_into("<Q", shared, at, value)


def guarded():
    """With the lock held."""
    assert get(0) == 0, f"{get(0)} and {os.getpid()} both have the lock"
    put(0, os.getpid())
    assert get(8) == get(16)
    put(8, get(8) + 1)
    put(16, get(16) + 1)
    put(0, 0)


def repair():
    put(0, 0)
    put(8, max(get(8), get(16)))
    put(16, get(8))
    lock.make_consistent()


async def locked():
    try:
        await lock.acquire()
    except sync.OwnerDied:
        repair()
    try:
        guarded()
    finally:
        lock.release()


async def sender(number, n, dice):
    for i in range(n):
        message = struct.pack("<II", number, i) + bytes(dice.randrange(40))
        while True:
            putting = asyncio.create_task(queue.put(message))
            if dice.random() < 0.05:
                await asyncio.sleep(0)
                putting.cancel()
            try:
                await putting
                break
            except asyncio.CancelledError:
                continue  # it was not put


async def receiver(dice):
    while True:
        getting = asyncio.create_task(queue.get())
        if dice.random() < 0.05:
            await asyncio.sleep(0)
            getting.cancel()
        try:
            message = await getting
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
            continue
        if message == b"end":
            return
        await results.put(message[:8])


async def some_locked(n, dice):
    for _ in range(n):
        task = asyncio.create_task(locked())
        if dice.random() < 0.1:
            await asyncio.sleep(0)
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass


async def some_places(n, dice):
    for _ in range(n):
        async with semaphore:
            if dice.random() < 0.1:
                await asyncio.sleep(0)


async def worker(number, n):
    dice = random.Random(seed * 1000 + number)
    receiving = asyncio.create_task(receiver(dice))
    await asyncio.gather(
        sender(number, n, dice),
        some_locked(n, dice),
        some_locked(n, dice),
        some_places(n, dice),
        some_places(n, dice),
    )
    await results.put(struct.pack("<II", number, 0xFFFFFFFF))
    await receiving


async def victim():
    """Holds and waits for everything but the semaphore's places until it is killed."""

    async def taking():
        while True:
            number, i = struct.unpack_from("<II", await queue.get())
            if number < WORKERS:
                taken[number * n + i] = 1
            await asyncio.sleep(0)

    async def sending():
        while True:
            await queue.put(struct.pack("<II", 99, 0))

    async def locking():
        while True:
            await locked()

    await asyncio.gather(sending(), taking(), locking(), locking(), locking())


dice = random.Random(seed)
workers = [start(backend, worker, i, n) for i in range(WORKERS)]
kills, ended = 1, 0  # the last victim is killed at the end
last = [-1] * WORKERS
seen = [set() for _ in range(WORKERS)]
pid, due = start(backend, victim), 0.0
deadline = time.monotonic() + (45 if operations < 10**6 else 2900)
while ended < WORKERS:
    try:
        number, i = struct.unpack("<II", results.get_blocking(0.02))
    except TimeoutError:
        if time.monotonic() > deadline:
            sys.exit(f"no progress: {[len(s) for s in seen]} of {n}, lock {lock.locked()}")
    else:
        if i == 0xFFFFFFFF:
            ended += 1
        elif number < WORKERS:
            assert i not in seen[number], f"message {i} of {number} came twice"
            seen[number].add(i)
    if time.monotonic() > due:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
        pid, due = start(backend, victim), time.monotonic() + 0.02 + dice.random() * 0.08
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
for _ in range(WORKERS):
    queue.put_blocking(b"end", 20)
for pid in workers:
    status = os.waitpid(pid, 0)[1]
    if status:
        sys.exit(f"a worker ended with status {status}")
while not results.empty():
    number, i = struct.unpack("<II", results.get_nowait())
    if number < WORKERS and i != 0xFFFFFFFF:
        assert i not in seen[number], f"message {i} of {number} came twice"
        seen[number].add(i)
unsaid = gone = 0
for number in range(WORKERS):
    said = {i for i in range(n) if taken[number * n + i]}
    assert not said & seen[number], f"messages of {number} came twice: {said & seen[number]}"
    gone += len(said)
    unsaid += len(set(range(n)) - seen[number] - said)
assert unsaid <= kills, f"{unsaid} messages are lost, and {kills} processes were killed"
assert semaphore.get_value() == 2
assert get(8) == get(16)
print(f"{operations} operations, {kills} processes killed, {gone} messages with them")
