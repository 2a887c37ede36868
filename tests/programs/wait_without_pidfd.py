"""aiounify.process where pidfd_open is refused: a thread for each.  Argument: backend."""

import asyncio
import errno
import os
import signal
import sys

import seccomp

import aiounify
from aiounify import process

seccomp.refuse((seccomp.PIDFD_OPEN,), errno.ENOSYS)


def spawn(script):
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], os.environ)


async def main():
    pids = [spawn(f"exit {i}") for i in range(10)]
    ends = await asyncio.gather(*(process.wait(pid) for pid in pids))
    assert [end.returncode for end in ends] == list(range(10))
    assert all(end.rusage.ru_maxrss > 0 for end in ends)

    pid = spawn("exec sleep 60")
    child = process.wait(pid)
    try:
        async with asyncio.timeout(0.01):
            await child
    except TimeoutError:
        pass
    os.kill(pid, signal.SIGKILL)
    assert (await child).signal is signal.SIGKILL

    theirs = await asyncio.create_subprocess_exec("sh", "-c", "read line; exit 9", stdin=-1)
    ours = process.wait(theirs)
    theirs.stdin.close()
    code, end = await asyncio.gather(theirs.wait(), ours)
    assert (code, end.returncode) == (9, 9)


aiounify.run(main(), loop_factory=lambda: aiounify.new_event_loop(sys.argv[1]))
