"""The stream transport against a raw peer: a whole life, and what it shows of itself."""

import asyncio
import contextvars
import io
import logging
import os
import socket
import tempfile

import pytest
from stream_peers import (
    HANG,
    Recorder,
    both_modes,
    every_loop,
    families,
    fill_up,
    joined,
    making,
    noise,
    receive,
    receive_to_the_end,
    reset,
    send_all,
    turns,
    until,
)

# -- a quiet life ------------------------------------------------------------------------------


@families
@making
@both_modes
async def test_whole_life(family, how):
    async with joined(family, how=how) as (protocol, peer):
        peer.send(b"ping")
        await until(lambda: protocol.received)
        protocol.transport.write(b"pong")
        assert await receive(peer, 4) == b"pong"
        peer.close()
        assert await protocol.lost is None
        assert protocol.names == [
            "connection_made",
            "data_received",
            "eof_received",
            "connection_lost",
        ]
        assert protocol.received == b"ping"


@families
@making
@both_modes
async def test_peer_that_trickles(family, how):
    """One byte at a time, in turns of their own or several in one."""
    data = noise(300)
    async with joined(family, how=how) as (protocol, peer):
        for i, byte in enumerate(data):
            peer.send(bytes([byte]))
            if i % 3:
                await asyncio.sleep(0)
        await until(lambda: len(protocol.received) == len(data))
        assert protocol.received == data


@families
@making
@pytest.mark.parametrize("phase", ["at once", "after data", "while written to", "while paused"])
@pytest.mark.parametrize("how_gone", ["reset", "half close", "close"])
@every_loop
async def test_peer_goes(family, how, phase, how_gone):
    async with joined(family, how=how) as (protocol, peer):
        if phase == "after data":
            peer.send(b"first")
            await until(lambda: protocol.received)
        elif phase == "while written to":
            await fill_up(protocol)
            await turns(2)
        elif phase == "while paused":
            protocol.transport.pause_reading()
            peer.send(b"first")
            await turns(2)
        if how_gone == "reset":
            reset(peer)
        elif how_gone == "half close":
            peer.shutdown(socket.SHUT_WR)
        else:
            peer.close()
        if phase == "while paused":
            await turns(10)
            assert protocol.names == ["connection_made"]
            protocol.transport.resume_reading()
        if phase == "while written to" and how_gone == "half close":
            await until(lambda: protocol.transport.is_closing())
            assert not protocol.lost.done()
            await receive_to_the_end(peer)
        exc = await protocol.lost
        if family == "tcp" and how_gone == "reset":
            assert isinstance(exc, (ConnectionResetError, BrokenPipeError)), exc
        elif phase == "while written to" and how_gone != "half close":
            assert exc is None or isinstance(exc, ConnectionError)
        else:
            assert exc is None
            assert "eof_received" in protocol.names
        if phase == "after data" or (phase == "while paused" and exc is None):
            assert protocol.received == b"first"


@both_modes
async def test_reset_while_paused_is_told_as_a_reset():
    """... not as the end of the stream, though the ring has taken the error already."""
    async with joined("tcp") as (protocol, peer):
        protocol.transport.pause_reading()
        await turns(2)
        reset(peer)
        await turns(5)
        assert protocol.names == ["connection_made"]
        protocol.transport.resume_reading()
        assert isinstance(await protocol.lost, ConnectionResetError)
        assert protocol.names == ["connection_made", "connection_lost"]


@both_modes
async def test_paused_again_before_the_end_of_the_stream():
    """Data and end came while paused; the protocol pauses in the data: no end yet."""

    def pause(protocol):
        protocol.transport.pause_reading()

    async with joined("tcp", lambda: Recorder(data_received=pause)) as (protocol, peer):
        protocol.transport.pause_reading()
        peer.send(b"last words")
        await turns(3)
        peer.close()
        await turns(5)
        assert protocol.names == ["connection_made"]
        protocol.transport.resume_reading()
        await until(lambda: protocol.received)
        await turns(10)
        assert protocol.names == ["connection_made", "data_received"]
        protocol.transport.resume_reading()
        assert await protocol.lost is None
        assert protocol.received == b"last words"


@families
@every_loop
async def test_peer_that_stalls(family):
    """It reads nothing, then everything: nothing is lost, and flow control says so."""
    async with joined(family) as (protocol, peer):
        data = await fill_up(protocol)
        await turns(20)
        assert protocol.names == ["connection_made", "pause_writing"]
        size = protocol.transport.get_write_buffer_size()
        await turns(20)
        # the kernel may take more later, on a machine that lets its own work wait
        assert 0 < protocol.transport.get_write_buffer_size() <= size
        assert protocol.names == ["connection_made", "pause_writing"]
        assert await receive(peer, len(data)) == data
        await until(lambda: protocol.names[-1] == "resume_writing")
        assert protocol.transport.get_write_buffer_size() == 0


# -- contexts, information, debugging ----------------------------------------------------------

tag = contextvars.ContextVar("tag", default="none")


@making
@both_modes
async def test_contexts(how):
    """Every callback sees the variables as they were when the transport was made."""
    seen = {}

    def see(name):
        return lambda protocol: seen.setdefault(name, tag.get())

    names = ["connection_made", "data_received", "eof_received", "pause_writing", "resume_writing"]

    def make():
        protocol = Recorder(**{name: see(name) for name in [*names, "connection_lost"]})
        protocol.keep_open = True
        return protocol

    async def made():
        tag.set("mine")
        async with joined("tcp", make, how) as (protocol, peer):
            await asyncio.sleep(0)
            peer.send(b"x")
            await until(lambda: protocol.received)
            data = await fill_up(protocol)
            await receive(peer, len(data))
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: {"eof_received", "resume_writing"} <= set(protocol.names))

    await asyncio.create_task(made())
    assert seen == dict.fromkeys([*names, "connection_lost"], "mine")
    assert tag.get() == "none"


@families
@making
@both_modes
async def test_extra_info(family, how):
    async with joined(family, how=how) as (protocol, peer):
        transport = protocol.transport
        assert transport.get_extra_info("peername") == peer.getsockname()
        assert transport.get_extra_info("sockname") == peer.getpeername()
        sock = transport.get_extra_info("socket")
        assert sock.fileno() == transport._sock_fd
        assert sock.gettimeout() == 0
        assert sock.family == peer.family
        assert sock.type == socket.SOCK_STREAM
        assert transport.get_extra_info("socket") is sock
        assert transport.get_extra_info("nothing") is None
        assert transport.get_extra_info("nothing", 5) == 5
        peer.send(b"x")
        await until(lambda: protocol.received)
        transport.close()
        await protocol.lost
        assert sock.fileno() == -1
        assert transport.get_extra_info("peername") == peer.getsockname()


@every_loop
async def test_ipv6_peername():
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    loop = asyncio.get_running_loop()
    made = loop.create_future()
    server = await loop.create_server(lambda: Recorder(connection_made=made.set_result), "::1", 0)
    assert server.sockets
    peer = socket.create_connection(server.sockets[0].getsockname()[:2])
    protocol = await made
    transport = protocol.transport
    assert transport.get_extra_info("peername") == peer.getsockname()
    sock = transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    peer.close()
    await protocol.lost
    server.close()
    await server.wait_closed()


@every_loop
async def test_looks_like_asyncios():
    async with joined("unix") as (protocol, _):
        transport = protocol.transport
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, asyncio.ReadTransport)
        assert isinstance(transport, asyncio.WriteTransport)
        assert "read=polling" in repr(transport) or "read=idle" in repr(transport)
        assert f"fd={transport._sock_fd}" in repr(transport)
        assert hash(transport) == hash(transport)
        assert transport in {transport}
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.add_reader(transport._sock_fd, print)
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.remove_writer(transport._sock_fd)
        transport.close()
        assert "closing" in repr(transport)


@every_loop
async def test_descriptor_of_an_open_transport_is_not_given_to_another():
    async with joined("unix", how="given") as (protocol, _):
        loop = asyncio.get_running_loop()
        with socket.socket(fileno=os.dup(protocol.transport._sock_fd)):
            pass
        sock = protocol.transport._sock
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.create_connection(Recorder, sock=sock)
        assert not protocol.transport.is_closing()


@every_loop
async def test_debug_log(monkeypatch):
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    text, log = io.StringIO(), logging.getLogger("asyncio")
    handler = logging.StreamHandler(text)
    monkeypatch.setattr(log, "propagate", False)  # pytest keeps records, and so transports
    level = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        async with joined("tcp") as (protocol, peer):
            protocol.transport.pause_reading()
            protocol.transport.resume_reading()
            peer.send(b"x")
            await until(lambda: protocol.received)
            reset(peer)
            assert isinstance(await protocol.lost, ConnectionResetError)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    for part in ("pauses reading", "resumes reading", "Fatal read error on socket transport"):
        assert part in text.getvalue()


@every_loop
async def test_debug_switched_in_mid_stream():
    loop = asyncio.get_running_loop()
    async with joined("tcp") as (protocol, peer):
        data = noise(200_000)
        for i in range(0, len(data), 1000):
            loop.set_debug(bool(i // 1000 % 2))
            await send_all(peer, data[i : i + 1000])
            if i % 3:
                await asyncio.sleep(0)
        loop.set_debug(True)
        peer.close()
        assert await protocol.lost is None
        assert protocol.received == data


# -- what waits for the queue ------------------------------------------------------------------


@pytest.mark.parametrize("end", ["abort", "reset", "write error"])
@every_loop
async def test_waiting_for_an_empty_queue_ends_with_the_connection(end):
    """sendfile() waits for the queue; a connection that is lost ends its waiting."""
    async with joined("tcp") as (protocol, peer):
        await fill_up(protocol)
        with tempfile.TemporaryFile() as file:
            file.write(b"x" * 1000)
            file.seek(0)
            loop = asyncio.get_running_loop()
            task = asyncio.create_task(loop.sendfile(protocol.transport, file))
            await turns(2)
            assert not task.done()
            if end == "abort":
                protocol.transport.abort()
            elif end == "reset":
                reset(peer)
            else:
                sock = protocol.transport.get_extra_info("socket")
                sock._sock.shutdown(socket.SHUT_WR)
            with pytest.raises(OSError):
                await asyncio.wait_for(task, HANG / 4)
        await protocol.lost


@every_loop
async def test_nobody_waits_for_the_empty_queue_any_more():
    """sendfile() was cancelled while it waited; then the queue empties."""
    async with joined("tcp") as (protocol, peer):
        data = await fill_up(protocol)
        with tempfile.TemporaryFile() as file:
            file.write(b"x" * 1000)
            file.seek(0)
            loop = asyncio.get_running_loop()
            task = asyncio.create_task(loop.sendfile(protocol.transport, file))
            await turns(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await receive(peer, len(data)) == data
            await turns(5)
            assert protocol.names[-1] == "resume_writing"
            loop.reports.clear()  # asyncio reports an InvalidStateError here


@families
@pytest.mark.parametrize("queued", [False, True])
@both_modes
async def test_sendfile(family, queued):
    async with joined(family) as (protocol, peer):
        loop = asyncio.get_running_loop()
        expected = await fill_up(protocol) if queued else b""
        content = noise(3 << 20)
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            task = asyncio.create_task(loop.sendfile(protocol.transport, file, 1000))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="sendfile is in progress"):
                protocol.transport.write(b"x")
            with pytest.raises(RuntimeError, match="sendfile is in progress"):
                protocol.transport.writelines([b"x"])
            await send_all(peer, b"from the peer, meanwhile")
            expected += content[1000:]
            assert await receive(peer, len(expected)) == expected
            assert await task == len(content) - 1000
        protocol.transport.write(b"afterwards")
        assert await receive(peer, 10) == b"afterwards"
        await until(lambda: protocol.received == b"from the peer, meanwhile")
