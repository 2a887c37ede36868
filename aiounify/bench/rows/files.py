"""Files: what programs do with them, by the library that belongs to the loop.

aiounify.files on aiounify, aiofiles on asyncio and uvloop; `files-turbofile` and `files-urio` are
columns of other libraries (aiounify/bench/filelibs.py).  All files are in the page cache, except in
the row of O_DIRECT.
"""

import asyncio
import importlib
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiounify.bench.channel import Measurement
from aiounify.bench.filelibs import library_of
from aiounify.bench.rows.base import LoopRow, Run

__all__ = ["ROWS", "directory_on_disk", "files_of"]

_TASKS = 64
_PAGE = 4096
_BLOCK = bytes(1 << 16)
_LINES = 1000
_TIDY = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1])"

# n operations of one of several tasks
_Work = Callable[[int], Awaitable[None]]

_kept: list[object] = []


def directory_on_disk() -> Path:
    # Not in /tmp, which may be memory: what is measured is a file system with a page cache.
    found = tempfile.mkdtemp(dir="/var/tmp", prefix="aiounify-bench-")
    # A worker does not end in an orderly way; whoever sees its end of the pipe close tidies up.
    command = [sys.executable, "-S", "-c", _TIDY, found]
    _kept.append(subprocess.Popen(command, stdin=subprocess.PIPE))
    return Path(found)


def files_of(loop: asyncio.AbstractEventLoop) -> Any:
    return importlib.import_module(library_of(loop))


def _by_tasks(loop: asyncio.AbstractEventLoop, work: _Work, tasks: int) -> Run:
    async def all_of(n: int) -> None:
        await asyncio.gather(*(work(n // tasks) for _ in range(tasks)))

    async def one(n: int) -> None:
        await work(n)

    return lambda n: loop.run_until_complete((one if tasks == 1 else all_of)(n))


def _random_reads(tasks: int) -> Callable[[asyncio.AbstractEventLoop], Run]:
    def prepare(loop: asyncio.AbstractEventLoop) -> Run:
        library = files_of(loop)
        path = directory_on_disk() / "pages"
        path.write_bytes(os.urandom(1 << 24))
        chosen = random.Random(1)
        offsets = [chosen.randrange(1 << 12) * _PAGE for _ in range(4096)]

        async def opened() -> Any:
            return await library.open(path, "rb")

        async def reads(n: int) -> None:
            file = files.pop()
            start = chosen.randrange(4096)
            if hasattr(file, "pread"):
                for i in range(start, start + n):
                    await file.pread(_PAGE, offsets[i & 4095])
            elif hasattr(file, "read_at"):
                for i in range(start, start + n):
                    await file.read_at(offsets[i & 4095], _PAGE)
            else:
                for i in range(start, start + n):
                    await file.seek(offsets[i & 4095])
                    await file.read(_PAGE)
            files.append(file)

        files = [loop.run_until_complete(opened()) for _ in range(tasks)]
        _kept.append(files)
        return _by_tasks(loop, reads, tasks)

    return prepare


def _late(loop: asyncio.AbstractEventLoop) -> Run:
    """How late a sleeper is while 64 tasks read pages as fast as they can."""
    read = _random_reads(_TASKS)(loop)
    late: list[int] = []

    async def sleeps(n: int) -> None:
        now = time.monotonic_ns
        for _ in range(n):
            began = now()
            await asyncio.sleep(0.001)
            late.append(now() - began - 1_000_000)

    def run(n: int) -> Measurement:
        late.clear()
        sleeper = loop.create_task(sleeps(n))
        while not sleeper.done():
            read(_TASKS * 50)
        return {"lateness_ns": list(late)}

    return run


def _direct(loop: asyncio.AbstractEventLoop) -> Run:
    library = files_of(loop)
    path = str(directory_on_disk() / "pages")
    Path(path).write_bytes(os.urandom(1 << 24))
    chosen = random.Random(1)
    offsets = [chosen.randrange(1 << 12) * _PAGE for _ in range(4096)]

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_DIRECT)

    async def opened() -> Any:
        if hasattr(library, "aligned_buffer"):
            return await library.open(path, "rb", direct=True)
        return await library.open(path, "rb", buffering=0, opener=opener)

    async def reads(n: int) -> None:
        file = files.pop()
        start = chosen.randrange(4096)
        if hasattr(file, "pread"):
            for i in range(start, start + n):
                await file.pread(_PAGE, offsets[i & 4095])
        else:
            memory = mmap.mmap(-1, _PAGE)
            for i in range(start, start + n):
                await file.seek(offsets[i & 4095])
                await file.readinto(memory)
        files.append(file)

    files = [loop.run_until_complete(opened()) for _ in range(_TASKS)]
    _kept.append(files)
    return _by_tasks(loop, reads, _TASKS)


def _whole(size: int, tasks: int) -> Callable[[asyncio.AbstractEventLoop], Run]:
    def prepare(loop: asyncio.AbstractEventLoop) -> Run:
        library = files_of(loop)
        directory = directory_on_disk()
        paths = [str(directory / str(i)) for i in range(64)]
        for path in paths:
            Path(path).write_bytes(os.urandom(size))

        async def reads(n: int) -> None:
            read_bytes = getattr(library, "read_bytes", None)
            for i in range(n):
                if read_bytes is not None:
                    await read_bytes(paths[i & 63])
                else:
                    async with library.open(paths[i & 63], "rb") as file:
                        await file.read()

        return _by_tasks(loop, reads, tasks)

    return prepare


def _opened(loop: asyncio.AbstractEventLoop) -> Run:
    library = files_of(loop)
    path = str(directory_on_disk() / "small")
    Path(path).write_bytes(os.urandom(_PAGE))

    async def reads(n: int) -> None:
        for _ in range(n):
            async with library.open(path, "rb") as file:
                await file.read()

    return _by_tasks(loop, reads, _TASKS)


def _stat(loop: asyncio.AbstractEventLoop) -> Run:
    library = library_of(loop)
    path = str(directory_on_disk() / "small")
    Path(path).write_bytes(b"x")
    if library in ("aiofiles", "aiounify.files"):
        stat = importlib.import_module(f"{library}.os").stat
    else:
        # AttributeError where there is none
        stat = importlib.import_module(library).Path(path).stat

        async def ask(n: int) -> None:
            for _ in range(n):
                await stat()

        return _by_tasks(loop, ask, _TASKS)

    async def asks(n: int) -> None:
        for _ in range(n):
            await stat(path)

    return _by_tasks(loop, asks, _TASKS)


def _lines(loop: asyncio.AbstractEventLoop) -> Run:
    library = files_of(loop)
    path = str(directory_on_disk() / "lines")
    text = "".join(f"line {i} of a file of text, not long\n" for i in range(_LINES))
    Path(path).write_text(text)

    async def iterate(n: int) -> None:
        for _ in range(n // _LINES):
            async with library.open(path) as file:
                async for _line in file:
                    pass

    return _by_tasks(loop, iterate, 1)


def _writes(loop: asyncio.AbstractEventLoop) -> Run:
    library = files_of(loop)
    path = str(directory_on_disk() / "written")

    async def write(n: int) -> None:
        async with library.open(path, "wb") as file:
            for _ in range(n):
                await file.write(_BLOCK)
            await file.flush()

    return _by_tasks(loop, write, 1)


ROWS = (
    LoopRow(
        "file-page-x1",
        "Random reads of 4 KiB from one file in the page cache, by one task.",
        ("files",),
        "read",
        _random_reads(1),
    ),
    LoopRow(
        "file-page-x64",
        "Random reads of 4 KiB from one file in the page cache, by 64 tasks with a handle each.",
        ("files",),
        "read",
        _random_reads(_TASKS),
        batch=_TASKS,
        counted=6400,
    ),
    LoopRow(
        "file-direct-x64",
        "Random reads of 4 KiB with O_DIRECT, by 64 tasks.",
        ("files",),
        "read",
        _direct,
        batch=_TASKS,
        counted=640,
    ),
    LoopRow(
        "file-late-x64",
        "How late asyncio.sleep(1e-3) returns while 64 tasks read pages from the page cache.",
        ("files", "lateness"),
        "sleep",
        _late,
        lateness=True,
        counted=0,
    ),
    LoopRow(
        "file-4k-x64",
        "Whole files of 4 KiB: open, read and close, by 64 tasks.",
        ("files",),
        "file",
        _whole(_PAGE, _TASKS),
        batch=_TASKS,
        counted=6400,
    ),
    LoopRow(
        "file-1m-x64",
        "Whole files of 1 MiB: open, read and close, by 64 tasks.",
        ("files",),
        "file",
        _whole(1 << 20, _TASKS),
        batch=_TASKS,
        counted=64,
    ),
    LoopRow(
        "file-open-x64",
        "`async with open()` and read of a file of 4 KiB, by 64 tasks.",
        ("files",),
        "file",
        _opened,
        batch=_TASKS,
        counted=640,
    ),
    LoopRow(
        "file-stat-x64",
        "stat of a path, by 64 tasks.",
        ("files",),
        "stat",
        _stat,
        batch=_TASKS,
        counted=6400,
    ),
    LoopRow(
        "file-lines",
        "`async for` over a text file.",
        ("files",),
        "line",
        _lines,
        batch=_LINES,
    ),
    LoopRow(
        "file-write-64k",
        "Writes of 64 KiB one after the other to a new file.",
        ("files",),
        "write",
        _writes,
        counted=300,
    ),
)
