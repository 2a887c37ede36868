"""Processes: one worker in this process, or N of them under a supervisor that replaces the dead.

Rules:

* The supervisor makes the listening sockets, one for each worker, all on one port (SO_REUSEPORT),
  and keeps them.  A worker that is killed leaves the connections it had not accepted to the one
  that takes its place, and no connection is refused in between.
* A worker is a program of its own, started anew and not forked: it inherits its socket, the
  memory of the counters, and the reading end of a pipe.  When the supervisor is gone, however it
  went, the pipe ends and the workers stop.
* A worker that dies is replaced at once; one that dies within a second of its start is replaced
  after a second, so that a broken installation does not turn into a storm.
* SIGTERM and SIGINT stop gracefully; a second one stops at once.  SIGHUP opens the log anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import logging
import mmap
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiounify

from .counts import SLOT, Counts
from .logs import ErrorHandler
from .options import Options
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run", "worker_main"]

_log = logging.getLogger("aiounify.webserver")
_STOP = (signal.SIGTERM, signal.SIGINT)
_SOON = 1.0  # seconds: a worker that lived shorter is not replaced at once


def _listening(options: Options, port: int, backlog: int = 4096) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # with its protocol by name, or asyncio takes it for none that has TCP_NODELAY
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.workers > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((options.host, port))
        sock.listen(backlog)
    except OSError as exc:
        sock.close()
        raise OSError(
            exc.errno, f"cannot listen at {_said(options, port)}: {exc.strerror}"
        ) from None
    return sock


def _said(options: Options, port: int) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{'https' if options.tls_cert else 'http'}://{host}:{port}/"


def _factory(options: Options) -> Callable[[], asyncio.AbstractEventLoop]:
    if options.loop == "aiounify":
        return lambda: aiounify.new_event_loop(options.backend)
    if options.loop == "uvloop":
        made: Callable[[], asyncio.AbstractEventLoop]
        made = importlib.import_module("uvloop").new_event_loop  # it need not be there
        return made
    return asyncio.SelectorEventLoop


@contextlib.contextmanager
def _logging() -> Any:
    handler = ErrorHandler()
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    try:
        yield
    finally:
        _log.removeHandler(handler)
        handler.close()


def run(options: Options) -> int:
    """Serve until stopped; the exit status."""
    sock = _listening(options, options.port)
    port = sock.getsockname()[1]
    with _logging():
        if options.workers > 1:
            return aiounify.run(
                _supervise(options, sock, port),
                loop_factory=_factory(options),
            )

        def listens() -> None:
            sys.stdout.write(f"serving {options.root} at {_said(options, port)}\n")
            sys.stdout.flush()

        with asyncio.Runner(loop_factory=_factory(options)) as runner:
            return runner.run(_serve(options, sock, listens))


async def _serve(
    options: Options,
    sock: socket.socket,
    listens: Callable[[], None] | None = None,
    *,
    lifeline: int = -1,
    **shared: Any,
) -> int:
    """One worker, until a signal or the end of the supervisor."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def told() -> None:
        if stop.is_set():
            task.cancel()  # asked a second time
        stop.set()

    server = Server(options, **shared)
    for number in _STOP:
        loop.add_signal_handler(number, told)
    loop.add_signal_handler(signal.SIGHUP, server.reopen)
    if lifeline >= 0:
        loop.add_reader(lifeline, stop.set)
    try:
        await server.start(sock)
        if listens is not None:
            listens()
        await stop.wait()
        _log.info("worker %d stops", server.worker)
        if lifeline >= 0:
            loop.remove_reader(lifeline)
        await server.stop(options.stop_timeout)
    except asyncio.CancelledError:
        await server.stop(0)
        return 1
    finally:
        for number in (*_STOP, signal.SIGHUP):
            loop.remove_signal_handler(number)
    return 0


# -- the supervisor ----------------------------------------------------------------


class _Workers:
    """The processes, by number."""

    def __init__(
        self, options: Options, socks: list[socket.socket], memory: int, store: Any
    ) -> None:
        self._options = options
        self._socks = socks
        self._memory = memory
        self._store = store
        self._alive_end, self.lifeline = os.pipe()
        self.running: dict[int, tuple[Any, float]] = {}

    def start(self, number: int) -> None:
        """Start a worker as a program of its own."""
        import subprocess

        settings = dataclasses.asdict(self._options)
        sock = self._socks[number].fileno()
        told = {
            "options": {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
            "worker": number,
            "sock": sock,
            "memory": self._memory,
            "lifeline": self._alive_end,
            "store": self._store.name if self._store is not None else None,
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "aiounify", "serve", "--worker", json.dumps(told)],
            pass_fds=[sock, self._memory, self._alive_end],
            # Ctrl-C comes to the supervisor alone, and the worker gets one signal, not two
            process_group=0,
        )
        self.running[number] = child, time.monotonic()

    def signal(self, number: int) -> None:
        """Send a signal to all; they are not reaped yet, so the numbers are still theirs."""
        for child, _ in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)

    def close(self) -> None:
        """Let go of everything."""
        for sock in self._socks:
            sock.close()
        os.close(self._alive_end)
        os.close(self.lifeline)
        os.close(self._memory)


async def _supervise(options: Options, first: socket.socket, port: int) -> int:
    from aiounify import process
    from aiounify.cache import SharedStore

    socks = [first, *(_listening(options, port) for _ in range(options.workers - 1))]
    memory = os.memfd_create("aiounify-counts", os.MFD_CLOEXEC)
    os.ftruncate(memory, SLOT * options.workers)
    loop = asyncio.get_running_loop()
    store: SharedStore | None = None
    try:
        store = SharedStore.create(f"aiounify-serve-{os.getpid()}", options.store_size)
    except OSError as exc:
        # /dev/shm is full, or not there: what is served is as true, and built more often
        _log.warning("each worker keeps its own pages: no shared store: %s", exc)
    workers = _Workers(options, socks, memory, store)
    stopping = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    def told() -> None:
        if not stopping.is_set():
            stopping.set()
            # what comes now is refused instead of waiting for nobody
            for sock in socks:
                sock.close()
            workers.signal(signal.SIGTERM)
        else:
            workers.signal(signal.SIGKILL)

    async def keep(number: int) -> None:
        while not stopping.is_set():
            workers.start(number)
            child, began = workers.running[number]
            status = await process.wait(child.pid)
            del workers.running[number]
            child.returncode = status.returncode
            if stopping.is_set():
                break
            _log.error("worker %d (process %d) ended: %s", number, child.pid, status)
            if time.monotonic() - began < _SOON:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), _SOON)

    for number in _STOP:
        loop.add_signal_handler(number, told)
    loop.add_signal_handler(signal.SIGHUP, workers.signal, signal.SIGHUP)
    try:
        sys.stdout.write(
            f"serving {options.root} at {_said(options, port)}, {options.workers} workers\n"
        )
        sys.stdout.flush()
        tasks = {loop.create_task(keep(n)) for n in range(options.workers)}
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        workers.signal(signal.SIGTERM)
        workers.close()
        if store is not None:
            store.close()
            store.unlink()
        for number in (*_STOP, signal.SIGHUP):
            loop.remove_signal_handler(number)
    return 0


def worker_main(text: str) -> int:
    """The life of a worker that a supervisor started."""
    told = json.loads(text)
    settings = told["options"]
    for name in ("root", "tls_cert", "tls_key"):
        settings[name] = Path(settings[name]) if settings[name] is not None else None
    options = Options(**settings)
    sock = socket.socket(fileno=told["sock"])
    memory = mmap.mmap(told["memory"], SLOT * options.workers)
    os.close(told["memory"])
    from aiounify.cache import SharedStore

    with _logging(), asyncio.Runner(loop_factory=_factory(options)) as runner:
        store = SharedStore.attach(told["store"]) if told["store"] is not None else None
        try:
            return runner.run(
                _serve(
                    options,
                    sock,
                    lifeline=told["lifeline"],
                    counts=Counts(memory, told["worker"]),
                    store=store,
                    worker=told["worker"],
                )
            )
        finally:
            if store is not None:
                store.close()
