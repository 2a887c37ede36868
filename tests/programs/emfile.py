"""No descriptors left at every stage of making a loop.  Argument: backend.

The limit is raised one by one: each attempt must fail with EMFILE and leave nothing
behind, until there are enough.
"""

import asyncio
import errno
import gc
import os
import resource
import socket
import sys
from asyncio import constants
from pathlib import Path

import aiounify

backend = sys.argv[1]
aiounify.new_event_loop(backend).close()  # what is made once for the process


def descriptors():
    return {int(path.name) for path in Path("/proc/self/fd").iterdir()} - {last()}


def last():
    fd = os.dup(0)
    os.close(fd)
    return fd


soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
before = descriptors()
top = last()  # the lowest number that is free
failures = 0
for limit in range(top, top + 20):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        loop = aiounify.new_event_loop(backend)
    except OSError as error:
        failures += 1
        assert error.errno == errno.EMFILE, error
    else:
        assert loop.backend == backend
        loop.close()
        del loop
        break
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    gc.collect()
    left = {fd: str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in descriptors() - before}
    assert not left, (limit, left)
else:
    raise AssertionError("20 descriptors are not enough")
assert failures >= 3, failures
assert descriptors() == before


# A server that cannot accept for want of descriptors goes on afterwards.
async def main():
    loop = asyncio.get_running_loop()
    reports = []
    loop.set_exception_handler(lambda _, report: reports.append(report))
    served = []

    async def serve(reader, writer):
        served.append(1)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    quiet = descriptors()
    reader, writer = await asyncio.open_connection(*address)
    await reader.read()
    writer.close()
    await writer.wait_closed()
    constants.ACCEPT_RETRY_DELAY = 0.01
    for times in (1, 2):  # each time it is said once, however often it is tried again
        while descriptors() != quiet:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        client = socket.socket()
        resource.setrlimit(resource.RLIMIT_NOFILE, (last(), hard))
        client.setblocking(False)
        await loop.sock_connect(client, address)
        for _ in range(10):
            await asyncio.sleep(0.01)
        assert len(served) == times
        assert [report["exception"].errno for report in reports] == [errno.EMFILE] * times
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        while len(served) == times:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        client.close()

    # A server closed while it waits to accept again is left alone.
    while descriptors() != quiet:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    client = socket.socket()
    resource.setrlimit(resource.RLIMIT_NOFILE, (last(), hard))
    client.setblocking(False)
    await loop.sock_connect(client, address)
    while len(reports) == 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.05)
    assert len(served) == 3
    assert len(reports) == 3
    client.close()


aiounify.run(main(), loop_factory=lambda: aiounify.new_event_loop(backend))
