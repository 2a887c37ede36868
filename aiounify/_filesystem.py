"""`watch(path, filesystem=True)`: one mark for a whole file system, by fanotify.

Why it exists: inotify takes a watch and some memory for each directory, and has to walk the tree
to begin.  fanotify(7) marks a file system in one call, whatever its size; but only with
CAP_SYS_ADMIN, and it names directories by handle, not by path.

How handles become paths, and what has to be kept:

* `_places` says of each directory that was met in which directory it is and by what name.  An
  event of a directory carries its own handle too (FAN_REPORT_TARGET_FID), so the table follows
  renames in the order in which they were queued.
* A directory that is not in the table is looked up as it is now (open_by_handle_at(2)), and
  that may be later than the event.  So everything queued is read first, then directories
  are looked up, then it is read again: whatever a rename among all this says of a
  directory goes before what the look-up found.
* The path is opened for a look-up only, and closed after it: an open directory would keep the
  file system from being unmounted.
* Events of one name are merged in the queue, and take the place of the first.  So a deletion
  that came with the creation is told when its name is needed again, or at the end; and what
  was renamed to and fro is looked up at the end.

The end of the watch is told by inotify: the watch is also a tree of its own with nothing in it
but its root.  Memory: the buffer and the records belong to the watch.
"""

from __future__ import annotations

import errno
import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from aiounify._core.inotify import instance_of
from aiounify._kernel_fanotify import ffi, lib
from aiounify.watching import Kind, Watch

if TYPE_CHECKING:
    from aiounify.loop import EventLoop

_OVERFLOW = Kind.OVERFLOW.value
_CREATED, _DELETED, _MOVED = Kind.CREATED.value, Kind.DELETED.value, Kind.MOVED.value
_RENAME = lib.FAN_RENAME
_ON_DIR = lib.FAN_ONDIR
# The other bits are those of inotify: of the content, in the order in which they are told when
# they come as one event.
_OF_CONTENT = (
    Kind.OPENED.value,
    Kind.ACCESSED.value,
    Kind.MODIFIED.value,
    Kind.ATTRIBUTES.value,
    Kind.WRITTEN.value,
    Kind.CLOSED.value,
)
# Of directories these tell of our own reading, and are left out.
_OF_FILES = Kind.OPENED.value | Kind.ACCESSED.value | Kind.CLOSED.value

_BUFFER = 65536
_RECORDS = _BUFFER // 24  # an event without a name has so many bytes
_READS = 16  # in a row, before other tasks get their turn
_REMEMBERED = 65536
_DEEPEST = 4096  # PATH_MAX

# Directories by handle: (handle of the directory it is in, name), or None: not below the path.
_Place = tuple[bytes, str] | None

_open: weakref.WeakSet[FilesystemWatch] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for watch in list(_open):
        watch._abandon()
    _open.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Event(NamedTuple):
    mask: int
    is_dir: bool
    dir: bytes
    name: str
    old_dir: bytes
    old_name: str
    child: bytes


def _why(error: int, call: str, path: str) -> OSError:
    if error == errno.EPERM:
        needed = "CAP_DAC_READ_SEARCH" if call == "open_by_handle_at" else "CAP_SYS_ADMIN"
        text = f"{call}: watching a whole file system needs {needed} (root has it)"
    elif call == "fanotify_init" and error in (errno.EINVAL, errno.ENOSYS):
        error = errno.EOPNOTSUPP
        text = "watching a whole file system needs fanotify of Linux 5.17; use recursive=True"
    elif call == "fanotify_init" and error == errno.EMFILE:
        text = "no more fanotify groups (fs.fanotify.max_user_groups) or file descriptors"
    elif error in (errno.EOPNOTSUPP, errno.ENODEV, errno.EXDEV, errno.EINVAL, errno.EOVERFLOW):
        text = f"{call}: {os.strerror(error)}: this file system has no lasting handles for its "
        text += "directories, which fanotify needs; use recursive=True"
    else:
        text = f"{call}: {os.strerror(error)}"
    return OSError(error, text, path)


class FilesystemWatch(Watch):
    """A `Watch` of all directories below a path that are on the path's file system."""

    _fd = -1

    def _start(self, loop: EventLoop) -> None:
        self._open(instance_of(loop), self.path, 0, False, None)
        try:
            self._mark()
            loop._add_reader(self._fd, self._readable)
        except BaseException:
            self._end("closed")
            raise
        self._loop_of_fd = loop
        _open.add(self)

    def _mark(self) -> None:
        self._buffer = ffi.new("char[]", _BUFFER)
        self._records = ffi.new("au_fan_event[]", _RECORDS)
        self._bytes = ffi.buffer(self._buffer)
        self._places: dict[bytes, _Place] = {}
        self._paths: dict[bytes, str | None] = {}
        self._looked_into: dict[str, bool] = {}
        self._prefix = self.path if self.path.endswith("/") else self.path + "/"
        self._fd = lib.au_fan_init()
        if self._fd < 0:
            raise _why(ffi.errno, "fanotify_init", self.path)
        at = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mask = (self.mask.value & 0x3F) | _RENAME | _ON_DIR
            if self.mask.value & (_CREATED | _DELETED | _MOVED):
                mask |= _CREATED | _DELETED
            if lib.au_fan_mark(self._fd, mask, at) < 0:
                raise _why(ffi.errno, "fanotify_mark", self.path)
            self._root = self._handle_of(at)
            if not self._root:
                raise _why(ffi.errno, "name_to_handle_at", self.path)
            found = lib.au_open_handle(at, self._root, len(self._root))
            if found < 0:
                raise _why(ffi.errno, "open_by_handle_at", self.path)
            os.close(found)
        finally:
            os.close(at)

    def _abandon(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _end(self, reason: str) -> None:
        if self.reason is None and self._fd >= 0:
            if reason != "closed":
                with suppress(OSError):
                    self._take_in()  # what happened before the end
            fd, self._fd = self._fd, -1
            with suppress(KeyError, AttributeError):
                self._loop_of_fd._remove_reader(fd)
            os.close(fd)
            _open.discard(self)
        super()._end(reason)

    # -- reading ------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            self._take_in()
        except Exception as exc:
            self._fail(exc)
        if len(self) or self.reason is not None:
            self._fire()

    def _pull(self) -> None:
        super()._pull()
        if self._fd >= 0:
            self._take_in()

    def _read(self, events: list[_Event]) -> bool:
        """Append what one read gives; whether there was something."""
        count = lib.au_fan_read(self._fd, self._buffer, _BUFFER, self._records, _RECORDS)
        if count < 0:
            raise OSError(ffi.errno, f"read of fanotify: {os.strerror(ffi.errno)}", self.path)
        raw = self._bytes
        for i in range(count):
            r = self._records[i]
            events.append(
                _Event(
                    r.mask,
                    bool(r.mask & _ON_DIR),
                    raw[r.dir : r.dir + r.dir_len],
                    os.fsdecode(raw[r.name : r.name + r.name_len]),
                    raw[r.old_dir : r.old_dir + r.old_dir_len],
                    os.fsdecode(raw[r.old_name : r.old_name + r.old_name_len]),
                    raw[r.child : r.child + r.child_len],
                )
            )
        return count > 0

    def _take_in(self) -> None:
        """Read all that is queued, and tell it."""
        events: list[_Event] = []
        said: dict[bytes, _Place] = {}  # where directories were before the first of these events
        found: dict[bytes, _Place] = {}  # where those are now of which nothing was said
        seen = 0
        for _ in range(_READS):
            if not self._read(events):
                break
            for event in events[seen:]:
                if event.is_dir and event.child and event.name != ".":
                    said.setdefault(
                        event.child, (event.old_dir or event.dir, event.old_name or event.name)
                    )
            for event in events[seen:]:
                for handle in (event.dir, event.old_dir):
                    self._look_up(handle, said, found)
            seen = len(events)
        for handle, place in (found | said).items():
            self._places.setdefault(handle, place)
        # what was renamed, and with it what is gone though told as created: its place
        self._renamed = {e.child for e in events if e.mask & _RENAME}
        self._gone: dict[bytes, tuple[bytes, str]] = {}
        try:
            for event in events:
                self._tell_event(event)
            for child in list(self._gone):
                self._bury(child)
            self._look_behind(events)
        finally:
            if len(self._places) > _REMEMBERED:
                self._forget()

    def _forget(self) -> None:
        self._places.clear()
        self._paths.clear()
        self._looked_into.clear()

    # -- where directories are ----------------------------------------------------------------

    @staticmethod
    def _handle_of(fd: int) -> bytes:
        room = ffi.new("char[]", 132)
        length = lib.au_handle_of(fd, room, 132)
        return ffi.buffer(room)[:length] if length > 0 else b""

    def _look_up(
        self, handle: bytes, said: dict[bytes, _Place], found: dict[bytes, _Place]
    ) -> None:
        """Find the place of a directory, and those of the ones above, as they are now."""
        at = -1
        try:
            while handle and handle != self._root:
                place: _Place = self._places.get(handle) or said.get(handle) or found.get(handle)
                if place is None:
                    if handle in self._places or handle in found:
                        return
                    if at < 0:
                        at = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    found[handle] = place = self._place_of(at, handle)
                    if place is None:
                        return
                handle = place[0]
        except OSError:
            return  # the path is gone, which is told
        finally:
            if at >= 0:
                os.close(at)

    def _place_of(self, at: int, handle: bytes) -> _Place:
        fd = lib.au_open_handle(at, handle, len(handle))
        if fd < 0:
            return None  # it does not exist any more
        above = -1
        try:
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            name = os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2]  # noqa: PTH115
            if not name or not os.path.samestat(
                os.fstat(fd), os.stat(name, dir_fd=above, follow_symlinks=False)
            ):
                return None  # the root of the file system, or removed
            parent = self._handle_of(above)
            return (parent, name) if parent and parent != handle else None
        except OSError:
            return None
        finally:
            os.close(fd)
            if above >= 0:
                os.close(above)

    def _path_of(self, handle: bytes) -> str | None:
        """The path of a directory with a slash behind it; None if it is not below ours."""
        if handle == self._root:
            return self._prefix
        if handle in self._paths:
            return self._paths[handle]
        names: list[str] = []
        here = handle
        path: str | None = None
        while len(names) < _DEEPEST:
            if here == self._root:
                path = self._prefix + "/".join(reversed(names)) + "/"
                break
            place = self._places.get(here)
            if place is None:
                break
            here = place[0]
            names.append(place[1])
        self._paths[handle] = path
        return path

    # -- what an event means ------------------------------------------------------------

    def _wanted(self, path: str, is_dir: bool) -> bool:
        """Whether the filter lets a path through, and all directories above it."""
        if self._filter is None:
            return True
        if is_dir and (known := self._looked_into.get(path)) is not None:
            return known
        above = path.rpartition("/")[0]
        wanted = len(above) < len(self._prefix) or self._wanted(above, True)
        wanted = wanted and self._filter(path, is_dir)
        if is_dir:
            if len(self._looked_into) >= _REMEMBERED:
                self._looked_into.clear()
            self._looked_into[path] = wanted
        return wanted

    def _seen(self, directory: bytes, name: str, is_dir: bool) -> str | None:
        """The path of a name, if it is to be told."""
        above = self._path_of(directory) if directory else None
        if above is None or not name:
            return None
        path = above + name if name != "." else above.rstrip("/") or "/"
        if name == "." and directory == self._root:
            return self.path
        return path if self._wanted(path, is_dir) else None

    def _say(self, bit: int, path: str, old: str | None, is_dir: bool, found: bool) -> None:
        if self.mask.value & bit:
            self._tell(bit, path, old, is_dir, found)

    def _tell_event(self, event: _Event) -> None:
        mask, is_dir = event.mask, event.is_dir
        if mask & _OVERFLOW:
            # of what was lost nothing is known, renames of directories among it
            self._forget()
            self._tell(_OVERFLOW, self.path, None, False, False)
            return
        place = event.dir, event.name
        if self._gone and mask & (_RENAME | _CREATED | _DELETED):
            for child, where in list(self._gone.items()):
                if (
                    where == place
                    or (mask & _DELETED and where[0] == event.child)
                    # a rename may replace a directory that is empty by now
                    or (mask & _RENAME and self._places.get(where[0]) == place)
                ):
                    self._bury(child)
        if mask & _RENAME:
            old = self._seen(event.old_dir, event.old_name, is_dir)
            if is_dir:
                self._put(event.child, place)
            if event.child in self._gone:
                self._gone[event.child] = place
            self._moved(old, self._seen(*place, is_dir), is_dir, False)
            return
        if mask & _CREATED and is_dir:
            self._put(event.child, place)
        path = self._seen(*place, is_dir)
        if path is not None:
            if mask & _CREATED:
                self._say(_CREATED, path, None, is_dir, False)
            for bit in _OF_CONTENT:
                if mask & bit and not (is_dir and bit & _OF_FILES):
                    self._say(bit, path, None, is_dir, False)
        if mask & _DELETED:
            if mask & _CREATED and (is_dir or event.child in self._renamed):
                self._gone[event.child] = place
                return
            if path is not None:
                self._say(_DELETED, path, None, is_dir, False)
            self._places.pop(event.child, None)
            self._paths.pop(event.child, None)

    def _bury(self, child: bytes) -> None:
        """Tell a deletion that was put off, behind those in it."""
        place = self._gone.pop(child, None)
        if place is None:
            return
        for other, where in list(self._gone.items()):
            if where[0] == child:
                self._bury(other)
        is_dir = child in self._places
        path = self._seen(*place, is_dir)
        if path is not None:
            self._say(_DELETED, path, None, is_dir, False)
        self._places.pop(child, None)
        self._paths.pop(child, None)

    def _put(self, child: bytes, place: _Place) -> None:
        """A directory is there from now on."""
        known = self._places.get(child)
        self._places[child] = place
        if known is not None and known != place:
            self._paths.clear()
            self._looked_into.clear()
        else:
            self._paths.pop(child, None)

    def _moved(self, old: str | None, new: str | None, is_dir: bool, found: bool) -> None:
        if old is not None and new is not None:
            self._say(_MOVED, new, old, is_dir, found)
        elif new is not None:
            self._say(_CREATED, new, None, is_dir, found)
        elif old is not None:
            self._say(_DELETED, old, None, is_dir, found)

    # -- what was merged ------------------------------------------------------------------

    def _look_behind(self, events: list[_Event]) -> None:
        """Where things are that were renamed to where a rename before had begun.

        Another rename from there could have been merged into that one.
        """
        begun: dict[bytes, set[tuple[bytes, str]]] = {}
        last: dict[bytes, _Event] = {}
        for event in events:
            if event.mask & _RENAME and event.child:
                begun.setdefault(event.child, set()).add((event.old_dir, event.old_name))
                last[event.child] = event
        for child, event in last.items():
            told = event.dir, event.name
            if told not in begun[child] or self._is_at(told, child):
                continue
            for other in events:
                place = other.dir, other.name
                if other.child == child and other.mask & _RENAME and self._is_at(place, child):
                    old = self._seen(*told, event.is_dir)
                    if event.is_dir:
                        self._put(child, place)
                    self._moved(old, self._seen(*place, event.is_dir), event.is_dir, True)
                    break

    def _is_at(self, place: tuple[bytes, str], child: bytes) -> bool:
        above = self._path_of(place[0])
        if above is None:
            return False
        try:
            fd = os.open(above + place[1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return self._handle_of(fd) == child
        finally:
            os.close(fd)
