"""Columns of the rows of files: libraries for files, each on the loop it is made for.

A library is not a loop, but it is chosen like one: `python -m aiounify bench files -l asyncio
-l aiounify-uring -l files-turbofile`.  The loop made here is asyncio's and remembers which library
the rows are to use; on asyncio and uvloop themselves that is aiofiles.
"""

import asyncio
from typing import Any

__all__ = ["LibraryLoop", "library_of", "new_loop"]


class LibraryLoop(asyncio.SelectorEventLoop):
    """asyncio's loop, for a library that is not aiofiles."""

    library = ""


def new_loop(library: str) -> LibraryLoop:
    """A loop on which the rows of files use this library; ImportError if it is not installed."""
    __import__(library)
    loop = LibraryLoop()
    loop.library = library
    return loop


def library_of(loop: Any) -> str:
    """The module that serves files on a loop."""
    if isinstance(loop, LibraryLoop):
        return loop.library
    return "aiounify.files" if hasattr(loop, "backend") else "aiofiles"
