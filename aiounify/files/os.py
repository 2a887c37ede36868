"""The functions of `os` that touch the file system, awaited, as aiofiles.os names them.

What the kernel's ring knows is submitted to it: stat, rename, unlink, mkdir, links.  The rest
(listing directories, access, readlink, statvfs) is made in a thread.  stat of a path that is in
the kernel's caches is answered without suspending the task.  sendfile() is os.sendfile in a
thread, as in aiofiles; loop.sendfile() is the better one.
"""

from __future__ import annotations

import contextlib
import os as _os
from typing import TYPE_CHECKING, Any

from aiounify._core.file_op import path_op
from aiounify._core.file_paths import stat as _ask
from aiounify.files import handle as _handle
from aiounify.files import ospath as path
from aiounify.files.operation import checked, encoded, service
from aiounify.files.status import Statx, as_stat_result, statx_of, statx_path
from aiounify.files.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

_AT_FDCWD = -100
_AT_REMOVEDIR = 0x200
_AT_SYMLINK_FOLLOW = 0x400
_RENAME, _UNLINK, _MKDIR, _SYMLINK, _LINK = 35, 36, 37, 38, 39

__all__ = [
    "access",
    "fstat",
    "getcwd",
    "link",
    "listdir",
    "lstat",
    "makedirs",
    "mkdir",
    "open_descriptor",
    "path",
    "readlink",
    "remove",
    "removedirs",
    "rename",
    "renames",
    "replace",
    "rmdir",
    "scandir",
    "sendfile",
    "stat",
    "statvfs",
    "statx",
    "symlink",
    "unlink",
    "walk",
]


def _at(dir_fd: int | None) -> int:
    return _AT_FDCWD if dir_fd is None else dir_fd


async def _call(op: int, name: Any, dir_fd: int | None, length: int, flags: int = 0) -> None:
    await checked(service(), path_op(op, _at(dir_fd), encoded(name), length, flags), name)


def stat(
    path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True
) -> Coroutine[Any, Any, _os.stat_result]:
    """os.stat(): of a path or a descriptor.  OSError with errno and filename; statx(2)."""
    if isinstance(path, int):
        return fstat(path)
    if dir_fd is not None:
        return _stat_at(path, dir_fd, follow_symlinks)
    slow = _stat_follow if follow_symlinks else _stat_link
    return _ask(service(), path, slow, follow_symlinks)


def lstat(path: Any, *, dir_fd: int | None = None) -> Coroutine[Any, Any, _os.stat_result]:
    """stat() of a symbolic link itself."""
    return stat(path, dir_fd=dir_fd, follow_symlinks=False)


async def fstat(fd: int) -> _os.stat_result:
    """stat() of an open descriptor."""
    return as_stat_result(await statx_of(service(), fd))


async def _stat_follow(path: Any) -> _os.stat_result:
    return as_stat_result(await statx_path(service(), path))


async def _stat_link(path: Any) -> _os.stat_result:
    return as_stat_result(await statx_path(service(), path, follow=False))


async def _stat_at(path: Any, dir_fd: int, follow: bool) -> _os.stat_result:
    return as_stat_result(await statx_path(service(), path, dir_fd=dir_fd, follow=follow))


async def statx(path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> Statx:
    """What stat() has no room for: time of birth, mount id, alignment of direct I/O.  statx(2)."""
    if isinstance(path, int):
        return await statx_of(service(), path)
    return await statx_path(service(), path, dir_fd=dir_fd, follow=follow_symlinks)


async def open_descriptor(
    path: Any, flags: int, mode: int = 0o666, *, dir_fd: int | None = None
) -> int:
    """os.open(): a descriptor that is closed on exec and does not block; open(2)."""
    return await _handle.open_descriptor(service(), path, flags, mode, dir_fd)


async def rename(
    src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
) -> None:
    """os.rename(); rename(2).  A cancelled call may have happened."""
    op = path_op(_RENAME, _at(src_dir_fd), encoded(src), _at(dst_dir_fd), 0, encoded(dst))
    await checked(service(), op, src, dst)


async def replace(
    src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
) -> None:
    """os.replace(), which on Linux is rename()."""
    await rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


async def unlink(path: Any, *, dir_fd: int | None = None) -> None:
    """os.unlink(); unlink(2)."""
    await _call(_UNLINK, path, dir_fd, 0)


async def remove(path: Any, *, dir_fd: int | None = None) -> None:
    """unlink()."""
    await unlink(path, dir_fd=dir_fd)


async def rmdir(path: Any, *, dir_fd: int | None = None) -> None:
    """os.rmdir(); rmdir(2)."""
    await _call(_UNLINK, path, dir_fd, 0, _AT_REMOVEDIR)


async def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
    """os.mkdir(); mkdir(2)."""
    await _call(_MKDIR, path, dir_fd, mode)


async def makedirs(name: Any, mode: int = 0o777, exist_ok: bool = False) -> None:
    """os.makedirs(): a directory and all above it that are missing."""
    head, tail = _os.path.split(name)
    if not tail:
        head, tail = _os.path.split(head)
    if head and tail and not await path.exists(head):
        with contextlib.suppress(FileExistsError):
            await makedirs(head, exist_ok=exist_ok)
        dot = b"." if isinstance(tail, bytes) else "."
        if tail == dot:
            return
    try:
        await mkdir(name, mode)
    except OSError:
        if not exist_ok or not await path.isdir(name):
            raise


async def removedirs(name: Any) -> None:
    """os.removedirs(): a directory, and those above it that are empty then."""
    await rmdir(name)
    head, tail = _os.path.split(name)
    if not tail:
        head, tail = _os.path.split(head)
    while head and tail:
        try:
            await rmdir(head)
        except OSError:
            break
        head, tail = _os.path.split(head)


async def renames(old: Any, new: Any) -> None:
    """os.renames(): rename(), making and removing directories as needed."""
    head, tail = _os.path.split(new)
    if head and tail and not await path.exists(head):
        await makedirs(head)
    await rename(old, new)
    head, tail = _os.path.split(old)
    if head and tail:
        with contextlib.suppress(OSError):
            await removedirs(head)


async def link(
    src: Any,
    dst: Any,
    *,
    src_dir_fd: int | None = None,
    dst_dir_fd: int | None = None,
    follow_symlinks: bool = True,
) -> None:
    """os.link(); linkat(2)."""
    # os.link() without directories is link(2), which does not follow on Linux
    relative = src_dir_fd is not None or dst_dir_fd is not None
    flags = _AT_SYMLINK_FOLLOW if follow_symlinks and relative else 0
    op = path_op(_LINK, _at(src_dir_fd), encoded(src), _at(dst_dir_fd), flags, encoded(dst))
    await checked(service(), op, src, dst)


async def symlink(
    src: Any, dst: Any, target_is_directory: bool = False, *, dir_fd: int | None = None
) -> None:
    """os.symlink(); symlink(2)."""
    op = path_op(_SYMLINK, _at(dir_fd), encoded(src), 0, 0, encoded(dst))
    await checked(service(), op, src, dst)


async def readlink(path: Any, *, dir_fd: int | None = None) -> Any:
    """os.readlink(): what a symbolic link says."""
    return await in_thread(_with(_os.readlink, path, dir_fd=dir_fd))


async def access(
    path: Any,
    mode: int,
    *,
    dir_fd: int | None = None,
    effective_ids: bool = False,
    follow_symlinks: bool = True,
) -> bool:
    """os.access(): whether this user may."""
    return await in_thread(
        _with(
            _os.access,
            path,
            mode,
            dir_fd=dir_fd,
            effective_ids=effective_ids,
            follow_symlinks=follow_symlinks,
        )
    )


def _with(function: Callable[..., Any], *args: Any, **named: Any) -> Callable[[], Any]:
    return lambda: function(*args, **named)


async def listdir(path: Any = ".") -> list[Any]:
    """os.listdir(), in a thread."""
    return await in_thread(_os.listdir, path)


async def scandir(path: Any = ".") -> Any:
    """os.scandir(), as aiofiles has it: the iterator itself, whose entries may block in stat().

    The first entries are read in the thread that opens the directory.
    """
    return await in_thread(_os.scandir, path)


async def walk(
    top: Any,
    topdown: bool = True,
    onerror: Callable[[OSError], object] | None = None,
    followlinks: bool = False,
) -> AsyncIterator[tuple[Any, list[Any], list[Any]]]:
    """os.walk(): one directory at a time, listed in a thread, with nothing open between two.

    With `topdown` the list of directories may be changed to leave some out.
    """
    top = _os.fspath(top)
    try:
        directories, others, into = await in_thread(_listed, top, topdown, followlinks)
    except OSError as exc:
        if onerror is not None:
            onerror(exc)
        return
    if topdown:
        yield top, directories, others
        into = [_os.path.join(top, name) for name in directories]  # noqa: PTH118 - may be bytes
    for child in into:
        if followlinks or not topdown or not await path.islink(child):
            async for found in walk(child, topdown, onerror, followlinks):
                yield found
    if not topdown:
        yield top, directories, others


def _listed(top: Any, topdown: bool, followlinks: bool) -> tuple[list[Any], list[Any], list[Any]]:
    directories: list[Any] = []
    others: list[Any] = []
    into: list[Any] = []
    with _os.scandir(top) as entries:
        for entry in entries:
            try:
                inside = entry.is_dir()
            except OSError:
                inside = False
            (directories if inside else others).append(entry.name)
            if inside and (followlinks or not entry.is_symlink()):
                into.append(entry.path)
    return directories, others, into


async def statvfs(path: Any) -> _os.statvfs_result:
    """os.statvfs(), in a thread."""
    return await in_thread(_os.statvfs, path)


async def sendfile(out_fd: int, in_fd: int, offset: int | None, count: int) -> int:
    """os.sendfile(), in a thread, as aiofiles has it."""
    return await in_thread(_os.sendfile, out_fd, in_fd, offset, count)


async def getcwd() -> str:
    """os.getcwd()."""
    return _os.getcwd()  # noqa: PTH109 - the same function
