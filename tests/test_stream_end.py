"""The end of a stream transport: half a close, close, abort, loss, and protocols that raise."""

import asyncio
import contextlib
import os
import random
import socket

import pytest
from stream_peers import (
    HANG,
    KINDS,
    LOOPS,
    BufferedRecorder,
    Recorder,
    both_modes,
    busy,
    every_loop,
    families,
    fill_up,
    joined,
    making,
    receive,
    receive_to_the_end,
    reports,
    reset,
    small_buffers,
    socket_pair,
    turns,
    until,
)

# -- the end -----------------------------------------------------------------------------------


@families
@making
@pytest.mark.parametrize("data", ["none", "in flight", "queued"])
@both_modes
async def test_write_eof(family, how, data):
    async with joined(family, how=how) as (protocol, peer):
        sent = b""
        if data == "queued":
            sent = await fill_up(protocol)
        elif data == "in flight":
            sent = b"x" * 100
            with busy(10):
                protocol.transport.write(sent)
        assert protocol.transport.can_write_eof()
        protocol.transport.write_eof()
        protocol.transport.write_eof()
        for call, argument in (
            (protocol.transport.write, b"x"),
            (protocol.transport.write, b""),
            (protocol.transport.writelines, [b"x"]),
        ):
            with pytest.raises(RuntimeError, match="after write_eof"):
                call(argument)
        assert await receive_to_the_end(peer) == sent
        assert not protocol.transport.is_closing()
        peer.send(b"reading goes on")
        await until(lambda: protocol.received == b"reading goes on")
        peer.close()
        assert await protocol.lost is None


@every_loop
async def test_write_eof_behind_bytes_that_are_answered_by_a_reset():
    """Nothing is reported: write_eof() has returned, and the reader finds out about the peer."""
    loop = asyncio.get_running_loop()
    for _ in range(20):
        one, other = socket_pair("tcp")
        transport, protocol = await loop.create_connection(Recorder, sock=one)
        other.close()
        with busy():
            transport.write(b"x")
        with contextlib.suppress(OSError):  # the bytes have gone at once, and so has the peer
            transport.write_eof()
        assert isinstance(await protocol.lost, OSError | None)


@families
@making
@both_modes
async def test_half_closed_by_the_peer(family, how):
    def make():
        protocol = Recorder()
        protocol.keep_open = True
        return protocol

    async with joined(family, make, how) as (protocol, peer):
        peer.send(b"question")
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: "eof_received" in protocol.names)
        await turns()
        assert not protocol.transport.is_closing()
        protocol.transport.write(b"answer")
        assert await receive(peer, 6) == b"answer"
        protocol.transport.pause_reading()
        protocol.transport.resume_reading()
        await turns()
        data = await fill_up(protocol)
        protocol.transport.write_eof()
        protocol.transport.close()
        assert await receive_to_the_end(peer) == data
        assert await protocol.lost is None
        assert protocol.names.count("eof_received") == 1


@families
@pytest.mark.parametrize("data", ["none", "in flight", "queued", "in flight and queued"])
@pytest.mark.parametrize("call", ["close", "abort"])
@every_loop
async def test_close_and_abort(family, data, call):
    async with joined(family) as (protocol, peer):
        sent = b""
        if data == "queued":
            sent = await fill_up(protocol)
        elif data != "none":
            with busy(10):
                protocol.transport.write(b"x" * 100)
                sent = b"x" * 100
                if "queued" in data:
                    sent += await fill_up(protocol)
        getattr(protocol.transport, call)()
        assert protocol.transport.is_closing()
        assert "connection_lost" not in protocol.names  # never from inside the call
        if call == "abort":
            assert protocol.transport.get_write_buffer_size() == 0
            assert await protocol.lost is None
            got = await receive(peer, len(sent) + 1) if sent else b""
            assert sent.startswith(got)
            assert "queued" not in data or len(got) < len(sent)
        else:
            assert await receive_to_the_end(peer) == sent
            assert await protocol.lost is None


@every_loop
async def test_memory_of_a_send_in_flight_outlives_abort():
    """The peer takes nothing, so the ring holds on to the bytes when the transport is gone."""
    for _ in range(50):
        one, other = socket_pair("unix")
        small_buffers(one, other)
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(bytes(4096))
        _, protocol = await asyncio.get_running_loop().create_connection(Recorder, sock=one)
        with busy(10):
            protocol.transport.write(os.urandom(8000))
            protocol.transport.write(os.urandom(8000))
        if random.random() < 0.5:
            await asyncio.sleep(0)
        protocol.transport.abort()
        junk = [os.urandom(8000) for _ in range(20)]
        assert await protocol.lost is None
        del junk
        other.close()


@families
@pytest.mark.parametrize("where", ["connection_made", "data_received", "eof_received"])
@pytest.mark.parametrize("call", ["close", "abort"])
@pytest.mark.parametrize("buffered", [False, True])
@both_modes
async def test_closed_by_the_protocol(family, where, call, buffered):
    name = "buffer_updated" if buffered and where == "data_received" else where
    doing = {name: lambda protocol: getattr(protocol.transport, call)()}
    make = BufferedRecorder if buffered else Recorder
    async with joined(family, lambda: make(**doing)) as (protocol, peer):
        # What the protocol closed or aborted may be gone already: EPIPE, ECONNRESET, ENOTCONN.
        with contextlib.suppress(OSError):
            peer.send(b"x" * 5000)
            peer.shutdown(socket.SHUT_WR)
        assert await protocol.lost is None
        assert protocol.names[-2] == name
        if where == "data_received":
            assert len(protocol.events) == 3  # nothing is delivered after close()


@every_loop
async def test_connection_lost_is_never_called_by_close_itself():
    order = []
    async with joined("tcp") as (protocol, _):
        protocol.doing["connection_lost"] = lambda _: order.append("lost")
        protocol.transport.close()
        order.append("closed")
        await protocol.lost
        assert order == ["closed", "lost"]


@families
@making
@every_loop
async def test_descriptor_is_closed_when_the_connection_is_lost(family, how):
    async with joined(family, how=how) as (protocol, peer):
        sock = protocol.transport.get_extra_info("socket") if how == "given" else None
        protocol.transport.close()
        await protocol.lost
        await until(lambda: at_end(peer), "the end of the stream")
        if sock is not None:
            assert sock.fileno() == -1
        assert "closed" in repr(protocol.transport)


def at_end(sock):
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


# -- exceptions in the protocol ----------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["data_received", "eof_received", "get_buffer", "buffer_updated"]
)
@both_modes
async def test_exception_that_ends_the_connection(method):
    buffered = method in ("get_buffer", "buffer_updated")
    async with joined("tcp", BufferedRecorder if buffered else Recorder) as (protocol, peer):
        protocol.raising = method
        peer.send(b"x" * 5000)
        peer.shutdown(socket.SHUT_WR)
        exc = await protocol.lost
        assert isinstance(exc, LookupError)
        (report,) = reports(f"Fatal error: protocol.{method}() call failed.")
        assert report["exception"] is exc
        assert report["transport"] is protocol.transport
        assert report["protocol"] is protocol
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""


@pytest.mark.parametrize("wrong", [b"read only", bytearray(), None, memoryview(bytearray(9))[::2]])
@every_loop
async def test_wrong_buffers(wrong):
    async with joined("unix", BufferedRecorder) as (protocol, peer):
        protocol.buffer = wrong
        peer.send(b"x")
        assert isinstance(await protocol.lost, (TypeError, RuntimeError, BufferError))
        reports("Fatal error: protocol.get_buffer() call failed.")


@making
@both_modes
async def test_exception_in_connection_made(how):
    """It is reported; the connection lives on, as in asyncio."""

    def make():
        protocol = Recorder()
        protocol.raising = "connection_made"
        return protocol

    async with joined("tcp", make, how) as (protocol, peer):
        (report,) = reports(*[r["message"] for r in asyncio.get_running_loop().reports])
        assert isinstance(report["exception"], LookupError)
        peer.send(b"still there")
        await until(lambda: protocol.received == b"still there")


@families
@both_modes
async def test_exceptions_in_flow_control(family):
    async with joined(family) as (protocol, peer):
        protocol.raising = "pause_writing"
        data = await fill_up(protocol)
        (report,) = reports("protocol.pause_writing() failed")
        assert isinstance(report["exception"], LookupError)
        protocol.raising = "resume_writing"
        assert await receive(peer, len(data)) == data
        await until(lambda: "resume_writing" in protocol.names)
        reports("protocol.resume_writing() failed")
        protocol.transport.write(b"alive")
        assert await receive(peer, 5) == b"alive"


@families
@pytest.mark.parametrize("data", ["none", "in flight", "queued"])
@pytest.mark.parametrize("call", ["close", "abort", "peer"])
@both_modes
async def test_exception_in_connection_lost(family, data, call):
    """Reported; the loop goes on, and the descriptor is closed."""
    async with joined(family) as (protocol, peer):
        protocol.raising = "connection_lost"
        if data == "queued":
            await fill_up(protocol)
        elif data == "in flight":
            with busy(10):
                protocol.transport.write(b"x")
        if call == "peer":
            reset(peer)
        else:
            getattr(protocol.transport, call)()
            reading = asyncio.create_task(receive_to_the_end_or_reset(peer))
        await protocol.lost
        if call != "peer":
            await reading
        await turns(2)
        loop = asyncio.get_running_loop()
        (report,) = reports(*[r["message"] for r in loop.reports])
        assert isinstance(report["exception"], LookupError)
        assert "closed" in repr(protocol.transport)


async def receive_to_the_end_or_reset(sock):
    with contextlib.suppress(ConnectionResetError):
        await receive_to_the_end(sock)


@pytest.mark.parametrize("method", ["data_received", "connection_lost", "eof_received"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", KINDS)
def test_interrupts_leave_the_loop(kind, method, error):
    """They end the run and nothing else; the loop can run again, nothing that came is lost."""
    loop = LOOPS[kind]()
    a, b = socket.socketpair()
    c, d = socket.socketpair()

    def interrupt(_):
        raise error

    async def begin():
        _, one = await loop.create_connection(lambda: Recorder(**{method: interrupt}), sock=a)
        _, other = await loop.create_connection(Recorder, sock=c)
        return one, other

    one, other = loop.run_until_complete(begin())
    b.send(b"x")
    d.send(b"y")
    b.shutdown(socket.SHUT_WR)
    loop.call_later(HANG, loop.stop)
    with pytest.raises(error):
        loop.run_forever()
    loop.run_until_complete(until(lambda: other.received == b"y"))
    one.transport.abort()
    other.transport.abort()
    loop.run_until_complete(until(lambda: one.lost.done() and other.lost.done()))
    loop.close()
    b.close()
    d.close()
