"""Operations through the reactor: completion, cancellation, full and overflowing rings."""

import asyncio
import contextlib
import errno
import gc
import itertools
import os
import random
import signal
import socket
import sys
import weakref

import pytest
from conftest import NO_URING

import aiounify
from aiounify._core.reactor import NopOp, ReadOp
from aiounify._core.uring import UringReactor, probe

pytestmark = pytest.mark.every_reactor
needs_uring = pytest.mark.skipif(bool(NO_URING), reason=f"io_uring: {NO_URING}")


class TinyLoop(aiounify.EventLoop):
    """Eight entries to submit, sixteen to complete: both are full all the time."""

    def _make_reactor(self, backend, forced):
        return UringReactor(self._backlog, entries=8, cq_entries=16)


@pytest.fixture
def tiny():
    loop = TinyLoop("uring")
    yield loop
    loop.close()


@pytest.fixture
def pipe():
    r, w = os.pipe2(os.O_NONBLOCK)
    yield r, w
    for fd in (r, w):
        try:
            os.close(fd)
        except OSError:
            continue


@pytest.fixture
def pairs():
    """Many more than a tiny ring holds."""
    with contextlib.ExitStack() as stack:
        pairs = [tuple(map(stack.enter_context, socket.socketpair())) for _ in range(300)]
        for a, _ in pairs:
            a.setblocking(False)
        yield pairs


def run_for(loop, seconds=0.002):
    loop.call_later(seconds, loop.stop)
    loop.run_forever()


async def finish(loop, op):
    """Submit and wait; the operation."""
    done = loop.create_future()
    loop._submit(op, done.set_result)
    assert await done is op
    assert op.finished
    assert not op.in_flight
    return op


# -- one operation ------------------------------------------------------------------------


async def test_nop():
    op = NopOp()
    assert not op.in_flight
    assert not op.finished
    await finish(asyncio.get_running_loop(), op)
    assert op.result == 0


async def test_callback_never_runs_inside_submit(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    os.write(w, b"x")
    seen = []
    for op in (NopOp(), ReadOp(r, 10)):
        loop._submit(op, seen.append)
        assert seen == []
        assert op.in_flight
        assert not op.finished
        await asyncio.sleep(0.005)
        assert seen.pop() is op


async def test_read_of_what_is_there(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    os.write(w, b"hello")
    op = await finish(loop, ReadOp(r, 100))
    assert (op.result, op.data, op.fd) == (5, b"hello", r)


async def test_read_of_what_comes_later(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    op, done = ReadOp(r, 3), loop.create_future()
    loop._submit(op, done.set_result)
    await asyncio.sleep(0.002)
    assert not done.done()
    assert op.data == b""
    os.write(w, b"later")
    await done
    assert op.data == b"lat"
    assert os.read(r, 10) == b"er"


async def test_end_of_file_and_errors(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    os.close(w)
    assert (await finish(loop, ReadOp(r, 10))).result == 0
    assert (await finish(loop, ReadOp(r, 10))).data == b""
    os.close(r)
    op = await finish(loop, ReadOp(r, 10))
    assert op.result == -errno.EBADF
    assert op.data == b""


@pytest.mark.parametrize("size", [0, -1])
async def test_size_must_be_positive(size):
    with pytest.raises(ValueError, match="size must be positive"):
        ReadOp(0, size)


async def test_submitted_twice():
    loop, op = asyncio.get_running_loop(), NopOp()
    done = loop.create_future()
    loop._submit(op, done.set_result)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="once only"):
            loop._submit(op, pytest.fail)
        await asyncio.wait_for(done, 2)


async def test_refused_submission_keeps_the_first_callback(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    op, done = ReadOp(r, 10), loop.create_future()
    loop._submit(op, done.set_result)
    with pytest.raises(RuntimeError, match="once only"):
        loop._submit(op, lambda op: pytest.fail("the wrong callback"))
    os.write(w, b"x")
    assert await asyncio.wait_for(done, 2) is op


async def test_submission_lives_without_its_maker(pipe):
    """The kernel writes to the operation's memory: it must not be freed meanwhile."""
    loop, (r, w) = asyncio.get_running_loop(), pipe
    done = loop.create_future()
    loop._submit(ReadOp(r, 1000), lambda op: done.set_result(op.data))
    gc.collect()
    junk = [bytearray(1000) for _ in range(100)]
    await asyncio.sleep(0.001)
    os.write(w, b"y" * 1000)
    assert await done == b"y" * 1000
    assert junk == [bytes(1000)] * 100


async def test_exception_of_the_callback_is_reported():
    loop, reports = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, report: reports.append(report))

    def broken(op):
        raise LookupError("broken")

    loop._submit(NopOp(), broken)
    await asyncio.sleep(0.002)
    assert [str(report["exception"]) for report in reports] == ["broken"]


async def test_many_kinds_are_counted(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    os.write(w, b"x")
    before = loop.stats()["completions"]
    await finish(loop, NopOp())
    await finish(loop, ReadOp(r, 1))
    counted = loop.stats()
    assert counted["completions"] == before + 2
    assert counted["operations"]["nop"] == 1
    assert counted["operations"]["read"] == 1


def test_read_of_a_blocking_pipe(run_program, backend):
    run_program("blocking_read", backend, timeout=20)


# -- cancelling --------------------------------------------------------------------------------


async def test_cancelled_read_says_so_and_takes_nothing(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    op, done = ReadOp(r, 10), loop.create_future()
    loop._submit(op, done.set_result)
    await asyncio.sleep(0.001)
    loop._cancel(op)
    loop._cancel(op)
    await done
    assert op.result == -errno.ECANCELED
    assert op.data == b""
    os.write(w, b"kept")
    assert os.read(r, 10) == b"kept"


async def test_cancelled_before_it_reached_the_kernel(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    op, done = ReadOp(r, 10), loop.create_future()
    loop._submit(op, done.set_result)
    loop._cancel(op)
    await done
    assert op.result == -errno.ECANCELED
    os.write(w, b"kept")
    assert os.read(r, 10) == b"kept"


async def test_cancelling_what_is_finished_or_never_began():
    loop = asyncio.get_running_loop()
    op = await finish(loop, NopOp())
    loop._cancel(op)
    loop._cancel(NopOp())
    await asyncio.sleep(0.001)
    assert op.result == 0


async def test_cancelling_never_loses_data():
    """Either the read has the bytes or the pipe still has them, in every interleaving."""
    loop, rng = asyncio.get_running_loop(), random.Random(8)
    kept = lost = 0
    for i in range(400):
        r, w = os.pipe2(os.O_NONBLOCK)
        op, done = ReadOp(r, 100), loop.create_future()
        loop._submit(op, done.set_result)
        for step in rng.sample(["write", "cancel", "turn", "turn"], 4):
            if step == "write":
                os.write(w, b"%d" % i)
            elif step == "cancel":
                loop._cancel(op)
            else:
                await asyncio.sleep(0)
        await done
        if op.result > 0:
            assert op.data == b"%d" % i
            with pytest.raises(BlockingIOError):
                os.read(r, 10)
            kept += 1
        else:
            assert op.result == -errno.ECANCELED
            assert os.read(r, 100) == b"%d" % i
            lost += 1
        os.close(r)
        os.close(w)
    assert kept
    assert lost


async def test_cancelling_from_within_a_completion(pipe):
    loop = asyncio.get_running_loop()
    op, done = ReadOp(pipe[0], 10), loop.create_future()
    loop._submit(op, done.set_result)
    loop._submit(NopOp(), lambda _: loop._cancel(op))
    await done
    assert op.result == -errno.ECANCELED


async def test_several_reads_of_one_descriptor(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    seen = []
    for _ in range(5):
        loop._submit(ReadOp(r, 1), lambda op: seen.append(op.data))
    await asyncio.sleep(0.001)
    os.write(w, b"abcde")
    await asyncio.sleep(0.005)
    assert sorted(seen) == [b"a", b"b", b"c", b"d", b"e"]
    assert loop.stats()["watched"] == 1


async def test_operation_beside_a_reader(pipe):
    """A watcher and an operation share the descriptor; removing one leaves the other."""
    loop, (r, w) = asyncio.get_running_loop(), pipe
    seen, done = [], loop.create_future()
    loop.add_reader(r, seen.append, 1)
    op = ReadOp(r, 1)
    loop._submit(op, done.set_result)
    await asyncio.sleep(0.001)
    loop.remove_reader(r)
    os.write(w, b"xy")
    await done
    assert op.data == b"x"
    loop.add_reader(r, seen.append, 2)
    await asyncio.sleep(0.001)
    assert 2 in seen
    loop.remove_reader(r)


# -- closing ---------------------------------------------------------------------------------------


def test_close_reaps_what_is_in_flight(loop_factory, pipe):
    loop, (r, w) = loop_factory(), pipe
    ops = [ReadOp(r, 100) for _ in range(20)]
    for op in ops:
        loop._submit(op, pytest.fail)
    run_for(loop)
    loop.close()
    assert all(op.finished and op.result == -errno.ECANCELED for op in ops)
    os.write(w, b"x" * 200)
    assert os.read(r, 200) == b"x" * 200


def test_operations_are_freed_after_close(loop_factory, pipe):
    class Kept:
        def __call__(self, op):
            pass

    loop, callback = loop_factory(), Kept()
    gone = weakref.ref(callback)
    loop._submit(ReadOp(pipe[0], 100), callback)
    run_for(loop)
    loop.close()
    del loop, callback
    gc.collect()
    assert gone() is None


# -- full rings -----------------------------------------------------------------


@needs_uring
def test_tiny_ring_is_tiny(tiny):
    assert tiny._reactor.ring_size == (8, 16)


@needs_uring
@pytest.mark.parametrize("n", [7, 8, 9, 17, 5000])
def test_more_operations_than_both_rings_hold(tiny, n):
    seen = []

    def submit():
        for i in range(n):
            tiny._submit(NopOp(), lambda op, i=i: seen.append(i))

    tiny.call_soon(submit)
    run_for(tiny)
    for _ in range(100):
        if len(seen) == n:
            break
        run_for(tiny)
    assert sorted(seen) == list(range(n))


def test_many_submitted_before_the_first_run(loop):
    seen = []
    for i in range(1000):
        loop._submit(NopOp(), lambda op, i=i: seen.append(i))
    for _ in range(100):
        if len(seen) == 1000:
            break
        run_for(loop)
    assert sorted(seen) == list(range(1000))


@needs_uring
def test_completions_overflow_and_none_is_lost(tiny, pairs):
    """Hundreds complete at once, with nobody reaping meanwhile."""
    n, seen = len(pairs), {}

    def submit():
        for a, _ in pairs:
            tiny._submit(ReadOp(a.fileno(), 10), lambda op: seen.__setitem__(op.fd, op.data))

    tiny.call_soon(submit)
    run_for(tiny)  # all of them wait in the kernel now

    def at_once():
        for i, (_, b) in enumerate(pairs):
            b.send(b"%d" % i)

    tiny.call_soon(at_once)
    for _ in range(100):
        run_for(tiny)
        if len(seen) == n:
            break
    assert seen == {a.fileno(): b"%d" % i for i, (a, _) in enumerate(pairs)}


@needs_uring
def test_cancelling_more_than_the_ring_holds(tiny, pairs):
    ops = [ReadOp(a.fileno(), 10) for a, _ in pairs]
    tiny.call_soon(lambda: [tiny._submit(op, lambda op: None) for op in ops])
    run_for(tiny)
    tiny.call_soon(lambda: [tiny._cancel(op) for op in ops])
    for _ in range(100):
        run_for(tiny)
        if all(op.finished for op in ops):
            break
    assert [op.result for op in ops] == [-errno.ECANCELED] * len(ops)


@needs_uring
def test_closing_a_tiny_ring_with_much_in_flight(pairs):
    loop = TinyLoop("uring")
    ops = [ReadOp(a.fileno(), 10) for a, _ in pairs]
    loop.call_soon(lambda: [loop._submit(op, lambda op: None) for op in ops])
    run_for(loop)
    for _, b in pairs[::2]:
        b.send(b"x")
    loop.close()
    assert all(op.finished for op in ops)
    for op, (a, _) in zip(ops, pairs, strict=True):  # nothing was thrown away
        left = b"" if op.data else b"x" if op in ops[::2] else None
        if left:
            assert a.recv(10) == left
        else:
            with pytest.raises(BlockingIOError):
                a.recv(10)


@needs_uring
def test_everything_else_works_on_a_tiny_ring(tiny):
    """Timers, readers, other threads, while the rings are kept full."""
    seen = {"reads": 0, "nops": 0, "timers": 0, "threads": 0}
    r, w = os.pipe2(os.O_NONBLOCK)

    def read():
        os.read(r, 1)
        seen["reads"] += 1

    def count(name):
        seen[name] += 1

    def submit(left):
        for _ in range(40):
            tiny._submit(NopOp(), lambda op: count("nops"))
        os.write(w, b"x")
        tiny.call_later(0, count, "timers")
        tiny.run_in_executor(None, tiny.call_soon_threadsafe, count, "threads")
        if left:
            tiny.call_soon(submit, left - 1)

    tiny.add_reader(r, read)
    tiny.call_soon(submit, 99)
    for _ in range(200):
        run_for(tiny)
        if seen == {"reads": 100, "nops": 4000, "timers": 100, "threads": 100}:
            break
    assert seen == {"reads": 100, "nops": 4000, "timers": 100, "threads": 100}
    tiny.remove_reader(r)
    tiny.run_until_complete(tiny.shutdown_default_executor())
    os.close(r)
    os.close(w)


async def test_thousands_of_nops():
    loop, n = asyncio.get_running_loop(), 20_000
    left, done = n, loop.create_future()

    def one(op):
        nonlocal left
        left -= 1
        if not left:
            done.set_result(None)

    for _ in range(n):
        loop._submit(NopOp(), one)
    await done
    assert loop.stats()["operations"]["nop"] == n


async def test_chain_of_operations():
    """Each is submitted by the completion of the one before."""
    loop = asyncio.get_running_loop()
    left, done = 3000, loop.create_future()

    def one(op):
        nonlocal left
        left -= 1
        if left:
            loop._submit(NopOp(), one)
        else:
            done.set_result(None)

    loop._submit(NopOp(), one)
    await done


async def test_signals_while_operations_complete(pipe):
    """EINTR at any point of the wait loses no completion."""
    loop, (r, w) = asyncio.get_running_loop(), pipe
    received = itertools.count()
    previous = signal.signal(signal.SIGUSR1, lambda *_: next(received))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-S",
        "-c",
        # Without a pause it would be a test of who gets the processor.
        "import os, time\n"
        f"while True: os.kill({os.getpid()}, {int(signal.SIGUSR1)}); time.sleep(2e-5)",
    )
    try:
        for i in itertools.count():
            op, done = ReadOp(r, 10), loop.create_future()
            loop._submit(op, done.set_result)
            loop.call_later(0.0001, os.write, w, b"%d" % i)
            await done
            assert op.data == b"%d" % i
            if i > 500 and next(received) > 2000:  # asking counts, too
                break
    finally:
        process.kill()
        await process.wait()
        signal.signal(signal.SIGUSR1, previous)


@needs_uring
def test_probe():
    found = probe()
    assert found.error == 0
    assert {0, 6, 14, 22, 23} <= found.ops  # no-op, poll, cancel, read, write
    assert probe() is found
