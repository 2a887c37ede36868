"""The log's format, and what is read of it after a crash.

The file begins with a mark, a random salt and their checksum.  Then come batches, each with all
changes that were written by one request:

    mark     4 bytes
    length   u32, of the payload
    sequence u64, one more than that of the batch before
    synced   u64, how much of the file was known to be on the disk when this batch was written
    crc32    u32, of the salt, the three numbers and the payload
    payload  changes, see `change()`

Rules of reading:

* A batch counts as a whole or not at all.
* The first batch that is not whole ends the log.  What follows is either the rest of what was
  being written when the machine stopped (a torn tail, which is cut off: nobody was told that it
  is there), or the disk has lost something it had confirmed.  These are told apart by `synced`:
  if a whole batch behind the damage says that the damaged place was on the disk, data are lost,
  and the file is refused (`CorruptError`) until whoever runs the database decides.
* The salt is in no batch, so that a value which looks like a batch is never taken for one.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "APPEND",
    "DELETE",
    "EXPIRE",
    "FLUSH",
    "HEAD_SIZE",
    "SET",
    "CorruptError",
    "Found",
    "batch",
    "change",
    "changes",
    "new_head",
    "read",
]

_MARK = b"kvB\n"
_FILE_MARK = b"aiounify kv 1\n\0\0"
_SALT = 16
_HEAD = struct.Struct(f"<{len(_FILE_MARK)}s{_SALT}sI")
HEAD_SIZE = _HEAD.size
_BATCH = struct.Struct("<4sIQQI")
_NUMBERS = struct.Struct("<IQQ")
_CHANGE = struct.Struct("<BIIq")

#: Kinds of changes.
SET, DELETE, EXPIRE, APPEND, FLUSH = 1, 2, 3, 4, 5


class CorruptError(Exception):
    """Something that was on the disk is not there any more, or the file is no log."""


class Found(NamedTuple):
    """What reading gave."""

    salt: bytes
    #: Where the last whole batch ends.
    end: int
    sequence: int
    #: Bytes behind it, which are no batch.
    torn: int


def new_head() -> tuple[bytes, bytes]:
    """The beginning of a new file, and its salt."""
    salt = os.urandom(_SALT)
    return _HEAD.pack(_FILE_MARK, salt, zlib.crc32(_FILE_MARK + salt)), salt


def change(kind: int, key: bytes, value: bytes = b"", expires: int = 0) -> bytes:
    """One change; `expires` in milliseconds since 1970, 0: never."""
    return _CHANGE.pack(kind, len(key), len(value), expires) + key + value


def changes(payload: bytes | memoryview) -> Iterator[tuple[int, bytes, bytes, int]]:
    """The changes of a batch: kind, key, value, expires."""
    at, size = 0, len(payload)
    while at < size:
        kind, keys, values, expires = _CHANGE.unpack_from(payload, at)
        at += _CHANGE.size
        middle = at + keys
        end = middle + values
        if end > size:
            raise CorruptError("a change is longer than its batch")
        yield kind, bytes(payload[at:middle]), bytes(payload[middle:end]), expires
        at = end


def batch(salt: bytes, sequence: int, synced: int, payload: bytes) -> bytes:
    """A batch as it stands in the file."""
    size = len(payload)
    crc = zlib.crc32(payload, zlib.crc32(salt + _NUMBERS.pack(size, sequence, synced)))
    return _BATCH.pack(_MARK, size, sequence, synced, crc) + payload


def _whole(view: memoryview, at: int, salt: bytes) -> tuple[int, int, int] | None:
    """Sequence, synced and end of the batch at an offset, if there is one."""
    start = at + _BATCH.size
    if start > len(view):
        return None
    mark, size, sequence, synced, crc = _BATCH.unpack_from(view, at)
    end = start + size
    if mark != _MARK or end > len(view):
        return None
    head = zlib.crc32(salt + _NUMBERS.pack(size, sequence, synced))
    if zlib.crc32(view[start:end], head) != crc:
        return None
    return sequence, synced, end


def _claim_behind(
    data: mmap.mmap, view: memoryview, at: int, salt: bytes
) -> tuple[int, int] | None:
    """Where a batch behind the damage at `at` is that says the place was on the disk."""
    place = data.find(_MARK, at + 1)
    while place >= 0:
        found = _whole(view, place, salt)
        if found is not None:
            if found[1] > at:
                return place, found[1]
            place = found[2] - 1
        place = data.find(_MARK, place + 1)
    return None


def read(
    fd: int, *, lossy: bool = False, start: int = HEAD_SIZE, size: int | None = None
) -> Iterator[tuple[memoryview, Found]]:
    """The payloads of a log in their order, each with what is known up to its end.

    The first item has an empty payload.  After the last one the iterator's last `Found` holds the
    torn bytes.  `lossy`: end at damage that would be refused.  `start` and `size` bound what is
    read.  Raises CorruptError.
    """
    if size is None:
        size = os.fstat(fd).st_size
    if size < HEAD_SIZE:
        raise CorruptError("the file is too short for a log")
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        mark, salt, crc = _HEAD.unpack_from(view)
        if mark != _FILE_MARK:
            raise CorruptError("the file is no log of this database, or of another version")
        if crc != zlib.crc32(mark + salt):
            raise CorruptError("the first bytes of the file are damaged")  # nothing could be read
        at, sequence = start, 0
        yield memoryview(b""), Found(salt, at, 0, 0)
        while at < size:
            found = _whole(view, at, salt)
            if found is None or (sequence and found[0] != sequence + 1):
                claim = _claim_behind(data, view, at, salt)
                if claim is not None and not lossy:
                    raise CorruptError(
                        f"damaged at byte {at} of {size}: the batch at byte {claim[0]} says that "
                        f"the first {claim[1]} bytes had been written to the disk"
                    )
                yield memoryview(b""), Found(salt, at, sequence, size - at)
                return
            sequence, _, end = found
            with view[at + _BATCH.size : end] as payload:
                yield payload, Found(salt, end, sequence, 0)
            at = end
