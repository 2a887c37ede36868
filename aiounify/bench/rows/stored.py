"""Whether a loop waits with its files: how late a timer is beside them, and how fast they are then.

Beside reads from the page cache, beside reads of pages that are not in it, beside writes that are
synced.  In each row how late the sleeper is and how much was read or written meanwhile stand
together, for it is easy to have one without the other.  What the host of a virtual machine keeps of
its disk in memory is its own affair: cold here is cold for this kernel.
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiounify.bench.channel import Measurement
from aiounify.bench.filelibs import files_of, library_of, opened, read_pages
from aiounify.bench.rows.base import LoopRow, Run
from aiounify.bench.rows.filefloor import directory_on_disk, file_of_pages, random_offsets

__all__ = ["ROWS"]

_BLOCK = bytes(1 << 16)
_TASKS = 64
_STARVED = 50_000_000  # ns
_RUN = 8  # pages that a task reads before it looks whether it is to end
_DROP = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.sched_setaffinity(0, range(os.cpu_count()))
while not select.select([0], [], [], 0.0005)[0]:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
"""

_kept: list[object] = []


def _writer(loop: asyncio.AbstractEventLoop) -> Callable[[int], Awaitable[None]]:
    files, library = files_of(loop), library_of(loop)
    path = str(directory_on_disk() / "written")

    async def write(n: int) -> None:
        async with files.open(path, "wb") as file:
            for _ in range(n):
                await file.write(_BLOCK)
            if library != "asyncfiles":
                await file.flush()  # aiofile's is the fsync
            if hasattr(file, "fsync"):
                await file.fsync()
            elif library != "aiofile":
                # those that have none of their own: a thread, as their users do
                await loop.run_in_executor(None, _sync, path)

    return write


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.fsync(fd)
    os.close(fd)


async def _descriptor(file: Any) -> int:
    if not hasattr(file, "fileno"):
        raise NotImplementedError("it does not tell the descriptor, for posix_fadvise()")
    fd = file.fileno()
    found: int = await fd if asyncio.iscoroutine(fd) else fd
    return found


def _synced(loop: asyncio.AbstractEventLoop) -> Run:
    write = _writer(loop)
    return lambda n: loop.run_until_complete(write(n))


def _beside(
    loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[int]], workers: int
) -> Run:
    """How late a sleeper of 1 ms is while so many tasks work; `work` says how much it has done."""
    late: list[int] = []
    now = time.monotonic_ns
    began = 0

    async def works(over: asyncio.Event) -> int:
        done = 0
        while not over.is_set():
            done += await work()
            if now() - began > _STARVED:
                # A library that never suspends would go on for ever.
                await asyncio.sleep(0)
        return done

    async def sleeps(n: int) -> int:
        nonlocal began
        over = asyncio.Event()
        began = now()
        tasks = [asyncio.ensure_future(works(over)) for _ in range(workers)]
        for _ in range(n):
            began = now()
            await asyncio.sleep(0.001)
            late.append(now() - began - 1_000_000)
        over.set()
        return sum(await asyncio.gather(*tasks))

    def run(n: int) -> Measurement:
        late.clear()
        done = loop.run_until_complete(sleeps(n))
        return {"lateness_ns": list(late), "beside": done}

    return run


def _sync_late(loop: asyncio.AbstractEventLoop) -> Run:
    write = _writer(loop)

    async def work() -> int:
        await write(256)
        return 256

    return _beside(loop, work, 1)


def _reads_late(loop: asyncio.AbstractEventLoop, handles: list[Any], offsets: list[int]) -> Run:
    """The sleeper beside a task for each handle."""
    _kept.append(handles)
    chosen = random.Random(1)

    async def read() -> int:
        file = handles.pop()
        start = chosen.randrange(len(offsets) - _RUN)
        await read_pages(file, offsets[start : start + _RUN])
        handles.append(file)
        return _RUN

    return _beside(loop, read, len(handles))


def _hot_late(loop: asyncio.AbstractEventLoop) -> Run:
    path = file_of_pages()
    handles = [loop.run_until_complete(opened(loop, path)) for _ in range(_TASKS)]
    return _reads_late(loop, handles, random_offsets())


def _cold_late(loop: asyncio.AbstractEventLoop) -> Run:
    path = file_of_pages()
    # Dropping pages takes longer than reading them, so it is not done on the loop.
    command = [sys.executable, "-S", "-c", _DROP, path]
    _kept.append(subprocess.Popen(command, stdin=subprocess.PIPE))

    async def without_readahead() -> Any:
        file = await opened(loop, path)
        # A page of its own for each read.
        os.posix_fadvise(await _descriptor(file), 0, 0, os.POSIX_FADV_RANDOM)
        return file

    handles = [loop.run_until_complete(without_readahead()) for _ in range(_TASKS)]
    return _reads_late(loop, handles, random_offsets())


ROWS = (
    LoopRow(
        "file-late-x64",
        "How late asyncio.sleep(1e-3) returns while 64 tasks read pages from the page cache.",
        ("files", "lateness"),
        "sleep",
        _hot_late,
        lateness=True,
        beside="read",
        counted=0,
    ),
    LoopRow(
        "file-fsync-64k",
        "Writes of 64 KiB one after the other to a new file, then fsync.",
        ("files",),
        "write",
        _synced,
        batch=256,
        counted=0,
    ),
    LoopRow(
        "file-fsync-late",
        "How late asyncio.sleep(1e-3) returns while 16 MiB are written and synced again and again.",
        ("files", "lateness"),
        "sleep",
        _sync_late,
        lateness=True,
        beside="write",
        counted=0,
    ),
    LoopRow(
        "file-cold-late-x64",
        "How late asyncio.sleep(1e-3) returns while 64 tasks read pages that are not in memory.",
        ("files", "lateness"),
        "sleep",
        _cold_late,
        lateness=True,
        beside="read",
        counted=0,
    ),
)
