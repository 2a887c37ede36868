"""ENOMEM for every ring of more than N entries.  Argument: N."""

import asyncio
import errno
import os
import sys
from pathlib import Path

import seccomp

import aiounify

most = int(sys.argv[1])
seccomp.refuse((seccomp.IO_URING_SETUP,), errno.ENOMEM, first_argument_above=most)
before = {path.name for path in Path("/proc/self/fd").iterdir()}


async def work():
    loop = asyncio.get_running_loop()
    r, w = os.pipe()
    done = loop.create_future()
    loop.add_reader(r, done.set_result, None)
    os.write(w, b"x")
    await done
    loop.remove_reader(r)
    os.close(r)
    os.close(w)
    await asyncio.sleep(0.001)
    await asyncio.gather(*(asyncio.sleep(0) for _ in range(2000)))
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0
    return loop.backend, getattr(loop._reactor, "ring_size", None)


backend, size = aiounify.run(work())
if most >= 8:
    assert backend == "uring"
    assert size[0] <= max(most, 8), size
    assert size[0] * 2 > min(most, 256), f"{size} could have been larger"
    assert size[1] >= 2 * size[0], size
else:
    assert backend == "epoll"
    assert "ENOMEM" in aiounify.features()["io_uring"].detail
    try:
        aiounify.new_event_loop("uring")
    except OSError as error:
        assert error.errno == errno.ENOMEM
    else:
        raise AssertionError("a ring was made")
assert {path.name for path in Path("/proc/self/fd").iterdir()} == before
