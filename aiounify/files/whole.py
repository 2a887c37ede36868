"""A whole file in one call.

read_bytes() of a file that is in the page cache is open, read and close without suspending the
task.  With atomic=True a file is written beside its place under a name of its own, synced, and
renamed over it: whoever opens the path sees the old content or the new one, also after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import locale
import os
import secrets
import stat
from io import IncrementalNewlineDecoder
from typing import TYPE_CHECKING, Any

from aiounify._core.file_op import FileOp, read_op
from aiounify._core.file_paths import read_bytes as read_at_once
from aiounify._core.file_whole import WholeRead, start_whole, stop_whole
from aiounify.files.handle import open as open_file
from aiounify.files.handle import open_again
from aiounify.files.operation import checked, encoded, failure, finished, perform, service
from aiounify.files.status import statx_path

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from typing_extensions import Buffer

    from aiounify._core.file_service import FileService

# bytes of a file that is read in one operation, at the most
_ONE_READ = 1 << 30
# errors of a chain's openat that may be the chain's, and that open(2) has to confirm
_NOT_TOLD = (-errno.ECANCELED, -errno.EINTR, -errno.EAGAIN, -errno.EINVAL, -errno.EBADF)


def read_bytes(path: Any) -> Coroutine[Any, Any, bytes]:
    """The content of a file.  OSError with errno and filename; open(2), read(2)."""
    return read_at_once(service(), path, _read_bytes)


async def _read_bytes(path: Any, fd: int | None = None, size: int = 0) -> bytes:
    """read_bytes() where it has to wait.

    `fd` is the file, if it is open already, and is closed here; `size` -1: it has none to go by.
    fd None: nothing is known of the path.
    """
    files = service()
    if fd is None:
        return await _read_chain(files, path)
    if size < 0:
        return await _read_opened(path, fd)
    data = await _read_descriptor(files, fd, size)
    return data if data is not None else await _read_opened(path)


async def _read_chain(files: FileService, path: Any) -> bytes:
    """In one request."""
    name = encoded(path)
    op = WholeRead(name)
    waiter = start_whole(files, op)
    if waiter is None:
        return await _read_opened(path)
    try:
        await waiter
    except asyncio.CancelledError:
        stop_whole(files, op)
        await finished(files, op)
        if (fd := op.take_kept()) >= 0:
            os.close(fd)
        raise
    if op.whole:
        return op.take()
    if (fd := op.take_kept()) >= 0:
        return await _read_opened(path, fd)
    if op.opened < 0 and op.opened not in _NOT_TOLD:
        raise failure(op.opened, os.fspath(path))
    first = op.take() + op.more()
    if first and (fd := files.open_cached(name, os.O_RDONLY | os.O_NONBLOCK)) >= 0:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and 0 < status.st_size <= _ONE_READ:
            data = await _read_descriptor(files, fd, status.st_size)
            if data is not None:
                return data
        else:
            os.close(fd)
    return await _read_opened(path, first=first)


async def _read_descriptor(files: FileService, fd: int, size: int) -> bytes | None:
    """A regular file of so many bytes, closed at the end; None if it has another size by then."""
    op = read_op(fd, size + 1, 0)
    try:
        got = await perform(files, op)
    finally:
        os.close(fd)
    return op.take() if got == size else None


async def _read_opened(path: Any, fd: int | None = None, first: bytes = b"") -> bytes:
    """Operation by operation.

    `fd` is the file, if it is open already: what is in a FIFO is lost when its last descriptor is
    closed.  `first` was read already, and counts if it cannot be read twice.
    """
    async with open_file(path, "rb") if fd is None else open_again(path, fd) as file:
        data: bytes = await file.read()
        return data if file.regular else first + data


async def read_text(
    path: Any, encoding: str | None = None, errors: str | None = None, newline: str | None = None
) -> str:
    """The content of a text file, decoded; line ends become \\n unless `newline` says otherwise."""
    data = await read_bytes(path)
    text = data.decode(encoding or locale.getencoding(), errors or "strict")
    if newline is None and "\r" in text:
        text = IncrementalNewlineDecoder(None, translate=True).decode(text, final=True)
    return text


async def write_bytes(path: Any, data: Buffer, *, atomic: bool = False) -> int:
    """Make this the content of a file, which is created if it is not there: its length.

    With `atomic` the old content stays until the new one is on the disk.  A cancelled or failed
    atomic write leaves the old file and nothing beside it.
    """
    view = memoryview(data).cast("B")
    if not atomic:
        async with open_file(path, "wb", buffering=0) as file:
            await _write_all(file, view)
        return len(view)
    await _replace(os.fspath(path), view)
    return len(view)


async def write_text(
    path: Any,
    data: str,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    atomic: bool = False,
) -> int:
    """write_bytes() of text: the number of characters."""
    if not isinstance(data, str):
        raise TypeError(f"data must be str, not {type(data).__name__}")
    text = data if newline in (None, "", "\n") else data.replace("\n", newline)
    encoded = text.encode(encoding or locale.getencoding(), errors or "strict")
    await write_bytes(path, encoded, atomic=atomic)
    return len(data)


async def _write_all(file: Any, view: memoryview) -> None:
    done = 0
    while done < len(view):
        done += await file.pwrite(view[done : done + (1 << 30)], done)


async def _replace(path: Any, view: memoryview) -> None:
    from aiounify.files import os as kernel

    files = service()
    where = await kernel.path.realpath(
        path
    )  # a symbolic link stays one, as when it is written through
    suffix = f".{secrets.token_hex(8)}.tmp"
    beside = where + (suffix if isinstance(where, str) else suffix.encode())
    made = True  # also by an open that was cancelled
    try:
        async with open_file(beside, "xb", buffering=0) as file:
            try:
                mode = (await statx_path(files, where)).mode & 0o7777
            except FileNotFoundError:
                pass
            else:
                os.fchmod(file.fileno(), mode)
            await _write_all(file, view)
            await file.fsync()
        await kernel.replace(beside, where)
        made = False
    finally:
        if made:
            with contextlib.suppress(FileNotFoundError):
                # not awaited: the task may be cancelled
                os.unlink(beside)  # noqa: PTH108 - may be bytes
    directory = os.path.dirname(where)  # noqa: PTH120 - may be bytes
    fd = await kernel.open_descriptor(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        await checked(files, FileOp(3, fd, 0, 0, 0), directory)
    finally:
        os.close(fd)
