"""io_uring_setup works, but another call of the three is refused.  Argument: enter or register."""

import asyncio
import errno
import sys
from pathlib import Path

import seccomp

import aiounify

number = {"enter": seccomp.IO_URING_ENTER, "register": seccomp.IO_URING_REGISTER}[sys.argv[1]]
seccomp.refuse((number,), errno.EPERM)
before = {path.name for path in Path("/proc/self/fd").iterdir()}


async def work():
    await asyncio.sleep(0.001)
    return asyncio.get_running_loop().backend


assert aiounify.run(work()) == "epoll"
try:
    aiounify.new_event_loop("uring")
except OSError as error:
    assert error.errno == errno.EPERM
else:
    raise AssertionError("a ring was made")
assert {path.name for path in Path("/proc/self/fd").iterdir()} == before
