"""A file to a TCP connection: the loop sends, a process that does nothing else receives."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO

from aiounify.bench.rows.base import LoopRow, Run

__all__ = ["ROWS"]

_SINK = (
    "import socket\nsink = socket.socket(fileno=0)\nspace = bytearray(1 << 18)\n"
    "while sink.recv_into(space): pass"
)
_PIECE = 1 << 16

_kept: list[object] = []


def _connection() -> socket.socket:
    """A connection to a process on the runner's CPU that receives until it ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", _SINK],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    os.sched_setaffinity(child.pid, os.sched_getaffinity(os.getppid()))
    _kept.append(child)
    ours.setblocking(False)
    return ours


class _Sender(asyncio.Protocol):
    """Tells when it may write."""

    def __init__(self) -> None:
        self.writable = asyncio.Event()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()


def _file(size: int) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process lives
    file.write(os.urandom(size))
    file.flush()
    _kept.append(file)
    return file


def _sendfile(size: int) -> Callable[[asyncio.AbstractEventLoop], Run]:
    def prepare(loop: asyncio.AbstractEventLoop) -> Run:
        file = _file(size)
        transport, _ = loop.run_until_complete(loop.create_connection(_Sender, sock=_connection()))

        async def files(n: int) -> None:
            for _ in range(n):
                await loop.sendfile(transport, file, fallback=False)

        return lambda n: loop.run_until_complete(files(n))

    return prepare


def _sock_sendfile(size: int) -> Callable[[asyncio.AbstractEventLoop], Run]:
    def prepare(loop: asyncio.AbstractEventLoop) -> Run:
        file, sock = _file(size), _connection()
        _kept.append(sock)

        async def files(n: int) -> None:
            for _ in range(n):
                await loop.sock_sendfile(sock, file, fallback=False)

        return lambda n: loop.run_until_complete(files(n))

    return prepare


def _by_writing(size: int) -> Callable[[asyncio.AbstractEventLoop], Run]:
    """What programs do on loops without sendfile: read in a thread, write, wait."""

    def prepare(loop: asyncio.AbstractEventLoop) -> Run:
        file = _file(size)
        transport, sender = loop.run_until_complete(
            loop.create_connection(_Sender, sock=_connection())
        )

        async def files(n: int) -> None:
            for _ in range(n):
                file.seek(0)
                while data := await loop.run_in_executor(None, file.read, _PIECE):
                    transport.write(data)
                    await sender.writable.wait()

        return lambda n: loop.run_until_complete(files(n))

    return prepare


ROWS = (
    *(
        LoopRow(
            f"sendfile-{name}",
            f"loop.sendfile: a file of {title} in the page cache, to a process that receives.",
            ("sendfile",),
            "file",
            _sendfile(size),
            counted=counted,
        )
        for name, title, size, counted in (
            ("4k", "4 KiB", 1 << 12, 1000),
            ("1m", "1 MiB", 1 << 20, 50),
            ("64m", "64 MiB", 1 << 26, 3),
        )
    ),
    LoopRow(
        "sock-sendfile-1m",
        "loop.sock_sendfile: a file of 1 MiB in the page cache, to a process that receives.",
        ("sendfile",),
        "file",
        _sock_sendfile(1 << 20),
        counted=50,
    ),
    LoopRow(
        "file-by-write-1m",
        "The same without sendfile: read 64 KiB in a thread, write, wait for the buffer.",
        ("sendfile",),
        "file",
        _by_writing(1 << 20),
        counted=0,
    ),
)
