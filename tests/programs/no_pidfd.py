"""Child processes where pidfd_open is refused.  Argument: backend."""

import asyncio
import errno
import os
import signal
import sys
import threading

import seccomp

import aiounify

seccomp.refuse((seccomp.PIDFD_OPEN,), errno.ENOSYS)
try:
    os.pidfd_open(os.getpid())
except OSError as error:
    assert error.errno == errno.ENOSYS
else:
    raise AssertionError("the filter does not work")
feature = aiounify.features()["pidfd"]
assert not feature.on
assert "thread" in feature.detail


async def main():
    async def one(i):
        process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {i}")
        return await process.wait()

    assert await asyncio.gather(*(one(i) for i in range(20))) == list(range(20))
    process = await asyncio.create_subprocess_exec("sleep", "60")
    assert any("waitpid" in thread.name for thread in threading.enumerate())
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    assert await process.communicate(b"text") == (b"text", None)


aiounify.run(main(), loop_factory=lambda: aiounify.new_event_loop(sys.argv[1]))
