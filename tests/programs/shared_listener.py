"""Two processes accept from one listening socket; one is busy, so the other one serves.

Argument: backend.  This is how servers with several workers share a port.
"""

import asyncio
import os
import socket
import sys

import aiounify

BACKEND = sys.argv[1]


class Worker(asyncio.Protocol):
    """Answers with the process; after `busy` it does nothing else until it is released."""

    def __init__(self, tell, release):
        self.tell = tell
        self.release = release

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(b"%d" % os.getpid())
        self.transport.close()
        if data == b"busy":
            asyncio.get_running_loop().call_soon(self.block)

    def block(self):
        os.write(self.tell, b"b")
        os.read(self.release, 1)
        os.write(self.tell, b"g")


async def serve(listener, ready, release):
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Worker(ready, release), sock=listener)
    await asyncio.sleep(0)
    os.write(ready, b"r")
    await asyncio.Event().wait()


def ask(address, what):
    """Which process served it."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(what)
        return int(connection.recv(100))


listener = socket.create_server(("127.0.0.1", 0))
ready, is_ready = os.pipe()
release, let_go = os.pipe()
workers = []
for _ in range(2):
    pid = os.fork()
    if not pid:
        aiounify.run(
            serve(listener, is_ready, release),
            loop_factory=lambda: aiounify.new_event_loop(BACKEND),
        )
        os._exit(1)
    workers.append(pid)
try:
    for _ in workers:
        os.read(ready, 1)
    address = listener.getsockname()
    for _ in range(3):
        # The answer comes before the worker blocks; until it does, it may accept.
        busy = ask(address, b"busy")
        os.read(ready, 1)
        (idle,) = set(workers) - {busy}
        assert {ask(address, b"hello") for _ in range(20)} == {idle}
        os.write(let_go, b"g")
        os.read(ready, 1)  # or the other one might take what is meant for this one
finally:
    for pid in workers:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    listener.close()
