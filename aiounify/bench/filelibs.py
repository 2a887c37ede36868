"""Columns of the rows of files: libraries for files, each on the loop it is made for.

A library is not a loop, but it is chosen like one: `python -m aiounify bench files
--loops asyncio,aiounify-uring,files-turbofile`.  The loop made here is asyncio's and remembers
which library the rows are to use; on asyncio and uvloop themselves that is aiofiles.

`c`, `c-uring` and `c-aio` are no libraries but the same work in C (rows/filefloor.py).

What differs between the libraries in how a file is opened and read is here, the rows share it.
"""

import asyncio
import importlib
import os
from collections.abc import Iterable
from typing import Any

__all__ = ["C_COLUMNS", "PAGE", "LibraryLoop", "files_of", "library_of", "new_loop", "opened"]
__all__ += ["read_pages"]

#: Bytes of a read.
PAGE = 4096

#: Columns in which C does the work: by calls that block, or by many at once.
C_COLUMNS = ("c", "c-uring", "c-aio")


class LibraryLoop(asyncio.SelectorEventLoop):
    """asyncio's loop, for a library that is not aiofiles."""

    library = ""


def new_loop(library: str) -> LibraryLoop:
    """A loop on which the rows of files use this library; ImportError if it is not installed."""
    if library == "aiofile":
        # Kernel AIO, without threads and without a ring.
        os.environ["CAIO_IMPL"] = "linux"
    importlib.import_module("aiounify.bench._files" if library in C_COLUMNS else library)
    loop = LibraryLoop()
    loop.library = library
    return loop


def library_of(loop: Any) -> str:
    """The module that serves files on a loop."""
    if isinstance(loop, LibraryLoop):
        return loop.library
    return "aiounify.files" if hasattr(loop, "backend") else "aiofiles"


class _Aiofile:
    """aiofile's names for what the others call open()."""

    def __init__(self) -> None:
        self.open = importlib.import_module("aiofile").async_open


def files_of(loop: asyncio.AbstractEventLoop) -> Any:
    """What has the library's open(): its module, mostly."""
    library = library_of(loop)
    return _Aiofile() if library == "aiofile" else importlib.import_module(library)


async def opened(loop: asyncio.AbstractEventLoop, path: str) -> Any:
    """A binary file for reading that nobody closes."""
    library = library_of(loop)
    if library == "aiofile":
        return await importlib.import_module("aiofile").AIOFile(path, "rb")
    if library == "asyncfiles":
        return await importlib.import_module("asyncfiles").open(path, "rb").__aenter__()
    return await importlib.import_module(library).open(path, "rb")


async def read_pages(file: Any, offsets: Iterable[int]) -> None:
    """Read 4 KiB at each offset, one after the other, in the best way the handle has."""
    if hasattr(file, "pread"):
        for offset in offsets:
            await file.pread(PAGE, offset)
    elif hasattr(file, "read_at"):  # turbofile, urio
        for offset in offsets:
            await file.read_at(offset, PAGE)
    elif hasattr(file, "read_bytes"):  # aiofile
        for offset in offsets:
            await file.read_bytes(PAGE, offset)
    elif asyncio.iscoroutinefunction(file.seek):  # aiofiles
        for offset in offsets:
            await file.seek(offset)
            await file.read(PAGE)
    else:  # asyncfiles
        for offset in offsets:
            file.seek(offset)
            await file.read(PAGE)
