"""Pipe transports: protocols that fail, what is accepted and shown, lifetimes, and programs."""

import asyncio
import contextlib
import gc
import logging
import os
import tty
import warnings
import weakref
from io import FileIO

import pytest
from pipe_peers import (
    HANG,
    Recorder,
    ends,
    fill,
    noise,
    on_asyncio,
    reading,
    receive,
    reported,
    send,
    turns,
    until,
    writing,
)

from aiounify._core.pipe_read import ReadPipeTransport
from aiounify._core.pipe_write import WritePipeTransport

pytestmark = [pytest.mark.every_reactor, pytest.mark.as_asyncio]

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
        await until(lambda: protocol.received.endswith(message))  # noqa: B023 - awaited here
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
            await until(lambda: p.received.endswith(b"in%d" % i))  # noqa: B023 - awaited here
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
            await until(lambda: p.received == b"%d" % i)  # noqa: B023 - awaited here
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
