"""Child processes: awaited by pidfd, or by a thread where that is refused."""

import asyncio
import os
import signal
import sys

import pytest

pytestmark = pytest.mark.usefixtures("no_child_left")


@pytest.fixture
def no_child_left():
    """Every child was waited for: no zombie, no orphan."""
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


async def python(code, *args, **keywords):
    return await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", code, *args, **keywords)


@pytest.mark.parametrize("code", [0, 1, 7, 255])
async def test_exit_status(code):
    process = await python(f"import os; os._exit({code})")
    assert await process.wait() == code
    assert process.returncode == code
    assert await process.wait() == code


async def test_shell():
    process = await asyncio.create_subprocess_shell(
        "read line; echo got $line; echo oops >&2; exit 3",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert await process.communicate(b"something\n") == (b"got something\n", b"oops\n")
    assert process.returncode == 3


async def test_much_in_and_out():
    process = await asyncio.create_subprocess_exec(
        "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    data = os.urandom(2_000_000)
    out, err = await process.communicate(data)
    assert out == data
    assert err is None
    assert process.returncode == 0


@pytest.mark.parametrize("how", ["kill", "terminate", "send_signal"])
async def test_killed(how):
    process = await asyncio.create_subprocess_exec("sleep", "60")
    if how == "send_signal":
        process.send_signal(signal.SIGUSR1)
        expected = -signal.SIGUSR1
    else:
        getattr(process, how)()
        expected = -signal.SIGKILL if how == "kill" else -signal.SIGTERM
    assert await process.wait() == expected
    with pytest.raises(ProcessLookupError):
        process.kill()


async def test_many_at_once():
    async def one(i):
        process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {i}")
        return await process.wait()

    assert await asyncio.gather(*(one(i) for i in range(60))) == list(range(60))


async def test_ended_before_anybody_waits():
    process = await asyncio.create_subprocess_exec("true")
    await asyncio.sleep(0.05)
    assert await process.wait() == 0


async def test_cancelled_wait_does_not_lose_the_status():
    process = await asyncio.create_subprocess_exec("sleep", "60")
    for _ in range(5):
        waiting = asyncio.create_task(process.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    process.kill()
    assert await process.wait() == -signal.SIGKILL


async def test_several_waiters():
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 4")
    assert await asyncio.gather(*(process.wait() for _ in range(5))) == [4] * 5


async def test_missing_program():
    with pytest.raises(FileNotFoundError):
        await asyncio.create_subprocess_exec("/nonexistent/program")
    with pytest.raises(PermissionError):
        await asyncio.create_subprocess_exec("/etc/passwd")


async def test_status_taken_by_somebody_else(caplog):
    process = await asyncio.create_subprocess_exec("sh", "-c", "sleep 0.2; exit 4")
    os.waitpid(process.pid, 0)  # noqa: ASYNC222 - before the loop had a look
    assert await process.wait() == 255
    assert "exit status already read" in caplog.text


async def test_protocol_order():
    """Data and the ends of the pipes come before process_exited and connection_lost."""
    loop, seen = asyncio.get_running_loop(), []
    done = loop.create_future()

    class Protocol(asyncio.SubprocessProtocol):
        def connection_made(self, transport):
            assert isinstance(transport, asyncio.SubprocessTransport)
            seen.append("made")

        def pipe_data_received(self, fd, data):
            seen.append((fd, data))

        def pipe_connection_lost(self, fd, exc):
            seen.append((fd, exc))

        def process_exited(self):
            seen.append("exited")

        def connection_lost(self, exc):
            seen.append("lost")
            done.set_result(None)

    transport, _ = await loop.subprocess_exec(
        Protocol, "sh", "-c", "echo out", stdin=None, stderr=None
    )
    await done
    assert transport.get_returncode() == 0
    assert seen[0] == "made"
    assert seen[-1] == "lost"
    assert seen.index((1, b"out\n")) < seen.index((1, None))
    assert "exited" in seen
    transport.close()


async def test_transport_closed_kills_the_child():
    process = await asyncio.create_subprocess_exec("sleep", "60")
    process._transport.close()
    assert await process.wait() == -signal.SIGKILL


async def test_child_inherits_only_what_it_is_given():
    """Neither the ring nor the epoll set nor the wake-up descriptor."""
    process = await asyncio.create_subprocess_exec(
        "ls", "/proc/self/fd", close_fds=False, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    inherited = {fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2}  # noqa: PTH208
    open_here = {fd for fd in inherited if _inheritable(int(fd))}
    assert {fd for fd in out.decode().split() if int(fd) > 2} <= open_here | {"3"}


def _inheritable(fd):
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


async def test_no_thread_and_no_sigchld_handler():
    import threading

    before = threading.active_count(), signal.getsignal(signal.SIGCHLD)
    process = await asyncio.create_subprocess_exec("sleep", "60")
    assert (threading.active_count(), signal.getsignal(signal.SIGCHLD)) == before
    process.kill()
    await process.wait()


def test_in_a_thread_that_is_not_the_main_one(loop_factory):
    import threading

    import aiounify

    results = []

    async def main():
        process = await asyncio.create_subprocess_exec("sh", "-c", "exit 9")
        return await process.wait()

    thread = threading.Thread(
        target=lambda: results.append(aiounify.run(main(), loop_factory=loop_factory))
    )
    thread.start()
    thread.join()
    assert results == [9]


def test_pidfd_refused(run_program, backend):
    """seccomp answers ENOSYS to pidfd_open: a thread waits for each child instead."""
    run_program("no_pidfd", backend)
