"""What the tests of pipe transports share: ends of every kind, and a protocol that writes down."""

import asyncio
import contextlib
import errno
import os
import random
import socket
import tempfile
import time
import tty
from io import FileIO

import pytest

HANG = 20  # seconds after which a test is said to hang
KINDS = ["pipe", "fifo", "socket", "terminal"]
kinds = pytest.mark.parametrize("kind", KINDS)


def on_asyncio():
    return type(asyncio.get_running_loop()) is asyncio.SelectorEventLoop


def noise(n, seed=0):
    return random.Random(seed * 1_000_003 + n).randbytes(n)


async def until(condition, what="it"):
    deadline = time.monotonic() + HANG / 2
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        await asyncio.sleep(0.0005)


async def turns(n=5):
    for _ in range(n):
        await asyncio.sleep(0.0005)


@contextlib.contextmanager
def reported(*messages):
    """These reports reach the exception handler, in this order, and no others."""
    loop, found = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, report: found.append(report))
    yield found
    loop.set_exception_handler(None)
    assert len(found) == len(messages), found
    for report, message in zip(found, messages, strict=True):
        assert message in report["message"]


class Recorder(asyncio.Protocol):
    """Writes down what it is told; `doing` says what a method does, itself given."""

    def __init__(self, **doing):
        self.doing, self.told, self.received = doing, [], b""
        self.lost = asyncio.get_running_loop().create_future()

    def act(self, name):
        self.told.append(name)
        if name in self.doing:
            self.doing[name](self)

    def connection_made(self, transport):
        self.transport = transport
        self.act("connection_made")

    def data_received(self, data):
        assert type(data) is bytes
        assert data
        self.received += data
        if self.told[-1] != "data_received" or "data_received" in self.doing:
            self.act("data_received")

    def eof_received(self):
        self.act("eof_received")

    def pause_writing(self):
        self.act("pause_writing")

    def resume_writing(self):
        self.act("resume_writing")

    def connection_lost(self, exc):
        self.lost.set_result(exc)
        self.act("connection_lost")


def ends(kind):
    """(file to read, file to write), as a program opens them."""
    if kind == "pipe":
        r, w = os.pipe()
    elif kind == "fifo":
        with tempfile.TemporaryDirectory() as where:
            path = os.path.join(where, "fifo")  # noqa: PTH118 - text is wanted
            os.mkfifo(path)
            r = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            w = os.open(path, os.O_WRONLY)
    elif kind == "socket":
        r, w = (sock.detach() for sock in socket.socketpair())
    else:
        r, w = os.openpty()
        tty.setraw(w)
    return FileIO(r, "r"), FileIO(w, "w")


@contextlib.asynccontextmanager
async def reading(kind="pipe", make=Recorder, **doing):
    """(protocol of a reading transport, raw file to write to), closed in the end."""
    ours, theirs = ends(kind)
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_read_pipe(lambda: make(**doing), ours)
    assert transport is protocol.transport
    try:
        yield protocol, theirs
    finally:
        theirs.close()
        transport.close()
    await asyncio.wait_for(protocol.lost, HANG)
    await asyncio.sleep(0)
    assert ours.closed
    assert protocol.told[-1] == "connection_lost"


@contextlib.asynccontextmanager
async def writing(kind="pipe", make=Recorder, **doing):
    """(protocol of a writing transport, raw file to read from), closed in the end."""
    theirs, ours = ends(kind)
    os.set_blocking(theirs.fileno(), False)
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(lambda: make(**doing), ours)
    assert transport is protocol.transport
    try:
        yield protocol, theirs
    finally:
        if not transport.is_closing():
            transport.abort()  # twice is once too often for asyncio's
        theirs.close()
    await asyncio.wait_for(protocol.lost, HANG)
    await asyncio.sleep(0)
    assert ours.closed
    assert protocol.told[-1] == "connection_lost"


async def receive(file, n, at_once=1 << 16):
    """The peer reads n bytes, or what comes before the end."""
    got = b""
    deadline = time.monotonic() + HANG
    while len(got) < n:
        assert time.monotonic() < deadline, f"{len(got)} of {n} bytes came"
        try:
            data = os.read(file.fileno(), min(at_once, n - len(got)))
        except BlockingIOError:
            await asyncio.sleep(0)
            continue
        except OSError as exc:
            assert exc.errno == errno.EIO  # a terminal whose other end is closed
            break
        if not data:
            break
        got += data
    return got


async def send(file, data):
    os.set_blocking(file.fileno(), False)
    view = memoryview(data)
    while view:
        n = file.write(view[: 1 << 16])
        view = view[n or 0 :]
        await asyncio.sleep(0)


def fill(protocol, size=1 << 21):
    """Write more than any pipe takes."""
    data = noise(size)
    protocol.transport.write(data)
    assert protocol.transport.get_write_buffer_size() > 0
    return data
