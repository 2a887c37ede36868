"""open(): the builtin's arguments, awaited.

A file that exists and is in the kernel's caches is opened without suspending the task, by
openat2(RESOLVE_CACHED) (Linux 5.12).  Everything is opened with O_NONBLOCK, which regular files
ignore, so that a FIFO without a writer, or a terminal, cannot hold a thread for ever; the flag is
taken off again.  Opening a FIFO to read returns at once, and the first read waits for a writer;
opening one to write waits for a reader, as open(2) does.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import locale
import os
import stat
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from aiounify._core.file_op import open_op
from aiounify._core.page_cache import how_to_read
from aiounify.files.binary import BinaryFile
from aiounify.files.fileobject import Closing
from aiounify.files.operation import encoded, failure, perform, service
from aiounify.files.text import TextFile
from aiounify.files.threads import finished_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from aiounify._core.file_op import FileOp
    from aiounify._core.file_service import FileService

_AT_FDCWD = -100
_BUFFER = 65536
# a FIFO is asked again whether it has a reader
_FIRST, _LONGEST = 0.001, 0.025


class Opening(Closing):
    """What open() returns: await it, or use it with `async with`."""

    __slots__ = ("_coroutine", "_file")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._file: Any = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        return self._coroutine.send(value)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        if value is None and traceback is None:
            return self._coroutine.throw(kind)
        return self._coroutine.throw(kind, value, traceback)

    def close(self) -> None:
        self._coroutine.close()

    async def __aenter__(self) -> Any:
        self._file = await self._coroutine
        return self._file

    async def _leave(self) -> None:
        await self._file.close()


def open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[str, int], int] | None = None,
    *,
    direct: bool = False,
    loop: Any = None,
    executor: Any = None,
) -> Opening:
    """Open a file: the arguments of the builtin open(), and `direct` for O_DIRECT.

    `loop` and `executor` are taken for aiofiles' sake and mean nothing.  `direct` is for binary
    handles without a buffer (buffering=0) and for pread() and the like; reads are aligned inside.
    Cancelling leaves no descriptor behind.  OSError with errno and filename; RuntimeError under
    another event loop.  open(2), openat2(2).
    """
    return Opening(_open(file, mode, buffering, encoding, errors, newline, closefd, opener, direct))


def open_again(path: Any, fd: int) -> Opening:
    """open(path, "rb") with what it would open: a descriptor made with O_NONBLOCK, which is its."""
    return Opening(_open(path, "rb", -1, None, None, None, True, None, False, opened=fd))


def _flags(mode: str) -> tuple[int, bool, bool]:
    """Flags of open(2), whether it reads, whether it writes; ValueError as the builtin's."""
    letters = set(mode)
    if letters - set("axrwb+t") or len(mode) > len(letters):
        raise ValueError(f"invalid mode: {mode!r}")
    if "b" in letters and "t" in letters:
        raise ValueError("can't have text and binary mode at once")
    kinds = letters & set("axrw")
    if len(kinds) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    kind = kinds.pop()
    plus = "+" in letters
    reads, writes = kind == "r" or plus, kind != "r" or plus
    flags = os.O_RDWR if plus else os.O_RDONLY if reads else os.O_WRONLY
    flags |= {
        "r": 0,
        "w": os.O_CREAT | os.O_TRUNC,
        "a": os.O_CREAT | os.O_APPEND,
        "x": os.O_CREAT | os.O_EXCL,
    }[kind]
    return flags | os.O_CLOEXEC, reads, writes


async def _open(
    file: Any,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    closefd: bool,
    opener: Callable[[Any, int], int] | None,
    direct: bool,
    opened: int | None = None,
) -> Any:
    files = service()
    if not isinstance(file, int):
        file = os.fspath(file)
    flags, reads, writes = _flags(mode)
    text = "b" not in mode
    if not text:
        given = {"an encoding": encoding, "an errors": errors, "a newline": newline}
        for what, value in given.items():
            if value is not None:
                raise ValueError(f"binary mode doesn't take {what} argument")
    elif newline is not None and newline not in ("", "\n", "\r", "\r\n"):
        raise ValueError(f"illegal newline value: {newline!r}")
    if buffering < -1:
        raise ValueError("invalid buffering size")
    if text and buffering == 0:
        raise ValueError("can't have unbuffered text I/O")
    if direct:
        if text or buffering > 0:
            raise ValueError("direct=True is for binary files without a buffer: 'rb', 'r+b' ...")
        flags |= os.O_DIRECT
        buffering = 0
    if text:
        encoding = _encoding(encoding)
    if isinstance(file, int):
        if opener is not None:
            fd = await _by_opener(opener, file, flags)
        else:
            fd = file
            if fd < 0:
                raise ValueError("negative file descriptor")
    elif not closefd:
        raise ValueError("Cannot use closefd=False with file name")
    elif opener is not None:
        fd = await _by_opener(opener, file, flags)
    elif opened is not None:
        fd = opened
    else:
        fd = await open_descriptor(files, file, flags, 0o666, fifo_waits=writes and not reads)
    owned = closefd
    try:
        status = os.fstat(fd)
        kind = status.st_mode
        if stat.S_ISDIR(kind):
            raise failure(errno.EISDIR, file)
        regular = stat.S_ISREG(kind) or stat.S_ISBLK(kind)
        if not isinstance(file, int) and opener is None and not regular:
            now = fcntl.fcntl(fd, fcntl.F_GETFL)
            fcntl.fcntl(fd, fcntl.F_SETFL, now & ~os.O_NONBLOCK)
        size = _BUFFER if buffering < 0 or (text and buffering == 1) else buffering
        line_buffering = text and (buffering == 1 or (buffering < 0 and os.isatty(fd)))
        if not text and buffering == 1:
            size = _BUFFER
        binary = BinaryFile if not direct else _direct_class()
        handle = binary(
            files,
            fd,
            file,
            mode,
            readable=reads,
            writable=writes,
            appends="a" in mode,
            regular=regular,
            buffer_size=size,
            closefd=closefd,
            fifo=stat.S_ISFIFO(kind) and not isinstance(file, int),
        )
        owned = False
        if stat.S_ISREG(kind):
            handle.nowait = how_to_read(fd, status.st_dev)
        if regular:
            if isinstance(file, int) or opener is not None:
                handle.position = os.lseek(fd, 0, os.SEEK_CUR)
            if "a" in mode:
                handle.position = status.st_size
        if not text:
            return handle
        try:
            assert encoding is not None
            return TextFile(handle, encoding, errors, newline, line_buffering=line_buffering)
        except BaseException:
            handle.detach()
            owned = closefd
            raise
    except BaseException:
        if owned:
            os.close(fd)
        raise


def _encoding(encoding: str | None) -> str:
    if encoding is None:
        return "utf-8" if sys.flags.utf8_mode else locale.getencoding()
    return locale.getencoding() if encoding == "locale" else encoding


def _direct_class() -> type[BinaryFile]:
    from aiounify.files.direct import DirectFile

    return DirectFile


async def _by_opener(opener: Callable[[Any, int], int], file: Any, flags: int) -> int:
    """A function of the caller's, in a thread, since it may block."""
    fd = await finished_in_thread(opener, file, flags, undo=os.close)
    if not isinstance(fd, int):
        raise TypeError("expected integer from opener")
    if fd < 0:
        raise ValueError(f"opener returned {fd}")
    return fd


def _close_opened(op: FileOp, _: int) -> None:
    os.close(op.take_descriptor())


async def open_descriptor(
    files: FileService,
    path: Any,
    flags: int,
    mode: int = 0o666,
    dir_fd: int | None = None,
    fifo_waits: bool = False,
) -> int:
    """A descriptor, close-on-exec, never inherited and never left behind by a cancelled call."""
    name = encoded(path)
    flags |= os.O_CLOEXEC | os.O_NONBLOCK
    if dir_fd is None and not flags & (os.O_CREAT | os.O_TRUNC):
        fd = files.open_cached(name, flags)
        if fd >= 0:
            return fd
        if fd in (-errno.ENOENT, -errno.ENOTDIR, -errno.EISDIR):
            raise failure(fd, path)
    where = _AT_FDCWD if dir_fd is None else dir_fd
    pause = _FIRST
    while True:
        op = open_op(where, name, flags, mode)
        result = await perform(files, op, undo=partial(_close_opened, op))
        if result >= 0:
            return op.take_descriptor()
        if result == -errno.EINTR:
            continue
        if result != -errno.ENXIO or not fifo_waits or not await _is_fifo(files, path):
            raise failure(result, path)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST)


async def _is_fifo(files: FileService, path: Any) -> bool:
    from aiounify.files.status import statx_path

    return stat.S_ISFIFO((await statx_path(files, path)).mode)


__all__ = ["Opening", "open", "open_again", "open_descriptor"]
