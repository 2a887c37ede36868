"""Changes of files: how soon they are told, what one costs, and beginning to watch a tree.

A row without a library in its name is `aiounify.watch()` on aiounify's loop, and asyncinotify on
the others, which have nothing of their own.  Rows with a name are that library on every loop;
`-c` is plain C that blocks in read(), the floor.  Another process makes the changes.
"""

import asyncio
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiounify
from aiounify.bench import _inotify
from aiounify.bench.channel import Measurement
from aiounify.bench.rows.base import LoopRow, Run

__all__ = ["ROWS"]

_BURST = 4000  # files, created and deleted: less than the kernel's queue holds
_DIRECTORIES = 10_000
# An interval that lets the loop go to sleep between two changes.
_WRITER = """
import os, sys, time
os.chdir(sys.argv[1])
for line in sys.stdin:
    kind, n = line.split()
    for i in range(int(n)):
        if kind == "late":
            time.sleep(0.001)
            name = str(time.monotonic_ns())
        else:
            name = str(i)
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        os.unlink(name)
    sys.stdout.write("x")
    sys.stdout.flush()
"""
_kept: list[object] = []


class _Writer:
    """The process that changes a directory."""

    def __init__(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.path = folder.name
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _WRITER, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        # The worker's parent was put on the CPU that the loops do not use.
        os.sched_setaffinity(self._process.pid, os.sched_getaffinity(os.getppid()))
        _kept.extend((folder, self))

    def begin(self, kind: str, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {count}\n".encode())

    def end(self) -> None:
        """Block until it is done."""
        assert self._process.stdout is not None
        if self._process.stdout.read(1) != b"x":
            raise EOFError("the writer ended")


#: Gives the names of what was created and deleted, some at a time.
_Names = Callable[[], Awaitable[list[str]]]


async def _by_aiounify(path: str) -> _Names:
    from aiounify.watching import Kind

    watch = aiounify.watch(path, mask=Kind.CREATED | Kind.DELETED)
    await watch.__aenter__()
    _kept.append(watch)

    async def names() -> list[str]:
        return [(await watch.wait()).path]

    return names


async def _by_asyncinotify(path: str) -> _Names:
    peer: Any = importlib.import_module("asyncinotify")
    inotify = peer.Inotify()
    inotify.add_watch(path, peer.Mask.CREATE | peer.Mask.DELETE)
    _kept.append(inotify)

    async def names() -> list[str]:
        return [str((await inotify.get()).path)]

    return names


async def _by_watchdog(path: str) -> _Names:
    events: Any = importlib.import_module("watchdog.events")
    observers: Any = importlib.import_module("watchdog.observers")
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str] = asyncio.Queue()

    class Handler(events.FileSystemEventHandler):  # type: ignore[misc]
        def on_created(self, event: Any) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, event.src_path)

        on_deleted = on_created

    observer = observers.Observer()
    observer.daemon = True
    observer.schedule(Handler(), path)
    observer.start()
    _kept.append(observer)

    async def names() -> list[str]:
        return [await queue.get()]

    return names


async def _by_watchfiles(path: str) -> _Names:
    peer: Any = importlib.import_module("watchfiles")
    changes = peer.awatch(path, watch_filter=None, debounce=1, step=1, recursive=False)
    _kept.append(changes)
    begun = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.5)  # it does not say when it has begun
    _kept.append(begun)
    first = [begun]

    async def names() -> list[str]:
        found = await (first.pop() if first else anext(changes))
        return [name for _, name in found]

    return names


_Library = Callable[[str], Awaitable[_Names]]


async def _by_best(path: str) -> _Names:
    if isinstance(asyncio.get_running_loop(), aiounify.EventLoop):
        return await _by_aiounify(path)
    return await _by_asyncinotify(path)


async def _begin(library: _Library, path: str) -> _Names:
    return await library(path)


def _latency(library: _Library) -> Callable[[asyncio.AbstractEventLoop], Run]:
    def prepare(loop: asyncio.AbstractEventLoop) -> Run:
        writer = _Writer()
        names = loop.run_until_complete(_begin(library, writer.path))

        async def follow(n: int) -> list[int]:
            late: dict[str, int] = {}
            began = time.monotonic_ns()  # what was deleted last may still be told
            writer.begin("late", n)
            while len(late) < n:
                found = await names()
                now = time.monotonic_ns()
                for path in found:
                    name = path.rpartition("/")[2]
                    if int(name) > began:
                        late.setdefault(name, now - int(name))
            writer.end()
            return list(late.values())

        def run(n: int) -> Measurement:
            return {"lateness_ns": loop.run_until_complete(follow(n))}

        return run

    return prepare


def _latency_c(loop: asyncio.AbstractEventLoop) -> Run:
    writer = _Writer()
    fd = _inotify.start(writer.path, 0)

    def run(n: int) -> Measurement:
        writer.begin("late", n)
        late = _inotify.latencies(fd, n)
        writer.end()
        return {"lateness_ns": late}

    return run


def _burst(library: _Library) -> Callable[[asyncio.AbstractEventLoop], Run]:
    def prepare(loop: asyncio.AbstractEventLoop) -> Run:
        writer = _Writer()
        names = loop.run_until_complete(_begin(library, writer.path))

        async def follow(n: int) -> None:
            for _ in range(n // (2 * _BURST)):
                writer.begin("burst", _BURST)
                writer.end()
                left = 2 * _BURST
                while left > 0:
                    left -= len(await names())

        return lambda n: loop.run_until_complete(follow(n))

    return prepare


def _burst_c(loop: asyncio.AbstractEventLoop) -> Run:
    writer = _Writer()
    fd = _inotify.start(writer.path, 0)

    def run(n: int) -> None:
        for _ in range(n // (2 * _BURST)):
            writer.begin("burst", _BURST)
            writer.end()
            _inotify.drain(fd, 2 * _BURST)

    return run


# -- beginning to watch a tree ---------------------------------------------------------


def _tree_path() -> str:
    folder = tempfile.TemporaryDirectory()
    _kept.append(folder)
    root = Path(folder.name)
    for i in range(_DIRECTORIES // 100):
        for j in range(99):
            (root / f"package{i}" / f"module{j}").mkdir(parents=True)
    return folder.name


_Begin = Callable[[str], Awaitable[None]]


async def _tree_best(path: str) -> None:
    if isinstance(asyncio.get_running_loop(), aiounify.EventLoop):
        async with aiounify.watch(path, recursive=True):
            pass
        return
    peer: Any = importlib.import_module("asyncinotify")
    with peer.RecursiveInotify() as inotify:
        mask = peer.Mask.CREATE | peer.Mask.DELETE | peer.Mask.MOVE
        inotify.add_recursive_watch(Path(path), mask)


async def _tree_watchfiles(path: str) -> None:
    peer: Any = importlib.import_module("watchfiles._rust_notify")
    peer.RustNotify([path], False, False, 0, True, True).close()


async def _tree_watchdog(path: str) -> None:
    events: Any = importlib.import_module("watchdog.events")
    observers: Any = importlib.import_module("watchdog.observers")
    observer = observers.Observer()
    observer.schedule(events.FileSystemEventHandler(), path, recursive=True)
    observer.start()
    observer.stop()
    observer.join()


async def _tree_c(path: str) -> None:
    _inotify.walk(path)


def _tree(begin: _Begin) -> Callable[[asyncio.AbstractEventLoop], Run]:
    def prepare(loop: asyncio.AbstractEventLoop) -> Run:
        path = _tree_path()

        async def trees(n: int) -> None:
            for _ in range(n):
                await begin(path)

        return lambda n: loop.run_until_complete(trees(n))

    return prepare


_LATE = "Another process creates a file: how late the coroutine has it"
_MANY = "4,000 files were created and deleted: reading what happened"
_SETUP = "Watch a tree of 10,000 directories, and stop"


def _late_row(name: str, how: str, prepare: Callable[[asyncio.AbstractEventLoop], Run]) -> LoopRow:
    return LoopRow(
        f"watch-latency{name}",
        f"{_LATE}{how}.",
        ("watch",),
        "change",
        prepare,
        lateness=True,
        counted=0,
    )


def _burst_row(name: str, how: str, prepare: Callable[[asyncio.AbstractEventLoop], Run]) -> LoopRow:
    return LoopRow(
        f"watch-burst{name}",
        f"{_MANY}{how}.",
        ("watch",),
        "event",
        prepare,
        batch=2 * _BURST,
        counted=0,
    )


def _tree_row(name: str, how: str, begin: _Begin) -> LoopRow:
    return LoopRow(
        f"watch-tree{name}", f"{_SETUP}{how}.", ("watch",), "tree", _tree(begin), counted=0
    )


ROWS = (
    _late_row("", "", _latency(_by_best)),
    _late_row(
        "-watchfiles", ", by watchfiles (step and debounce of 1 ms)", _latency(_by_watchfiles)
    ),
    _late_row("-watchdog", ", by watchdog", _latency(_by_watchdog)),
    _late_row("-c", ", in C", _latency_c),
    _burst_row("", "", _burst(_by_best)),
    _burst_row("-watchdog", ", by watchdog", _burst(_by_watchdog)),
    _burst_row("-c", ", in C", _burst_c),
    _tree_row("", "", _tree_best),
    _tree_row("-watchfiles", ", by watchfiles", _tree_watchfiles),
    _tree_row("-watchdog", ", by watchdog", _tree_watchdog),
    _tree_row("-c", ", in C", _tree_c),
)
