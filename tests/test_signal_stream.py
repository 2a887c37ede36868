"""aiounify.signals: who sent what, beside add_signal_handler() and subprocesses, in any thread."""
# ruff: noqa: ASYNC220, ASYNC222 - the tests cause what is awaited

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest

import aiounify
from aiounify import select
from aiounify.signals import signals

ME = os.getpid()


async def test_sender():
    async with signals(signal.SIGTERM, signal.SIGHUP) as arriving:
        sender = await asyncio.create_subprocess_exec(
            "sh", "-c", f"kill -TERM {ME}; kill -HUP {ME}"
        )
        got = {info.signal: info async for info in some(arriving, 2)}
        for info in got.values():
            assert (info.sender_pid, info.sender_uid) == (sender.pid, os.getuid())
            assert info.code == 0
        assert set(got) == {signal.SIGTERM, signal.SIGHUP}
        assert await sender.wait() == 0
        assert arriving.lost == 0
        assert "SIGTERM" in repr(arriving)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def some(source, number):
    async for value in source:
        yield value
        number -= 1
        if not number:
            return


async def test_dispositions_come_back():
    mine = []
    old = signal.signal(signal.SIGUSR1, lambda *_: mine.append(1))
    try:
        async with signals(signal.SIGUSR1) as arriving:
            os.kill(ME, signal.SIGUSR1)
            assert (await arriving.wait()).sender_pid == ME
            assert not mine
        os.kill(ME, signal.SIGUSR1)
        await asyncio.sleep(0)
        assert mine == [1]
    finally:
        signal.signal(signal.SIGUSR1, old)


@pytest.mark.parametrize("first", ["handler", "block"])
async def test_beside_add_signal_handler(first):
    loop = asyncio.get_running_loop()
    called = asyncio.Event()
    listening = signals(signal.SIGUSR1)
    if first == "handler":
        loop.add_signal_handler(signal.SIGUSR1, called.set)
    async with listening as arriving:
        if first == "block":
            loop.add_signal_handler(signal.SIGUSR1, called.set)
        for _ in range(3):
            os.kill(ME, signal.SIGUSR1)
            assert (await arriving.wait()).signal is signal.SIGUSR1
            await called.wait()
            called.clear()
        if first == "block":
            assert loop.remove_signal_handler(signal.SIGUSR1)
            os.kill(ME, signal.SIGUSR1)
            assert await arriving.wait()
            await asyncio.sleep(0.001)
            assert not called.is_set()
    if first == "handler":
        os.kill(ME, signal.SIGUSR1)
        await called.wait()
        loop.remove_signal_handler(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


async def test_several_listeners_get_each_signal():
    async with signals(signal.SIGUSR1) as one:
        async with signals(signal.SIGUSR1, signal.SIGUSR2) as two:
            os.kill(ME, signal.SIGUSR1)
            os.kill(ME, signal.SIGUSR2)
            assert (await one.wait()).signal is signal.SIGUSR1
            assert {(await two.wait()).signal for _ in range(2)} == {
                signal.SIGUSR1,
                signal.SIGUSR2,
            }
        os.kill(ME, signal.SIGUSR1)
        assert (await one.wait()).signal is signal.SIGUSR1


async def test_realtime_signals_are_queued_with_their_values():
    number = signal.SIGRTMIN + 2
    async with signals(number) as arriving:
        for value in range(200):
            sigqueue(number, value)
        for value in range(200):
            info = await arriving.wait()
            assert (info.signal, info.value, info.code, info.sender_pid) == (number, value, -1, ME)


def sigqueue(number, value):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigqueue(ME, number, ctypes.c_void_p(value)):
        raise OSError(ctypes.get_errno(), "sigqueue")


async def test_cancellation_loses_none():
    async with signals(signal.SIGRTMIN) as arriving:
        got = 0
        for i in range(200):
            task = asyncio.create_task(arriving.wait())
            if i % 3:
                await asyncio.sleep(0)
            os.kill(ME, signal.SIGRTMIN)
            if i % 2:
                await asyncio.sleep(0)
            task.cancel()
            got += not isinstance(
                (await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError
            )
        while got < 200:
            await arriving.wait()
            got += 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await arriving.wait()


async def test_what_had_arrived_is_given_after_the_block():
    async with signals(signal.SIGUSR1, signal.SIGUSR2) as arriving:
        waits = asyncio.create_task(anext(aiter(signals(signal.SIGUSR1)), None))
        os.kill(ME, signal.SIGUSR1)
        os.kill(ME, signal.SIGUSR2)
    assert len([info async for info in arriving]) == 2
    waits.cancel()
    with pytest.raises(StopAsyncIteration):
        await arriving.wait()
    with pytest.raises(RuntimeError, match="already"):
        async with signals(signal.SIGUSR1) as again, again:
            pass


async def test_closing_ends_an_iteration_that_waits():
    listening = signals(signal.SIGUSR1)
    async with listening:

        async def consume():
            return [info async for info in listening]

        task = asyncio.create_task(consume())
        await asyncio.sleep(0)
    assert await task == []


async def test_children_are_not_affected():
    """Neither blocked nor ignored signals are inherited, and a child's own do not come here."""
    async with signals(signal.SIGTERM) as arriving:
        show = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []), "
        show += "signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
        shown = await asyncio.create_subprocess_exec(
            sys.executable, "-c", show, stdout=asyncio.subprocess.PIPE
        )
        assert (await shown.communicate())[0] == b"set() True\n"
        child = await asyncio.create_subprocess_exec("sleep", "60")
        child.terminate()
        assert await child.wait() == -signal.SIGTERM
        popen = subprocess.Popen(["sleep", "60"])
        popen.terminate()
        assert popen.wait() == -signal.SIGTERM
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await arriving.wait()


async def test_a_forked_child_does_not_write_to_its_parent():
    async with signals(signal.SIGUSR1) as arriving:
        pid = os.fork()
        if not pid:
            try:
                os.kill(os.getpid(), signal.SIGUSR1)  # its default is to end the process
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGUSR1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await arriving.wait()
        os.kill(ME, signal.SIGUSR1)
        assert await arriving.wait()


async def test_threads_that_block_nothing_and_threads_that_listen(loop_factory):
    """A signal may be delivered to any thread: none has to block it, each can listen."""
    stop = threading.Event()
    idle = [threading.Thread(target=stop.wait) for _ in range(4)]
    for thread in idle:
        thread.start()
    ready, got = threading.Barrier(3), []

    def listen():
        async def main():
            async with signals(signal.SIGUSR1) as arriving:
                await asyncio.to_thread(ready.wait)
                got.append((await arriving.wait()).sender_pid)

        aiounify.run(main(), loop_factory=loop_factory)

    threads = [threading.Thread(target=listen) for _ in range(2)]
    for thread in threads:
        thread.start()
    async with signals(signal.SIGUSR1) as arriving:
        await asyncio.to_thread(ready.wait)
        os.kill(ME, signal.SIGUSR1)
        assert await arriving.wait()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    assert got == [ME, ME]
    stop.set()
    for thread in idle:
        thread.join()


async def test_sigchld():
    async with signals(signal.SIGCHLD) as arriving:
        process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
        async for info in arriving:
            if info.sender_pid == process.pid:
                break
        assert (info.code, info.status) == (os.CLD_EXITED, 3)
        assert await process.wait() == 3


async def test_interrupt_in_a_select():
    async with signals(signal.SIGINT) as arriving, select(arriving) as events:
        os.kill(ME, signal.SIGINT)
        source, info = await events
        assert source is arriving
        assert info.signal is signal.SIGINT


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ([signal.SIGKILL], "cannot be caught"),
        ([signal.SIGSTOP], "cannot be caught"),
        ([signal.SIGSEGV], "faulthandler"),
        ([0], "not a signal"),
        ([1000], "not a signal"),
    ],
)
def test_bad_signals(wanted, words):
    with pytest.raises(ValueError, match=words):
        signals(*wanted)
    with pytest.raises(TypeError, match="at least one"):
        signals()


def test_another_event_loop():
    async def main():
        async with signals(signal.SIGUSR1):
            pass

    with pytest.raises(RuntimeError, match="aiounify"):
        asyncio.run(main())


async def test_forgotten():
    listening = await signals(signal.SIGUSR1).__aenter__()
    with pytest.warns(ResourceWarning, match="SIGUSR1"):
        del listening
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


async def test_more_than_there_is_room_for():
    async with signals(signal.SIGUSR1) as arriving:
        for _ in range(4000):
            os.kill(ME, signal.SIGUSR1)
        assert arriving.lost > 0
        got = 0
        while got + arriving.lost < 4000:
            await arriving.wait()
            got += 1
