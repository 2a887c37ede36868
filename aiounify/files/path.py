"""Path: pathlib's interface, with every method that touches the file system awaited.

Why it exists: `pathlib.Path` blocks the loop wherever it is used, and rewriting a program's paths
as calls of functions is a chore.  `Path` is a PurePosixPath, so that everything about names is
as before (`/`, `parent`, `suffix` ...), and it can be passed to whatever takes a path.

How: what is one operation of the kernel goes through `aiounify.files.os` and
`aiounify.files.open`.  What the kernel has no operation for (listing a directory, patterns,
resolving links, names of users) is pathlib's own code in a thread, many entries at a time,
so that it means what it means in the Python that runs it.

Rules:

* Coroutines for questions and actions, asynchronous iterators for iterdir(), glob(), rglob() and
  walk().  An iterator may be left at any time; nothing stays open between two entries.
* Errors are pathlib's: OSError with errno and filename.  exists() and the is_...() methods answer
  False for what cannot be there.
"""

from __future__ import annotations

import errno
import functools
import os
import pathlib
import stat as modes
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from aiounify import files
from aiounify.files import os as kernel
from aiounify.files.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from typing import Self

    from typing_extensions import Buffer

_T = TypeVar("_T")

# entries that a thread brings at once
_BATCH = 256
# errors that mean that something is not there
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)


async def _taken_in_threads(make: Callable[[], Iterable[_T]]) -> AsyncIterator[_T]:
    """What an iterator yields, taken from it in threads, many at a time."""

    def begin() -> tuple[Iterator[_T], list[_T]]:
        iterator = iter(make())
        return iterator, list(islice(iterator, _BATCH))

    def go_on(iterator: Iterator[_T]) -> list[_T]:
        return list(islice(iterator, _BATCH))

    iterator, found = await in_thread(begin)
    while True:
        for item in found:
            yield item
        if len(found) < _BATCH:
            return
        found = await in_thread(go_on, iterator)


def _scan(directory: str, follow_symlinks: bool) -> tuple[list[str], list[str]]:
    """The names in a directory: (directories, everything else)."""
    directories: list[str] = []
    others: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                inside = entry.is_dir(follow_symlinks=follow_symlinks)
            except OSError:
                inside = False
            (directories if inside else others).append(entry.name)
    return directories, others


class Path(pathlib.PurePosixPath):
    """A path whose methods that touch the file system are coroutines.

    Made and combined as a pathlib.Path.  See pathlib's documentation for what each method does;
    differences are that they are awaited, and that iterdir(), glob(), rglob() and walk() are
    asynchronous iterators.  Cancelling a method that runs in a thread leaves the thread to finish.
    """

    __slots__ = ()

    def _plain(self) -> pathlib.Path:
        return pathlib.Path(self)

    # -- where it is ------------------------------------------------------------------

    @classmethod
    async def cwd(cls) -> Self:
        """The current directory."""
        return cls(os.getcwd())  # noqa: PTH109 - a system call that touches no disk

    @classmethod
    async def home(cls) -> Self:
        """The user's home directory."""
        return cls(await in_thread(pathlib.Path.home))

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """The path of a file URI, as of Python 3.13."""
        made: Any = pathlib.Path.from_uri(uri)  # type: ignore[attr-defined,unused-ignore]
        return cls(made)

    async def absolute(self) -> Self:
        """With the current directory in front, if it is relative."""
        if self.is_absolute():
            return self
        return type(self)(os.getcwd(), self)  # noqa: PTH109 - no disk is touched

    async def resolve(self, strict: bool = False) -> Self:
        """Absolute, without links and `..`; with `strict` FileNotFoundError if it is not there."""
        return type(self)(await in_thread(self._plain().resolve, strict))

    async def expanduser(self) -> Self:
        """With `~` and `~user` replaced by the home directory."""
        return type(self)(await in_thread(self._plain().expanduser))

    async def readlink(self) -> Self:
        """What the symbolic link says."""
        return type(self)(await kernel.readlink(self))

    # -- questions ------------------------------------------------------------------------

    async def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As os.stat()."""
        return await kernel.stat(self, follow_symlinks=follow_symlinks)

    async def lstat(self) -> os.stat_result:
        """stat() of the link itself."""
        return await self.stat(follow_symlinks=False)

    async def _mode(self, follow_symlinks: bool = True) -> int:
        """Its type and permissions, 0 if it is not there."""
        try:
            return (await self.stat(follow_symlinks=follow_symlinks)).st_mode
        except OSError as exc:
            if exc.errno not in _ABSENT:
                raise
        except ValueError:  # a null byte: no file has such a name
            pass
        return 0

    async def exists(self, *, follow_symlinks: bool = True) -> bool:
        """True if it is there."""
        return bool(await self._mode(follow_symlinks))

    async def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """True if it is a directory, or a link to one."""
        return modes.S_ISDIR(await self._mode(follow_symlinks))

    async def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """True if it is a regular file, or a link to one."""
        return modes.S_ISREG(await self._mode(follow_symlinks))

    async def is_symlink(self) -> bool:
        """True if it is a symbolic link, broken or not."""
        return modes.S_ISLNK(await self._mode(follow_symlinks=False))

    async def is_socket(self) -> bool:
        """True if it is a socket."""
        return modes.S_ISSOCK(await self._mode())

    async def is_fifo(self) -> bool:
        """True if it is a FIFO."""
        return modes.S_ISFIFO(await self._mode())

    async def is_block_device(self) -> bool:
        """True if it is a block device."""
        return modes.S_ISBLK(await self._mode())

    async def is_char_device(self) -> bool:
        """True if it is a character device."""
        return modes.S_ISCHR(await self._mode())

    async def is_junction(self) -> bool:
        """False: there are none on Linux."""
        return False

    async def is_mount(self) -> bool:
        """True if something is mounted there."""
        return await in_thread(os.path.ismount, self)

    async def samefile(self, other_path: str | os.PathLike[str]) -> bool:
        """True if both are the same file."""
        return os.path.samestat(await self.stat(), await kernel.stat(other_path))

    async def owner(self, *, follow_symlinks: bool = True) -> str:
        """The name of the user who owns it.  KeyError if the system does not know one."""
        import pwd

        number = (await self.stat(follow_symlinks=follow_symlinks)).st_uid
        return (await in_thread(pwd.getpwuid, number)).pw_name

    async def group(self, *, follow_symlinks: bool = True) -> str:
        """The name of its group.  KeyError if the system does not know one."""
        import grp

        number = (await self.stat(follow_symlinks=follow_symlinks)).st_gid
        return (await in_thread(grp.getgrgid, number)).gr_name

    # -- what is inside --------------------------------------------------------------------

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """aiounify.files.open() of this path: to be awaited, or used with `async with`."""
        return files.open(self, mode, buffering, encoding, errors, newline)

    async def read_bytes(self) -> bytes:
        """All of the file."""
        return await files.read_bytes(self)

    async def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        """All of the file, decoded."""
        return await files.read_text(self, encoding, errors, newline)

    async def write_bytes(self, data: Buffer, *, atomic: bool = False) -> int:
        """Make the file or replace what is in it; returns the number of bytes.

        With `atomic` it is written beside it and renamed: whoever looks sees the old
        content or the new one.
        """
        return await files.write_bytes(self, data, atomic=atomic)

    async def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        atomic: bool = False,
    ) -> int:
        """write_bytes() of an encoded string; returns the number of characters."""
        return await files.write_text(self, data, encoding, errors, newline, atomic=atomic)

    async def iterdir(self) -> AsyncIterator[Self]:
        """The paths in the directory, in no order."""
        async for name in _taken_in_threads(functools.partial(os.listdir, self)):
            yield self / name

    async def glob(self, pattern: str | os.PathLike[str], **how: Any) -> AsyncIterator[Self]:
        """The paths in the directory that match the pattern; `**` reaches into subdirectories.

        Keywords are those of pathlib.Path.glob() in the running Python.
        """
        async for found in _taken_in_threads(
            functools.partial(self._plain().glob, pattern, **how)  # type: ignore[arg-type,unused-ignore]
        ):
            yield type(self)(found)

    async def rglob(self, pattern: str | os.PathLike[str], **how: Any) -> AsyncIterator[Self]:
        """glob() with `**/` in front of the pattern."""
        async for found in _taken_in_threads(
            functools.partial(self._plain().rglob, pattern, **how)  # type: ignore[arg-type,unused-ignore]
        ):
            yield type(self)(found)

    async def walk(
        self,
        top_down: bool = True,
        on_error: Callable[[OSError], object] | None = None,
        follow_symlinks: bool = False,
    ) -> AsyncIterator[tuple[Self, list[str], list[str]]]:
        """(directory, names of directories in it, names of all else) for each below this.

        Top down, names taken out of the first list are not entered.  A directory that cannot
        be read is left out, after on_error(exc).
        """
        todo: list[Self | tuple[Self, list[str], list[str]]] = [self]
        while todo:
            path = todo.pop()
            if isinstance(path, tuple):
                yield path
                continue
            try:
                directories, others = await in_thread(_scan, str(path), follow_symlinks)
            except OSError as exc:
                if on_error is not None:
                    on_error(exc)
                continue
            if top_down:
                yield path, directories, others
            else:
                todo.append((path, directories, others))
            todo += [path / name for name in reversed(directories)]

    # -- actions ----------------------------------------------------------------------------

    async def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Make an empty file, or set the times of one that is there to now."""
        await in_thread(self._plain().touch, mode, exist_ok)

    async def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Make the directory; with `parents` those above it too."""
        try:
            await kernel.mkdir(self, mode)
        except FileNotFoundError:
            if not parents or self.parent == self:
                raise
            await self.parent.mkdir(parents=True, exist_ok=True)
            await self.mkdir(mode, parents=False, exist_ok=exist_ok)
        except OSError:
            if not exist_ok or not await self.is_dir():
                raise

    async def rmdir(self) -> None:
        """Remove the directory, which must be empty."""
        await kernel.rmdir(self)

    async def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file or link."""
        try:
            await kernel.unlink(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    async def rename(self, target: str | os.PathLike[str]) -> Self:
        """Rename it, replacing a file of that name; returns the new path."""
        await kernel.rename(self, target)
        return type(self)(target)

    async def replace(self, target: str | os.PathLike[str]) -> Self:
        """As rename(): on Linux both replace."""
        await kernel.replace(self, target)
        return type(self)(target)

    async def symlink_to(
        self, target: str | os.PathLike[str], target_is_directory: bool = False
    ) -> None:
        """Make this a symbolic link to the target."""
        await kernel.symlink(target, self)

    async def hardlink_to(self, target: str | os.PathLike[str]) -> None:
        """Make this another name of the target."""
        await kernel.link(target, self)

    async def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Set its permissions."""
        await in_thread(functools.partial(os.chmod, self, mode, follow_symlinks=follow_symlinks))

    async def lchmod(self, mode: int) -> None:
        """chmod() of the link itself, which Linux refuses."""
        await self.chmod(mode, follow_symlinks=False)
