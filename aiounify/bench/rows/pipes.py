"""Pipes: the loop at one end, a process that does nothing else at the other; or both ends in
one loop, which then is all there is to measure."""

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from typing import IO, cast

from aiounify.bench.rows.base import LoopRow, Run

__all__ = ["ROWS"]

_MEGABYTE = 1_000_000
_PIPE = 1 << 20
_CHUNK = bytes(1 << 16)
_SOURCE = "import os\nblock = bytes(1 << 18)\nwhile True: os.write(1, block)"
_SINK = "import os\nblock = bytearray(1 << 18)\nwhile os.readv(0, [block]): pass"


def _pipe_to(program: str, stream: str) -> IO[bytes]:
    """Start the other end, on the runner's CPU; it ends when its pipe breaks."""
    command = [sys.executable, "-S", "-c", program]
    ours, theirs = os.pipe() if stream == "stdout" else reversed(os.pipe())
    # Room for several reads: with less, waking the other process would be what is measured.
    fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, _PIPE)
    with open(theirs, "wb", buffering=0) as end:
        streams: dict[str, int | IO[bytes]] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
        }
        streams[stream] = end
        child = subprocess.Popen(
            command,
            stdin=streams["stdin"],
            stdout=streams["stdout"],
            stderr=subprocess.DEVNULL,
        )
    # The worker's parent was put on the CPU that the loops do not use.
    os.sched_setaffinity(child.pid, os.sched_getaffinity(os.getppid()))
    _kept.append(child)
    return open(ours, "rb" if stream == "stdout" else "wb", buffering=0)


_kept: list[object] = []


class _Reader(asyncio.Protocol):
    """Counts bytes down, then stops reading, so that the source waits in a full pipe."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._left = 0
        self.done = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.ReadTransport, transport)
        self._transport.pause_reading()

    def begin(self, count: int) -> None:
        self._left += count
        self.done = self._loop.create_future()
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left <= 0 and not self.done.done():
            self._transport.pause_reading()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or EOFError("the source ended"))


def _read(loop: asyncio.AbstractEventLoop) -> Run:
    pipe = _pipe_to(_SOURCE, "stdout")
    transport, reader = loop.run_until_complete(loop.connect_read_pipe(lambda: _Reader(loop), pipe))
    _kept.append(transport)

    async def megabytes(n: int) -> None:
        reader.begin(n * _MEGABYTE)
        await reader.done

    return lambda n: loop.run_until_complete(megabytes(n))


class _Writer(asyncio.BaseProtocol):
    def __init__(self) -> None:
        self.writable = asyncio.Event()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable.set()


def _write(loop: asyncio.AbstractEventLoop) -> Run:
    pipe = _pipe_to(_SINK, "stdin")
    transport, writer = loop.run_until_complete(loop.connect_write_pipe(_Writer, pipe))

    async def megabytes(n: int) -> None:
        left = n * _MEGABYTE
        while left > 0:
            if transport.is_closing():
                raise EOFError("the sink ended")
            transport.write(_CHUNK)
            left -= len(_CHUNK)
            if not writer.writable.is_set():
                await writer.writable.wait()

    return lambda n: loop.run_until_complete(megabytes(n))


class _Conversation(asyncio.Protocol):
    """Sends the next message when the one before it has come out at the other end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int) -> None:
        self._loop = loop
        self._message = bytes(size)
        self._missing = self._left = 0
        self.writer: asyncio.WriteTransport | None = None

    def begin(self, count: int) -> asyncio.Future[None]:
        self._left = count
        self.done = self._loop.create_future()
        self._send()
        return self.done

    def _send(self) -> None:
        assert self.writer is not None
        self._missing = len(self._message)
        self.writer.write(self._message)

    def data_received(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing:
            return
        self._left -= 1
        if self._left:
            self._send()
        else:
            self.done.set_result(None)


def _through(size: int) -> Callable[[asyncio.AbstractEventLoop], Run]:
    def prepare(loop: asyncio.AbstractEventLoop) -> Run:
        read, write = os.pipe()
        _, conversation = loop.run_until_complete(
            loop.connect_read_pipe(lambda: _Conversation(loop, size), os.fdopen(read, "rb", 0))
        )
        conversation.writer, _ = loop.run_until_complete(
            loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(write, "wb", 0))
        )

        async def messages(n: int) -> None:
            await conversation.begin(n)

        return lambda n: loop.run_until_complete(messages(n))

    return prepare


ROWS = (
    LoopRow(
        "pipe-1k",
        "A message of 1 KiB through a pipe, both ends in the loop, one at a time.",
        ("pipes",),
        "message",
        _through(1 << 10),
    ),
    LoopRow(
        "pipe-64k",
        "A message of 64 KiB through a pipe, both ends in the loop, one at a time.",
        ("pipes",),
        "message",
        _through(1 << 16),
        counted=300,
    ),
    LoopRow(
        "pipe-read",
        "connect_read_pipe: a process writes as fast as it can.",
        ("pipes",),
        "MB",
        _read,
        counted=20,
    ),
    LoopRow(
        "pipe-write",
        "connect_write_pipe: writes of 64 KiB, with flow control, to a process that reads.",
        ("pipes",),
        "MB",
        _write,
        counted=20,
    ),
)
