"""Socket calls where socket objects answer something else than their memory says.

Arguments: backend.  What socket.socket is while the package is imported has an answer of
its own, so the memory of sockets is never read, and every call asks.
"""

import asyncio
import socket
import sys

importing = True
asked = 0


class Different(socket.socket):
    @property
    def proto(self):
        global asked
        asked += 1
        return super().proto + importing


socket.socket = Different

import aiounify  # noqa: E402

assert asked
importing = False
asked = 0


async def main():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setblocking(False)
        client.setblocking(False)
        accepting = asyncio.create_task(loop.sock_accept(listener))
        await loop.sock_connect(client, listener.getsockname())
        sock, name = await accepting
        with sock:
            assert asked, "the memory was read after all"
            assert name == client.getsockname()
            for size in (1, 100, 20_000, 300_000):
                sending = asyncio.create_task(loop.sock_sendall(client, bytes(size)))
                left = size
                while left:
                    left -= len(await loop.sock_recv(sock, 1 << 18))
                await sending
            receiving = asyncio.create_task(loop.sock_recv_into(sock, bytearray(10)))
            await asyncio.sleep(0)
            client.close()
            assert await receiving == 0
    for call in (loop.sock_recv(client, 10), loop.sock_sendall(client, b"")):
        try:
            await call
        except OSError as exc:
            assert exc.errno == 9, exc
        else:
            raise AssertionError("the socket is closed")


with asyncio.Runner(loop_factory=lambda: aiounify.new_event_loop(sys.argv[1])) as runner:
    runner.run(main())
