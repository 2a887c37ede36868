"""Temporary files and directories, with the names and arguments of aiofiles.tempfile.

Why it exists: they are made by several system calls that may each wait for a disk, and removed
by more.  Making one is one call in a thread, by the standard library's own code where names are
chosen; what is read and written then goes the way of every other file.

Rules:

* `loop` and `executor` are taken because aiofiles has them; nothing depends on them.
* All can be awaited or used with `async with`.  What was made when the awaiting task is cancelled
  is removed before the cancellation goes on.
* A TemporaryFile has no name (O_TMPFILE, Linux 3.11; where the file system lacks it the name is
  removed at once), so nothing is left of it whatever happens.
* A NamedTemporaryFile that is forgotten is removed when it is collected or the interpreter ends,
  but never by a forked child.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tempfile as blocking
import weakref
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from aiounify import files
from aiounify.files.fileobject import Closing, Lines
from aiounify.files.threads import finished_in_thread, running_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable

__all__ = ["NamedTemporaryFile", "SpooledTemporaryFile", "TemporaryDirectory", "TemporaryFile"]

_Made = TypeVar("_Made")
_Entered = TypeVar("_Entered")


class _Making(Closing, Generic[_Made, _Entered]):
    """What the functions here return: awaited it is the thing, `async with` closes it behind."""

    __slots__ = ("_close", "_enter", "_made", "_make")

    def __init__(
        self,
        make: Callable[[], Coroutine[Any, Any, _Made]],
        enter: Callable[[_Made], _Entered],
        close: Callable[[_Made], Coroutine[Any, Any, object]],
    ) -> None:
        self._make = make
        self._enter = enter
        self._close = close
        self._made: _Made | None = None

    def __await__(self) -> Generator[Any, Any, _Made]:
        return self._make().__await__()

    async def __aenter__(self) -> _Entered:
        made = self._made = await self._make()
        return self._enter(made)

    async def _leave(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            await self._close(made)


def _itself(made: _Made) -> _Made:
    return made


# -- files without a name ---------------------------------------------------------------------


def _nameless(suffix: str | None, prefix: str | None, dir: str | None) -> int:
    directory = dir if dir is not None else blocking.gettempdir()
    flags = os.O_RDWR | os.O_EXCL | os.O_CLOEXEC | os.O_TMPFILE
    try:
        return os.open(directory, flags, 0o600)
    except OSError as exc:
        # EISDIR: a kernel that does not know the flag
        if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    fd, name = blocking.mkstemp(suffix, prefix, directory)
    os.unlink(name)  # noqa: PTH108 - no object for one call
    return fd


async def _open(fd: int, undo: Callable[[], object], mode: str, how: dict[str, Any]) -> Any:
    try:
        return await files.open(fd, mode, **how)
    except BaseException:
        os.close(fd)
        undo()
        raise


async def _make_nameless(where: tuple[Any, Any, Any], mode: str, how: dict[str, Any]) -> Any:
    fd = await finished_in_thread(_nameless, *where, undo=os.close)
    return await _open(fd, lambda: None, mode, how)


def TemporaryFile(  # noqa: N802 - tempfile's name
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    newline: str | None = None,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: str | None = None,
    *,
    errors: str | None = None,
    loop: object = None,
    executor: object = None,
) -> _Making[Any, Any]:
    """A file without a name, which is gone once it is closed."""
    how = {"buffering": buffering, "encoding": encoding, "newline": newline, "errors": errors}
    return _Making(
        lambda: _make_nameless((suffix, prefix, dir), mode, how),
        _itself,
        lambda file: file.close(),
    )


# -- files with a name --------------------------------------------------------------------------


def _remove(name: str, process: int) -> None:
    """Remove the file, if this is not a child of the process that made it."""
    if os.getpid() == process:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108 - also while the interpreter ends


class NamedFile(Closing):
    """A file handle, and the name that is removed when it is closed."""

    def __init__(self, file: Any, name: str, delete: bool, delete_on_close: bool) -> None:
        self.file = file
        self.name = name
        self.delete = delete
        self._on_close = delete_on_close
        self._removal = weakref.finalize(self, _remove, name, os.getpid()) if delete else None

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.file, attribute)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.file!r}>"

    def __aiter__(self) -> AsyncIterator[Any]:
        lines: AsyncIterator[Any] = self.file.__aiter__()
        return lines

    async def close(self) -> None:
        """Close it, and remove the name unless that was not wanted."""
        try:
            await self.file.close()
        finally:
            if self._on_close:
                await self._remove()

    async def _leave(self) -> None:
        try:
            await self.close()
        finally:
            await self._remove()

    async def _remove(self) -> None:
        if self._removal is not None and self._removal.alive:
            await finished_in_thread(self._removal, undo=_itself)


def _drop_named(made: tuple[int, str]) -> None:
    os.close(made[0])
    os.unlink(made[1])  # noqa: PTH108 - no object for one call


async def _make_named(
    where: tuple[Any, Any, Any], mode: str, how: dict[str, Any], delete: bool, on_close: bool
) -> NamedFile:
    fd, name = await finished_in_thread(blocking.mkstemp, *where, undo=_drop_named)
    process = os.getpid()
    return NamedFile(
        await _open(fd, lambda: _remove(name, process), mode, how), name, delete, on_close
    )


def NamedTemporaryFile(  # noqa: N802 - tempfile's name
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    newline: str | None = None,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: str | None = None,
    delete: bool = True,
    delete_on_close: bool = True,
    *,
    errors: str | None = None,
    loop: object = None,
    executor: object = None,
) -> _Making[NamedFile, NamedFile]:
    """A file with a name (`file.name`), which is removed when it is closed.

    With `delete_on_close` False it is removed at the end of `async with`, or when it is
    collected; with `delete` False it stays.
    """
    how = {"buffering": buffering, "encoding": encoding, "newline": newline, "errors": errors}
    return _Making(
        lambda: _make_named((suffix, prefix, dir), mode, how, delete, delete_on_close),
        _itself,
        lambda file: file._leave(),
    )


# -- files that are in memory while they are small ------------------------------------------------


class SpooledFile(Lines[Any], Closing):
    """A file in memory, until it is larger than `max_size` or somebody wants its descriptor."""

    def __init__(
        self, max_size: int, mode: str, where: tuple[Any, Any, Any], how: dict[str, Any]
    ) -> None:
        self._max_size = max_size
        self._mode = mode
        self._where = where
        self._how = how
        self._bytes = io.BytesIO()
        self._memory: Any = self._bytes
        if "b" not in mode:
            self._memory = io.TextIOWrapper(
                self._bytes,
                encoding=how["encoding"] or "utf-8",
                errors=how["errors"],
                newline=how["newline"],
                write_through=True,
            )
        self._file: Any = None

    def __repr__(self) -> str:
        where = "in memory" if self._file is None else repr(self._file)
        return f"<{type(self).__name__} {where}>"

    async def rollover(self) -> None:
        """Go on in a file on disk.  Nothing changes if it is cancelled."""
        if self._file is not None:
            return
        position = self._memory.tell()
        content = self._bytes.getvalue()

        def make() -> int:
            fd = _nameless(*self._where)
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(fd, view) :]
                os.lseek(fd, 0, os.SEEK_SET)
            except BaseException:
                os.close(fd)
                raise
            return fd

        fd = await finished_in_thread(make, undo=os.close)
        how = {**self._how}
        if "b" not in self._mode:
            how["encoding"] = self._memory.encoding
        # "w" would cut off what was just written
        mode = self._mode.replace("w", "r").replace("x", "r").replace("a", "r")
        mode = mode if "+" in mode else mode + "+"
        file = await _open(fd, lambda: None, mode, how)
        try:
            await file.seek(position)
        except BaseException:
            await file.close()
            raise
        self._file = file
        self._memory.close()

    async def _grown(self) -> None:
        if self._max_size and self._file is None and self._memory.tell() > self._max_size:
            await self.rollover()

    async def _do(self, method: str, *args: Any) -> Any:
        if self._file is not None:
            return await getattr(self._file, method)(*args)
        running_loop()
        return getattr(self._memory, method)(*args)

    async def write(self, data: Any) -> int:
        """Write all of it; returns how much that is."""
        if self._file is not None:
            n: int = await self._file.write(data)
            return n
        n = await self._do("write", data)
        await self._grown()
        return n

    async def writelines(self, lines: Iterable[Any]) -> None:
        """Write each of them; line ends are not added."""
        await self._do("writelines", list(lines))
        await self._grown()

    async def read(self, size: int = -1) -> Any:
        """At most `size` bytes or characters, or everything up to the end."""
        return await self._do("read", size)

    async def readinto(self, buffer: Any) -> int:
        """Fill a buffer; returns the number of bytes."""
        n: int = await self._do("readinto", buffer)
        return n

    async def readline(self, size: int = -1) -> Any:
        """A line with its end."""
        return await self._do("readline", size)

    async def readlines(self, hint: int = -1) -> list[Any]:
        """The lines up to the end, or until they have `hint` bytes or characters."""
        lines: list[Any] = await self._do("readlines", hint)
        return lines

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        position: int = await self._do("seek", offset, whence)
        return position

    async def tell(self) -> int:
        """The position."""
        position: int = await self._do("tell")
        return position

    async def truncate(self, size: int | None = None) -> int:
        """Cut it off, or make it longer."""
        if size is not None and self._max_size and size > self._max_size:
            await self.rollover()
        new: int = await self._do("truncate", size)
        return new

    async def flush(self) -> None:
        """Nothing, as long as it is in memory."""
        await self._do("flush")

    async def isatty(self) -> bool:
        """False."""
        return False

    async def fileno(self) -> int:
        """Its descriptor; it is on disk then."""
        await self.rollover()
        fd: int = self._file.fileno()
        return fd

    async def close(self) -> None:
        """Close it; its content is gone."""
        if self._file is not None:
            await self._file.close()
        else:
            self._memory.close()

    @property
    def closed(self) -> bool:
        """True after close()."""
        return bool(self._memory.closed if self._file is None else self._file.closed)

    @property
    def mode(self) -> str:
        """As it was given."""
        return self._mode

    @property
    def name(self) -> Any:
        """None in memory, then the descriptor."""
        return None if self._file is None else self._file.name

    @property
    def encoding(self) -> str | None:
        """Of a text file."""
        encoding: str | None = getattr(self._memory, "encoding", None)
        return encoding

    @property
    def errors(self) -> str | None:
        """Of a text file."""
        return self._how["errors"] if "b" in self._mode else self._how["errors"] or "strict"

    @property
    def newlines(self) -> Any:
        """The line ends that were read so far, of a text file."""
        return getattr(self._memory if self._file is None else self._file, "newlines", None)


def SpooledTemporaryFile(  # noqa: N802 - tempfile's name
    max_size: int = 0,
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    newline: str | None = None,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: str | None = None,
    *,
    errors: str | None = None,
    loop: object = None,
    executor: object = None,
) -> _Making[SpooledFile, SpooledFile]:
    """A file in memory up to `max_size` bytes (0: without a limit), beyond it a TemporaryFile."""
    how = {"buffering": buffering, "encoding": encoding, "newline": newline, "errors": errors}

    async def make() -> SpooledFile:
        running_loop()
        return SpooledFile(max_size, mode, (suffix, prefix, dir), how)

    return _Making(make, _itself, lambda file: file.close())


# -- directories ---------------------------------------------------------------------------------


class Directory:
    """A directory that cleanup() removes, with all that is in it."""

    def __init__(self, made: blocking.TemporaryDirectory[str]) -> None:
        self._made = made
        self.name = made.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    async def cleanup(self) -> None:
        """Remove it.  Twice is allowed."""
        await finished_in_thread(self._made.cleanup, undo=_itself)

    close = cleanup


def TemporaryDirectory(  # noqa: N802 - tempfile's name
    suffix: str | None = None,
    prefix: str | None = None,
    dir: str | None = None,
    ignore_cleanup_errors: bool = False,
    *,
    loop: object = None,
    executor: object = None,
) -> _Making[Directory, str]:
    """A directory that is removed at the end; `async with` gives its name."""

    async def make() -> Directory:
        return Directory(
            await finished_in_thread(
                blocking.TemporaryDirectory,
                suffix,
                prefix,
                dir,
                ignore_cleanup_errors,
                undo=lambda made: made.cleanup(),
            )
        )

    return _Making(make, lambda made: made.name, lambda made: made.cleanup())
