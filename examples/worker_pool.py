"""A pool of worker processes on a queue in shared memory; one is killed on purpose, and noticed.

The parent awaits three kinds of event in one loop: results in a queue in shared memory, the end
of each worker, and a robust lock.  Workers take jobs from a queue and add to a total that the
lock guards.  One of them is killed by SIGKILL while it holds the lock: the next owner is told
(OwnerDied), and repairs the total from what each worker has booked for itself.

Run it: python examples/worker_pool.py [WORKERS] [JOBS].  AIOUNIFY_BACKEND chooses the backend.
The exit status is 0 if every job was done and the total is right.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import struct
import sys
import time

import aiounify
from aiounify import sync

NUMBERS = struct.Struct("<QQ")  # job, result
ROW = 8  # bytes of the shared table: the total, then what each worker has booked


class Pool:
    """What parent and workers share: two queues, a lock, and the numbers it guards."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.jobs, self.results = sync.Queue(), sync.Queue()
        self.lock, self.ready = sync.Lock(), sync.Event()
        self.table = mmap.mmap(-1, ROW * (workers + 1))

    def get(self, row: int) -> int:
        return int.from_bytes(self.table[row * ROW : (row + 1) * ROW], "little")

    def add(self, row: int, n: int) -> None:
        self.table[row * ROW : (row + 1) * ROW] = (self.get(row) + n).to_bytes(ROW, "little")

    async def locked(self) -> None:
        """Take the lock; after the death of its owner put the total in order."""
        try:
            await self.lock.acquire()
        except sync.OwnerDied:
            booked = sum(self.get(row) for row in range(1, self.workers + 1))
            print(f"the lock's owner died: total {self.get(0)}, booked {booked}", flush=True)
            self.add(0, booked - self.get(0))
            self.lock.make_consistent()

    def close(self) -> None:
        for one in (self.jobs, self.results, self.lock, self.ready):
            one.close()
        self.table.close()


async def work(pool: Pool, number: int, dies: bool) -> None:
    """Do jobs until an empty message comes.  Who is to die takes the first, and others the rest."""
    if not dies:
        await pool.ready.wait()
    while job := await pool.jobs.get():
        n = int.from_bytes(job, "little")
        await pool.locked()
        pool.add(number, n)
        if dies:
            await pool.results.put(b"x")  # tell the parent where it is, and stay there
            time.sleep(60)  # noqa: ASYNC251 - it is stuck, on purpose
        pool.add(0, n)
        pool.lock.release()
        await pool.results.put(NUMBERS.pack(number, n))


def start(pool: Pool, number: int, dies: bool = False) -> int:
    """Fork a worker; its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        asyncio._set_running_loop(None)  # the parent's loop is not the child's
        aiounify.run(work(pool, number, dies))
        status = 0
    finally:
        os._exit(status)


async def ended(pid: int) -> int:
    """Await the end of a process by its pidfd; the status of waitpid()."""
    loop = asyncio.get_running_loop()
    fd = os.pidfd_open(pid)
    over = loop.create_future()
    loop.add_reader(fd, lambda: over.done() or over.set_result(None))
    try:
        await over
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return os.waitpid(pid, 0)[1]  # noqa: ASYNC222 - it has ended


async def main(workers: int, jobs: int) -> int:
    pool = Pool(workers)
    # All before the first wait: from then on the epoll loop has a thread, and forking is for
    # processes that have one thread only.
    first, *rest = [start(pool, i, dies=i == 1) for i in range(1, workers + 1)]
    await pool.jobs.put((1).to_bytes(8, "little"))
    assert await pool.results.get() == b"x"  # it holds the lock now
    print(f"worker 1 (pid {first}) holds the lock and is killed", flush=True)
    watch = asyncio.create_task(ended(first))
    await asyncio.sleep(0)
    others = [asyncio.create_task(ended(pid)) for pid in rest]
    killed = time.monotonic()
    os.kill(first, signal.SIGKILL)
    status = await watch
    took = (time.monotonic() - killed) * 1e3
    print(
        f"worker 1 ended by signal {os.WTERMSIG(status)}, noticed after {took:.1f} ms", flush=True
    )

    pool.ready.set()
    # Its job is booked, as the row says, and was never reported: it counts as done.
    for n in range(2, jobs + 1):
        await pool.jobs.put(n.to_bytes(8, "little"))
    done = {1: 1}
    while len(done) < jobs:
        number, n = NUMBERS.unpack(await pool.results.get())
        done[n] = number
    for _ in others:
        await pool.jobs.put(b"")
    statuses = await asyncio.gather(*others)
    await pool.locked()
    total = pool.get(0)
    pool.lock.release()
    right = sum(range(1, jobs + 1))
    print(f"{len(done)} jobs done by {len(set(done.values()))} workers, total {total}")
    pool.close()
    return 0 if total == right and not any(statuses) else 1


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    sys.exit(aiounify.run(main(*(arguments + [4, 200][len(arguments) :]))))
