"""Transports that outlive things: closed loops, other threads, forked children, the last reference.

The kernel may still work on a connection when the program has let go of it: a receive waits in the
ring, a send reads from a bytes object.  What belongs to it has to stay, and nothing more than that.
"""

import asyncio
import contextlib
import gc
import os
import random
import socket
import subprocess
import sys
import threading
import warnings
import weakref

import pytest
from stream_peers import (
    HANG,
    LOOPS,
    Recorder,
    alive,
    busy,
    every_loop,
    families,
    receive,
    receive_to_the_end,
    send_all,
    small_buffers,
    socket_pair,
    transports,
    turns,
    until,
)

ALL = list(LOOPS)
RINGS = [kind for kind in LOOPS if kind != "epoll"]


# -- transports that outlive what they belong to -----------------------------------------------


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("state", ["idle", "in flight", "queued", "paused", "closing", "aborted"])
def test_loop_closed_with_open_transports(kind, state):
    """They are harmless afterwards, warn when they go, and give their descriptors back."""
    loop = LOOPS[kind]()
    socks = [*socket_pair("unix")]
    b = socks.pop(0)

    async def begin():
        transport, protocol = await loop.create_connection(Recorder, sock=socks.pop())
        b.send(b"x")
        if state == "in flight":
            with busy():
                transport.write(b"x")
        elif state == "queued":
            transport.write(bytes(1 << 20))
        elif state == "paused":
            transport.pause_reading()
            await turns(2)
        elif state == "closing":
            transport.write(bytes(1 << 20))
            transport.close()
        elif state == "aborted":
            transport.abort()
        return transport, protocol

    transport, protocol = loop.run_until_complete(begin())
    loop.close()
    use_after_close(transport)
    gone, number = weakref.ref(transport), transport._sock_fd
    if state == "aborted":
        del transport, protocol
        gc.collect()
    else:
        with unclosed():
            del transport, protocol
            gc.collect()
    assert gone() is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    b.close()


@contextlib.contextmanager
def unclosed():
    """A transport warns; so may the socket object it was made of, which goes with it."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    assert {warning.category for warning in found} == {ResourceWarning}
    assert any("unclosed transport" in str(warning.message) for warning in found)


def use_after_close(transport):
    """Nothing works any more, nothing crashes."""
    for call in (
        transport.pause_reading,
        transport.resume_reading,
        lambda: transport.write(b"x"),
        lambda: transport.write(bytes(1 << 20)),
        lambda: transport.writelines([b"x"] * 3),
        transport.write_eof,
        transport.close,
        transport.abort,
        lambda: repr(transport),
    ):
        try:
            call()
        except (RuntimeError, OSError, ValueError, AttributeError):
            continue


@pytest.mark.parametrize("kind", ALL)
def test_closed_in_another_thread_than_it_ran_in(kind):
    loop = LOOPS[kind]()
    socks = [*socket_pair("unix")]
    other, kept = socks.pop(), []

    def work():
        creating = loop.create_connection(asyncio.Protocol, sock=socks.pop())
        kept.extend(loop.run_until_complete(creating))
        loop.run_until_complete(turns(2))

    in_a_thread(work)
    loop.close()
    use_after_close(kept[0])
    gone = weakref.ref(kept[0])
    other.close()
    with unclosed():
        kept.clear()
        gc.collect()
    assert gone() is None


def in_a_thread(function, *args):
    """Call it in a thread of its own, and raise what it raises."""
    failures = []

    def work():
        try:
            function(*args)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(HANG)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


@families
@pytest.mark.parametrize("kind", ALL)
def test_one_thread_after_the_other(kind, family):
    """Open connections move with the loop; what comes between the runs is not lost."""
    loop = LOOPS[kind]()
    pairs = [socket_pair(family) for _ in range(20)]

    async def begin():
        return [(await loop.create_connection(Recorder, sock=a))[1] for a, _ in pairs]

    async def round_(number):
        expected = b"".join(b"%d-between " % i + b"%d " % i for i in range(number + 1))
        for i, (_, b) in enumerate(pairs):
            if i % 2:
                protocols[i].transport.resume_reading()
            b.send(b"%d " % number)
        await until(lambda: all(len(p.received) == len(expected) for p in protocols))
        assert all(protocol.received == expected for protocol in protocols)
        for (_, b), protocol in zip(pairs, protocols, strict=True):
            protocol.transport.write(b"back")
            b.setblocking(False)
            assert await receive(b, 4) == b"back"
        for i, protocol in enumerate(protocols):
            if i % 2:
                protocol.transport.pause_reading()

    protocols = loop.run_until_complete(begin())
    for number in range(6):
        for _, b in pairs:
            b.send(b"%d-between " % number)
        if number % 3 == 2:
            loop.run_until_complete(round_(number))
        else:
            in_a_thread(lambda: loop.run_until_complete(round_(number)))  # noqa: B023 - ends in this round
    for _, b in pairs:
        b.close()
    for protocol in protocols:
        protocol.transport.abort()
    loop.run_until_complete(asyncio.wait([p.lost for p in protocols], timeout=HANG))
    assert all(protocol.lost.done() for protocol in protocols)
    loop.close()


@families
@pytest.mark.parametrize("kind", ALL)
def test_more_connections_than_the_ring_has_entries_change_threads(kind, family):
    """Each of them gets a receive in the new ring; what came between the runs arrives."""
    loop = LOOPS[kind]()
    pairs = [socket_pair(family) for _ in range(300)]
    protocols = []

    async def begin():
        for one, _ in pairs:
            protocols.append((await loop.create_connection(Recorder, sock=one))[1])
        await turns(2)

    async def arrived(*messages):
        await until(lambda: all(bytes(p.received) == b"".join(messages) for p in protocols))

    async def end():
        for _, other in pairs:
            other.close()
        for protocol in protocols:
            assert await protocol.lost is None

    loop.run_until_complete(begin())
    for _, other in pairs:
        other.send(b"between ")
    in_a_thread(lambda: loop.run_until_complete(arrived(b"between ")))
    for _, other in pairs:
        other.send(b"again ")
    in_a_thread(lambda: loop.run_until_complete(arrived(b"between ", b"again ")))
    loop.run_until_complete(end())
    loop.close()


@pytest.mark.parametrize("kind", ALL)
def test_received_in_the_last_turn_and_delivered_in_another_thread(kind):
    """More completions than their ring holds are left when the loop stops: none is lost."""
    loop = LOOPS[kind]()
    pairs = [socket_pair("unix") for _ in range(100)]
    protocols = []

    async def begin():
        for one, _ in pairs:
            protocols.append((await loop.create_connection(Recorder, sock=one))[1])
        await turns(2)

    def last():
        for _, other in pairs:
            other.send(b"late")
        # something to submit at the end of the run, which makes the kernel look
        protocols[0].transport.pause_reading()
        protocols[0].transport.resume_reading()
        protocols[1].transport.abort()
        loop.stop()

    async def arrived():
        await until(lambda: all(p.received == b"late" for p in protocols if p is not protocols[1]))
        for _, other in pairs:
            other.close()
        for protocol in protocols:
            assert await protocol.lost is None

    loop.run_until_complete(begin())
    loop.call_soon(last)
    loop.run_forever()
    in_a_thread(lambda: loop.run_until_complete(arrived()))
    loop.close()


@pytest.mark.parametrize("kind", ALL)
def test_connection_lost_in_one_thread_and_let_go_in_another(kind):
    """The descriptor of a transport that somebody keeps is closed all the same."""
    loop = LOOPS[kind]()
    one, other = socket_pair("unix")

    async def begin():
        transport, protocol = await loop.create_connection(Recorder, sock=one)
        await turns(2)
        transport.abort()
        # connection_lost() comes in the next turn, while the ring still cancels
        await asyncio.sleep(0)
        return transport, protocol

    transport, protocol = loop.run_until_complete(begin())
    number = transport._sock_fd
    in_a_thread(lambda: loop.run_until_complete(turns(3)))
    assert protocol.names == ["connection_made", "connection_lost"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    other.close()
    loop.close()


# -- forked children ---------------------------------------------------------------------------

FORK = """
import asyncio, gc, os, socket, sys, time, traceback
sys.path.insert(0, sys.argv[2])
from stream_peers import LOOPS, BufferedRecorder, Recorder, busy, turns, until

parent, statuses = os.getpid(), []

def fork():
    # the child's status is 0 if all that it does ends in the RuntimeError of a forked loop
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        statuses.append(os.waitstatus_to_exitcode(status))
    return not pid

def use_all(*connections):
    status = 0
    for one in connections:
        for call in (lambda: one.write(b"x"), lambda: one.write(b""), one.pause_reading,
                     one.resume_reading, lambda: one.writelines([b"a", b"b"]),
                     lambda: one.write(bytes(1 << 22)), one.write_eof, one.close, one.abort):
            try:
                call()
            except RuntimeError:
                pass
            except BaseException:
                traceback.print_exc()
                status = 1
    return status

async def between():
    "In a task; the child never returns to the loop."
    loop = asyncio.get_running_loop()
    a, b = socket.socketpair()
    c, d = socket.socketpair()
    transport, protocol = await loop.create_connection(Recorder, sock=a)
    paused, other = await loop.create_connection(Recorder, sock=c)
    paused.pause_reading()
    d.send(b"waiting")
    await turns(3)
    if fork():
        status = use_all(transport, paused)
        del transport, paused
        gc.collect()
        os._exit(status)
    b.send(b"parent")
    await until(lambda: protocol.received == b"parent")
    paused.resume_reading()
    await until(lambda: other.received == b"waiting")
    for p in (protocol, other):
        p.transport.abort()
        await p.lost
    for sock in (b, d):
        sock.close()

async def inside(method, make):
    "In a protocol's method, from which the child returns into the copy of the running loop."
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(10)]
    forked = []

    def act(protocol):
        if not forked:
            forked.append(protocol)
            fork()

    protocols = [(await loop.create_connection(lambda: make(**{method: act}), sock=a))[1]
                 for a, _ in pairs]
    for _, b in pairs:
        b.send(b"to all of them")
    await until(lambda: all(p.received == b"to all of them" for p in protocols))
    for _, b in pairs:
        b.close()
    for p in protocols:
        await p.lost

async def unsubmitted():
    "In a callback that has written something which the next turn would submit."
    loop = asyncio.get_running_loop()
    a, b = socket.socketpair()
    transport, protocol = await loop.create_connection(Recorder, sock=a)

    def act():
        transport.write(b"once")
        while loop.time() < began + 0.001:
            pass  # longer than a send waits for others
        fork()

    began = loop.time()
    loop.call_soon(act)
    with busy():
        await asyncio.sleep(0)
    b.setblocking(False)
    await turns(3)
    assert b.recv(100) == b"once"
    b.close()
    await protocol.lost

case = sys.argv[3]
loop = LOOPS[sys.argv[1]]()
main = {
    "task": between,
    "data_received": lambda: inside("data_received", Recorder),
    "get_buffer": lambda: inside("get_buffer", BufferedRecorder),
    "buffer_updated": lambda: inside("buffer_updated", BufferedRecorder),
    "connection_lost": lambda: inside("connection_lost", Recorder),
    "unsubmitted": unsubmitted,
}[case]
try:
    loop.run_until_complete(asyncio.wait_for(main(), 40))
except RuntimeError as error:
    if os.getpid() == parent:
        raise
    assert "belongs to process" in str(error), error
    gc.collect()
    os._exit(0)
except BaseException:
    traceback.print_exc()
    os._exit(1)
loop.close()
assert statuses == [0], statuses
"""


@pytest.mark.parametrize(
    "case",
    ["task", "data_received", "get_buffer", "buffer_updated", "connection_lost", "unsubmitted"],
)
@pytest.mark.parametrize("kind", ALL)
def test_fork_with_open_connections(kind, case):
    """The child cannot use them and does not crash; the parent notices nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, kind, os.path.dirname(__file__), case],  # noqa: PTH120 - text is wanted
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# -- garbage -----------------------------------------------------------------------------------


@families
@every_loop(kinds=ALL)
async def test_collected_only_when_nothing_is_awaited(family):
    """A transport nobody refers to lives as long as its peer may say something."""
    loop = asyncio.get_running_loop()
    one, other = socket_pair(family)
    heard = []

    class Listening(asyncio.Protocol):
        def data_received(self, data):
            heard.append(data)

        def connection_lost(self, exc):
            heard.append(exc)

    transport, _ = await loop.create_connection(Listening, sock=one)
    with busy():
        transport.write(b"in flight when it is dropped")
    gone = weakref.ref(transport)
    del transport, one, _
    gc.collect()
    assert gone() is not None
    other.setblocking(False)
    assert await receive(other, 28) == b"in flight when it is dropped"
    await send_all(other, b"hello")
    await until(lambda: heard == [b"hello"])
    gc.collect()
    other.close()
    await until(lambda: heard == [b"hello", None])
    await turns()
    gc.collect()
    assert gone() is None


# -- what the kernel still works on ------------------------------------------------------------


def fill_kernel(transport):
    """Make the socket take nothing more, behind the transport's back; how much it took."""
    taken = 0
    with socket.socket(fileno=os.dup(transport._sock_fd)) as sock:
        sock.setblocking(False)
        for size in (1 << 16, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    taken += sock.send(bytes(size))
    return taken


def in_flight():
    """Sends that the ring was given since the loop was made."""
    return asyncio.get_running_loop().stats()["operations"].get("send", 0)


@families
@pytest.mark.parametrize("call", ["abort", "close", "drained"])
@every_loop(kinds=RINGS)
async def test_send_in_flight_keeps_its_bytes(family, call):
    """The kernel reads from the very object until its completion, and not longer."""
    loop = asyncio.get_running_loop()
    one, other = socket_pair(family)
    if family == "unix":
        small_buffers(one, other)
    other.setblocking(False)
    transport, protocol = await loop.create_connection(Recorder, sock=one)
    filled = fill_kernel(transport)
    data = random.Random(1).randbytes(5000)
    references = sys.getrefcount(data)
    before = in_flight()
    with busy():
        transport.write(data)
    assert in_flight() == before + 1
    assert sys.getrefcount(data) > references
    await turns(3)
    assert sys.getrefcount(data) > references
    assert transport.get_write_buffer_size() == len(data)
    if call == "abort":
        transport.abort()
        assert transport.get_write_buffer_size() == 0
        assert sys.getrefcount(data) > references
        assert await protocol.lost is None
        await until(lambda: sys.getrefcount(data) == references, "the end of the send")
        got = await receive_to_the_end(other)
        assert got == bytes(filled) + data[: len(got) - filled]
    else:
        if call == "close":
            transport.close()
            assert sys.getrefcount(data) > references
        assert await receive(other, filled + len(data)) == bytes(filled) + data
        await until(lambda: sys.getrefcount(data) == references, "the end of the send")
        if call == "drained":
            assert transport.get_write_buffer_size() == 0
            transport.close()
        assert await protocol.lost is None
        assert not other.recv(1)
    other.close()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("closed", [False, True], ids=["forgotten", "closed"])
def test_loop_let_go_with_work_in_flight(kind, closed):
    """Loop, transports and protocols are collected together; sends and receives are under way."""

    async def begin(pairs):
        loop = asyncio.get_running_loop()
        for one, _ in pairs:
            transport, protocol = await loop.create_connection(Recorder, sock=one)
            protocol.loop = loop  # a cycle
            fill_kernel(transport)
            with busy():
                transport.write(b"never read " * 100)
        await turns(2)

    pairs = [socket_pair("unix") for _ in range(20)]
    others = [other for _, other in pairs]
    loop = LOOPS[kind]()
    loop.run_until_complete(begin(pairs))
    assert len(transports()) == 20
    gone = weakref.ref(loop)
    with unclosed():  # whose warnings refer to what they are about
        if closed:
            loop.close()
        pairs.clear()
        alive.clear()
        del loop
        gc.collect()
    gc.collect()
    assert gone() is None
    assert not transports()
    for other in others:
        other.close()
