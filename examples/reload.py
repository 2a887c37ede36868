"""A web server that starts anew whenever its program or one of its pages changes.

    python examples/reload.py DIRECTORY [--port PORT]

serves the files in DIRECTORY.  Change one and the worker is replaced: the listening socket belongs
to this process and is handed to each worker, so no connection is refused in between, and a
request that is being answered is answered by the old worker.  A worker that fails is not
started again until something has changed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import aiounify
from aiounify.watching import Kind, ignoring

PATIENCE = 5.0  # seconds for a worker to answer what it has begun


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: dict[str, bytes]
) -> None:
    """One request, one page."""
    try:
        request = await reader.readuntil(b"\r\n\r\n")
        name = request.split(b" ", 2)[1].decode("latin-1").partition("?")[0].strip("/")
        body = pages.get(name or "index.html")
        status = b"200 OK" if body is not None else b"404 Not Found"
        body = body if body is not None else b"not found\n"
        head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        writer.write(head % (status, len(body)) + body)
        await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError, OSError):
        pass  # not a request, or the client has gone
    finally:
        writer.close()


def read_all(folder: Path) -> dict[str, bytes]:
    """The pages, by their paths below the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def work(pages: dict[str, bytes], listener: socket.socket) -> None:
    """The worker: serve the pages until SIGTERM."""
    requests: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(answer(reader, writer, pages))
        requests.add(task)
        task.add_done_callback(requests.discard)

    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    server = await asyncio.start_server(connected, sock=listener)
    print(f"worker {os.getpid()}: {len(pages)} pages", flush=True)
    await done.wait()
    server.close()
    if requests:
        await asyncio.wait(requests, timeout=PATIENCE)


async def start(folder: Path, listener: socket.socket) -> asyncio.subprocess.Process:
    """A new worker."""
    fd = listener.fileno()
    command = (sys.executable, __file__, str(folder), "--worker", str(fd))
    return await asyncio.create_subprocess_exec(*command, pass_fds=(fd,))


async def stop(worker: asyncio.subprocess.Process) -> None:
    """Let a worker end what it is doing."""
    if worker.returncode is None:
        worker.terminate()
        try:
            async with asyncio.timeout(2 * PATIENCE):
                await worker.wait()
        except TimeoutError:
            worker.kill()
            await worker.wait()


async def supervise(folder: Path, port: int) -> str:
    """Serve until the directory is gone; returns what became of it."""
    mask = Kind.WRITTEN | Kind.CREATED | Kind.DELETED | Kind.MOVED
    with socket.create_server(("127.0.0.1", port)) as listener:
        async with (
            aiounify.watch(
                folder, recursive=True, mask=mask, filter=ignoring(".*", "*~"), batch=0.05
            ) as pages,
            aiounify.watch(Path(__file__).parent, mask=mask, batch=0.05) as program,
        ):
            host, port = listener.getsockname()
            print(f"http://{host}:{port}/", flush=True)
            worker = await start(folder, listener)
            try:
                async with aiounify.select(pages, program) as changes:
                    async for source, batch in changes:
                        if source is program and __file__ not in {c.path for c in batch}:
                            continue
                        before, worker = worker, await start(folder, listener)
                        await stop(before)
                        if pages.reason:
                            break
            finally:
                await stop(worker)
            return pages.reason or "closed"


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a directory; reload when it changes.")
    parser.add_argument("folder", type=Path, metavar="DIRECTORY")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        with socket.socket(fileno=given.worker) as listener:
            aiounify.run(work(read_all(given.folder), listener))
    else:
        print(f"{given.folder}: {aiounify.run(supervise(given.folder, given.port))}")


if __name__ == "__main__":
    main()
