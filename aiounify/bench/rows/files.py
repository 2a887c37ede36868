"""Files: what programs do with them, by the library that belongs to the loop.

aiounify.files on aiounify, aiofiles on asyncio and uvloop; columns whose names begin with `files-`
are other libraries, and the same in C (aiounify/bench/filelibs.py).  All files are in the page
cache, except in the row of O_DIRECT.
"""

import asyncio
import importlib
import mmap
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiounify.bench.filelibs import PAGE, files_of, library_of, opened, read_pages
from aiounify.bench.rows import filefloor
from aiounify.bench.rows.base import LoopRow, Run
from aiounify.bench.rows.filefloor import directory_on_disk, file_of_pages, or_c, random_offsets

__all__ = ["ROWS"]

_TASKS = 64
_BLOCK = bytes(1 << 16)
_LINES = 1000
_TEXT = "".join(f"line {i} of a file of text, not long\n" for i in range(_LINES))

# n operations of one of several tasks
_Work = Callable[[int], Awaitable[None]]

_kept: list[object] = []


def _by_tasks(loop: asyncio.AbstractEventLoop, work: _Work, tasks: int) -> Run:
    async def all_of(n: int) -> None:
        await asyncio.gather(*(work(n // tasks) for _ in range(tasks)))

    async def one(n: int) -> None:
        await work(n)

    return lambda n: loop.run_until_complete((one if tasks == 1 else all_of)(n))


def _random_reads(tasks: int) -> Callable[[asyncio.AbstractEventLoop], Run]:
    def prepare(loop: asyncio.AbstractEventLoop) -> Run:
        path = file_of_pages()
        offsets = random_offsets()
        chosen = random.Random(1)

        async def reads(n: int) -> None:
            file = files.pop()
            while n:
                start = chosen.randrange(4096)
                some = offsets[start : start + n]
                await read_pages(file, some)
                n -= len(some)
            files.append(file)

        files = [loop.run_until_complete(opened(loop, path)) for _ in range(tasks)]
        _kept.append(files)
        return _by_tasks(loop, reads, tasks)

    return prepare


def _direct(loop: asyncio.AbstractEventLoop) -> Run:
    library = files_of(loop)
    path = file_of_pages()
    chosen = random.Random(1)
    offsets = random_offsets()

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
                await file.pread(PAGE, offsets[i & 4095])
        else:
            memory = mmap.mmap(-1, PAGE)
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
    Path(path).write_bytes(os.urandom(PAGE))

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
    Path(path).write_text(_TEXT)

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
            # asyncfiles has none, and aiofile's is an fsync
            if library_of(loop) not in ("asyncfiles", "aiofile"):
                await file.flush()

    return _by_tasks(loop, write, 1)


ROWS = (
    LoopRow(
        "file-page-x1",
        "Random reads of 4 KiB from one file in the page cache, by one task.",
        ("files", "files-c"),
        "read",
        or_c(_random_reads(1), c=filefloor.pages),
    ),
    LoopRow(
        "file-page-x64",
        "Random reads of 4 KiB from one file in the page cache, by 64 tasks with a handle each.",
        ("files", "files-c"),
        "read",
        or_c(_random_reads(_TASKS), c=filefloor.pages),
        batch=_TASKS,
        counted=6400,
    ),
    LoopRow(
        "file-direct-x64",
        "Random reads of 4 KiB with O_DIRECT, by 64 tasks.",
        ("files", "direct"),
        "read",
        or_c(
            _direct,
            c_uring=filefloor.direct("direct_ring"),
            c_aio=filefloor.direct("direct_aio"),
        ),
        batch=_TASKS,
        counted=640,
    ),
    LoopRow(
        "file-4k-x64",
        "Whole files of 4 KiB: open, read and close, by 64 tasks.",
        ("files", "files-c"),
        "file",
        or_c(_whole(PAGE, _TASKS), c=filefloor.whole(PAGE)),
        batch=_TASKS,
        counted=6400,
    ),
    LoopRow(
        "file-1m-x64",
        "Whole files of 1 MiB: open, read and close, by 64 tasks.",
        ("files", "files-c"),
        "file",
        or_c(_whole(1 << 20, _TASKS), c=filefloor.whole(1 << 20)),
        batch=_TASKS,
        counted=64,
    ),
    LoopRow(
        "file-open-x64",
        "`async with open()` and read of a file of 4 KiB, by 64 tasks.",
        ("files", "files-c"),
        "file",
        or_c(_opened, c=filefloor.whole(PAGE)),
        batch=_TASKS,
        counted=640,
    ),
    LoopRow(
        "file-stat-x64",
        "stat of a path, by 64 tasks.",
        ("files", "files-c"),
        "stat",
        or_c(_stat, c=filefloor.stats),
        batch=_TASKS,
        counted=6400,
    ),
    LoopRow(
        "file-lines",
        "`async for` over a text file.",
        ("files", "files-c"),
        "line",
        or_c(_lines, c=filefloor.lines(_TEXT)),
        batch=_LINES,
    ),
    LoopRow(
        "file-write-64k",
        "Writes of 64 KiB one after the other to a new file.",
        ("files", "files-c"),
        "write",
        or_c(_writes, c=filefloor.writes(_BLOCK)),
        counted=300,
    ),
)
