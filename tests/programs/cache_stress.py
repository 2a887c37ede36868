"""Workers share a store and are killed, while files change.  BACKEND SECONDS START [SEED].

Checked: no body is anything but what the page was built from; no answer is older than the last
change that ended before it was asked for; nobody waits for a dead builder; whatever was killed,
the index, the map of blocks and the bodies agree.  START is how workers begin: fork or spawn.
"""

import asyncio
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import aiounify
from aiounify.cache import Changes, PageCache, SharedStore

WORKERS, FILES, KEYS = 3, 6, 24


def content(name, number):
    """What a file has inside as its n-th state: it says itself which, and whether it is whole."""
    seed = hashlib.sha256(f"{name} {number}".encode()).hexdigest().encode()
    size = (20, 3000, 90_000)[int(seed[:4], 16) % 3]
    return b"%d %b " % (number, seed * (size // len(seed) + 1))


def number_of(name, data):
    number = int(data.split(b" ", 1)[0])
    assert data == content(name, number), f"{name} is not whole: {data[:100]!r}"
    return number


def least(state, name):
    return int((state / name).read_text())


async def work(store, root, state, seed, progress):
    choice = random.Random(seed)
    async with Changes([root], shared=store) as changes:
        cache = PageCache(changes, store=store, limit_bytes=300_000)

        def page(name):
            async def build(building):
                await asyncio.sleep(choice.random() * 0.002)
                data = await building.file(root / name)
                await asyncio.sleep(choice.random() * 0.002)
                return data, {"name": name}

            return build

        def outer(key, name):
            async def build(building):
                return (await copy(await building.page(f"in {name} {key % 2}", page(name)))), {}

            return build

        async def copy(entry):
            entry.acquire()
            try:
                if choice.random() < 0.3:
                    await asyncio.sleep(choice.random() * 0.003)
                if entry.body is not None:
                    return entry.body
                return os.pread(entry.fd, entry.size, entry.offset)
            finally:
                entry.release()

        async def ask():
            while True:
                key = choice.randrange(KEYS)
                name = f"f{key % FILES}"
                known = least(state, name)
                changes.drain()
                entry = cache.hit(str(key)) or await cache.get(str(key), outer(key, name))
                found = number_of(name, await copy(entry))
                assert found >= known, f"{name}: {found} is stale, {known} was written"
                progress.value += 1  # may lose some: a lock would be lost with who is killed
                await asyncio.sleep(0)

        await asyncio.gather(*(ask() for _ in range(4)))


def worker(backend, store, root, state, seed, progress):
    aiounify.run(
        work(store, root, state, seed, progress),
        loop_factory=lambda: aiounify.new_event_loop(backend),
    )


def put(root, state, name, number):
    (root / "new").write_bytes(content(name, number))
    (root / "new").replace(root / name)
    # told after the change: whoever reads this and asks then has to get it
    (state / "new").write_text(str(number))
    (state / "new").replace(state / name)


def main():
    backend, seconds, start = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    choice = random.Random(seed)
    context = multiprocessing.get_context(start)
    folder = Path(tempfile.mkdtemp())
    root, state = folder / "site", folder / "state"
    root.mkdir()
    state.mkdir()
    for i in range(FILES):
        put(root, state, f"f{i}", 0)
    store = SharedStore(None, 1 << 20)  # so small that much is given up
    progress = context.Value("Q", 0, lock=False)
    numbers, kills = [0] * FILES, 0

    def begin():
        one = context.Process(
            target=worker, args=(backend, store, root, state, choice.random(), progress)
        )
        one.start()
        return one

    workers = [begin() for _ in range(WORKERS)]
    try:
        end = time.monotonic() + seconds
        # a slow machine gets the time it needs to have done something
        while time.monotonic() < end or progress.value < 100 or kills < 3:
            time.sleep(choice.random() * 0.02)
            i = choice.randrange(FILES)
            numbers[i] += 1
            put(root, state, f"f{i}", numbers[i])
            if choice.random() < 0.05:
                j = choice.randrange(WORKERS)
                os.kill(workers[j].pid, signal.SIGKILL)
                workers[j].join()
                assert workers[j].exitcode == -signal.SIGKILL, "a worker had ended by itself"
                kills += 1
                wrong = store.check()
                assert not wrong, wrong
                workers[j] = begin()
            for one in workers:
                assert one.is_alive(), f"a worker ended with {one.exitcode}"
        # all of them still get answers
        before = progress.value
        deadline = time.monotonic() + 30
        while progress.value < before + 20:
            assert time.monotonic() < deadline, "nobody gets an answer any more"
            time.sleep(0.01)
    finally:
        for one in workers:
            if one.is_alive():
                os.kill(one.pid, signal.SIGKILL)
            one.join()
    wrong = store.check()
    assert not wrong, wrong
    store.close()
    progress = int(progress.value)
    for one in workers:
        one.close()
    shutil.rmtree(folder)
    print(f"{progress} answers, {sum(numbers)} changes, {kills} kills")


if __name__ == "__main__":
    main()
