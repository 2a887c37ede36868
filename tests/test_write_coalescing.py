"""Writes of one turn go out together, and nobody can tell but by the system calls."""

import asyncio
import os
import socket
import time

import pytest
from stream_peers import (
    Recorder,
    every_loop,
    families,
    joined,
    noise,
    receive,
    receive_to_the_end,
    until,
)

PIECES = [b"HTTP/1.1 200 OK\r\n", b"content-length: 12\r\n\r\n", b"Hello, world"]
WHOLE = b"".join(PIECES)


def syscalls():
    return asyncio.get_running_loop().stats()["syscalls"]


@families
@every_loop
async def test_pieces_of_a_turn_are_one_send(family):
    async with joined(family) as (protocol, peer):
        transport = protocol.transport
        sends = []
        for _ in range(20):
            before = syscalls()
            for piece in PIECES:
                transport.write(piece)
            sends.append(syscalls() - before)
            assert await receive(peer, len(WHOLE)) == WHOLE
        # The first turn shows how the program writes; from then on none is sent by itself.
        assert sends[-1] == 0, sends
        assert transport.get_write_buffer_size() == 0


@families
@every_loop
async def test_single_writes_are_sent_at_once_again(family):
    async with joined(family) as (protocol, peer):
        transport = protocol.transport
        for _ in range(3):
            for piece in PIECES:
                transport.write(piece)
            await receive(peer, len(WHOLE))
        for _ in range(20):
            await asyncio.sleep(0.001)
            transport.write(b"one")
            await receive(peer, 3)
        await asyncio.sleep(0.001)
        transport.write(b"one")
        assert transport.get_write_buffer_size() == 0
        assert peer.recv(100) == b"one"  # without a turn of the loop


@families
@every_loop
async def test_a_callback_that_goes_on_for_long_holds_nothing_back_for_long(family):
    """Others' writes leave while callbacks run, not only when all have."""
    loop = asyncio.get_running_loop()
    async with joined(family) as (protocol, peer):
        for _ in range(3):
            for piece in PIECES:
                protocol.transport.write(piece)
            await receive(peer, len(WHOLE))
        seen = []

        def write():
            for piece in PIECES:
                protocol.transport.write(piece)

        def look():
            time.sleep(0.002)
            try:
                seen.append(peer.recv(1000))
            except BlockingIOError:
                seen.append(b"")

        loop.call_soon(write)
        for _ in range(3):
            loop.call_soon(look)
        await until(lambda: len(seen) == 3)
        assert seen == [b"", WHOLE, b""] or seen == [WHOLE, b"", b""]


@families
@every_loop
@pytest.mark.parametrize("end", ["close", "abort", "write_eof", "drop"])
async def test_what_was_written_in_the_turn_of_the_end_arrives(family, end):
    async with joined(family) as (protocol, peer):
        transport = protocol.transport
        for _ in range(3):
            for piece in PIECES:
                transport.write(piece)
            await receive(peer, len(WHOLE))
        for piece in PIECES:
            transport.write(piece)
        if end == "drop":
            await receive(peer, len(WHOLE))
            transport.close()
            await protocol.lost
            return
        getattr(transport, end)()
        assert await receive(peer, len(WHOLE)) == WHOLE
        if end == "write_eof":
            await until(lambda: peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"")
            peer.close()
        assert await protocol.lost is None


@families
@every_loop
async def test_all_sizes_and_kinds_keep_their_order(family):
    """Pieces that join, pieces too large to, mutable ones, lists, in one stream."""
    data = noise(3 << 20, 7)
    sizes = [1, 17, 500, 513, 1024, 4096, 8192, 8193, 16384, 70_000, 300_000]
    async with joined(family) as (protocol, peer):
        collected = asyncio.create_task(receive_to_the_end(peer))
        at = turn = 0
        transport = protocol.transport
        while at < len(data):
            for k in range(turn % 7):
                size = sizes[(turn * 3 + k * 5) % len(sizes)]
                chunk = data[at : at + size]
                at += len(chunk)
                if (turn + k) % 4 == 0:
                    changing = bytearray(chunk)
                    transport.write(changing)
                    changing[:] = bytes(len(changing))
                elif (turn + k) % 4 == 1:
                    transport.writelines([chunk[:100], b"", bytearray(chunk[100:])])
                elif (turn + k) % 4 == 2:
                    transport.write(memoryview(chunk))
                else:
                    transport.write(chunk)
            turn += 1
            if turn % 3:
                await asyncio.sleep(0)
        transport.write_eof()
        assert await collected == data


@families
@every_loop
async def test_the_peer_is_gone(family):
    async with joined(family) as (protocol, peer):
        for _ in range(3):
            for piece in PIECES:
                protocol.transport.write(piece)
            await receive(peer, len(WHOLE))
        peer.close()
        for _ in range(50):
            for piece in PIECES:
                protocol.transport.write(piece)
            await asyncio.sleep(0)
            if protocol.lost.done():
                break
        await until(protocol.lost.done)


@families
@every_loop
async def test_flow_control_counts_what_waits_for_the_end_of_the_turn(family):
    async with joined(family) as (protocol, peer):
        transport = protocol.transport
        for _ in range(3):
            for piece in PIECES:
                transport.write(piece)
            await receive(peer, len(WHOLE))
        protocol.events.clear()
        transport.set_write_buffer_limits(high=20)
        for piece in PIECES:
            transport.write(piece)
        assert transport.get_write_buffer_size() == len(WHOLE)
        assert protocol.names == ["pause_writing"]
        assert await receive(peer, len(WHOLE)) == WHOLE
        await until(lambda: protocol.names == ["pause_writing", "resume_writing"])


@families
@every_loop
async def test_the_loop_stops_with_sends_waiting(family):
    """Nothing written before stop() waits for the next run."""
    loop = asyncio.get_running_loop()
    async with joined(family) as (protocol, peer):
        for _ in range(3):
            for piece in PIECES:
                protocol.transport.write(piece)
            await receive(peer, len(WHOLE))
        found = []

        class Other(Recorder):
            pass

        def write_and_fork():
            for piece in PIECES:
                protocol.transport.write(piece)
            pid = os.fork()
            if not pid:
                os._exit(0)
            found.append(os.waitpid(pid, 0)[1])

        loop.call_soon(write_and_fork)
        await until(lambda: found)
        assert found == [0]
        assert await receive(peer, len(WHOLE)) == WHOLE  # once, and by the parent
        with pytest.raises(BlockingIOError):
            peer.recv(1)


@families
@every_loop
async def test_answers_leave_before_callbacks_run(family):
    """However long those take: nobody can know."""
    loop = asyncio.get_running_loop()
    seen = []

    class Answering(Recorder):
        def data_received(self, data):
            for piece in PIECES:
                self.transport.write(piece)
            loop.call_soon(look, self.peer)

    def look(peer):
        peer.settimeout(10)  # blocks the loop, as a program should not
        seen.append(peer.recv(1000))

    async with joined(family, Answering) as (one, peer), joined(family, Answering) as (two, twin):
        one.peer, two.peer = peer, twin
        for _ in range(5):
            seen.clear()
            peer.send(b"ask")
            twin.send(b"ask")
            await until(lambda: len(seen) == 2)
            assert seen == [WHOLE, WHOLE]
            peer.setblocking(False)
            twin.setblocking(False)
