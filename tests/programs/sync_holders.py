"""Processes share places; others are killed, mostly holding some. BACKEND OPERATIONS [SEED].

A place has no owner, so one that was held by a process that was killed is lost until somebody
gives it back, and nothing else is.  Checked: the count is exactly what was there, less one for
each holder that was killed and has had nobody to release() in its stead; never more than at first;
whoever waits goes on while there are places.
"""

import asyncio
import mmap
import os
import random
import signal
import sys
import time
from contextlib import suppress

from forked_loop import start

from aiounify import sync

WORKERS, PLACES, LOST = 3, 6, 2  # LOST places of each are not given back
FREE, TAKING, HELD, GIVING = range(4)
backend, operations = sys.argv[1], int(sys.argv[2])
seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
n = max(1, operations // (WORKERS * 6))

both = (sync.Semaphore(PLACES), sync.BoundedSemaphore(PLACES))
inside = mmap.mmap(-1, 4096)  # the victim's state, for each of the two


async def worker(number):
    dice = random.Random(seed * 1000 + number)

    async def place(places):
        async with places:
            assert places.get_value() < PLACES
            if dice.random() < 0.2:
                await asyncio.sleep(0)

    async def some(places):
        for _ in range(n):
            task = asyncio.create_task(place(places))
            if dice.random() < 0.1:
                await asyncio.sleep(0)
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # more tasks than places, so that they wait
    await asyncio.gather(*(some(places) for places in both for _ in range(3)))


async def victim(number):
    dice = random.Random(seed * 7919 + number)

    async def some(i):
        while True:
            inside[i] = TAKING
            await both[i].acquire()
            inside[i] = HELD
            await asyncio.sleep(dice.random() * 0.004)
            inside[i] = GIVING
            both[i].release()
            inside[i] = FREE
            await asyncio.sleep(0)

    await asyncio.gather(some(0), some(1))


dice = random.Random(seed)
left = {start(backend, worker, i) for i in range(WORKERS)}
lost, kills, held = [0, 0], 0, 0
deadline = time.monotonic() + (45 if operations < 10**6 else 2900)
while left:
    inside[0] = inside[1] = FREE
    pid = start(backend, victim, kills)
    time.sleep(0.01 + dice.random() * 0.03)
    while True:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        found = list(inside[:2])
        if TAKING not in found and GIVING not in found:
            break  # else it has a place and has not said so, or the other way round
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.001)
        if time.monotonic() > deadline:
            sys.exit(f"a victim waits for ever: {[places.get_value() for places in both]}")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
    for i, state in enumerate(found):
        if state == HELD:
            held += 1
            if lost[i] < LOST:
                lost[i] += 1
            else:
                both[i].release()  # whoever notices may do that in its stead
    for worker_pid in list(left):
        done, status = os.waitpid(worker_pid, os.WNOHANG)
        if done:
            left.discard(done)
            if status:
                sys.exit(f"a worker ended with status {status}")
    if time.monotonic() > deadline:
        sys.exit(f"no progress: {[places.get_value() for places in both]}, lost {lost}")
while not held:  # few kills on a slow machine: at least one has to be a holder's
    pid = os.fork()
    if not pid:
        both[0].acquire_blocking()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    held, lost[0] = 1, lost[0] + 1
for places, gone in zip(both, lost, strict=True):
    value = places.get_value()
    assert value == PLACES - gone, f"{value} places of {PLACES}, and {gone} are lost"
    # given back by another, they are there again, and a bounded one takes no more
    for _ in range(PLACES - value):
        places.release()
    assert places.get_value() == PLACES
try:
    both[1].release()
except ValueError:
    pass
else:
    sys.exit("a bounded semaphore took more places than it had")
print(f"{operations} operations, {kills} processes killed, {held} of them holding a place")
