"""One event loop for each processor core, all on one port.

    python examples/per_core.py 8888                 # a process for each core
    python examples/per_core.py --threads 8888       # a thread for each core

A server of lines: each comes back with the number of the worker that served it.  Every worker has
a listening socket of its own with SO_REUSEPORT; the kernel deals connections out among them, so
there is no lock and no hand-over between the workers.  SIGTERM or Ctrl-C ends them all.

Processes are the choice where Python code is what takes the time: threads share one interpreter
lock.  Threads share memory, and are the choice where most time is spent outside of it (compression,
cryptography, databases, numpy); there the workers report by a Mailbox, and are stopped by closing
theirs.  A worker that fails ends the others.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

import aiounify
from aiounify import Mailbox, process
from aiounify.signals import signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STOP = (signal.SIGTERM, signal.SIGINT)


def say(text: str) -> None:
    """Print a line as a whole: print() writes its end apart, and threads get between."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def shared(host: str, port: int) -> socket.socket:
    """A socket at an address that others of this user may bind too."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((host, port))
    return sock


def pin(worker: int) -> None:
    """Keep this thread on one of the cores that the program may use."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[worker % len(cores)]})


async def serve(worker: int, sock: socket.socket, stop: AsyncIterator[object]) -> int:
    """Serve until `stop` has something or ends; how many connections there were."""
    connections = 0

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while line := await reader.readline():
                writer.write(b"worker %d: " % worker + line)
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(client, sock=sock, backlog=1024)
    say(f"worker {worker} listens")
    try:
        async for _ in stop:
            break
    finally:
        server.close()
    return connections


# -- a thread for each core --------------------------------------------------------


def worker_thread(
    worker: int,
    sock: socket.socket,
    orders: Mailbox[str],
    reports: Mailbox[tuple[int, int | BaseException]],
) -> None:
    """The life of one thread; its last message is how it ended."""
    try:
        pin(worker)
        ended: int | BaseException = aiounify.run(serve(worker, sock, orders))
    except BaseException as exc:
        ended = exc
    reports.put_nowait((worker, ended))


async def threads(host: str, port: int, workers: int) -> int:
    """Start, stop and join the threads; the exit status."""
    reports: Mailbox[tuple[int, int | BaseException]] = Mailbox()
    orders: list[Mailbox[str]] = [Mailbox() for _ in range(workers)]
    socks = [shared(host, port)]
    port = socks[0].getsockname()[1]
    socks += [shared(host, port) for _ in range(workers - 1)]
    running = [
        threading.Thread(target=worker_thread, args=(i, socks[i], orders[i], reports))
        for i in range(workers)
    ]
    status, left = 0, workers
    async with signals(*STOP) as stop, aiounify.select(stop, reports) as events:
        say(f"port {port}, {workers} threads")
        for thread in running:
            thread.start()
        while left:
            source, message = await events
            if source is reports:
                left -= 1
                worker, ended = message
                if isinstance(ended, BaseException):
                    status = 1
                    say(f"worker {worker} failed: {ended!r}")
                else:
                    say(f"worker {worker} had {ended} connections")
            for order in orders:
                order.close()
    for thread in running:
        thread.join()
    return status


# -- a process for each core -------------------------------------------------------


async def worker_process(worker: int, host: str, port: int) -> int:
    """The main coroutine of one process; the exit status."""
    pin(worker)
    async with signals(*STOP) as stop:
        sock = shared(host, port)
        say(f"worker {worker} had {await serve(worker, sock, stop)} connections")
    return 0


def spawn(worker: int, host: str, port: int) -> int:
    """Start a worker as a program of its own; its process id."""
    command = [sys.executable, __file__, "--host", host, str(port), "--worker", str(worker)]
    # a process group of its own: Ctrl-C comes here alone, and the worker gets one signal, not two
    return os.posix_spawn(sys.executable, command, os.environ, setpgroup=0)


async def processes(host: str, port: int, workers: int) -> int:
    """Start the processes, stop them and wait for them; the exit status."""
    # bound, not listening: the port is kept, connections go to the workers only
    with shared(host, port) as sock:
        port = sock.getsockname()[1]
        async with signals(*STOP) as stop:
            say(f"port {port}, {workers} processes")
            pids = {spawn(i, host, port): i for i in range(workers)}
            children = {process.wait(pid): pid for pid in pids}
            status, told = 0, False
            async with aiounify.select(stop, *children) as events:
                while pids:
                    source, value = await events
                    if source is not stop:
                        pid = children[source]
                        worker = pids.pop(pid)
                        if value.returncode:
                            status = 1
                            say(f"worker {worker} failed: {value}")
                    for pid in pids if not told else ():  # they are not reaped, so still ours
                        os.kill(pid, signal.SIGTERM)
                    told = True
    return status


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--threads", action="store_true", help="threads instead of processes")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return aiounify.run(worker_process(options.worker, options.host, options.port))
    start = threads if options.threads else processes
    return aiounify.run(start(options.host, options.port, options.workers))


if __name__ == "__main__":
    sys.exit(main())
