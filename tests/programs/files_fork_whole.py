"""A process that forks while a whole file is being read; parent and child read on."""

import asyncio
import os
import sys
import warnings

import aiounify
import aiounify.files as files
from aiounify.files.operation import service

warnings.simplefilter("ignore", DeprecationWarning)  # fork() beside threads, which is the point
PATH = sys.argv[1]
DATA = b"content" * 1000


async def read() -> bool:
    service().opens_cached = False
    return await files.read_bytes(PATH) == DATA


async def main() -> None:
    service().opens_cached = False
    reading = [asyncio.ensure_future(files.read_bytes(PATH)) for _ in range(20)]
    await asyncio.sleep(0)
    child = os.fork()
    if child == 0:
        os._exit(ended_in_child())
    assert await asyncio.gather(*reading) == [DATA] * 20
    assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222
    print("parent", await read(), flush=True)


def ended_in_child() -> int:
    asyncio._set_running_loop(None)
    print("child", aiounify.run(read()), flush=True)
    return 0


with open(PATH, "wb") as file:
    file.write(DATA)
aiounify.run(main())
