"""No answer is older than a change that ended before it was asked for.  BACKEND WORKERS CHANGES.

A file is written, replaced, removed and truncated while workers ask for two pages, one in
the other, and for the file itself.
"""

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import aiounify
from aiounify.cache import Changes, FileCache, PageCache, SharedStore


def expected(number):
    return b"absent" if number % 4 == 2 else b"%d" % number


def change(path, number):
    kind = number % 4
    if kind == 0:
        path.write_bytes(b"%d" % number)
    elif kind == 1:
        (path.parent / "new").write_bytes(b"%d" % number)
        (path.parent / "new").replace(path)
    elif kind == 2:
        path.unlink()
    else:
        path.write_bytes(b"%d and more" % number)
        os.truncate(path, len(b"%d" % number))


async def ask(path, store, begun, ended, last, asked, hits):
    async with Changes([path.parent], shared=store) as changes:
        pages, files = PageCache(changes, store=store), FileCache(changes, path.parent)

        async def inner(building):
            try:
                return await building.file(path), {}
            except FileNotFoundError:
                return b"absent", {}

        async def outer(building):
            return (await building.page("inner", inner)).body, {}

        async def file():
            try:
                return (files.hit("file") or await files.open("file")).body
            except FileNotFoundError:
                return b"absent"

        turn = 0
        while ended.value < last:
            turn += 1
            known = ended.value
            changes.drain()
            hit = pages.hit("outer")
            if turn % 5 == 0:
                answer = await file()
            else:
                answer = (hit or await pages.get("outer", outer)).body
            if begun.value == known:
                assert answer == expected(known), f"{answer} and not {expected(known)}"
            elif answer[:1].isdigit():
                assert int(answer.split()[0]) >= known, f"{answer} is older than {known}"
            asked.value += 1
            hits.value += hit is not None
            if turn % 16 == 0:
                await asyncio.sleep(0)


def worker(backend, *args):
    aiounify.run(ask(*args), loop_factory=lambda: aiounify.new_event_loop(backend))


def main():
    backend, workers, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    context = multiprocessing.get_context("fork")
    store = SharedStore(None, 1 << 20) if workers > 1 else None
    begun, ended = context.Value("Q", 0, lock=False), context.Value("Q", 0, lock=False)
    counts = [context.Value("Q", 0, lock=False) for _ in range(2 * workers)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / "file"
        change(path, 0)
        processes = [
            context.Process(
                target=worker,
                args=(backend, path, store, begun, ended, last, *counts[2 * i : 2 * i + 2]),
            )
            for i in range(workers)
        ]
        for process in processes:
            process.start()
        for number in range(1, last + 1):
            # the load goes on between two changes, however slow the machine is
            before, until = [count.value for count in counts[::2]], time.monotonic() + 20
            while any(c.value < b + 50 for c, b in zip(counts[::2], before, strict=True)):
                assert time.monotonic() < until, "nobody asks any more"
                time.sleep(0.0003)
            begun.value = number
            change(path, number)
            ended.value = number
        for process in processes:
            process.join()
            assert process.exitcode == 0, process.exitcode
            process.close()
    if store is not None:
        assert store.check() == []
        store.close()
    asked, hits = sum(c.value for c in counts[::2]), sum(c.value for c in counts[1::2])
    print(f"{asked} answers, {hits} hits, {last} changes, 0 stale")


if __name__ == "__main__":
    main()
