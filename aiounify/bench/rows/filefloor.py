"""What the rows of files are compared with below: the same work in C, by as few calls as do.

The columns `files-c` (calls that block, one after the other), `files-c-uring` and `files-c-aio`
(64 reads in flight; only of files opened with O_DIRECT).  Nothing that takes as many system calls
can be faster than these: aiofiles' time divided by theirs is the most that a goal can ask for.
"""

import asyncio
import os
import random
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path

from aiounify.bench.filelibs import C_COLUMNS, PAGE, library_of
from aiounify.bench.rows.base import Run

__all__ = [
    "Prepare",
    "direct",
    "directory_on_disk",
    "file_of_pages",
    "lines",
    "or_c",
    "pages",
    "random_offsets",
    "stats",
    "whole",
    "writes",
]

Prepare = Callable[[asyncio.AbstractEventLoop], Run]

_FILE = 1 << 24
_TIDY = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1])"

_kept: list[object] = []


def directory_on_disk() -> Path:
    # Not in /tmp, which may be memory: what is measured is a file system with a page cache.
    found = tempfile.mkdtemp(dir="/var/tmp", prefix="aiounify-bench-")
    # A worker does not end in an orderly way; whoever sees its end of the pipe close tidies up.
    command = [sys.executable, "-S", "-c", _TIDY, found]
    _kept.append(subprocess.Popen(command, stdin=subprocess.PIPE))
    return Path(found)


def file_of_pages() -> str:
    """16 MiB that are on the disk and in the page cache."""
    path = directory_on_disk() / "pages"
    with path.open("wb") as file:
        file.write(os.urandom(_FILE))
        file.flush()
        # Else the kernel writes it back in the midst of what is measured.
        os.fsync(file.fileno())
    return str(path)


def random_offsets() -> list[int]:
    """Of 4096 pages, the same in each process."""
    chosen = random.Random(1)
    return [chosen.randrange(_FILE // PAGE) * PAGE for _ in range(4096)]


def or_c(prepare: Prepare, **references: Callable[[], Run]) -> Prepare:
    """`prepare`, but in a column of C what is given for it, by its name with _ for -."""

    def chosen(loop: asyncio.AbstractEventLoop) -> Run:
        column = library_of(loop)
        if column not in C_COLUMNS:
            return prepare(loop)
        reference = references.get(column.replace("-", "_"))
        if reference is None:
            raise NotImplementedError("not written in C in this way")
        return reference()

    return chosen


def _opened(flags: int) -> tuple[int, "array[int]"]:
    return os.open(file_of_pages(), os.O_RDONLY | flags), array("q", random_offsets())


def pages() -> Run:
    from aiounify.bench import _files

    fd, offsets = _opened(0)
    return lambda n: _files.pages(fd, offsets, n)


def direct(way: str) -> Callable[[], Run]:
    """64 reads with O_DIRECT in flight, by "direct_ring" or "direct_aio"."""

    def prepare() -> Run:
        from aiounify.bench import _files

        fd, offsets = _opened(os.O_DIRECT)
        read = getattr(_files, way)

        def run(n: int) -> None:
            read(fd, offsets, n, 64)

        return run

    return prepare


def whole(size: int) -> Callable[[], Run]:
    def prepare() -> Run:
        from aiounify.bench import _files

        path = str(directory_on_disk() / "whole")
        Path(path).write_bytes(os.urandom(size))
        return lambda n: _files.whole(path, size, n)

    return prepare


def stats() -> Run:
    from aiounify.bench import _files

    path = str(directory_on_disk() / "small")
    Path(path).write_bytes(b"x")
    return lambda n: _files.stats(path, n)


def lines(text: str) -> Callable[[], Run]:
    def prepare() -> Run:
        from aiounify.bench import _files

        path = str(directory_on_disk() / "lines")
        Path(path).write_text(text)
        each = text.count("\n")

        def run(n: int) -> None:
            for _ in range(n // each):
                _files.lines(path)

        return run

    return prepare


def writes(block: bytes) -> Callable[[], Run]:
    def prepare() -> Run:
        from aiounify.bench import _files

        path = str(directory_on_disk() / "written")
        return lambda n: _files.writes(path, block, n)

    return prepare
