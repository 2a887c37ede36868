"""Thousands of each primitive: no reference and no memory may pile up."""

import asyncio
import contextlib
import contextvars
import gc
import os
import socket
import sys
import threading
import tracemalloc
from io import FileIO

import pytest

from aiounify._core.reactor import NopOp, ReadOp

ROUNDS = 2000


class Thing:
    """A callable whose references can be counted."""

    def __call__(self, *args):
        return None


def run_ready(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


def call_soon(loop, thing, pipe):
    loop.call_soon(thing, thing)
    loop.call_soon(thing, *[thing] * 5)
    run_ready(loop)


def call_soon_in_a_context(loop, thing, pipe):
    context = contextvars.copy_context()
    loop.call_soon(thing, thing, context=context)
    run_ready(loop)


def cancelled(loop, thing, pipe):
    loop.call_soon(thing, thing).cancel()
    loop.call_later(1000, thing, thing).cancel()
    run_ready(loop)


def refused(loop, thing, pipe):
    for call in (
        lambda: loop.call_soon(thing, thing, wrong=thing),
        lambda: loop.call_later("x", thing),
        lambda: loop.call_at(float("nan"), thing),
        lambda: loop.call_soon(thing, context=thing),
        lambda: loop.add_reader(-1, thing, thing),
        lambda: loop.add_reader(10**6, thing, thing),
        lambda: loop.create_task(thing),
    ):
        with pytest.raises((TypeError, ValueError, OSError)):
            call()


def timers(loop, thing, pipe):
    loop.call_later(0, thing, thing)
    loop.call_at(0, thing, *[thing] * 5)
    run_ready(loop)
    run_ready(loop)


def threadsafe(loop, thing, pipe):
    loop.call_soon_threadsafe(thing, thing)
    run_ready(loop)


def readers(loop, thing, pipe):
    r, w = pipe
    loop.add_reader(r, thing, thing)
    loop.add_reader(r, thing, *[thing] * 5)
    loop.add_writer(w, thing, thing)
    run_ready(loop)
    loop.remove_reader(r)
    loop.remove_writer(w)


def exceptions(loop, thing, pipe):
    def raising(thing):
        raise LookupError(thing)

    loop.set_exception_handler(thing)
    loop.call_soon(raising, thing)
    loop.call_later(0, raising, thing)
    run_ready(loop)
    run_ready(loop)


def fatal_exceptions(loop, thing, pipe):
    def raising(thing):
        raise KeyboardInterrupt(thing)

    loop.call_soon(raising, thing)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()


def operations(loop, thing, pipe):
    loop._submit(NopOp(), thing)
    op = ReadOp(pipe[0], 100)
    loop._submit(op, thing)
    run_ready(loop)
    loop._cancel(op)
    while not op.finished:
        run_ready(loop)
    run_ready(loop)


def tasks(loop, thing, pipe):
    async def work():
        await asyncio.sleep(0)
        return thing

    async def main():
        await asyncio.gather(work(), loop.create_task(work(), name="x"))

    loop.run_until_complete(main())


def futures(loop, thing, pipe):
    future = loop.create_future()
    future.add_done_callback(thing)
    future.set_result(thing)
    run_ready(loop)


def handles_kept_and_shown(loop, thing, pipe):
    handle, timer = loop.call_soon(thing, thing), loop.call_later(0, thing, thing)
    for each in (handle, timer):
        assert repr(each)
        assert each._args
        assert each._callback is thing
        assert each.get_context() is not None
        assert each._loop is loop
    assert hash(timer) is not None
    assert timer == timer
    assert len(list(loop._ready)) == 1
    assert loop._scheduled[0] is timer
    run_ready(loop)
    run_ready(loop)


def debug_mode(loop, thing, pipe):
    loop.set_debug(True)
    handle = loop.call_soon(thing, thing)
    loop.call_soon(thing, thing).cancel()
    assert repr(handle)
    run_ready(loop)
    loop.set_debug(False)


def sockets(loop, thing, pipe):
    async def main():
        a, b = socket.socketpair()
        with a, b:
            a.setblocking(False)
            b.setblocking(False)
            receiving = loop.create_task(loop.sock_recv(a, 10))
            await asyncio.sleep(0)
            await loop.sock_sendall(b, b"x")
            await receiving

    loop.run_until_complete(main())


def socket_calls(loop, thing, pipe):
    """Given up, failed, ended and dropped in every state."""

    class Data(bytearray):
        pass

    async def wait_in_vain(call):
        task = loop.create_task(call)
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def main():
        a, b = socket.socketpair()
        with a, b, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for sock in (a, b, udp):
                sock.setblocking(False)
            udp.bind(("127.0.0.1", 0))
            name = udp.getsockname()
            for _ in range(3):
                await wait_in_vain(loop.sock_recv(a, 10))
                await wait_in_vain(loop.sock_recv_into(a, Data(10)))
                await wait_in_vain(loop.sock_recvfrom_into(udp, Data(10)))
            await asyncio.gather(loop.sock_recv(a, 10), loop.sock_sendall(b, Data(b"x")))
            await asyncio.gather(loop.sock_recvfrom(udp, 10), loop.sock_sendto(udp, b"x", name))
            loop.sock_recv(a, thing).close()
            for call in (loop.sock_recv(a, thing), loop.sock_sendall(a, thing)):
                with contextlib.suppress(TypeError):
                    await call
            call = loop.sock_recv(a, 10)
            assert call.send(None) is call.cr_await
            del call
            call = loop.sock_recv(a, 10)
            with contextlib.suppress(LookupError):
                call.throw(LookupError(thing))
            await wait_in_vain(loop.sock_sendall(a, Data(1 << 20)))
            del call

    loop.run_until_complete(main())


def connections(loop, thing, pipe):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            listener.setblocking(False)
            client.setblocking(False)
            accepting = loop.create_task(loop.sock_accept(listener))
            await loop.sock_connect(client, listener.getsockname())
            sock, _ = await accepting
            with sock:
                await asyncio.gather(loop.sock_recv(sock, 1 << 18), loop.sock_sendall(client, b"x"))

    loop.run_until_complete(main())


def pipes(loop, thing, pipe):
    """One that ends well, one whose reader goes, one that is aborted: small and bulk reads."""

    class Protocol(asyncio.Protocol):
        def __init__(self):
            self.lost = loop.create_future()
            self.thing = thing

        def connection_lost(self, exc):
            self.lost.set_result(None)

    async def main():
        for end in ("close", "reader", "abort"):
            r, w = os.pipe()
            reader, p = await loop.connect_read_pipe(Protocol, FileIO(r, "r"))
            writer, q = await loop.connect_write_pipe(Protocol, FileIO(w, "w"))
            for size in (1, 1000, 200_000, 1000):
                writer.write(bytes(size))
                await asyncio.sleep(0)
            reader.pause_reading()
            writer.writelines([b"x" * 20_000, bytearray(5)])
            with pytest.raises(AssertionError):
                writer.write(thing)
            reader.resume_reading()
            if end == "reader":
                reader.close()
            else:
                getattr(writer, end)()
            await p.lost
            await q.lost

    loop.run_until_complete(main())


def pipes_refused(loop, thing, pipe):
    async def main():
        with FileIO(os.devnull, "w") as null:
            fd = os.open(__file__, os.O_RDONLY)
            with FileIO(fd, "r") as file:
                for connect in (loop.connect_read_pipe, loop.connect_write_pipe):
                    with pytest.raises(ValueError, match="Pipe transport"):
                        await connect(asyncio.Protocol, file)
            writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, null)
            writer.write(b"x")
            writer.close()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    loop.run_until_complete(main())


def looked_at(loop, thing, pipe):
    assert loop.stats()
    assert repr(loop)
    assert loop.time()
    assert loop._watchers(pipe[0]) == (None, None, None)
    assert loop._selector.get_map() is not None


CASES = [
    call_soon,
    call_soon_in_a_context,
    cancelled,
    refused,
    timers,
    threadsafe,
    readers,
    exceptions,
    fatal_exceptions,
    operations,
    tasks,
    futures,
    handles_kept_and_shown,
    debug_mode,
    sockets,
    socket_calls,
    connections,
    pipes,
    pipes_refused,
    looked_at,
]


SLOW = (sockets, connections, pipes, pipes_refused, debug_mode, refused)


@pytest.fixture
def pipe():
    r, w = os.pipe2(os.O_NONBLOCK)
    yield r, w
    os.close(r)
    os.close(w)


def counts(loop, thing):
    gc.collect()
    singletons = (None, loop, thing, type(thing), asyncio.Handle, asyncio.TimerHandle)
    return [sys.getrefcount(each) for each in singletons]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_references(loop, case, pipe):
    """The same counts after thousands of rounds as after a few."""
    thing = Thing()
    for _ in range(20):
        case(loop, thing, pipe)
    before = counts(loop, thing)
    for _ in range(500):
        case(loop, thing, pipe)
    after = counts(loop, thing)
    # the interpreter's own caches may come to hold a few; 500 rounds would hold hundreds
    assert [b for a, b in zip(before, after, strict=True) if abs(b - a) > 50] == []


@pytest.mark.plain_memory
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_memory(loop, case, pipe):
    """Less than eight bytes for each round, by Python's own allocators: no object is that small."""
    thing = Thing()
    for _ in range(200):
        case(loop, thing, pipe)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(500):  # what was in the freelists before is not counted
            case(loop, thing, pipe)
        rounds = ROUNDS if case not in SLOW else ROUNDS // 4
        for _ in range(3):  # a table that grew once does so no more; what leaks goes on
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(rounds):
                case(loop, thing, pipe)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
            if after - before < 8 * rounds:
                break
    finally:
        tracemalloc.stop()
    assert after - before < 8 * rounds


@pytest.mark.plain_memory
def test_resident_memory_of_a_long_run(loop):
    """A million callbacks and timers, set in bursts: the process stays as large as it was."""

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def burst():
        for _ in range(5000):
            loop.call_soon(int)
            loop.call_later(0, int)
            loop.call_later(1000, int).cancel()
        run_ready(loop)
        run_ready(loop)

    for _ in range(10):
        burst()
    before = resident()
    for _ in range(60):
        burst()
    assert resident() - before < 3_000_000  # 900,000 handles of 144 bytes would be 130 MB


def test_freelists_stay_within_their_bounds(loop):
    """Handles freed by another thread than the loop's are no exception."""

    def make_and_drop():
        for _ in range(3000):
            loop.call_soon_threadsafe(int).cancel()

    tracemalloc.start()
    try:
        make_and_drop()
        run_ready(loop)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5):
            threads = [threading.Thread(target=make_and_drop) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            run_ready(loop)
        del threads, thread
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1_500_000  # the ready ring has grown to 16,384 places
