"""loop.sock_accept() and loop.sock_connect(): what they return, and what may go wrong."""

import asyncio
import errno
import os
import random
import resource
import socket
import tempfile

import pytest
from test_sock_calls import HANG, kinds, receive, suspended, udp

# -- accepting -----------------------------------------------------------------------------


@kinds
async def test_accept(kind):
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as directory:
        if kind == "unix":
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"{directory}/s")
            listener.listen()
        else:
            family = socket.AF_INET if kind == "tcp" else socket.AF_INET6
            host = "127.0.0.1" if kind == "tcp" else "::1"
            listener = socket.create_server((host, 0), family=family)
        listener.setblocking(False)
        with listener:
            for round_ in range(3):
                client = socket.socket(listener.family)
                client.setblocking(False)
                if kind == "unix" and round_:
                    client.bind(f"{directory}/c{round_}")
                accepting = await suspended(loop.sock_accept(listener))
                await loop.sock_connect(client, listener.getsockname())
                sock, address = await accepting
                with client, sock:
                    assert type(sock) is socket.socket
                    assert address == client.getsockname()
                    assert sock.getpeername() == client.getsockname()
                    assert (sock.family, sock.type, sock.proto) == (
                        listener.family, listener.type, listener.proto,
                    )  # fmt: skip
                    assert sock.gettimeout() == 0
                    assert not os.get_blocking(sock.fileno())
                    assert not os.get_inheritable(sock.fileno())
                    await loop.sock_sendall(sock, b"hello")
                    assert await receive(client, 5) == b"hello"


async def test_those_who_came_earlier_are_accepted_at_once():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=20) as listener:
        listener.setblocking(False)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(10)]
        accepted = [await loop.sock_accept(listener) for _ in clients]
        assert [name for _, name in accepted] == [c.getsockname() for c in clients]
        for sock in (*clients, *(sock for sock, _ in accepted)):
            sock.close()


async def test_default_timeout_does_not_make_accepted_sockets_blocking():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        client = socket.create_connection(listener.getsockname())
        socket.setdefaulttimeout(5)
        try:
            sock, _ = await loop.sock_accept(listener)
        finally:
            socket.setdefaulttimeout(None)
        assert sock.gettimeout() == 0
        sock.close()
        client.close()


async def test_accept_of_a_blocking_listener_does_not_block():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = await suspended(loop.sock_accept(listener))
        client = socket.create_connection(listener.getsockname())
        sock, _ = await accepting
        assert sock.gettimeout() == 0
        sock.close()
        client.close()


async def test_out_of_descriptors():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        client = socket.create_connection(listener.getsockname())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (listener.fileno() + 1, hard))
        try:
            with pytest.raises(OSError, match="Too many open files") as caught:
                await loop.sock_accept(listener)
            assert caught.value.errno == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        sock, name = await loop.sock_accept(listener)  # the connection was not lost
        assert name == client.getsockname()
        sock.close()
        client.close()


async def test_accept_of_what_does_not_listen():
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(OSError, match="Invalid argument"):
            await loop.sock_accept(sock)


# -- connecting ----------------------------------------------------------------------------


async def test_connection_refused_names_the_address():
    loop = asyncio.get_running_loop()
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        name = gone.getsockname()
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(ConnectionRefusedError) as caught:
            await loop.sock_connect(sock, name)
        assert f"Connect call failed {name}" in str(caught.value)


async def test_connect_to_a_name():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("localhost", listener.getsockname()[1]))
        assert sock.getpeername() == listener.getsockname()
        listener.accept()[0].close()


async def test_connect_of_datagram_sockets_is_done_at_once():
    loop = asyncio.get_running_loop()
    with udp() as a, udp() as b:
        assert await loop.sock_connect(a, b.getsockname()) is None
        assert a.getpeername() == b.getsockname()


async def test_connect_to_a_unix_path_that_does_not_exist():
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        with pytest.raises(FileNotFoundError):
            await loop.sock_connect(sock, "/nonexistent/socket")


async def test_a_unix_listener_without_room_is_waited_for():
    """asyncio would say it is connected, and it would not be."""
    loop = asyncio.get_running_loop()
    name = f"\0aiounify-{os.getpid()}-{random.getrandbits(64):x}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for sock in clients:
            sock.setblocking(False)
        connecting = [asyncio.create_task(loop.sock_connect(sock, name)) for sock in clients]
        await asyncio.sleep(0.05)
        assert [task.done() for task in connecting] == [True, False, False]
        for _ in clients:
            listener.accept()[0].close()
            await asyncio.sleep(0.05)
        async with asyncio.timeout(HANG):
            await asyncio.gather(*connecting)
        for sock in clients:
            assert await loop.sock_recv(sock, 1) == b""
            sock.close()


async def test_cancelled_connect():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener, socket.socket() as sock:
        sock.setblocking(False)
        connecting = asyncio.create_task(loop.sock_connect(sock, listener.getsockname()))
        await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        # the kernel went on with it
        peer, _ = listener.accept()
        with peer:
            await loop.sock_sendall(sock, b"connected")
            assert peer.recv(10) == b"connected"
