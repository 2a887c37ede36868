"""Callbacks that never stop coming must not keep events, threads or signals away."""

import asyncio
import os
import signal
import socket
import threading
import time
from io import FileIO

import pytest

from aiounify._core.reactor import NopOp, ReadOp

pytestmark = pytest.mark.every_reactor


@pytest.fixture(params=["python", "c", "tasks"])
def busy(request):
    """Makes a loop endlessly busy; the returned function ends it."""

    def start(loop):
        going = True

        if request.param == "tasks":

            async def spin():
                while going:  # noqa: ASYNC110 - it is to be busy
                    await asyncio.sleep(0)

            tasks = [loop.create_task(spin()) for _ in range(5)]
        elif request.param == "python":

            def spin():
                if going:
                    loop.call_soon(spin)

            for _ in range(5):
                loop.call_soon(spin)
            tasks = []
        else:  # a callback that is native code: no bytecode runs between turns
            again = Again(loop)
            tasks = []

        def stop():
            nonlocal going
            going = False
            if request.param == "c":
                again.end()
            return tasks

        return stop

    return start


class Again:
    """loop.call_soon(loop.call_soon, loop.call_soon, ...): a long chain that is all C."""

    def __init__(self, loop):
        self.loop, self.going = loop, True
        self.more()

    def more(self):
        if self.going:
            args = [self.loop.call_soon] * 2000
            self.loop.call_soon(*args, self.more)

    def end(self):
        self.going = False


async def end(stop):
    for task in stop():
        await task
    await asyncio.sleep(0)


async def test_timers_fire(busy):
    loop = asyncio.get_running_loop()
    stop = busy(loop)
    for delay in (0, 0.0001, 0.001, 0.01):
        done = loop.create_future()
        loop.call_later(delay, done.set_result, None)
        await asyncio.wait_for(done, 20)
    await end(stop)


async def test_descriptors_are_served(busy):
    loop = asyncio.get_running_loop()
    stop = busy(loop)
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        for i in range(100):
            receiving = asyncio.create_task(loop.sock_recv(a, 10))
            await asyncio.sleep(0)
            b.send(b"%d" % i)
            assert await asyncio.wait_for(receiving, 20) == b"%d" % i
    await end(stop)


async def test_descriptor_waits_few_turns():
    """Turns without a system call take a fraction of a microsecond, and 50 of those are enough."""
    loop = asyncio.get_running_loop()
    r, w = os.pipe()
    seen = []
    loop.add_reader(r, lambda: seen.append(loop.stats()["turns"]))
    most = 0
    for _ in range(50):
        await asyncio.sleep(0)
        seen.clear()
        os.write(w, b"x")
        before = loop.stats()["turns"]
        for _ in range(2000):
            if seen:
                break
            await asyncio.sleep(0)
        assert seen
        most = max(most, seen[0] - before)
        os.read(r, 1)
    loop.remove_reader(r)
    os.close(r)
    os.close(w)
    assert most < 1000


async def test_other_threads_get_on(busy):
    loop = asyncio.get_running_loop()
    counted, stopped = [0], threading.Event()

    def count():
        while not stopped.is_set():
            counted[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    stop = busy(loop)
    thread.start()
    deadline = time.monotonic() + 20
    while counted[0] < 100 and time.monotonic() < deadline:  # noqa: ASYNC110 - busy
        await asyncio.sleep(0)
    stopped.set()
    await end(stop)
    thread.join()
    assert counted[0] >= 100


async def test_other_threads_reach_the_loop(busy):
    loop = asyncio.get_running_loop()
    stop = busy(loop)
    for _ in range(20):
        assert await asyncio.wait_for(loop.run_in_executor(None, threading.get_ident), 20)
    await end(stop)


async def test_signals_get_through(busy):
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.add_signal_handler(signal.SIGUSR1, lambda: done.done() or done.set_result(None))
    stop = busy(loop)
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(done, 20)
    loop.remove_signal_handler(signal.SIGUSR1)
    await end(stop)


def test_ctrl_c_ends_a_chain_of_native_callbacks(run_program, backend):
    """Nothing but C runs: Python's flag has to be looked at by the loop itself."""
    run_program("native_chain", backend, timeout=30)


async def test_children_are_reaped(busy):
    loop = asyncio.get_running_loop()
    stop = busy(loop)
    process = await asyncio.wait_for(asyncio.create_subprocess_exec("true"), 20)
    assert await asyncio.wait_for(process.wait(), 20) == 0
    await end(stop)


async def test_busy_descriptors_do_not_starve_callbacks_or_timers():
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(50)]
    for a, _ in pairs:
        loop.add_writer(a, int)
    seen = []
    loop.call_later(0.001, seen.append, "timer")
    for _ in range(100):
        await asyncio.sleep(0)
    await asyncio.sleep(0.002)
    assert seen == ["timer"]
    for a, b in pairs:
        loop.remove_writer(a)
        a.close()
        b.close()


async def test_busy_connections_do_not_starve_callbacks_or_timers():
    """Protocols that answer each other while their data is delivered, without an end."""
    loop = asyncio.get_running_loop()
    messages = 0

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
            self.lost = loop.create_future()

        def data_received(self, data):
            nonlocal messages
            messages += 1
            for _ in range(1000):  # slow, so that sends have to be submitted meanwhile
                pass
            if messages < 100_000:
                self.transport.write(data)

        def connection_lost(self, exc):
            self.lost.set_result(exc)

    protocols = []
    for _ in range(20):
        for sock in socket.socketpair():
            _, protocol = await loop.create_connection(Echo, sock=sock)
            protocols.append(protocol)
    for protocol in protocols:
        protocol.transport.write(b"ball")
    for _ in range(5):
        await asyncio.sleep(0.001)
        await asyncio.sleep(0)
    heard = messages
    for protocol in protocols:
        protocol.transport.abort()
        await protocol.lost
    assert 0 < heard < 100_000


async def test_descriptor_that_is_always_ready_keeps_nothing_away():
    """Neither operations, nor timers, nor other threads, nor signals; one after the other,
    so that none of them helps another."""
    loop = asyncio.get_running_loop()
    always, other = os.pipe(), os.pipe()
    os.write(always[1], b"x")
    seen, looks = [], 0
    done = loop.create_future()

    def in_thread(function, *args):
        threads.append(threading.Thread(target=function, args=args))
        threads[-1].start()

    threads = []
    kinds = {
        "submitted": lambda: loop._submit(NopOp(), lambda op: seen.append("submitted")),
        "operation": lambda: loop._submit(ReadOp(other[0], 1), lambda op: seen.append("operation")),
        "timer": lambda: loop.call_later(0.001, seen.append, "timer"),
        "thread": lambda: in_thread(loop.call_soon_threadsafe, seen.append, "thread"),
        "signal": lambda: in_thread(os.kill, os.getpid(), signal.SIGUSR1),
    }
    order = list(kinds)

    def ready():
        nonlocal looks
        looks += 1
        if looks % 100:
            return  # the loop has time to find out that this is ready at every look
        if seen == list(kinds):
            done.set_result(loop.remove_reader(always[0]))
        elif len(seen) == len(kinds) - len(order):
            kinds[order.pop(0)]()
        elif len(seen) == 1:
            os.write(other[1], b"y")

    loop.add_signal_handler(signal.SIGUSR1, seen.append, "signal")
    loop.add_reader(always[0], ready)
    try:
        async with asyncio.timeout(20):
            await done
    except TimeoutError:
        pytest.fail(f"{list(kinds)[len(seen)]} was kept away")
    finally:
        loop.remove_reader(always[0])
        loop.remove_signal_handler(signal.SIGUSR1)
        for thread in threads:
            thread.join()
        for fd in (*always, *other):
            os.close(fd)


async def test_pipes_that_answer_each_other_keep_nothing_away():
    """Each byte that is read is written again, by a write inside the look at the kernel: there is
    always something to read, and the loop never has to wait."""
    loop = asyncio.get_running_loop()
    other = os.pipe()
    seen, rounds = [], 0

    class Ball(asyncio.Protocol):
        def __init__(self):
            self.lost = loop.create_future()

        def data_received(self, data):
            nonlocal rounds
            rounds += 1
            self.writer.write(data)

        def connection_lost(self, exc):
            self.lost.set_result(exc)

    async def until(condition):
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - turns are what is needed
                await asyncio.sleep(0)

    pairs = []
    for _ in range(3):
        r, w = os.pipe()
        reader, ball = await loop.connect_read_pipe(Ball, FileIO(r, "r"))
        ball.writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, FileIO(w, "w"))
        ball.writer.write(b"ball")
        pairs.append((reader, ball))
    await until(lambda: rounds > 1000)
    loop._submit(NopOp(), lambda op: seen.append("submitted"))
    await until(lambda: "submitted" in seen)
    loop._submit(ReadOp(other[0], 1), lambda op: seen.append("operation"))
    os.write(other[1], b"y")
    await until(lambda: "operation" in seen)
    loop.add_signal_handler(signal.SIGUSR1, seen.append, "signal")
    os.kill(os.getpid(), signal.SIGUSR1)
    await until(lambda: "signal" in seen)
    loop.remove_signal_handler(signal.SIGUSR1)
    thread = threading.Thread(
        target=loop.call_soon_threadsafe, args=(seen.append, "thread"), daemon=True
    )
    thread.start()
    await until(lambda: "thread" in seen)
    thread.join()
    loop.call_later(0.001, seen.append, "timer")
    await until(lambda: "timer" in seen)
    for reader, ball in pairs:
        reader.close()
        await ball.lost
        ball.writer.abort()
    for fd in other:
        os.close(fd)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_clients_that_come_as_fast_as_they_are_accepted():
    """Each connection that is accepted brings the next: the rest of the loop has its turns."""
    loop, brought, tasks = asyncio.get_running_loop(), [], 0

    class Server(asyncio.Protocol):
        def connection_made(self, transport):
            time.sleep(0.002)  # more than one turn accepts for
            if len(brought) < 400:
                bring()
            transport.close()

    server = await loop.create_server(Server, "127.0.0.1", 0, backlog=1000)
    address = server.sockets[0].getsockname()

    def bring():
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(address)
        brought.append(sock)

    bring()
    bring()
    while len(brought) < 400:
        tasks += 1
        await asyncio.sleep(0)
    # one connection a turn; with the limit of asyncio's loop it would be all in one
    assert tasks > 100
    server.close()
    await server.wait_closed()
    for sock in brought:
        sock.close()
