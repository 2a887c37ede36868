"""aiounify.process: status and usage of any child, beside everybody else who waits for children."""
# ruff: noqa: ASYNC220, ASYNC222, ASYNC230 - the tests cause what is awaited

import asyncio
import contextlib
import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

import aiounify
from aiounify import process
from aiounify._core.uring import probe
from aiounify.events import readable


@pytest.fixture(params=["ring", "pidfd"])
def by(request, monkeypatch):
    """WAITID in the ring, or as on a kernel without it."""
    if request.param == "pidfd":
        monkeypatch.setattr(process, "_WAITID", -1)
    return request.param


def spawn(script):
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], os.environ)


async def test_status_and_usage(by):
    pid = spawn("sleep 0.02; exit 3")
    waits = process.wait(pid)
    loop = asyncio.get_running_loop()
    ended = await waits
    assert (ended.pid, ended.code, ended.status) == (pid, os.CLD_EXITED, 3)
    assert ended.returncode == 3
    assert ended.signal is None
    assert isinstance(ended.rusage, resource.struct_rusage)
    assert ended.rusage.ru_maxrss > 0
    assert "exited (3)" in str(ended)
    assert await waits is ended
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # it was reaped
    operations = loop.stats()["operations"]
    ring = loop.backend == "uring" and by == "ring" and 50 in probe().ops
    assert ("waitid" in operations) == ring


async def test_usage_is_the_child_s(by):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pid = spawn("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    ended = await process.wait(pid)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for name in ("ru_utime", "ru_stime", "ru_minflt", "ru_nvcsw"):
        assert getattr(ended.rusage, name) == pytest.approx(
            getattr(after, name) - getattr(before, name), abs=2e-6
        )
    assert ended.rusage.ru_utime > 0


async def test_killed(by):
    pid = spawn("kill -9 $$")
    ended = await process.wait(pid)
    assert (ended.code, ended.returncode) == (os.CLD_KILLED, -signal.SIGKILL)
    assert ended.signal is signal.SIGKILL
    ended = await process.wait(spawn(f"kill -{signal.SIGRTMIN + 3} $$"))
    assert ended.signal == signal.SIGRTMIN + 3


async def test_ended_before_it_is_awaited(by):
    pid = spawn("exit 5")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert (await process.wait(pid)).returncode == 5


async def test_by_pidfd(by):
    pid = spawn("exit 4")
    pidfd = os.pidfd_open(pid)
    ended = await process.wait(pidfd=pidfd)
    assert (ended.pid, ended.returncode) == (pid, 4)
    os.close(pidfd)  # it stayed ours


async def test_without_reaping(by):
    pid = spawn("exit 6")
    assert (await process.wait(pid, reap=False)).returncode == 6
    assert os.waitpid(pid, 0)[1] == 6 << 8


async def test_many_waiters_for_one_child(by):
    pid = spawn("sleep 0.01; exit 2")
    child = process.wait(pid)
    ends = await asyncio.gather(*(child.wait() for _ in range(5)))
    assert {end.returncode for end in ends} == {2}


async def test_a_cancelled_wait_leaves_the_child(by):
    pid = spawn("exec sleep 60")
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.0005):
                await process.wait(pid)
    os.kill(pid, signal.SIGKILL)
    task = asyncio.create_task(process.wait(pid).wait())
    await asyncio.sleep(0)
    with contextlib.suppress(ChildProcessError):  # it was taken by now
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    task.cancel()  # whether or not it knows by now
    await asyncio.gather(task, return_exceptions=True)
    if task.cancelled():
        assert (await process.wait(pid)).signal is signal.SIGKILL


async def test_a_hundred_children(by):
    pids = [spawn(f"exit {i}") for i in range(100)]
    ends = await asyncio.gather(*(process.wait(pid) for pid in pids))
    assert [(end.pid, end.returncode) for end in ends] == list(zip(pids, range(100), strict=True))


async def test_beside_asyncio_s_subprocesses(by):
    for _ in range(20):
        theirs = await asyncio.create_subprocess_exec("sh", "-c", "read line; exit 9", stdin=-1)
        ours = process.wait(theirs)
        also = process.wait(theirs.pid)
        theirs.stdin.close()
        code, end, same = await asyncio.gather(theirs.wait(), ours, also)
        assert (code, end.returncode, same.returncode) == (9, 9, 9)
        assert end.rusage.ru_maxrss > 0


async def test_beside_an_asyncio_subprocess_of_another_loop(loop_factory, by):
    loop = asyncio.get_running_loop()
    started, begun = loop.create_future(), threading.Event()

    async def other():
        theirs = await asyncio.create_subprocess_exec("sh", "-c", "read line; exit 8", stdin=-1)
        loop.call_soon_threadsafe(started.set_result, theirs.pid)
        await asyncio.to_thread(begun.wait)
        theirs.stdin.close()
        return await theirs.wait()

    thread = asyncio.create_task(
        asyncio.to_thread(lambda: aiounify.run(other(), loop_factory=loop_factory))
    )
    task = asyncio.create_task(process.wait(await started).wait())
    await asyncio.sleep(0)
    begun.set()
    assert await thread == 8
    assert (await task).returncode == 8


async def test_beside_popen(by):
    popen = subprocess.Popen(["sh", "-c", "exit 11"])
    assert (await process.wait(popen)).returncode == 11
    assert popen.returncode == 11
    with pytest.raises(ChildProcessError, match="already"):
        process.wait(popen)


def child_of_multiprocessing():
    sys.exit(12)


async def test_beside_multiprocessing(by):
    context = multiprocessing.get_context("spawn")
    started = context.Process(target=child_of_multiprocessing)
    with pytest.raises(ValueError, match="not started"):
        process.wait(started)
    started.start()
    assert (await process.wait(started)).returncode == 12
    assert started.exitcode == 12
    started.close()


async def test_somebody_else_takes_the_status(by):
    pid = spawn("sleep 0.01; exit 1")
    task = asyncio.create_task(process.wait(pid).wait())
    other = asyncio.to_thread(os.waitpid, pid, 0)
    result, theirs = await asyncio.gather(task, other, return_exceptions=True)
    # whoever comes first has it, and the other one is told
    if isinstance(result, ChildProcessError):
        assert theirs == (pid, 1 << 8)
    else:
        assert result.returncode == 1
        assert isinstance(theirs, ChildProcessError)


async def test_no_child_of_ours(by):
    with pytest.raises(ChildProcessError, match="readable"):
        await process.wait(os.getppid())
    pid = spawn("exit 0")
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    assert await readable(pidfd)
    with pytest.raises(ChildProcessError) as caught:
        await process.wait(pidfd=pidfd)
    assert caught.value.errno == errno.ECHILD
    os.close(pidfd)
    with pytest.raises(ProcessLookupError):
        process.wait(pid)


async def test_bad_arguments():
    for call in (lambda: process.wait(), lambda: process.wait(1, pidfd=1)):
        with pytest.raises(TypeError, match="pidfd"):
            call()
    with pytest.raises(ValueError, match="positive"):
        process.wait(0)
    with pytest.raises(OSError) as caught:
        process.wait(pidfd=10_000)
    assert caught.value.errno == errno.EBADF
    with open("/dev/null") as null, pytest.raises(OSError, match="waitid"):
        await process.wait(pidfd=null.fileno())


def test_another_event_loop():
    async def main():
        await process.wait(1)

    with pytest.raises(RuntimeError, match="aiounify"):
        asyncio.run(main())


def test_a_loop_closed_with_a_wait(loop, by):
    pid = spawn("exec sleep 60")

    async def main():
        child = process.wait(pid)
        child.arm(lambda: None)

    loop.run_until_complete(main())
    loop.close()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_where_pidfds_are_refused(run_program, backend):
    run_program("wait_without_pidfd", backend)
