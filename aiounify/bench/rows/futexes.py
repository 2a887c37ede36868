"""Synchronisation between two processes: futexes and aiounify.sync, beside what there was.

Only aiounify's loops await futexes.  Other loops do in the same row what there is for the purpose,
which the row's summary names; `futex-raw` is without any loop.  The other process is forked, and
so on the same CPU, but for the rows whose name ends in `-2cpu`: there it is on another one.
"""

import asyncio
import mmap
import multiprocessing as mp
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from aiounify.bench.rows.base import LoopRow, Run

__all__ = ["ROWS"]

_Loop = asyncio.AbstractEventLoop


_elsewhere = False


def _apart(prepare: Callable[[_Loop], Run]) -> Callable[[_Loop], Run]:
    """The same with the other process on another CPU, if there is one."""

    def prepare_apart(loop: _Loop) -> Run:
        global _elsewhere
        _elsewhere = True
        try:
            return prepare(loop)
        finally:
            _elsewhere = False

    return prepare_apart


def _fork(body: Callable[[], object]) -> None:
    """Run body() in a child that dies with this process."""
    parent = os.getpid()
    if os.fork():
        return
    if _elsewhere:
        others = set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0)
        if others:
            os.sched_setaffinity(0, others)

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        threading.Thread(target=watch, daemon=True).start()
        asyncio._set_running_loop(None)
        body()
    finally:
        os._exit(0)


def _runs(loop: _Loop, operation: Callable[[int], Coroutine[Any, Any, None]]) -> Run:
    return lambda n: loop.run_until_complete(operation(n))


def _new(loop: _Loop) -> _Loop:
    """Another loop of the same kind, for the other process."""
    import aiounify

    return aiounify.new_event_loop(getattr(loop, "backend", "auto"))


def _raw(loop: _Loop) -> Run:
    from aiounify.bench import _futex

    memory = mmap.mmap(-1, 4096)
    _fork(lambda: _futex.echo(memory))
    return lambda n: _futex.ping(memory, n)


def _coroutines(loop: _Loop) -> Run:
    from aiounify.futex import Futex

    memory = mmap.mmap(-1, 4096)
    there, back = Futex(memory), Futex(memory, 128)

    async def echo() -> None:
        seen = 0
        while True:
            while there.load() == seen:
                await there.wait(seen)
            seen += 1
            back.add(1)
            back.wake()

    _fork(lambda: _new(loop).run_until_complete(echo()))

    async def ping(n: int) -> None:
        for _ in range(n):
            seen = back.load()
            there.add(1)
            there.wake()
            while back.load() == seen:
                await back.wait(seen)

    return _runs(loop, ping)


def _readers(there: tuple[int, int], back: tuple[int, int], byte: bytes) -> Callable[[_Loop], Run]:
    """What a futex replaces: a descriptor for each direction, whose readers stay."""
    (there_read, there_write), (back_read, back_write) = there, back

    def prepare(loop: _Loop) -> Run:
        kind = type(loop)

        def child() -> None:
            inner = _new(loop) if hasattr(loop, "backend") else kind()

            def answer() -> None:
                os.read(there_read, 8)
                os.write(back_write, byte)

            inner.add_reader(there_read, answer)
            inner.run_forever()

        _fork(child)
        answered: asyncio.Future[None] = loop.create_future()

        def heard() -> None:
            os.read(back_read, 8)
            answered.set_result(None)

        loop.add_reader(back_read, heard)

        async def ping(n: int) -> None:
            nonlocal answered
            for _ in range(n):
                answered = loop.create_future()
                os.write(there_write, byte)
                await answered

        return _runs(loop, ping)

    return prepare


def _eventfd(loop: _Loop) -> Run:
    there, back = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    one = (1).to_bytes(8, sys.byteorder)
    return _readers((there, there), (back, back), one)(loop)


def _pipe(loop: _Loop) -> Run:
    return _readers(os.pipe(), os.pipe(), b"x")(loop)


def _lock(loop: _Loop) -> Run:
    from aiounify import sync

    lock = sync.Lock()

    async def pairs(n: int) -> None:
        for _ in range(n):
            await lock.acquire()
            lock.release()

    return _runs(loop, pairs)


def _contended(loop: _Loop) -> Run:
    from aiounify import sync

    lock = sync.Lock()

    async def pairs(n: int) -> None:
        for _ in range(n):
            async with lock:
                pass
            await asyncio.sleep(0)

    async def for_ever() -> None:
        while True:
            await pairs(1000)

    _fork(lambda: _new(loop).run_until_complete(for_ever()))
    return _runs(loop, pairs)


def _contended_executor(loop: _Loop) -> Run:
    lock = mp.get_context("fork").Lock()

    async def pairs(inner: _Loop, n: int) -> None:
        for _ in range(n):
            if not lock.acquire(block=False):
                await inner.run_in_executor(None, lock.acquire)
            lock.release()
            await asyncio.sleep(0)

    async def for_ever(inner: _Loop) -> None:
        while True:
            await pairs(inner, 1000)

    def child() -> None:
        inner = asyncio.SelectorEventLoop()
        inner.run_until_complete(for_ever(inner))

    _fork(child)
    return lambda n: loop.run_until_complete(pairs(loop, n))


_MESSAGE = bytes(64)


def _queue(loop: _Loop) -> Run:
    from aiounify import sync

    queue = sync.Queue()

    async def feed() -> None:
        while True:
            await queue.put(_MESSAGE)

    _fork(lambda: _new(loop).run_until_complete(feed()))

    async def take(n: int) -> None:
        for _ in range(n):
            await queue.get()

    return _runs(loop, take)


def _queue_executor(loop: _Loop) -> Run:
    queue = mp.get_context("fork").Queue(1000)

    def feed() -> None:
        while True:
            queue.put(_MESSAGE)

    _fork(feed)

    async def take(n: int) -> None:
        for _ in range(n):
            await loop.run_in_executor(None, queue.get)

    return _runs(loop, take)


def _words(count: int) -> Callable[[_Loop], Run]:
    def prepare(loop: _Loop) -> Run:
        from aiounify.futex import Futex

        memory = mmap.mmap(-1, 64 * count)
        words = [Futex(memory, 64 * i) for i in range(count)]

        async def sleep(word: Futex) -> None:
            while True:
                await word.wait(0)

        tasks = [loop.create_task(sleep(word)) for word in words[1:]]
        _kept.append(tasks)
        loop.run_until_complete(asyncio.sleep(0.2))
        one = words[0]

        async def wakes(n: int) -> None:
            seen = one.load()
            for _ in range(n):
                waiting = asyncio.ensure_future(one.wait(seen))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                seen = one.add(1) + 1
                one.wake()
                await waiting

        return _runs(loop, wakes)

    return prepare


def _events(count: int) -> Callable[[_Loop], Run]:
    def prepare(loop: _Loop) -> Run:
        events = [asyncio.Event() for _ in range(count)]
        _kept.append([loop.create_task(event.wait()) for event in events[1:]])
        loop.run_until_complete(asyncio.sleep(0))
        one = events[0]

        async def wakes(n: int) -> None:
            for _ in range(n):
                waiting = asyncio.ensure_future(one.wait())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                one.set()
                await waiting
                one.clear()

        return _runs(loop, wakes)

    return prepare


_kept: list[object] = []


def _either(
    ours: Callable[[_Loop], Run], elsewhere: Callable[[_Loop], Run]
) -> Callable[[_Loop], Run]:
    return lambda loop: ours(loop) if hasattr(loop, "backend") else elsewhere(loop)


def _row(name: str, summary: str, unit: str, prepare: Callable[[_Loop], Run]) -> LoopRow:
    return LoopRow(name, summary, ("futex",), unit, prepare, counted=0)


ROWS = (
    _row(
        "futex-raw",
        "Ping-pong of two processes by blocking futex calls, in C.",
        "round trip",
        _raw,
    ),
    _row(
        "futex-pingpong",
        "The same by coroutines: futexes; elsewhere eventfd and add_reader.",
        "round trip",
        _either(_coroutines, _eventfd),
    ),
    _row(
        "futex-pingpong-pipe",
        "The same; elsewhere, pipes and add_reader.",
        "round trip",
        _either(_coroutines, _pipe),
    ),
    _row(
        "futex-raw-2cpu",
        "The blocking futex calls in C, with the other process on another CPU.",
        "round trip",
        _apart(_raw),
    ),
    _row(
        "futex-pingpong-2cpu",
        "Coroutines, with the other process on another CPU; elsewhere eventfd and add_reader.",
        "round trip",
        _apart(_either(_coroutines, _eventfd)),
    ),
    _row(
        "futex-pingpong-pipe-2cpu",
        "The same; elsewhere, pipes and add_reader.",
        "round trip",
        _apart(_either(_coroutines, _pipe)),
    ),
    _row("sync-lock", "acquire() and release() of a free sync.Lock.", "pair", _lock),
    _row(
        "sync-lock-2",
        "A lock two processes want: sync.Lock; elsewhere multiprocessing.Lock by an executor.",
        "pair",
        _either(_contended, _contended_executor),
    ),
    _row(
        "sync-lock-2cpu",
        "The same, with the other process on another CPU.",
        "pair",
        _apart(_either(_contended, _contended_executor)),
    ),
    _row(
        "sync-queue",
        "64 bytes from a process: sync.Queue; elsewhere multiprocessing.Queue by an executor.",
        "message",
        _either(_queue, _queue_executor),
    ),
    _row(
        "futex-words-1",
        "Wake one coroutine that waits for a word; elsewhere an asyncio.Event.",
        "wake",
        _either(_words(1), _events(1)),
    ),
    _row(
        "futex-words-10k",
        "The same while 9,999 wait for others.",
        "wake",
        _either(_words(10_000), _events(10_000)),
    ),
)
