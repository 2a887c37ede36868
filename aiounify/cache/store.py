"""Memory in which workers share what they have built: bodies, index and generations.

A file in /dev/shm, /dev/shm/aiounify.NAME, which goes when its last user does (see
aiounify/sync/segment.py).  Its parts, all at places that are multiples of 64:

    lock, generation, epoch, count of buildings that ended
    generations of names, by hash
    claims:  who builds which key
    pins:    whose process sends which body
    index:   records, in sets of 8 by digest of the key
    map:     a byte for each block of the heap, 1 if it is used
    heap:    blocks of 4 KiB; a page is what is told of it and its body, in one piece

Invariants:

* The lock (robust) guards everything but the generations, and is held for moments: nothing is
  awaited under it.
* A record counts once its state says so, and the state is the last thing that is written; what it
  points to was written before.  So a process that is killed while it publishes leaves nothing.
* The map follows from the index.  Whoever gets the lock from one that died makes it anew.
* Blocks of a record are used again only if no living process has a pin on it.  Pins, like
  claims, carry the id and the start time of their process, and those of the dead count for
  nothing.
* A generation only grows, by an atomic addition.  The one of a name is changed before the one of
  all, and read after it.

Nothing is written to the heap through the mapping: write(2) says ENOSPC when /dev/shm is full,
where a store to memory is a SIGBUS.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from zlib import crc32

from aiounify._core.futex import Word
from aiounify._waiting import UNTIL_CHANGED, Deadline, sleep_on
from aiounify.sync.lock import LockCore
from aiounify.sync.presence import _own_start, _start_time
from aiounify.sync.segment import HEADER, Shared, _path

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Iterator

__all__ = ["Kept", "SharedStore"]

BLOCK = 4096
SLOTS = 16384
CLAIMS, CLAIM = 256, struct.Struct("<16sII8x")
PINS, PIN_CELLS = 64, 124
PIN_ROW = 16 + 4 * PIN_CELLS
RECORD = struct.Struct("<II16sQIIQQII64x")  # 128 bytes
WAYS = 8
SMALL = 64 * 1024  # bodies that are copied instead of pinned

_LOCK = HEADER
_GENERATION, _EPOCH, _BUILT = HEADER + 64, HEADER + 128, HEADER + 192
_SLOTS = HEADER + 256
_CLAIMS = _SLOTS + 4 * SLOTS
_PINS = _CLAIMS + CLAIMS * CLAIM.size
_INDEX = _PINS + PINS * PIN_ROW
FREE, VALID, DYING = 0, 1, 2
_CLAIM_WAIT = 0.25  # seconds between two looks whether a builder is alive


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _alive(pid: int, started: int) -> bool:
    if pid == os.getpid():
        return started == _own_start()
    return _start_time(pid) == started


def _slot(name: str) -> int:
    return crc32(name.encode("utf-8", "surrogateescape")) % SLOTS


@dataclass(slots=True)
class Kept:
    """What the store has of a key.  A body of more than 64 KiB is pinned until release()."""

    store: SharedStore
    told: bytes
    body: bytes | None
    offset: int
    size: int
    cell: int = -1  # of the pin
    owner: int = field(default_factory=os.getpid)

    def release(self) -> None:
        """Let the place of the body be used again.  A forked child has no pins of its own."""
        cell, self.cell = self.cell, -1
        if cell >= 0 and self.owner == os.getpid():
            self.store._unpin(cell)


@dataclass(slots=True)
class _Record:
    number: int
    state: int
    sequence: int
    digest: bytes
    offset: int
    told: int
    size: int
    used: int
    blocks: int


class SharedStore(Shared):
    """The store of workers that share what they build; `create()` it or `attach()` to one.

    It goes to other processes by name, by fork, or in the arguments of a `multiprocessing.Process`.
    Linux 5.1 with robust futexes; /dev/shm.
    """

    _KIND = 16

    def __init__(self, name: str | None, size: int = 64 * 1024 * 1024) -> None:
        if size < 1 << 20:
            raise ValueError(f"a store has at least {1 << 20} bytes, not {size}")
        records = max(256, min(1 << 16, size // 16384)) // WAYS * WAYS
        begin = _INDEX + records * RECORD.size
        blocks = size // BLOCK
        heap = (begin + blocks + BLOCK - 1) // BLOCK * BLOCK

        def init(memory: mmap.mmap) -> None:
            struct.pack_into("<IIQQ", memory, _LOCK - 32, records, blocks, begin, heap)

        self._make(name, heap + blocks * BLOCK - HEADER, init, reserve=heap)

    @classmethod
    def create(cls, name: str, size: int = 64 * 1024 * 1024) -> Self:
        """The store of a name, made if nobody uses it; `size` is what bodies may take, in bytes.

        OSError (ENOSPC) if /dev/shm has no room for its index.
        """
        return cls(name, size)

    @classmethod
    def attach(cls, name: str) -> Self:
        """The store of that name.  FileNotFoundError if nobody has made it."""
        os.stat(_path(name))  # noqa: PTH116
        return cls(name)

    def _map(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._records, self._blocks, self._map_at, self._heap = struct.unpack_from(
            "<IIQQ", memory, _LOCK - 32
        )
        if self._heap + self._blocks * BLOCK != len(memory):
            raise ValueError("the store's sizes do not fit its memory")
        self._lock = LockCore(memory, _LOCK)
        #: grows with each change that any worker saw
        self.generation = Word(memory, _GENERATION)
        #: grows when changes may have been missed
        self.epoch = Word(memory, _EPOCH)
        #: grows with each building that ended
        self.built = Word(memory, _BUILT)
        self._words = (self._lock.word, self.generation, self.epoch, self.built)
        self._slots = memoryview(memory)[_SLOTS : _SLOTS + 4 * SLOTS].cast("I")
        self._sets = self._records // WAYS
        self._row = -1

    @property
    def fd(self) -> int:
        """The descriptor in which large bodies are."""
        return self._segment.fd

    def close(self) -> None:
        """Give the memory up; the last user's close removes it.  Closing twice is allowed."""
        if self._segment.fd >= 0:
            self._slots.release()
            if self._row >= 0 and self._row_of(self._row) == (os.getpid(), _own_start()):
                at = _PINS + self._row * PIN_ROW
                self._memory[at : at + PIN_ROW] = bytes(PIN_ROW)
        super().close()

    def unlink(self) -> None:
        """Remove the name, after which nobody can attach any more."""
        if self.name is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_path(self.name))  # noqa: PTH108

    # -- the lock ----------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, for a moment and without awaiting anything."""
        if self._lock.take_blocking(Deadline(None)) is False:
            self._repair()
        try:
            yield
        finally:
            self._lock.word.unlock()

    @contextlib.asynccontextmanager
    async def _taken(self) -> Any:
        if not await self._lock.take():
            self._repair()
        try:
            yield
        finally:
            self._lock.word.unlock()

    def _repair(self) -> None:
        """Whoever had the lock died with it: the map follows from the index."""
        memory = self._memory
        used = bytearray(self._blocks)
        for record in self._all():
            first = (record.offset - self._heap) // BLOCK
            if record.state not in (VALID, DYING) or not (
                self._heap <= record.offset
                and record.blocks > 0
                and first + record.blocks <= self._blocks
                and record.told + record.size <= record.blocks * BLOCK
            ):
                self._state(record.number, FREE)
                continue
            used[first : first + record.blocks] = b"\1" * record.blocks
        memory[self._map_at : self._map_at + self._blocks] = bytes(used)
        self._lock.word.make_consistent()

    # -- generations -------------------------------------------------------------------

    def seen(self, names: Iterable[str]) -> tuple[int, ...]:
        """The generations of names."""
        slots = self._slots
        return tuple([slots[_slot(name)] for name in names])

    def move(self, names: Iterable[str]) -> None:
        """Names have changed."""
        for slot in {_slot(name) for name in names}:
            word = Word(self._memory, _SLOTS + 4 * slot)
            word.add(1)
            word.release()
        self.generation.add(1)

    def doubt(self) -> None:
        """Changes may have been missed: all has to be looked at."""
        self.epoch.add(1)
        self.generation.add(1)

    # -- the index ---------------------------------------------------------------------

    def _record(self, number: int) -> _Record:
        fields = RECORD.unpack_from(self._memory, _INDEX + number * RECORD.size)
        state, sequence, digest, offset, told, _, size, used, blocks, _ = fields
        return _Record(number, state, sequence, digest, offset, told, size, used, blocks)

    def _all(self) -> Iterator[_Record]:
        return map(self._record, range(self._records))

    def _state(self, number: int, state: int) -> None:
        struct.pack_into("<I", self._memory, _INDEX + number * RECORD.size, state)

    def _set(self, digest: bytes) -> range:
        first = int.from_bytes(digest[:8], "little") % self._sets * WAYS
        return range(first, first + WAYS)

    def _found(self, digest: bytes) -> _Record | None:
        memory = self._memory
        for number in self._set(digest):
            at = _INDEX + number * RECORD.size
            if memory[at + 8 : at + 24] == digest and memory[at] == VALID:
                return self._record(number)
        return None

    def _look(self, key: str) -> Kept | None:
        record = self._found(_digest(key))
        if record is None:
            return None
        struct.pack_into(
            "<Q", self._memory, _INDEX + record.number * RECORD.size + 48, int(time.monotonic())
        )
        told = os.pread(self.fd, record.told, record.offset)
        offset = record.offset + record.told
        kept = Kept(self, told, None, offset, record.size)
        if record.size > SMALL:
            kept.cell = self._pin(record.number)
        if kept.cell < 0:
            kept.body = os.pread(self.fd, record.size, offset)
        return kept

    def look_now(self, key: str) -> Kept | None:
        """What there is of a key; None also if another process is just at it."""
        got = self._lock.word.try_lock()
        if not got:
            return None
        if got != 1:
            self._repair()
        try:
            return self._look(key)
        finally:
            self._lock.word.unlock()

    async def look(self, key: str) -> Kept | None:
        """What there is of a key."""
        async with self._taken():
            return self._look(key)

    # -- publishing --------------------------------------------------------------------

    async def publish(self, key: str, told: bytes, body: bytes) -> Kept | None:
        """Let others have it.  A large body is pinned: what is returned has its place.

        OSError if there is no room for it.
        """
        digest = _digest(key)
        blocks = -(-(len(told) + len(body)) // BLOCK)
        async with self._taken():
            old = self._found(digest)
            if old is not None:
                self._free(old)
            number, sequence = self._place_for(digest)
            offset = self._allocate(blocks)
            try:
                _write(self.fd, told, offset)
                _write(self.fd, body, offset + len(told))
            except BaseException:
                self._mark(offset, blocks, 0)
                raise
            now = int(time.monotonic())
            RECORD.pack_into(
                self._memory,
                _INDEX + number * RECORD.size,
                *(FREE, sequence + 1, digest, offset, len(told), 0, len(body), now, blocks, 0),
            )
            self._state(number, VALID)
            if len(body) <= SMALL:
                return None
            cell = self._pin(number)
            if cell < 0:
                return None
            return Kept(self, told, None, offset + len(told), len(body), cell)

    def _place_for(self, digest: bytes) -> tuple[int, int]:
        """A free record; the one of its set that was used longest ago is given up for it."""
        records = [self._record(number) for number in self._set(digest)]
        for record in records:
            if record.state == DYING:
                self._free(record)
                record.state = self._record(record.number).state
        free = [record for record in records if record.state == FREE]
        if not free:
            for record in sorted(records, key=lambda record: record.used):
                self._free(record)
                if self._record(record.number).state == FREE:
                    free = [record]
                    break
            else:
                raise OSError(errno.ENOSPC, "all places for this key are in use")
        return free[0].number, free[0].sequence

    def _free(self, record: _Record) -> None:
        """Give a record up, and its blocks if nobody sends them."""
        if self._pinned(record.number):
            self._state(record.number, DYING)
            return
        self._state(record.number, FREE)
        self._mark(record.offset, record.blocks, 0)

    def _mark(self, offset: int, blocks: int, value: int) -> None:
        first = self._map_at + (offset - self._heap) // BLOCK
        self._memory[first : first + blocks] = bytes([value]) * blocks

    def _allocate(self, blocks: int) -> int:
        """The place of free blocks in a row, made free if need be."""
        if blocks > self._blocks // 2:
            raise OSError(
                errno.ENOSPC, f"{blocks * BLOCK} bytes are too much for a store of this size"
            )
        memory, wanted = self._memory, bytes(blocks)
        end = self._map_at + self._blocks
        found = memory.find(wanted, self._map_at, end)
        if found < 0:
            records = [record for record in self._all() if record.state != FREE]
            records.sort(key=lambda record: (record.state == VALID, record.used))
            for record in records:
                self._free(record)
                found = memory.find(wanted, self._map_at, end)
                if found >= 0:
                    break
            else:
                raise OSError(errno.ENOSPC, "the store is full of what is being sent")
        offset: int = self._heap + (found - self._map_at) * BLOCK
        self._mark(offset, blocks, 1)
        return offset

    # -- pins --------------------------------------------------------------------------

    def _own_row(self) -> int:
        pid, started = os.getpid(), _own_start()
        if self._row >= 0 and self._row_of(self._row) == (pid, started):
            return self._row
        for row in range(PINS):
            owner, since = self._row_of(row)
            if not owner or not _alive(owner, since):
                at = _PINS + row * PIN_ROW
                self._memory[at : at + PIN_ROW] = bytes(PIN_ROW)
                struct.pack_into("<II", self._memory, at, pid, started)
                self._row = row
                return row
        return -1

    def _row_of(self, row: int) -> tuple[int, int]:
        pid, started = struct.unpack_from("<II", self._memory, _PINS + row * PIN_ROW)
        return pid, started

    def _pin(self, number: int) -> int:
        """Keep a record's blocks for this process: the cell of the pin, -1 if there is none."""
        row = self._own_row()
        if row < 0:
            return -1
        at = _PINS + row * PIN_ROW + 16
        cells = struct.unpack_from(f"<{PIN_CELLS}I", self._memory, at)
        try:
            cell = cells.index(0)
        except ValueError:
            return -1
        struct.pack_into("<I", self._memory, at + 4 * cell, number + 1)
        return at + 4 * cell

    def _unpin(self, cell: int) -> None:
        if self._segment.fd < 0:
            return
        # one store, after which nobody here looks at the body: needs no lock
        struct.pack_into("<I", self._memory, cell, 0)

    def _pinned(self, number: int) -> bool:
        wanted = struct.pack("<I", number + 1)
        for row in range(PINS):
            at = _PINS + row * PIN_ROW
            owner, since = self._row_of(row)
            if not owner:
                continue
            cells = self._memory[at + 16 : at + PIN_ROW]
            place = cells.find(wanted)
            while place >= 0 and place % 4:
                place = cells.find(wanted, place + 1)
            if place >= 0:
                if _alive(owner, since):
                    return True
                self._memory[at : at + PIN_ROW] = bytes(PIN_ROW)
        return False

    # -- claims ------------------------------------------------------------------------

    async def claim(self, key: str) -> bool:
        """Be the one who builds a key; False if another living process does."""
        digest = _digest(key)
        pid, started = os.getpid(), _own_start()
        async with self._taken():
            free = -1
            for number in range(CLAIMS):
                at = _CLAIMS + number * CLAIM.size
                found, owner, since = CLAIM.unpack_from(self._memory, at)
                if not owner:
                    free = number if free < 0 else free
                    continue
                if found == digest and owner != pid and _alive(owner, since):
                    return False
                if found == digest:
                    free = number
                    break
            else:
                if free < 0:
                    free = self._bury_claims()
            if free >= 0:
                CLAIM.pack_into(self._memory, _CLAIMS + free * CLAIM.size, digest, pid, started)
            return True  # with all places taken two may build the same, which is only work

    def _bury_claims(self) -> int:
        for number in range(CLAIMS):
            at = _CLAIMS + number * CLAIM.size
            _, owner, since = CLAIM.unpack_from(self._memory, at)
            if not _alive(owner, since):
                self._memory[at : at + CLAIM.size] = bytes(CLAIM.size)
                return number
        return -1

    def unclaim(self, key: str) -> None:
        """The building has ended, in whatever way."""
        if self._segment.fd < 0:
            return
        digest = _digest(key)
        with self._locked():
            for number in range(CLAIMS):
                at = _CLAIMS + number * CLAIM.size
                found, owner, _ = CLAIM.unpack_from(self._memory, at)
                if found == digest and owner == os.getpid():
                    self._memory[at : at + CLAIM.size] = bytes(CLAIM.size)
        self.built.add(1)
        self.built.wake(0x7FFFFFFF)

    async def wait_built(self, seen: int) -> None:
        """Wait until some building ended since built was `seen`, or for a quarter of a second."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLAIM_WAIT):
                await sleep_on(self.built, seen, UNTIL_CHANGED)

    # -- what is said of it ------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """How much of it is used."""
        records = [record for record in self._all() if record.state != FREE]
        used = self._memory[self._map_at : self._map_at + self._blocks].count(1)
        return {
            "entries": sum(record.state == VALID for record in records),
            "bytes": sum(record.size for record in records),
            "blocks_used": used,
            "blocks": self._blocks,
        }

    def check(self) -> list[str]:
        """What is wrong with the index and the map, for tests: nothing."""
        wrong = []
        with self._locked():
            used = bytearray(self._blocks)
            for record in self._all():
                if record.state == FREE:
                    continue
                first = (record.offset - self._heap) // BLOCK
                if any(used[first : first + record.blocks]):
                    wrong.append(f"record {record.number} has blocks of another one")
                used[first : first + record.blocks] = b"\1" * record.blocks
            if bytes(used) != self._memory[self._map_at : self._map_at + self._blocks]:
                wrong.append("the map is not that of the index")
        return wrong


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
