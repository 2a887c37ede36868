"""One way of forking while a loop exists.  Arguments: backend, case.

Each child ends with status 0 if all is as it should be; the parent's loop must go on
working as if nothing had happened.
"""

import asyncio
import contextlib
import gc
import os
import socket
import sys
import threading
import warnings
from pathlib import Path

import aiounify
from aiounify._core.reactor import ReadOp

# os.fork() in a process with threads warns from Python 3.12 on; it is what is tested
warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")

BACKEND = sys.argv[1]
cases = {}


def case(name):
    return lambda function: cases.setdefault(name, function)


def new_loop():
    return aiounify.new_event_loop(BACKEND)


def child(function):
    """Run function() in a forked child; its status must be 0."""
    pid = os.fork()
    if not pid:
        try:
            function()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"child ended with {os.waitstatus_to_exitcode(status)}"


def refused(call):
    try:
        call()
    except RuntimeError as error:
        text = str(error)
        assert f"belongs to process {os.getppid()}" in text, text
        assert f"this is process {os.getpid()}" in text, text
        assert "new_event_loop" in text, text
    else:
        raise AssertionError("the child could use the parent's loop")


def all_refused(loop):
    with socket.socket() as sock:
        refused(lambda: loop.call_soon(print))
        refused(lambda: loop.call_soon_threadsafe(print))
        refused(lambda: loop.call_later(1, print))
        refused(lambda: loop.call_at(1, print))
        refused(lambda: loop.add_reader(sock, print))
        refused(lambda: loop.add_writer(sock, print))
        refused(loop.run_forever)
        coroutine = asyncio.sleep(0)
        refused(lambda: loop.create_task(coroutine))
        coroutine.close()
        coroutine = asyncio.sleep(0)
        refused(lambda: loop.run_until_complete(coroutine))
        coroutine.close()


async def work():
    """Something of everything, to see that a loop is well."""
    loop = asyncio.get_running_loop()
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        receiving = asyncio.create_task(loop.sock_recv(a, 10))
        await asyncio.sleep(0.001)
        b.send(b"x")
        assert await receiving == b"x"
    assert await loop.run_in_executor(None, pow, 2, 3) == 8
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0


@case("idle loop")
def idle():
    loop = new_loop()
    loop.run_until_complete(work())
    child(lambda: all_refused(loop))
    loop.run_until_complete(work())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@case("running loop")
def running():
    async def main():
        loop = asyncio.get_running_loop()
        await work()
        child(lambda: all_refused(loop))
        await work()

    aiounify.run(main(), loop_factory=new_loop)


@case("child returns to the loop")
def returns():
    """The child comes back from the callback that forked into the copied run_forever()."""
    loop = new_loop()
    parent, seen = os.getpid(), []

    def fork():
        seen.append(os.fork())

    def after():
        seen.append("after")

    loop.call_soon(fork)
    loop.call_soon(after)
    loop.call_later(0.005, loop.stop)
    try:
        loop.run_forever()
    except RuntimeError as error:
        ok = os.getpid() != parent and f"belongs to process {parent}" in str(error)
        os._exit(0 if ok and asyncio._get_running_loop() is None else 2)
    if os.getpid() != parent:
        os._exit(3)  # it ran on
    _, status = os.waitpid(seen[0], 0)
    assert status == 0, os.waitstatus_to_exitcode(status)
    assert seen[1:] == ["after"]
    loop.run_until_complete(work())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@case("debug mode")
def debug():
    os.environ["PYTHONASYNCIODEBUG"] = "1"
    returns()
    idle()


@case("work in flight")
def in_flight():
    """What the kernel does for the parent stays the parent's."""
    loop = new_loop()
    r, w = os.pipe2(os.O_NONBLOCK)
    got = []
    loop.add_reader(r, lambda: got.append(os.read(r, 10)))
    r2, w2 = os.pipe2(os.O_NONBLOCK)
    loop._submit(ReadOp(r2, 10), lambda op: got.append(op.data))
    timer = loop.call_later(0.02, got.append, "timer")
    loop.call_soon(loop.stop)
    loop.run_forever()

    def check():
        all_refused(loop)
        timer.cancel()
        loop.close()

    child(check)
    os.write(w, b"read")
    os.write(w2, b"completed")
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    assert sorted(map(str, got)) == ["b'completed'", "b'read'", "timer"], got
    loop.remove_reader(r)
    loop.close()


@case("child makes its own")
def own():
    async def main():
        def check():
            # the parent's loop is not the running one here
            assert asyncio._get_running_loop() is None
            aiounify.run(work(), loop_factory=new_loop)
            aiounify.run(work(), loop_factory=new_loop)

        await work()
        child(check)
        await work()

    aiounify.run(main(), loop_factory=new_loop)


@case("child closes the copy")
def closes():
    loop = new_loop()
    loop.run_until_complete(work())
    before = {path.name for path in Path("/proc/self/fd").iterdir()}

    def check():
        loop.close()
        loop.close()
        assert loop.is_closed()
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
        loop.close()
        for fd in fds:
            os.fstat(fd)  # nobody closed what is not theirs
            os.close(fd)

    child(check)
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == before
    loop.run_until_complete(work())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@case("child lets the copy go")
def lets_go():
    kept = [new_loop()]
    kept[0].run_until_complete(work())
    kept[0].call_later(1000, print, kept[0])

    def check():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            kept.clear()
            gc.collect()
        aiounify.run(work(), loop_factory=new_loop)

    child(check)
    kept[0].run_until_complete(work())
    kept[0].run_until_complete(kept[0].shutdown_default_executor())
    kept[0].close()


@case("other thread's loop")
def other_thread():
    loop = new_loop()
    started = threading.Event()
    thread = threading.Thread(target=loop.run_forever)
    loop.call_soon(started.set)
    thread.start()
    started.wait()

    def check():
        refused(lambda: loop.call_soon_threadsafe(print))
        aiounify.run(work(), loop_factory=new_loop)

    for _ in range(10):
        child(check)
    asyncio.run_coroutine_threadsafe(work(), loop).result(30)
    asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@case("multiprocessing")
def multiprocessing_():
    import multiprocessing

    context = multiprocessing.get_context("fork")

    async def main():
        with contextlib.closing(context.Pool(2)) as pool:
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(None, pool.map, abs, range(-5, 0))
            assert result == [5, 4, 3, 2, 1]
        await loop.run_in_executor(None, pool.join)
        await work()

    aiounify.run(main(), loop_factory=new_loop)


cases[sys.argv[2]]()
