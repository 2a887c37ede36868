"""Signals: handlers of the loop and of Python, Ctrl-C, and the race with the wait."""

import asyncio
import os
import signal
import subprocess
import threading

import pytest

import aiounify


@pytest.fixture(autouse=True)
def signals_as_before():
    """No test may leave a handler or the wake-up descriptor changed."""
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)}
    yield
    assert {sig: signal.getsignal(sig) for sig in before} == before
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    assert fd == -1


async def test_handler_is_called_with_its_arguments():
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.add_signal_handler(signal.SIGUSR1, lambda *args: done.set_result(args), 1, "x")
    os.kill(os.getpid(), signal.SIGUSR1)
    assert await done == (1, "x")
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert loop.remove_signal_handler(signal.SIGUSR1) is False


async def test_several_signals_and_replaced_handlers():
    loop, seen = asyncio.get_running_loop(), []
    loop.add_signal_handler(signal.SIGUSR1, seen.append, "old")
    loop.add_signal_handler(signal.SIGUSR1, seen.append, "one")
    loop.add_signal_handler(signal.SIGUSR2, seen.append, "two")
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR2)
    await asyncio.sleep(0.01)
    assert sorted(seen) == ["one", "two"]
    loop.remove_signal_handler(signal.SIGUSR1)
    loop.remove_signal_handler(signal.SIGUSR2)


async def test_handler_that_raises_is_reported():
    loop, reports = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, report: reports.append(report))
    loop.add_signal_handler(signal.SIGUSR1, divmod, 1, 0)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.sleep(0.01)
    assert isinstance(reports[0]["exception"], ZeroDivisionError)
    loop.remove_signal_handler(signal.SIGUSR1)


async def test_wrong_arguments():
    loop = asyncio.get_running_loop()

    async def coroutine_function():
        pass

    with pytest.raises(TypeError, match="coroutines cannot be used"):
        loop.add_signal_handler(signal.SIGUSR1, coroutine_function)
    for wrong, error in ((0, ValueError), (1000, ValueError), ("SIGINT", TypeError)):
        with pytest.raises(error):
            loop.add_signal_handler(wrong, print)
        with pytest.raises(error):
            loop.remove_signal_handler(wrong)
    with pytest.raises(RuntimeError, match=r"SIGKILL|9 cannot be caught"):
        loop.add_signal_handler(signal.SIGKILL, print)


def test_only_in_the_main_thread(loop_factory):
    errors = []

    async def main():
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGUSR1, print)
        except (ValueError, RuntimeError) as error:
            errors.append(str(error))

    thread = threading.Thread(target=lambda: aiounify.run(main(), loop_factory=loop_factory))
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "main thread" in errors[0]


async def test_pythons_own_handler_runs_while_the_loop_sleeps():
    """... without any event of the loop's: the signal itself has to end the wait."""
    loop, seen = asyncio.get_running_loop(), []
    done = loop.create_future()

    def handler(*_):
        seen.append(1)
        loop.call_soon_threadsafe(done.set_result, None)

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        main = threading.main_thread().ident
        timer = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGUSR1))
        timer.start()
        await asyncio.wait_for(done, 30)
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert seen == [1]


async def test_pythons_own_handler_that_raises_ends_the_run():
    class EndError(Exception):
        pass

    def handler(*_):
        raise EndError

    loop = asyncio.new_event_loop()
    loop.close()
    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(EndError):
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.sleep(1)
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_exception_of_a_signal_handler_leaves_run_forever(loop):
    class EndError(Exception):
        pass

    def handler(*_):
        raise EndError

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        main = threading.main_thread().ident
        timer = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGUSR1))
        timer.start()
        with pytest.raises(EndError):
            loop.run_forever()
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert not loop.is_running()
    seen = []
    loop.call_later(0.001, seen.append, 1)
    loop.call_later(0.002, loop.stop)
    loop.run_forever()
    assert seen == [1]


def test_ctrl_c_cancels_the_main_task(loop_factory):
    seen = []

    async def main():
        main_thread = threading.main_thread().ident
        timer = threading.Timer(0.02, signal.pthread_kill, (main_thread, signal.SIGINT))
        timer.start()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        finally:
            timer.join()

    with pytest.raises(KeyboardInterrupt):
        aiounify.run(main(), loop_factory=loop_factory)
    assert seen == ["cancelled"]


def test_wakeup_descriptor_of_another_is_left_alone(loop):
    r, w = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(w, warn_on_full_buffer=False)
    try:
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert signal.set_wakeup_fd(-1) == w
    finally:
        signal.set_wakeup_fd(-1)
        os.close(r)
        os.close(w)


def test_wakeup_descriptor_after_the_run(loop):
    async def main():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
        fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(fd)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
        again = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(again)
        return fd, again

    first, second = loop.run_until_complete(main())
    assert first == second == loop._csock.fileno()  # listening all the time it runs


def test_closing_removes_the_handlers(loop_factory):
    loop = loop_factory()
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGUSR2, print)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


@pytest.mark.parametrize("way", ["loop handler", "python handler", "other thread"])
def test_no_signal_is_lost_in_the_race_with_the_wait(run_program, backend, way):
    """Thousands of signals at random moments, each of which must be noticed."""
    run_program("bombard", backend, way, 1500)


def test_ctrl_c_at_random_moments(run_program, backend):
    run_program("interrupt", backend, 100)


def test_terminal_interrupt_ends_the_program_as_usual(run_program, backend):
    done = run_program("sleep_until_interrupted", backend, check=False)
    assert done.returncode == -signal.SIGINT or "KeyboardInterrupt" in done.stderr
    assert done.stdout == "cancelled\n"
    assert isinstance(done, subprocess.CompletedProcess)
