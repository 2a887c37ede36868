"""Pipe transports against raw peers; what asyncio promises is checked on asyncio's loop as well."""

import asyncio
import contextlib
import errno
import fcntl
import gc
import logging
import os
import random
import socket
import tempfile
import time
import tty
import warnings
import weakref
from io import FileIO

import pytest

from aiounify._core.pipe import ReadPipeTransport, WritePipeTransport

pytestmark = [pytest.mark.every_reactor, pytest.mark.as_asyncio]

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
            path = os.path.join(where, "fifo")  # noqa: PTH118
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


# -- reading -----------------------------------------------------------------------------------


@kinds
async def test_whole_life_of_a_reader(kind):
    async with reading(kind) as (protocol, peer):
        transport = protocol.transport
        assert isinstance(transport, asyncio.ReadTransport)
        assert not isinstance(transport, asyncio.WriteTransport)
        assert protocol.told == ["connection_made"]
        assert transport.get_protocol() is protocol
        assert transport.is_reading()
        assert not transport.is_closing()
        pipe = transport.get_extra_info("pipe")
        assert not os.get_blocking(pipe.fileno())
        assert transport.get_extra_info("nothing", 5) == 5
        peer.write(b"first")
        await until(lambda: protocol.received == b"first")
        peer.write(b"second")
        await until(lambda: protocol.received == b"firstsecond")
        peer.close()
        exc = await asyncio.wait_for(protocol.lost, HANG)
        if kind == "terminal":
            assert exc.errno == errno.EIO
            assert protocol.told == ["connection_made", "data_received", "connection_lost"]
        else:
            assert exc is None
            assert protocol.told == [
                "connection_made",
                "data_received",
                "eof_received",
                "connection_lost",
            ]
        assert transport.is_closing()
        assert not transport.is_reading()
        transport.close()
        transport.pause_reading()
        transport.resume_reading()


@kinds
@pytest.mark.parametrize("size", [1, 700, 4096, 20_000, 70_000, 3_000_000])
async def test_every_byte_is_read(kind, size):
    if kind == "terminal":
        size = min(size, 20_000)
    data = noise(size)
    async with reading(kind) as (protocol, peer):
        await send(peer, data)
        await until(lambda: len(protocol.received) >= size)
        await send(peer, b"small again")
        await until(lambda: len(protocol.received) > size + 10)
        assert protocol.received == data + b"small again"


async def test_what_a_protocol_keeps_stays_as_it_was():
    """Memory that is read into again is only what the protocol did not keep."""
    kept = []

    class Keeper(Recorder):
        def data_received(self, data):
            if len(kept) % 3 != 2:
                kept.append((data, bytes(bytearray(data))))
            else:
                kept.append((b"", b""))
            self.count = getattr(self, "count", 0) + len(data)

    data = noise(2_000_000)
    async with reading(make=Keeper) as (protocol, peer):
        await send(peer, data)
        for size in [600, 600, 3000, 1, 600, 50_000, 600] * 20:
            await send(peer, data[:size])
            await asyncio.sleep(0)
        expected = len(data) + 20 * (600 * 4 + 3001 + 50_000)
        await until(lambda: protocol.count == expected)
    for one, copy in kept:
        assert one == copy
        assert hash(one) == hash(copy)


async def test_messages_of_a_socket_that_keeps_them_apart():
    """What is not read of a message is gone; so there is room for all of it."""
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    got = []

    class Messages(Recorder):
        def data_received(self, data):
            got.append(data)

    loop = asyncio.get_running_loop()
    _transport, protocol = await loop.connect_read_pipe(Messages, a)
    messages = [noise(n) for n in (1, 100, 100_000, 3, 70_000, *[5] * 40, 120_000)]
    sent = 0
    for message in messages:
        b.send(message)
        sent += len(message)
        await asyncio.sleep(0)
        if len(message) != 5:
            await until(lambda: sum(map(len, got)) == sent)  # noqa: B023
    await until(lambda: len(got) == len(messages))
    assert got == messages
    b.close()
    assert await protocol.lost is None


@kinds
async def test_paused_inside_data_received(kind):
    """Nothing more is delivered, nothing is lost, and the end waits as well."""
    async with reading(kind, data_received=lambda p: p.transport.pause_reading()) as (p, peer):
        peer.write(b"one")
        await until(lambda: p.received == b"one")
        assert not p.transport.is_reading()
        peer.write(b"two")
        await turns()
        assert p.received == b"one"
        if kind != "terminal":
            peer.close()  # a terminal drops what was not read
            await turns()
        p.transport.resume_reading()
        p.transport.resume_reading()
        await until(lambda: p.received == b"onetwo")
        await turns()
        assert not p.lost.done()
        p.doing.clear()
        p.transport.resume_reading()
        if kind != "terminal":
            assert await asyncio.wait_for(p.lost, HANG) is None


async def test_paused_and_resumed_without_data_between():
    async with reading() as (protocol, peer):
        for _ in range(3):
            protocol.transport.pause_reading()
            protocol.transport.pause_reading()
            protocol.transport.resume_reading()
        protocol.transport.pause_reading()
        peer.write(b"x")
        await turns()
        assert protocol.received == b""
        protocol.transport.resume_reading()
        await until(lambda: protocol.received == b"x")


async def test_paused_in_connection_made():
    async with reading(connection_made=lambda p: p.transport.pause_reading()) as (protocol, peer):
        peer.write(b"x")
        await turns()
        assert protocol.received == b""
        protocol.transport.resume_reading()
        await until(lambda: protocol.received == b"x")


async def test_closed_inside_data_received():
    async with reading(data_received=lambda p: p.transport.close()) as (protocol, peer):
        peer.write(b"x")
        assert await asyncio.wait_for(protocol.lost, HANG) is None
        assert protocol.told == ["connection_made", "data_received", "connection_lost"]
        with pytest.raises(BrokenPipeError):
            for _ in range(3):
                peer.write(b"y")
                await asyncio.sleep(0)


async def test_closed_in_connection_made():
    async with reading(connection_made=lambda p: p.transport.close()) as (protocol, _):
        assert await asyncio.wait_for(protocol.lost, HANG) is None
        assert protocol.told == ["connection_made", "connection_lost"]


async def test_other_protocol_in_mid_stream():
    second = Recorder()
    second.told.append("set")

    def hand_over(protocol):
        protocol.transport.set_protocol(second)
        second.transport = protocol.transport

    ours, theirs = ends("pipe")
    loop = asyncio.get_running_loop()
    transport, first = await loop.connect_read_pipe(lambda: Recorder(data_received=hand_over), ours)
    with theirs:
        theirs.write(b"one")
        await until(lambda: first.received == b"one")
        assert transport.get_protocol() is second
        theirs.write(b"two")
        await until(lambda: second.received == b"two")
    assert await asyncio.wait_for(second.lost, HANG) is None
    assert not first.lost.done()


async def test_error_of_read_is_reported():
    """A transport whose descriptor is no file to read: it ends with the error."""
    r, w = os.pipe()
    with FileIO(r, "r") as other, reported("Fatal read error on pipe transport"):
        ours = FileIO(w, "w")
        loop = asyncio.get_running_loop()
        _transport, protocol = await loop.connect_read_pipe(Recorder, ours)
        other.close()  # EPOLLERR: to be read, which the writing end of a pipe is not
        exc = await asyncio.wait_for(protocol.lost, HANG)
        assert exc.errno == errno.EBADF
        assert protocol.told == ["connection_made", "connection_lost"]
        await asyncio.sleep(0)


# -- writing -----------------------------------------------------------------------------------


@kinds
async def test_whole_life_of_a_writer(kind):
    async with writing(kind) as (protocol, peer):
        transport = protocol.transport
        assert isinstance(transport, asyncio.WriteTransport)
        assert protocol.told == ["connection_made"]
        assert transport.can_write_eof()
        assert transport.get_write_buffer_size() == 0
        pipe = transport.get_extra_info("pipe")
        assert not os.get_blocking(pipe.fileno())
        transport.write(b"first")
        transport.write(b"")
        transport.writelines([b"sec", bytearray(b"on"), memoryview(b"d"), b""])
        assert await receive(peer, 11) == b"firstsecond"
        transport.close()
        assert transport.is_closing()
        assert await asyncio.wait_for(protocol.lost, HANG) is None
        assert protocol.told == ["connection_made", "connection_lost"]
        assert await receive(peer, 1) == b""
        transport.close()
        transport.write_eof()
        transport.write(b"late")


@kinds
@pytest.mark.parametrize("end", ["close", "write_eof"])
@pytest.mark.parametrize("at_once", [1 << 16, 4096, 777])
async def test_slow_reader_gets_every_byte_before_the_end(kind, end, at_once):
    size = 20_000 if kind == "terminal" else 300_000
    data = noise(size * 2)
    async with writing(kind) as (protocol, peer):
        protocol.transport.write(data[:size])
        step = size // 10
        for i in range(size, 2 * size, step):
            protocol.transport.write(data[i : i + step])
        getattr(protocol.transport, end)()
        assert await receive(peer, 2 * size, at_once) == data
        assert await asyncio.wait_for(protocol.lost, HANG) is None


async def test_long_lines_are_queued_in_order():
    chunks = [noise(n, i) for i, n in enumerate([1, 9000, 0, 70_000, 200_000, 3, 100_000])]
    async with writing() as (protocol, peer):
        for _ in range(3):
            protocol.transport.writelines(chunks)
        protocol.transport.close()
        assert await receive(peer, 1 << 40) == b"".join(chunks) * 3


@pytest.mark.parametrize("make", [bytes, bytearray, lambda d: memoryview(bytearray(d))])
@pytest.mark.parametrize("full", [False, True])
async def test_what_was_given_is_written(make, full):
    """Objects that are changed after write() do not change what is written."""
    async with writing() as (protocol, peer):
        expected = fill(protocol) if full else b""
        data = make(noise(200_000))
        expected += bytes(data)
        protocol.transport.write(data)
        if not isinstance(data, bytes):
            data[:] = bytes(200_000)
            if isinstance(data, bytearray):
                data.clear()  # nothing holds its buffer
        protocol.transport.close()
        assert await receive(peer, 1 << 40) == expected


@pytest.mark.parametrize("data", ["text", 5, None, [b"x"]])
async def test_what_cannot_be_written(data):
    async with writing() as (protocol, peer):
        with pytest.raises(AssertionError):
            protocol.transport.write(data)
        protocol.transport.write(b"x")
        assert await receive(peer, 1) == b"x"


async def test_flow_control():
    async with writing() as (protocol, peer):
        transport = protocol.transport
        assert transport.get_write_buffer_limits() == (16384, 65536)
        with pytest.raises(ValueError, match="must be"):
            transport.set_write_buffer_limits(1, 2)
        transport.set_write_buffer_limits(100, 10)
        assert transport.get_write_buffer_limits() == (10, 100)
        size = capacity(peer)
        data = noise(size + 1000)
        transport.write(data[: size + 100])
        assert transport.get_write_buffer_size() == 100
        assert protocol.told == ["connection_made"]
        transport.write(data[size + 100 : size + 101])
        assert protocol.told == ["connection_made", "pause_writing"]
        transport.write(data[size + 101 :])
        assert transport.get_write_buffer_size() == 1000
        assert await receive(peer, len(data)) == data
        await until(lambda: protocol.told[-1] == "resume_writing")
        assert protocol.told == ["connection_made", "pause_writing", "resume_writing"]
        assert transport.get_write_buffer_size() == 0


def capacity(file):
    return fcntl.fcntl(file, fcntl.F_GETPIPE_SZ)


async def test_written_in_resume_writing():
    """The protocol writes again as soon as it may, and closes at last."""
    left = [noise(200_000, i) for i in range(5)]
    expected = b"".join(left)

    def more(protocol):
        if left:
            protocol.transport.write(left.pop(0))
        else:
            protocol.transport.close()

    async with writing(resume_writing=more) as (protocol, peer):
        more(protocol)
        assert await receive(peer, 1 << 40) == expected
        assert await asyncio.wait_for(protocol.lost, HANG) is None


@pytest.mark.parametrize("kind", ["pipe", "fifo", "socket"])
@pytest.mark.parametrize("phase", ["idle", "queued", "closing", "paused"])
async def test_reader_goes(kind, phase):
    async with writing(kind) as (protocol, peer):
        transport = protocol.transport
        if phase == "idle":
            transport.write(b"unread")
        else:
            fill(protocol, (1 << 21) if phase != "queued" else (1 << 18) + (1 << 17))
        if phase == "closing":
            transport.close()
        await turns()
        peer.close()
        exc = await asyncio.wait_for(protocol.lost, HANG)
        if phase == "idle":
            assert exc is None
        elif kind == "socket":
            assert isinstance(exc, BrokenPipeError | ConnectionResetError)
        else:
            assert type(exc) is BrokenPipeError
        assert transport.is_closing()


async def test_written_before_it_is_known_that_the_reader_has_gone(caplog):
    async with writing() as (protocol, peer):
        peer.close()
        transport = protocol.transport
        transport.write(b"x")
        assert transport.is_closing()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(4):
                transport.write(b"x")
            assert not caplog.records
            transport.write(b"x")
            transport.write(b"")
        message = "pipe closed by peer or os.write(pipe, data) raised exception."
        assert [record.message for record in caplog.records] == [message]
        exc = await asyncio.wait_for(protocol.lost, HANG)
        assert type(exc) is BrokenPipeError
        assert exc.errno == errno.EPIPE


async def test_abort_drops_what_is_queued():
    async with writing() as (protocol, peer):
        size = capacity(peer)
        data = fill(protocol)
        protocol.transport.abort()
        assert protocol.transport.get_write_buffer_size() == 0
        assert not protocol.lost.done()
        assert await asyncio.wait_for(protocol.lost, HANG) is None
        assert await receive(peer, 1 << 40) == data[:size]


async def test_closed_in_connection_made_of_a_writer():
    async with writing(connection_made=lambda p: p.transport.close()) as (protocol, peer):
        assert await asyncio.wait_for(protocol.lost, HANG) is None
        assert await receive(peer, 1) == b""


async def test_written_in_connection_made():
    async with writing(connection_made=lambda p: p.transport.write(b"x")) as (_, peer):
        assert await receive(peer, 1) == b"x"


# -- protocols that fail --------------------------------------------------------------------------


def fail(protocol):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "method", ["connection_made", "data_received", "eof_received", "connection_lost"]
)
async def test_exceptions_of_a_reading_protocol_are_reported(method):
    with reported("Exception in callback") as found:
        async with reading(**{method: fail}) as (protocol, peer):
            peer.write(b"x")
            await until(lambda: protocol.received == b"x")
            peer.write(b"y" if method != "data_received" else b"")
            peer.close()
            assert await asyncio.wait_for(protocol.lost, HANG) is None
            if method != "eof_received":
                assert "eof_received" in protocol.told
    assert type(found[0]["exception"]) is ZeroDivisionError


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("connection_made", "Exception in callback"),
        ("pause_writing", "protocol.pause_writing() failed"),
        ("resume_writing", "protocol.resume_writing() failed"),
        ("connection_lost", "Exception in callback"),
    ],
)
async def test_exceptions_of_a_writing_protocol_are_reported(method, message):
    with reported(message) as found:
        async with writing(**{method: fail}) as (protocol, peer):
            data = fill(protocol)
            assert await receive(peer, len(data)) == data
            protocol.transport.close()
            assert await asyncio.wait_for(protocol.lost, HANG) is None
    assert type(found[0]["exception"]) is ZeroDivisionError


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_leave_the_loop(loop, error):
    ours, theirs = ends("pipe")

    def interrupt(protocol):
        raise error

    async def begin():
        return await loop.connect_read_pipe(lambda: Recorder(data_received=interrupt), ours)

    _transport, protocol = loop.run_until_complete(begin())
    theirs.write(b"x")
    with pytest.raises(error):
        loop.run_until_complete(asyncio.sleep(HANG))
    protocol.doing.clear()
    theirs.close()
    assert loop.run_until_complete(asyncio.wait_for(protocol.lost, HANG)) is None
    loop.run_until_complete(cancel_all())


async def cancel_all():
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# -- what is accepted, what they look like -------------------------------------------------------


@pytest.mark.parametrize("direction", ["read", "write"])
@pytest.mark.parametrize("what", ["file", "directory"])
async def test_files_are_refused(direction, what, tmp_path):
    message = {
        "read": r"Pipe transport is for pipes/sockets only\.",
        "write": "Pipe transport is only for pipes, sockets and character devices",
    }[direction]
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path if what == "file" else tmp_path, os.O_RDONLY)
    loop = asyncio.get_running_loop()
    with FileIO(fd, "r") if what == "file" else Directory(fd) as file:
        with pytest.raises(ValueError, match=message):
            await getattr(loop, f"connect_{direction}_pipe")(Recorder, file)
        assert os.get_blocking(fd)


class Directory:
    def __init__(self, fd):
        self.fd = fd

    def fileno(self):
        return self.fd

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.close(self.fd)


async def test_dev_null():
    """A device takes everything, and cannot be watched by epoll, which only a read needs."""
    loop = asyncio.get_running_loop()
    sink = FileIO("/dev/null", "w")
    transport, protocol = await loop.connect_write_pipe(Recorder, sink)
    transport.write(bytes(1 << 20))
    assert transport.get_write_buffer_size() == 0
    transport.close()
    assert await asyncio.wait_for(protocol.lost, HANG) is None


async def test_fifo_opened_for_both_directions_has_no_end(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    ours = FileIO(os.open(path, os.O_RDWR | os.O_NONBLOCK), "r+")
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_read_pipe(Recorder, ours)
    for message in (b"one", b"two"):
        with path.open("wb", 0) as other:
            other.write(message)
        await until(lambda: protocol.received.endswith(message))  # noqa: B023
    await turns()
    assert protocol.received == b"onetwo"
    assert not protocol.lost.done()
    transport.close()
    await protocol.lost


async def test_both_directions_of_one_descriptor():
    """Two file objects of a terminal: a shell's standard input and output."""
    master, slave = os.openpty()
    tty.setraw(slave)
    other = os.dup(slave)
    loop = asyncio.get_running_loop()
    ours = FileIO(slave, "r")
    writer_file = FileIO(slave, "w", closefd=False)
    reader, p = await loop.connect_read_pipe(Recorder, ours)
    writer, q = await loop.connect_write_pipe(Recorder, writer_file)
    with FileIO(master, "r+") as peer:
        os.set_blocking(master, False)
        for i in range(5):
            peer.write(b"in%d" % i)
            await until(lambda: p.received.endswith(b"in%d" % i))  # noqa: B023
            writer.write(b"out%d" % i)
            assert await receive(peer, 4) == b"out%d" % i
        data = noise(50_000)
        writer.write(data)
        assert writer.get_write_buffer_size()
        peer.write(b"meanwhile")
        assert await receive(peer, len(data), 1000) == data
        await until(lambda: p.received.endswith(b"meanwhile"))
        writer.close()
        assert await asyncio.wait_for(q.lost, HANG) is None
        reader.close()
        assert await asyncio.wait_for(p.lost, HANG) is None
        await asyncio.sleep(0)
        os.close(other)


async def test_repr():
    loop = asyncio.get_running_loop()
    names = (
        ("_UnixReadPipeTransport", "_UnixWritePipeTransport")
        if on_asyncio()
        else ("ReadPipeTransport", "WritePipeTransport")
    )
    async with reading() as (protocol, _):
        transport = protocol.transport
        begin = f"<{names[0]} fd={transport.get_extra_info('pipe').fileno()}"
        await turns(2)
        assert repr(transport) == f"{begin} polling>"
        transport.pause_reading()
        assert repr(transport) == f"{begin} idle>"
        transport.close()
        assert repr(transport) == f"{begin} idle>".replace(" fd", " closing fd")
        await protocol.lost
        await asyncio.sleep(0)
        assert repr(transport) == f"{begin} closed>".replace(" fd", " closed fd")
    async with writing() as (protocol, _):
        transport = protocol.transport
        begin = f"<{names[1]} fd={transport.get_extra_info('pipe').fileno()}"
        assert repr(transport) == f"{begin} idle bufsize=0>"
        fill(protocol)
        size = transport.get_write_buffer_size()
        assert repr(transport) == f"{begin} polling bufsize={size}>"
        transport.abort()
        await protocol.lost
        await asyncio.sleep(0)
        assert repr(transport) == f"{begin} closed>".replace(" fd", " closed fd")
    assert loop.is_running()


async def test_programs_may_add_attributes_and_replace_methods():
    """CPython's own tests of child processes do."""
    async with reading() as (protocol, peer):
        called = []
        protocol.transport.note = "mine"
        protocol.transport.pause_reading = lambda: called.append("pause_reading")
        protocol.doing["data_received"] = lambda p: p.transport.pause_reading()
        peer.write(b"x")
        await until(lambda: called == ["pause_reading"])
        assert protocol.transport.note == "mine"
        peer.write(b"y")
        await until(lambda: protocol.received == b"xy")


async def test_debug_mode_logs(caplog):
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = HANG
    with caplog.at_level(logging.DEBUG, "asyncio"):
        async with reading() as (protocol, peer):
            protocol.transport.pause_reading()
            protocol.transport.resume_reading()
            peer.write(b"x")
            await until(lambda: protocol.received == b"x")
            peer.close()
            await asyncio.wait_for(protocol.lost, HANG)
        async with writing() as (protocol, peer):
            data = fill(protocol)
            assert await receive(peer, len(data)) == data
            await until(lambda: not protocol.transport.get_write_buffer_size())
            peer.close()
            assert await asyncio.wait_for(protocol.lost, HANG) is None
    loop.set_debug(False)
    said = [record.getMessage().split("> ", 1)[-1] for record in caplog.records]
    wanted = ["pauses reading", "resumes reading", "was closed by peer"]
    assert [text for text in said if text in wanted] == [*wanted, "was closed by peer"]


# -- lifetimes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_dropped_transport_warns_and_closes(direction):
    loop = asyncio.get_running_loop()
    r, w = ends("pipe")
    # Only what waits for nothing can be dropped: a paused reader, a writer to a device.
    if direction == "write":
        w.close()
        w = FileIO("/dev/null", "w")
        transport, protocol = await loop.connect_write_pipe(Recorder, w)
    else:
        transport, protocol = await loop.connect_read_pipe(Recorder, r)
        await turns(2)
        transport.pause_reading()
    gone = weakref.ref(transport) if not on_asyncio() else None
    await turns(2)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        del transport, protocol
        gc.collect()
    assert {warning.category for warning in found} == {ResourceWarning}
    assert any("unclosed transport <" in str(warning.message) for warning in found)
    assert gone is None or gone() is None
    assert (w if direction == "write" else r).closed
    r.close()
    w.close()


async def test_transport_that_waits_is_kept():
    loop = asyncio.get_running_loop()
    r, w = ends("pipe")
    got = []

    class Quiet(asyncio.Protocol):
        def data_received(self, data):
            got.append(data)

        def connection_lost(self, exc):
            got.append(exc)

    await loop.connect_read_pipe(Quiet, r)
    await loop.connect_write_pipe(asyncio.BaseProtocol, w)
    await turns(2)
    gc.collect()
    with FileIO(os.dup(w.fileno()), "w") as other:
        other.write(b"still there")
        await until(lambda: got == [b"still there"])
    writer = next(
        t
        for t in gc.get_objects()
        if getattr(type(t), "__name__", "") in ("WritePipeTransport", "_UnixWritePipeTransport")
        and t.get_extra_info("pipe") is w
    )
    writer.close()
    del writer
    await until(lambda: got[-1] is None)
    await asyncio.sleep(0)


async def test_descriptor_numbers_are_used_again():
    """Events of a closed pipe do not reach the next one with its number."""
    numbers = set()
    for i in range(30):
        async with reading() as (p, peer), writing() as (q, other):
            numbers.add(p.transport.get_extra_info("pipe").fileno())
            if i % 3:
                p.transport.pause_reading()
            peer.write(b"%d" % i)
            q.transport.write(b"%d" % i)
            if i % 2:
                fill(q)
            await turns(1)
            p.transport.resume_reading()
            await until(lambda: p.received == b"%d" % i)  # noqa: B023
            assert await receive(other, len(b"%d" % i)) == b"%d" % i
    assert len(numbers) < 15


@pytest.mark.parametrize("state", ["idle", "queued", "paused", "closing"])
def test_loop_closed_with_open_transports(loop_factory, state):
    loop = loop_factory()
    files = [*ends("pipe"), *ends("pipe")]
    r, other_w, other_r, w = files

    async def begin():
        reader, _ = await loop.connect_read_pipe(Recorder, r)
        writer, _ = await loop.connect_write_pipe(Recorder, w)
        if state in ("queued", "closing"):
            writer.write(bytes(1 << 20))
        if state == "paused":
            reader.pause_reading()
        await turns(2)
        if state == "closing":
            writer.close()
            reader.close()
        return reader, writer

    pair = loop.run_until_complete(begin())
    loop.close()
    for transport in pair:
        for call in ("resume_reading", "pause_reading", "close", "abort", "write_eof"):
            with contextlib.suppress(RuntimeError, AttributeError, ValueError):
                getattr(transport, call)()
        assert repr(transport)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del pair, transport, begin
        gc.collect()
        gc.collect()
    other_w.close()
    other_r.close()
    r.close()
    w.close()


def test_fork(run_program, backend):
    run_program("fork_pipes", backend, options=("-X", "dev"))


async def test_through_a_child_and_back():
    """A child's pipes are these transports; what it is sent comes back byte for byte."""
    if on_asyncio():
        pytest.skip("asyncio's own children")
    data = noise(1_000_000)
    child = await asyncio.create_subprocess_exec(
        "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    transport = child._transport
    assert type(transport.get_pipe_transport(0)) is WritePipeTransport
    assert type(transport.get_pipe_transport(1)) is ReadPipeTransport
    out, _ = await asyncio.wait_for(child.communicate(data), HANG)
    assert out == data
    assert child.returncode == 0


async def test_standard_streams_of_a_program():
    """StreamReader and StreamWriter over pipes, as programs make them of stdin and stdout."""
    loop = asyncio.get_running_loop()
    (r, peer_w), (peer_r, w) = ends("pipe"), ends("pipe")
    reader = asyncio.StreamReader(limit=1 << 12)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), r)
    out, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, w)
    writer = asyncio.StreamWriter(out, protocol, reader, loop)
    os.set_blocking(peer_r.fileno(), False)
    lines = [noise(n).hex().encode() + b"\n" for n in (1, 500, 2000, 3)] * 20

    async def feed():
        await send(peer_w, b"".join(lines))
        peer_w.close()

    feeding = asyncio.create_task(feed())
    receiving = asyncio.create_task(receive(peer_r, sum(map(len, lines))))
    async for line in reader:
        writer.write(line)
        await writer.drain()
    await feeding
    assert await receiving == b"".join(lines)
    writer.close()
    peer_r.close()
    transport.close()
    await turns()


def test_they_are_native(loop):
    """On these loops it is the native transports that were tested."""
    if type(loop) is asyncio.SelectorEventLoop:
        pytest.skip("asyncio's own")
    r, w = ends("pipe")

    async def look():
        reader, p = await loop.connect_read_pipe(Recorder, r)
        writer, q = await loop.connect_write_pipe(Recorder, w)
        assert type(reader) is ReadPipeTransport
        assert type(writer) is WritePipeTransport
        writer.close()
        await q.lost
        await p.lost

    loop.run_until_complete(look())
