"""io_uring answers an errno to everything.  Argument: the errno's name."""

import asyncio
import errno
import os
import sys
from pathlib import Path

import seccomp

import aiounify
from aiounify.features import backend_line

name = sys.argv[1]
code = getattr(errno, name)
seccomp.refuse(seccomp.IO_URING, code)
before = {path.name for path in Path("/proc/self/fd").iterdir()}

table = aiounify.features()
assert not table["io_uring"].on
assert table["io_uring"].detail == f"refused by seccomp ({name})", table["io_uring"]
for key, feature in table.items():
    if key.startswith("uring_"):
        assert not feature.on, key
        assert "no io_uring" in feature.detail, feature
assert table["epoll"].on
assert "seccomp" in backend_line()
assert "using epoll" in backend_line()

loop = aiounify.new_event_loop()
assert loop.backend == "epoll"
loop.run_until_complete(asyncio.sleep(0.001))
loop.close()

for environment, argument in ((None, "uring"), ("uring", None), ("uring", "auto")):
    if environment:
        os.environ["AIOUNIFY_BACKEND"] = environment
    try:
        aiounify.EventLoop(argument)
    except OSError as error:
        assert error.errno == code
        assert "the io_uring backend cannot be had: refused by seccomp" in str(error), error
        assert "backend='auto' or 'epoll'" in str(error), error
    else:
        raise AssertionError("a loop was made")
os.environ["AIOUNIFY_BACKEND"] = "epoll"
aiounify.EventLoop().close()
assert {path.name for path in Path("/proc/self/fd").iterdir()} == before
