"""From making a loop to closing it: twice, with work in flight, never, a thousand times."""

import asyncio
import gc
import os
import socket
import threading
import weakref

import pytest
from conftest import SANITIZED

import aiounify
from aiounify._core.reactor import NopOp, ReadOp


def run_ready(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


def descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


# -- closing -----------------------------------------------------------------------


def test_closing_twice(loop_factory):
    loop = loop_factory()
    loop.close()
    loop.close()
    assert loop.is_closed()
    assert not loop.is_running()


@pytest.mark.parametrize("ran", [False, True])
def test_closed_loop_refuses_work(loop_factory, ran):
    loop = loop_factory()
    if ran:
        run_ready(loop)
    loop.close()
    coroutine = asyncio.sleep(0)
    with socket.socket() as sock:
        for call in (
            lambda: loop.call_soon(print),
            lambda: loop.call_soon_threadsafe(print),
            lambda: loop.call_later(1, print),
            lambda: loop.call_at(1, print),
            lambda: loop.create_task(coroutine),
            lambda: loop.run_forever(),
            lambda: loop.run_in_executor(None, print),
            lambda: loop.add_reader(sock, print),
            lambda: loop.add_writer(sock, print),
            lambda: loop.add_priority(sock, print),
            lambda: loop._submit(NopOp(), print),
        ):
            with pytest.raises(RuntimeError, match="Event loop is closed"):
                call()
        assert loop.remove_reader(sock) is False
        assert loop.remove_writer(sock) is False
        assert loop.remove_priority(sock) is False
    coroutine.close()
    assert loop.stats()["ready"] == 0
    assert loop.time() > 0
    loop._cancel(NopOp())


async def test_running_loop_cannot_be_closed():
    loop = asyncio.get_running_loop()
    with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
        loop.close()
    assert not loop.is_closed()
    await asyncio.sleep(0)


async def test_running_loop_cannot_be_run_again():
    loop = asyncio.get_running_loop()
    with pytest.raises(RuntimeError, match="This event loop is already running"):
        loop.run_forever()
    assert loop.is_running()


async def test_second_loop_in_the_thread_is_refused(loop_factory):
    other = loop_factory()
    coroutine = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="while another loop is running"):
        other.run_until_complete(coroutine)
    with pytest.raises(RuntimeError, match="while another loop is running"):
        other.run_forever()
    assert not other.is_running()
    assert asyncio.get_running_loop() is not other
    coroutine.close()
    other.close()
    await asyncio.sleep(0)
    gc.collect()


def test_loop_running_elsewhere_cannot_be_run_or_closed_here(loop):
    running = threading.Event()
    thread = threading.Thread(target=loop.run_forever)
    loop.call_soon(running.set)
    thread.start()
    running.wait()
    for call in (loop.run_forever, loop.close):
        with pytest.raises(RuntimeError, match="running"):
            call()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_closing_with_everything_in_flight(loop_factory):
    """Callbacks, timers, watchers, operations, tasks: none of them runs, all are let go."""

    class Marker:
        def __call__(self, *args):
            pytest.fail("ran after close()")

    marker = Marker()
    gone = weakref.ref(marker)
    loop = loop_factory()
    run_ready(loop)
    r, w = os.pipe2(os.O_NONBLOCK)
    loop.call_soon(marker)
    loop.call_soon(marker, *range(9))
    loop.call_later(0, marker)
    loop.call_later(1000, marker)
    loop.add_reader(r, marker)
    loop.add_writer(w, marker)
    reading = loop._submit(ReadOp(r, 100), marker)
    loop._submit(NopOp(), marker)
    loop.close()
    assert not reading.in_flight
    del marker
    gc.collect()
    assert gone() is None
    os.write(w, b"x")
    assert os.read(r, 10) == b"x"  # nobody else reads it
    os.close(r)
    os.close(w)


@pytest.mark.parametrize("ran", [False, True], ids=["never ran", "ran"])
@pytest.mark.parametrize("where", ["here", "in another thread"])
def test_closed_loop_with_operations_in_flight_is_freed(loop_factory, ran, where):
    loop = loop_factory()
    gone = weakref.ref(loop)
    r, w = os.pipe2(os.O_NONBLOCK)

    def use(loop):
        if ran:
            run_ready(loop)
        loop._submit(ReadOp(r, 100), lambda op: None)
        if ran:
            run_ready(loop)

    if where == "here":
        use(loop)
    else:
        thread = threading.Thread(target=use, args=(loop,))
        thread.start()
        thread.join()
        del thread
    loop.close()
    del loop
    gc.collect()
    assert gone() is None
    os.close(r)
    os.close(w)


def test_closing_gives_every_descriptor_back(loop_factory):
    before = descriptors()
    loop = loop_factory()
    assert descriptors() > before
    run_ready(loop)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    loop.close()
    assert descriptors() == before


def test_closing_leaves_descriptors_of_others_alone(loop_factory):
    """... also when they got the numbers of those that were closed."""
    loop = loop_factory()
    loop.close()
    pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(10)]
    loop.close()
    del loop
    gc.collect()
    for r, w in pipes:
        os.write(w, b"x")
        assert os.read(r, 1) == b"x"
        os.close(r)
        os.close(w)


# -- never closed -----------------------------------------------------------------------


@pytest.mark.parametrize("ran", [False, True])
def test_loop_never_closed_warns_and_frees(loop_factory, ran):
    before = descriptors()
    loop = loop_factory()
    if ran:
        run_ready(loop)
    gone = weakref.ref(loop)
    with pytest.warns(ResourceWarning, match="unclosed event loop <EventLoop|<PollLoop"):
        del loop
        gc.collect()
    assert gone() is None
    assert descriptors() == before


@pytest.mark.parametrize("what", ["callback", "timer", "reader", "own handle", "own timer", "task"])
def test_cycle_through_the_loop_is_collected(loop_factory, what):
    """What the loop holds refers back to it: the collector has to see through all of it."""
    before = descriptors()
    loop = loop_factory()
    fds = ()

    class Holder:
        def callback(self):
            pass

    holder = Holder()
    holder.loop = loop
    if what == "callback":
        loop.call_soon(holder.callback)
        loop.call_soon(print, holder, 1, 2, 3, 4)
    elif what == "timer":
        loop.call_later(1000, holder.callback)
    elif what == "reader":
        fds = os.pipe2(os.O_NONBLOCK)
        loop.add_reader(fds[0], holder.callback)
    elif what == "own handle":
        holder.handle = loop.call_soon(holder.callback)
    elif what == "own timer":
        holder.handle = loop.call_later(1000, holder.callback)
    else:

        async def wait(holder):
            await asyncio.sleep(1000)

        holder.task = loop.create_task(wait(holder))
        run_ready(loop)
        loop.set_exception_handler(lambda *_: None)  # the task is destroyed while pending
    gone = weakref.ref(loop), weakref.ref(holder)
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        del loop, holder
        gc.collect()
    assert [ref() for ref in gone] == [None, None]
    for fd in fds:
        os.close(fd)
    assert descriptors() == before


def test_collected_while_finalisers_use_the_loop(loop_factory):
    """Code that runs while the cycle is taken apart may still talk to the loop."""
    seen = []

    class Holder:
        def __init__(self, loop):
            self.loop, self.me = loop, self

        def __del__(self):
            seen.append(self.loop.is_closed())
            seen.append(self.loop.get_debug())
            try:
                self.loop.call_soon(print)
                self.loop.call_later(1, print).cancel()
            except RuntimeError:
                pass
            seen.append(repr(self.loop) and len(self.loop._ready))

    for _ in range(20):
        loop = loop_factory()
        holder = Holder(loop)
        loop.call_soon(print, holder)
        loop.call_later(1000, print, holder)
        loop.holder = holder
        with pytest.warns(ResourceWarning, match="unclosed event loop"):
            del loop, holder
            gc.collect()
    assert len(seen) == 60


# -- again and again -----------------------------------------------------------------------


def test_a_thousand_loops(loop_factory):
    """Made, run and closed in a row: no descriptor, no thread, and hardly a byte is left."""

    def one():
        loop = loop_factory()
        loop.call_later(1000, print)
        loop.add_reader(loop._ssock, loop._read_from_self)
        run_ready(loop)
        loop.close()

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    for _ in range(100):
        one()
    gc.collect()
    fds, threads, memory = descriptors(), threading.active_count(), resident()
    for _ in range(1000):
        one()
    gc.collect()
    assert descriptors() == fds
    assert threading.active_count() == threads
    # a kilobyte a loop would be a leak; a ring alone is 80 times that
    if not SANITIZED:
        assert resident() - memory < 1000 * 1024


def test_run_a_hundred_times(loop_factory):
    async def main(i):
        await asyncio.sleep(0)
        return i

    before = descriptors()
    for i in range(100):
        assert aiounify.run(main(i), loop_factory=loop_factory) == i
    assert descriptors() == before


def test_run_until_complete_many_times_on_one_loop(loop):
    async def main(i):
        await asyncio.sleep(0)
        return i

    for i in range(300):
        assert loop.run_until_complete(main(i)) == i


def test_stopped_before_it_runs(loop):
    seen = []
    loop.call_soon(seen.append, 1)
    loop.stop()
    loop.run_forever()
    assert seen == [1]
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_run_until_complete_of_a_loop_that_is_stopped(loop):
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        loop.run_until_complete(future)


# -- threads -------------------------------------------------------------------------------


def in_thread(function):
    failures = []

    def run():
        try:
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def use(loop):
    """Turns, timers, a descriptor: something of everything."""

    async def main():
        a, b = socket.socketpair()
        with a, b:
            a.setblocking(False)
            receiving = asyncio.create_task(loop.sock_recv(a, 10))
            await asyncio.sleep(0.001)
            b.send(b"x")
            assert await receiving == b"x"
        await loop.run_in_executor(None, int)

    loop.run_until_complete(main())


def test_one_thread_after_the_other(loop):
    """A loop may move to another thread between two runs; its watchers go with it."""
    r, w = os.pipe2(os.O_NONBLOCK)
    seen = []

    def read():
        seen.append(os.read(r, 1))
        loop.stop()

    loop.add_reader(r, read)
    for _ in range(3):
        in_thread(lambda: use(loop))
        use(loop)
        os.write(w, b"x")
        in_thread(loop.run_forever)
        os.write(w, b"y")
        loop.run_forever()
    assert seen == [b"x", b"y"] * 3
    loop.remove_reader(r)
    loop.run_until_complete(loop.shutdown_default_executor())
    os.close(r)
    os.close(w)


def test_made_here_run_there_closed_here(loop_factory):
    loop = loop_factory()
    in_thread(lambda: use(loop))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_operations_in_flight_belong_to_their_thread(loop_factory):
    """On io_uring a loop cannot move while the kernel works for it; it says so, and closes."""
    loop = loop_factory()
    r, w = os.pipe2(os.O_NONBLOCK)
    got = []

    def start():
        loop._submit(ReadOp(r, 10), lambda op: got.append(op.data))
        run_ready(loop)

    in_thread(start)
    if loop.backend == "uring":
        with pytest.raises(RuntimeError, match="operations in flight"):
            run_ready(loop)
        assert not loop.is_running()
    else:
        os.write(w, b"x")
        loop.call_later(0.002, loop.stop)
        loop.run_forever()
        assert got == [b"x"]
    loop.close()
    os.close(r)
    os.close(w)


def test_loops_in_several_threads_at_once(loop_factory):
    failures = []

    def work():
        try:
            for _ in range(5):
                loop = loop_factory()
                for _ in range(3):
                    use(loop)
                loop.run_until_complete(loop.shutdown_default_executor())
                loop.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_no_descriptors_left_for_a_loop(run_program, backend):
    run_program("emfile", backend)


def test_a_busy_process_keeps_no_connections(run_program, backend):
    run_program("shared_listener", backend)


def test_end_of_the_interpreter(run_program, backend):
    """A loop that is alive, or runs, when the interpreter ends must not crash it."""
    done = run_program("exit_with_loop", backend, options=("-X", "dev"))
    assert done.stdout == "end\n"
