"""The keys, and how what was not written is taken back.

Every change goes into three places at once: the tables, the `records` of the group that gathers
(what will stand in the log), and that group's `before`: what each changed key had been.  If the
group cannot be written, `undo()` puts the tables back, so that nobody ever reads what the disk
does not have. `before` also says which keys are not on the disk yet.

Times to live are kept as points in time (milliseconds since 1970) and written to the log as such.
A key that has expired is not there for anybody who asks, and its memory goes when it is asked for
or when `sweep()` comes to it; that is no change and not logged.
"""

from __future__ import annotations

import heapq
import struct
import time
from typing import TYPE_CHECKING, Any

from kvstore.log import APPEND, DELETE, EXPIRE, FLUSH, SET, change

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["OVERHEAD", "Group", "Store", "now_ms"]

#: What a key costs beside its bytes and its value's: two objects and a place in the table.
OVERHEAD = 170

_pack = struct.Struct("<BIIq").pack


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Group:
    """The changes that are written by one request, and who waits for it."""

    __slots__ = ("before", "layers", "number", "records", "size", "waiters")

    def __init__(self, number: int) -> None:
        self.number = number
        self.records: list[bytes] = []
        #: Bytes of the records.
        self.size = 0
        #: Key to its value and time before this group.
        self.before: dict[bytes, tuple[bytes | None, int]] = {}
        #: Of each FLUSHALL: the tables and `before` as they were.
        self.layers: list[tuple[dict[bytes, bytes], dict[bytes, int], int, Any]] = []
        #: (who waits, its replies, which of them are about data)
        self.waiters: list[tuple[Any, list[bytes], list[int]]] = []


class Store:
    """The tables."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.expires: dict[bytes, int] = {}
        self.group = Group(1)
        #: Bytes of keys, values and what they cost beside.
        self.used = 0
        #: Log whole values only: a rewrite copies values and changes in no common order.
        self.whole = False
        self._due: list[tuple[int, bytes]] = []

    # -- reading

    def get(self, key: bytes) -> bytes | None:
        expires = self.expires
        if expires and key in expires and expires[key] <= now_ms():
            self._drop(key)
            return None
        return self.data.get(key)

    def expiry(self, key: bytes) -> int:
        """When a key that exists expires; 0: never."""
        return self.expires.get(key, 0)

    def all_keys(self) -> list[bytes]:
        """All keys that have not expired."""
        self.sweep(1 << 60)
        return list(self.data)

    # -- changing

    def put(self, key: bytes, value: bytes, expires: int = 0) -> None:
        """Set a key; the time it had is replaced."""
        data, group = self.data, self.group
        old = data.get(key)
        if key not in group.before:
            group.before[key] = old, self.expires.get(key, 0)
        data[key] = value
        size = len(value)
        if old is None:
            self.used += size + len(key) + OVERHEAD
        else:
            self.used += size - len(old)
        if expires:
            self._set_expiry(key, expires)
        elif self.expires:
            self.expires.pop(key, None)
        size += 17 + len(key)
        group.size += size
        group.records.append(_pack(SET, len(key), len(value), expires) + key + value)

    def append(self, key: bytes, more: bytes) -> int:
        """Add to a value; the new length."""
        old = self.get(key)
        value = more if old is None else old + more
        if old is None or self.whole:
            self.put(key, value, self.expiry(key) if old is not None else 0)
            return len(value)
        self._remember(key)
        self.data[key] = value
        self.used += len(more)
        self._record(change(APPEND, key, more))
        return len(value)

    def delete(self, key: bytes) -> bool:
        """True if it was there."""
        if self.get(key) is None:
            return False
        self._remember(key)
        self._drop(key)
        self._record(change(DELETE, key))
        return True

    def expire(self, key: bytes, expires: int) -> None:
        """Change the time of a key that exists; 0: it stays for ever."""
        self._remember(key)
        if expires:
            self._set_expiry(key, expires)
        else:
            self.expires.pop(key, None)
        self._record(change(EXPIRE, key, b"", expires))

    def flush(self) -> None:
        """Remove everything."""
        group = self.group
        group.layers.append((self.data, self.expires, self.used, group.before))
        group.before = {}
        self.data, self.expires, self.used, self._due = {}, {}, 0, []
        self._record(change(FLUSH, b""))

    def sweep(self, most: int = 1000) -> int:
        """Free keys that have expired, up to so many; how many it were."""
        due, now, n = self._due, now_ms(), 0
        while due and due[0][0] <= now and n < most:
            when, key = heapq.heappop(due)
            if self.expires.get(key) == when:
                self._drop(key)
                n += 1
        if len(due) > 1000 + 2 * len(self.expires):
            self._rebuild()  # most of it are times that were replaced
        return n

    # -- groups

    def undo(self, group: Group) -> None:
        """Take a group back; the one that came last first."""
        self._restore(group.before)
        for data, expires, used, before in reversed(group.layers):
            self.data, self.expires, self.used = data, expires, used
            self._restore(before)
        self._rebuild()

    def replay(self, found: Iterable[tuple[int, bytes, bytes, int]]) -> None:
        """Take changes over from the log."""
        data, expires = self.data, self.expires
        for kind, key, value, when in found:
            if kind == SET:
                data[key] = value
                if when:
                    expires[key] = when
                else:
                    expires.pop(key, None)
            elif kind == APPEND:
                data[key] = data.get(key, b"") + value
            elif kind == DELETE:
                data.pop(key, None)
                expires.pop(key, None)
            elif kind == EXPIRE:
                if when and key in data:
                    expires[key] = when
                else:
                    expires.pop(key, None)
            elif kind == FLUSH:
                data.clear()
                expires.clear()
            else:
                raise ValueError(f"the log has a change of an unknown kind, {kind}")

    def replayed(self) -> None:
        """The log was read to its end: only now may keys expire."""
        self.used = sum(len(k) + len(v) + OVERHEAD for k, v in self.data.items())
        self._rebuild()
        self.sweep(1 << 60)

    # -- inside

    def _remember(self, key: bytes) -> None:
        before = self.group.before
        if key not in before:
            before[key] = self.data.get(key), self.expires.get(key, 0)

    def _record(self, record: bytes) -> None:
        self.group.records.append(record)
        self.group.size += len(record)

    def _set_expiry(self, key: bytes, expires: int) -> None:
        self.expires[key] = expires
        heapq.heappush(self._due, (expires, key))

    def _drop(self, key: bytes) -> None:
        value = self.data.pop(key)
        self.used -= len(value) + len(key) + OVERHEAD
        self.expires.pop(key, None)

    def _restore(self, before: dict[bytes, tuple[bytes | None, int]]) -> None:
        for key, (value, expires) in before.items():
            if key in self.data:
                self._drop(key)
            if value is not None:
                self.data[key] = value
                self.used += len(value) + len(key) + OVERHEAD
                if expires:
                    self.expires[key] = expires

    def _rebuild(self) -> None:
        self._due = [(when, key) for key, when in self.expires.items()]
        heapq.heapify(self._due)
