"""Files that have to wait for the disk: how long it takes, and whether the loop waits with them.

Writes that are synced, how late a timer is beside them, and how late it is while files are read
that are not in the page cache.  What the host of a virtual machine keeps of its disk in memory is
its own affair: cold here is cold for this kernel.
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
from aiounify.bench.rows.base import LoopRow, Run
from aiounify.bench.rows.files import directory_on_disk, files_of

__all__ = ["ROWS"]

_BLOCK = bytes(1 << 16)
_TASKS = 64
_PAGE = 4096
_COLD = 16  # MiB, dropped from the page cache again and again
_DROP = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.sched_setaffinity(0, range(os.cpu_count()))
while not select.select([0], [], [], 0.0005)[0]:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
"""

_kept: list[object] = []


def _writer(loop: asyncio.AbstractEventLoop) -> Callable[[int], Awaitable[None]]:
    files = files_of(loop)
    path = str(directory_on_disk() / "written")

    async def write(n: int) -> None:
        async with files.open(path, "wb") as file:
            for _ in range(n):
                await file.write(_BLOCK)
            await file.flush()
            # aiofiles and urio have none of their own: a thread, as their users do
            sync = getattr(file, "fsync", None)
            if sync is not None:
                await sync()
            else:
                fd = file.fileno()
                fd = await fd if asyncio.iscoroutine(fd) else fd
                await loop.run_in_executor(None, os.fsync, fd)

    return write


def _synced(loop: asyncio.AbstractEventLoop) -> Run:
    write = _writer(loop)
    return lambda n: loop.run_until_complete(write(n))


def _beside(
    loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[None]], workers: int
) -> Run:
    """How late a sleeper of 1 ms is while so many tasks work."""
    late: list[int] = []

    async def works(over: asyncio.Event) -> None:
        while not over.is_set():
            await work()

    async def sleeps(n: int) -> None:
        over = asyncio.Event()
        tasks = [asyncio.ensure_future(works(over)) for _ in range(workers)]
        now = time.monotonic_ns
        for _ in range(n):
            began = now()
            await asyncio.sleep(0.001)
            late.append(now() - began - 1_000_000)
        over.set()
        await asyncio.gather(*tasks)

    def run(n: int) -> Measurement:
        late.clear()
        loop.run_until_complete(sleeps(n))
        return {"lateness_ns": list(late)}

    return run


def _sync_late(loop: asyncio.AbstractEventLoop) -> Run:
    write = _writer(loop)
    return _beside(loop, lambda: write(256), 1)


def _cold_late(loop: asyncio.AbstractEventLoop) -> Run:
    files = files_of(loop)
    path = directory_on_disk() / "pages"
    with path.open("wb") as file:
        for _ in range(_COLD):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    # Dropping pages takes longer than reading them, so it is not done on the loop.
    command = [sys.executable, "-S", "-c", _DROP, str(path)]
    _kept.append(subprocess.Popen(command, stdin=subprocess.PIPE))
    chosen = random.Random(1)

    async def opened() -> Any:
        file = await files.open(path, "rb")
        fd = file.fileno()
        # No readahead: a page of its own for each read.
        os.posix_fadvise(await fd if asyncio.iscoroutine(fd) else fd, 0, 0, os.POSIX_FADV_RANDOM)
        return file

    handles = [loop.run_until_complete(opened()) for _ in range(_TASKS)]
    _kept.append(handles)

    async def read() -> None:
        file = handles.pop()
        offset = chosen.randrange(_COLD << 8) * _PAGE
        if hasattr(file, "pread"):
            await file.pread(_PAGE, offset)
        elif hasattr(file, "read_at"):
            await file.read_at(offset, _PAGE)
        else:
            await file.seek(offset)
            await file.read(_PAGE)
        handles.append(file)

    return _beside(loop, read, _TASKS)


ROWS = (
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
        counted=0,
    ),
    LoopRow(
        "file-cold-late-x64",
        "How late asyncio.sleep(1e-3) returns while 64 tasks read pages that are not in memory.",
        ("files", "lateness"),
        "sleep",
        _cold_late,
        lateness=True,
        counted=0,
    ),
)
