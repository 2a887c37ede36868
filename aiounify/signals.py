"""Signals with their senders, as a stream of events.

    async with signals(SIGTERM, SIGHUP) as arriving:
        async for info in arriving:
            print(info.signal, "from", info.sender_pid)

Why it exists: `loop.add_signal_handler()` takes one callback for a signal, in the main thread,
and does not say who sent it.

**How a signal gets here, and why not by signalfd(2).**  A signalfd only reads signals that are
blocked, and a signal is delivered to any thread that does not block it: one thread that was
started before, by a library for example, and the process dies of SIGTERM as if nobody listened.
Besides, the mask of blocked signals is inherited through exec(), so that each child process would
start deaf to SIGTERM.  Python's wakeup descriptor has neither defect, but carries nothing but the
signal's number.  So the process has a handler of its own, in C (SA_SIGINFO): it writes what the
kernel says about each signal into a pipe of each listener, which the loop waits for like any other
descriptor.  Nothing is blocked, in no thread; a handler is put back to the default by exec();
every thread's loop can listen, and several at once, each of which gets every signal.

* `add_signal_handler()` goes on working for the same signal, set before or during the block:
  both are told.  A handler set with signal.signal() alone is not called while somebody listens,
  and is back afterwards; setting one during the block takes the signal away from here.
* The kernel merges standard signals that are pending: ten SIGHUP in a moment may be one.
  Real-time signals are queued, with their values.  What is read is kept until it is taken.
* In a forked child the listeners are closed and the handlers as they were before the block.
"""

from __future__ import annotations

import os
import signal
import struct
import warnings
import weakref
from asyncio import unix_events
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from aiounify._core.descriptors import Batches
from aiounify._kernel_events import ffi, lib
from aiounify.sources import current_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SignalInfo", "signals"]

_RECORD = struct.Struct("=6i")
_BATCH = 128 * _RECORD.size
_SYNCHRONOUS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)
_NEVER = (signal.SIGKILL, signal.SIGSTOP)

# How many listen for a signal, and all that are open; both of this process.
_listeners: dict[int, int] = {}
_open: weakref.WeakSet[signals] = weakref.WeakSet()


class SignalInfo(NamedTuple):
    """One signal, as sigaction(2) describes it."""

    signal: signal.Signals | int  #: an int for a real-time signal between the first and last
    sender_pid: int  #: 0 if the kernel sent it, or a process of another pid namespace
    sender_uid: int
    code: int  #: si_code: 0 of kill(), -1 of sigqueue(), positive from the kernel
    status: int  #: of SIGCHLD: the child's exit status or signal
    value: int  #: what sigqueue() or a POSIX timer sent along


def _named(number: int) -> signal.Signals | int:
    try:
        return signal.Signals(number)
    except ValueError:  # a real-time signal
        return number


class signals(Batches[SignalInfo]):  # noqa: N801 - used like a function
    """Listen for signals: `async with signals(SIGTERM, SIGHUP) as arriving`.

    Iterating gives a `SignalInfo` for each that arrives; `await arriving.wait()` gives one; in a
    select() it is a source.  Listening begins on entering the block and not before, and ends
    with it: iterations then end, once they have given what had arrived.  Cancelling loses
    nothing that arrived.

    ValueError for what is no signal or cannot be caught, or where the program cannot go on
    behind the handler (SIGSEGV and its kin).  RuntimeError under another event loop.  Any
    thread may listen.  See signal(7).
    """

    def __init__(self, *wanted: int) -> None:
        if not wanted:
            raise TypeError("signals() needs at least one signal")
        found = []
        for each in wanted:
            number = int(each)
            if number not in signal.valid_signals():
                raise ValueError(f"{each!r} is not a signal")
            if number in _NEVER:
                raise ValueError(f"{signal.Signals(number).name} cannot be caught")
            if number in _SYNCHRONOUS:
                raise ValueError(
                    f"{signal.Signals(number).name} cannot be awaited: the program does not "
                    "go on behind it; see faulthandler"
                )
            found.append(number)
        self._wanted = tuple(dict.fromkeys(found))
        self._slot = -1
        self._lost = 0
        self._write_end = -1

    def _start(self) -> None:
        if self._slot >= 0 or self.fileno() >= 0:
            raise RuntimeError("these signals are listened for already")
        current_loop("aiounify.signals")
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        slot = lib.au_signals_slot(theirs)
        if slot < 0:
            os.close(ours)
            os.close(theirs)
            raise RuntimeError("too many blocks listen for signals: 64 are open")
        self._attach(ours, _BATCH)
        self._write_end, self._slot = theirs, slot
        _open.add(self)
        try:
            installed = []
            for number in self._wanted:
                _install(number)
                installed.append(number)
        except BaseException:
            self._wanted = tuple(installed)
            self.close()
            raise
        lib.au_signals_listen(slot, sum(1 << (number - 1) for number in self._wanted))

    def close(self) -> None:
        """Stop listening; what has arrived can still be taken.  The block's end does this."""
        if self._slot < 0:
            return
        slot, self._slot = self._slot, -1
        for number in self._wanted:
            _restore(number)
        self._lost = lib.au_signals_lost(slot)
        lib.au_signals_leave(slot)
        os.close(self._write_end)
        _open.discard(self)
        self._drain()

    def _forked(self) -> None:
        """In a child: only the descriptors; the relay knows already."""
        if self._slot >= 0:
            self._slot = -1
            os.close(self._write_end)
            self._abandon()

    @property
    def lost(self) -> int:
        """Signals for which there was no room, some 2,700 being there already."""
        return self._lost if self._slot < 0 else lib.au_signals_lost(self._slot)

    def _parse(self, data: bytes) -> Iterator[SignalInfo]:
        for number, code, pid, uid, status, value in _RECORD.iter_unpack(data):
            yield SignalInfo(_named(number), pid, uid & 0xFFFFFFFF, code, status, value)

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_slot", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        names = ", ".join(getattr(_named(n), "name", str(n)) for n in self._wanted)
        return f"<signals {names}{'' if self._slot >= 0 else ' closed'}>"


def _chains(number: int) -> bool:
    """Whether the handler that is there is called too: add_signal_handler()'s, or one in C."""
    there: Any = signal.getsignal(number)
    return there is None or there is unix_events._sighandler_noop  # type: ignore[attr-defined]


def _install(number: int) -> None:
    if lib.au_signal_install(number, _chains(number)) < 0:
        raise OSError(ffi.errno, f"sigaction: {os.strerror(ffi.errno)}")
    _listeners[number] = _listeners.get(number, 0) + 1


def _restore(number: int) -> None:
    _listeners[number] -= 1
    if not _listeners[number]:
        del _listeners[number]
        lib.au_signal_restore(number)


def stand_in_front(number: int) -> None:
    """asyncio has changed the handler of a signal: go on listening, and call its new one too."""
    if number in _listeners:
        lib.au_signal_install(number, _chains(number))


def _after_fork_in_child() -> None:
    lib.au_signals_forked()
    _listeners.clear()
    for each in list(_open):
        each._forked()
    _open.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
