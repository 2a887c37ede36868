"""Who takes part: a table of processes in shared memory, from which the dead are told.

Why it exists: a reader of an RWLock and a waiter at a Barrier own nothing that the kernel would
take from them when they die, so those who wait for them look whether they are still alive.

A row belongs to one process: its id, the time it started (ids are used again), and a number
that it alone changes, or whoever has found it dead.  Rows are claimed by compare-and-exchange
of the id.  Processes have to be of one pid namespace.

Layout of a row: u32 pid, u32 start time (in clock ticks, low bits), u32 number, u32 unused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from aiounify._core.futex import Word

if TYPE_CHECKING:
    import mmap

ROWS = 128
SIZE = ROWS * 16
_started: tuple[int, int] = (0, 0)


def _start_time(pid: int) -> int | None:
    """When a process started, None if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    return int(fields[19]) & 0xFFFFFFFF or 1


def _own_start() -> int:
    global _started
    pid = os.getpid()
    if _started[0] != pid:
        _started = (pid, _start_time(pid) or 1)
    return _started[1]


class Presence:
    """The table at a place in memory."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._rows = [
            tuple(Word(memory, offset + row * 16 + i * 4) for i in range(3)) for row in range(ROWS)
        ]
        self._mine: tuple[int, Word] | None = None
        self.words = tuple(word for row in self._rows for word in row)

    def own(self) -> Word:
        """This process' number; OSError if 128 processes have one."""
        pid = os.getpid()
        if self._mine is not None and self._mine[0] == pid:
            return self._mine[1]
        for again in range(2):
            for owner, started, number in self._rows:
                if owner.load() == pid and started.load() == _own_start():
                    self._mine = (pid, number)
                    return number
            for owner, started, number in self._rows:
                if owner.compare_exchange(0, pid):
                    number.store(0)
                    started.store(_own_start())
                    self._mine = (pid, number)
                    return number
            if not again:
                self.bury()
        raise OSError(f"{ROWS} processes use this already")

    def total(self) -> int:
        """The sum of all numbers."""
        return sum(number.load() for _, _, number in self._rows)

    def clear(self) -> None:
        """Set all numbers to 0."""
        for _, _, number in self._rows:
            number.store(0)

    def bury(self) -> int:
        """Free the rows of processes that are dead; what their numbers came to."""
        lost = 0
        for owner, started, number in self._rows:
            pid = owner.load()
            if not pid or pid == os.getpid():
                continue
            alive = _start_time(pid)
            if alive is None or (started.load() and alive != started.load()):
                lost += number.exchange(0)
                started.store(0)
                owner.compare_exchange(pid, 0)
        return lost
