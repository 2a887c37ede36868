"""The functions of os.path that touch the file system, awaited: aiounify.files.os.path."""

from __future__ import annotations

import os as _os
import stat as _stat
from typing import Any

from aiounify.files.threads import in_thread

__all__ = [
    "abspath",
    "exists",
    "getatime",
    "getctime",
    "getmtime",
    "getsize",
    "isdir",
    "isfile",
    "islink",
    "ismount",
    "lexists",
    "realpath",
    "samefile",
    "sameopenfile",
]


async def _found(path: Any, follow: bool = True) -> _os.stat_result | None:
    from aiounify.files import os as kernel

    try:
        return await kernel.stat(path, follow_symlinks=follow)
    except (OSError, ValueError):
        return None


async def exists(path: Any) -> bool:
    """Whether the path leads somewhere."""
    return await _found(path) is not None


async def lexists(path: Any) -> bool:
    """Whether there is such a name, also of a broken link."""
    return await _found(path, follow=False) is not None


async def isfile(path: Any) -> bool:
    """Whether it is a regular file, or a link to one."""
    found = await _found(path)
    return found is not None and _stat.S_ISREG(found.st_mode)


async def isdir(s: Any) -> bool:
    """Whether it is a directory, or a link to one."""
    found = await _found(s)
    return found is not None and _stat.S_ISDIR(found.st_mode)


async def islink(path: Any) -> bool:
    """Whether it is a symbolic link."""
    found = await _found(path, follow=False)
    return found is not None and _stat.S_ISLNK(found.st_mode)


async def ismount(path: Any) -> bool:
    """Whether another file system begins there."""
    return await in_thread(_os.path.ismount, path)


async def _stat_of(path: Any) -> _os.stat_result:
    from aiounify.files import os as kernel

    return await kernel.stat(path)


async def getsize(filename: Any) -> int:
    """The size in bytes."""
    return (await _stat_of(filename)).st_size


async def getmtime(filename: Any) -> float:
    """When the content changed, in seconds since 1970."""
    return (await _stat_of(filename)).st_mtime


async def getatime(filename: Any) -> float:
    """When it was read, in seconds since 1970."""
    return (await _stat_of(filename)).st_atime


async def getctime(filename: Any) -> float:
    """When the inode changed, in seconds since 1970."""
    return (await _stat_of(filename)).st_ctime


async def samefile(f1: Any, f2: Any) -> bool:
    """Whether two paths lead to one file."""
    return _os.path.samestat(await _stat_of(f1), await _stat_of(f2))


async def sameopenfile(fp1: int, fp2: int) -> bool:
    """Whether two descriptors are of one file."""
    return await in_thread(_os.path.sameopenfile, fp1, fp2)


async def abspath(path: Any) -> Any:
    """The path from the root."""
    return _os.path.abspath(path)  # noqa: ASYNC240, PTH100 - only looks at the name


async def realpath(path: Any) -> Any:
    """The path without symbolic links, in a thread."""
    return await in_thread(_os.path.realpath, path)
