"""loop.sock_recv() and its kin, method by method: results, errors, sockets of every kind.

How they wait is the subject of test_sock_readiness.py, what they return that of
test_sock_coroutines.py.
"""

import array
import asyncio
import errno
import random
import socket
import ssl
import struct
import sys
import tempfile
import time
from unittest import mock

import pytest

from aiounify._core.sock_calls import Call, is_native_socket

HANG = 20
UNTIL_FULL = 64 << 20  # bytes that no pair of sockets takes
kinds = pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix"])


def tcp_pair(family=socket.AF_INET):
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as listener:
        one = socket.create_connection(listener.getsockname()[:2])
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


def pair(kind):
    if kind == "unix":
        found = socket.socketpair()
        for sock in found:
            sock.setblocking(False)
        return found
    return tcp_pair(socket.AF_INET if kind == "tcp" else socket.AF_INET6)


def udp(host="127.0.0.1", family=socket.AF_INET):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((host, 0))
    return sock


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill(sock):
    """Send until the socket takes nothing; how much it took."""
    taken = 0
    while taken < UNTIL_FULL:
        try:
            taken += sock.send(bytes(1 << 16))
        except BlockingIOError:
            return taken
    raise AssertionError("the socket never fills")


async def receive(sock, n, limit=1 << 16):
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < n:
        part = await loop.sock_recv(sock, limit)
        assert part
        data += part
    return bytes(data)


async def until(condition):
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)


async def suspended(call):
    """A task that waits in the call."""
    task = asyncio.create_task(call)
    while task._fut_waiter is None:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)
    return task


# -- receiving from streams --------------------------------------------------------------


@kinds
@pytest.mark.parametrize("size", [1, 1000, 16_384, 65_536, 300_000, 3_000_000])
@pytest.mark.parametrize("limit", [7000, 65_536, 1 << 18])
async def test_everything_arrives_in_order(kind, size, limit):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    data = random.Random(size).randbytes(size)
    with one, other:
        for _ in range(3):
            sending = asyncio.create_task(loop.sock_sendall(one, data))
            async with asyncio.timeout(HANG):
                assert await receive(other, size, limit) == data
            assert await sending is None


@kinds
async def test_no_more_than_asked_for(kind):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    with one, other:
        await loop.sock_sendall(one, b"abcdefgh")
        parts = [await loop.sock_recv(other, n) for n in (1, 0, 3, 100)]
        assert parts == [b"a", b"", b"bcd", b"efgh"]


@kinds
async def test_end_of_stream_is_empty_again_and_again(kind):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    with one, other:
        waiting = await suspended(loop.sock_recv(other, 10))
        one.shutdown(socket.SHUT_WR)
        assert await waiting == b""
        for _ in range(3):
            assert await loop.sock_recv(other, 10) == b""
        await loop.sock_sendall(other, b"still open this way")
        assert await receive(one, 19) == b"still open this way"


@kinds
@pytest.mark.parametrize("offered", [0, 1, 5, 100])
async def test_receive_into(kind, offered):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    buffer = bytearray(b"." * offered)
    with one, other:
        await loop.sock_sendall(one, b"12345678")
        taken = min(offered, 8)
        assert await loop.sock_recv_into(other, buffer) == taken
        assert buffer == b"12345678"[:taken] + b"." * (offered - taken)
        await loop.sock_sendall(one, b"9")
        numbers = array.array("i", [0] * 10)
        assert await loop.sock_recv_into(other, memoryview(numbers)[2:]) == 9 - taken
        assert numbers.tobytes()[8:].rstrip(b"\0") == b"123456789"[taken:]


async def test_receive_into_waits_and_holds_no_buffer():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    buffer = bytearray(10)
    with one, other:
        waiting = await suspended(loop.sock_recv_into(other, buffer))
        buffer *= 2  # allowed: it is not exported while the call waits
        one.send(b"x" * 15)
        assert await waiting == 15
        assert buffer == b"x" * 15 + bytes(5)


# -- datagrams ---------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", 2), ("::1", socket.AF_INET6)])
@pytest.mark.parametrize("size", [0, 1, 1400, 65_000])
async def test_datagrams(host, family, size):
    loop = asyncio.get_running_loop()
    a, b = udp(host, family), udp(host, family)
    data = bytes(i % 251 for i in range(size))
    with a, b:
        for limit in (65_536, 1 << 18):
            waiting = await suspended(loop.sock_recvfrom(b, limit))
            assert await loop.sock_sendto(a, data, b.getsockname()) == size
            assert await waiting == (data, a.getsockname())
        buffer = bytearray(70_000)
        waiting = await suspended(loop.sock_recvfrom_into(b, buffer))
        assert await loop.sock_sendto(a, memoryview(data), b.getsockname()) == size
        assert await waiting == (size, a.getsockname())
        assert buffer[:size] == data
        # a datagram without a peer's address, by the calls of streams
        a.connect(b.getsockname())
        assert await loop.sock_sendall(a, data) is None
        assert await loop.sock_recv(b, 1 << 18) == data


async def test_what_does_not_fit_is_cut():
    loop = asyncio.get_running_loop()
    a, b = udp(), udp()
    buffer = bytearray(b"..........")
    with a, b:
        name = a.getsockname()
        for _ in range(5):
            a.sendto(b"12345678", b.getsockname())
        assert await loop.sock_recvfrom(b, 3) == (b"123", name)
        assert await loop.sock_recvfrom_into(b, buffer, 4) == (4, name)
        assert await loop.sock_recvfrom_into(b, buffer, nbytes=0) == (8, name)
        assert buffer == b"12345678.."
        assert await loop.sock_recv(b, 2) == b"12"
        assert await loop.sock_recvfrom(b, 0) == (b"", name)
        with pytest.raises(BlockingIOError):
            b.recv(1)


@pytest.mark.parametrize("abstract", [False, True])
async def test_unix_datagrams_have_the_names_of_their_sockets(abstract):
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as directory:
        names = [f"{directory}/{n}" for n in "ab"]
        if abstract:
            names = [b"\0" + name.encode() for name in names]
        a, b, nobody = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(3))
        with a, b, nobody:
            for sock in (a, b):
                sock.setblocking(False)
                sock.bind(names.pop(0))
            await loop.sock_sendto(a, b"from a", b.getsockname())
            assert await loop.sock_recvfrom(b, 100) == (b"from a", a.getsockname())
            await loop.sock_sendto(nobody, b"unnamed", b.getsockname())
            assert await loop.sock_recvfrom(b, 100) == (b"unnamed", None)
            with pytest.raises(OSError, match="path too long"):
                await loop.sock_sendto(a, b"", "x" * 200)


async def test_a_unix_message_longer_than_any_buffer_here_is_whole():
    loop = asyncio.get_running_loop()
    for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        a, b = socket.socketpair(socket.AF_UNIX, kind)
        with a, b:
            a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            a.setblocking(False)
            b.setblocking(False)
            data = random.Random(1).randbytes(150_000)
            for call in (loop.sock_recv, loop.sock_recvfrom):
                waiting = await suspended(call(b, 200_000))
                await loop.sock_sendall(a, data)
                found = await waiting
                assert (found if type(found) is bytes else found[0]) == data


async def test_a_unix_receiver_without_room_is_waited_for():
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as directory:
        a, b = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
        with a, b:
            a.setblocking(False)
            b.setblocking(False)
            b.bind(f"{directory}/b")
            sent = 0
            for _ in range(3):
                with pytest.raises(BlockingIOError):
                    while True:
                        a.sendto(b"%d" % sent, b.getsockname())
                        sent += 1
                sending = await suspended(loop.sock_sendto(a, b"%d" % sent, b.getsockname()))
                sent += 1
                await asyncio.sleep(0.01)
                assert not sending.done()
                b.recv(10)
                async with asyncio.timeout(HANG):
                    await sending
            numbers = [int(b.recv(10)) for _ in range(sent - 3)]
            assert numbers == list(range(3, sent))


async def test_nobody_at_the_address():
    loop = asyncio.get_running_loop()
    with udp() as gone:
        name = gone.getsockname()
    with udp() as sock:
        sock.connect(name)
        waiting = await suspended(loop.sock_recv(sock, 10))
        await loop.sock_sendall(sock, b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            await waiting
        # an error of one datagram is not the socket's end
        with udp() as other:
            sock.connect(other.getsockname())
            waiting = await suspended(loop.sock_recv(sock, 10))
            other.sendto(b"here", sock.getsockname())
            assert await waiting == b"here"


async def test_sending_to_a_name():
    loop = asyncio.get_running_loop()
    a, b = udp(), udp()
    with a, b:
        assert await loop.sock_sendto(a, b"by name", ("localhost", b.getsockname()[1])) == 7
        assert await loop.sock_recv(b, 10) == b"by name"


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (("127.0.0.1",), TypeError),
        (("127.0.0.1", "port"), TypeError),
        (("127.0.0.1", 70_000), OverflowError),
        (("127.0.0.1", -1), OverflowError),
        (("127.0.0.1\0", 9), TypeError),
        ("127.0.0.1", TypeError),
        (None, TypeError),
    ],
)
async def test_wrong_addresses_are_refused_as_by_the_socket_module(address, error):
    loop = asyncio.get_running_loop()
    with udp() as sock:
        with pytest.raises(error) as ours:
            await loop.sock_sendto(sock, b"", address)
        with pytest.raises(error) as theirs:
            sock.sendto(b"", 0, address)
        assert str(ours.value) == str(theirs.value)


async def test_ipv6_addresses_with_all_their_parts():
    loop = asyncio.get_running_loop()
    a, b = udp("::1", socket.AF_INET6), udp("::1", socket.AF_INET6)
    with a, b:
        port = b.getsockname()[1]
        for address in (("::1", port), ("::1", port, 0), ("::1", port, 0, 0)):
            await loop.sock_sendto(a, b"x", address)
            assert await loop.sock_recvfrom(b, 10) == (b"x", a.getsockname())
        for address in (("::1", port, 1 << 20), ("::1", port, -1)):
            with pytest.raises(OverflowError) as ours:
                await loop.sock_sendto(a, b"x", address)
            with pytest.raises(OverflowError) as theirs:
                a.sendto(b"x", 0, address)
            assert str(ours.value) == str(theirs.value)


async def test_sending_is_audited():
    loop = asyncio.get_running_loop()
    seen = []
    on = True

    def hook(event, args):
        if on and event == "socket.sendto":
            seen.append(args)

    sys.addaudithook(hook)
    with udp() as a, udp() as b:
        await loop.sock_sendto(a, b"x", b.getsockname())
        assert seen == [(a, b.getsockname())]
    on = False


# -- sending to streams --------------------------------------------------------------------


@kinds
@pytest.mark.parametrize(
    "wrap",
    [bytes, bytearray, memoryview, lambda b: array.array("I", b), lambda b: memoryview(b)[::1]],
    ids=["bytes", "bytearray", "memoryview", "array", "slice"],
)
@pytest.mark.parametrize("size", [0, 4, 2_000_000])
async def test_all_kinds_of_buffers_are_sent_whole(kind, wrap, size):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    data = random.Random(size).randbytes(size)
    with one, other:
        sending = asyncio.create_task(loop.sock_sendall(one, wrap(data)))
        assert await receive(other, size) == data
        assert await sending is None


@kinds
async def test_data_is_held_until_the_end_and_no_longer(kind):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    data = bytearray(8 << 20)
    with one, other:
        sending = await suspended(loop.sock_sendall(one, data))
        with pytest.raises(BufferError):
            data.append(1)
        received = asyncio.create_task(receive(other, len(data)))
        await sending
        data.append(1)
        assert await received == bytes(8 << 20)

    # new sockets: the buffers of those have grown, perhaps to all of it
    one, other = pair(kind)
    with one, other:
        sending = await suspended(loop.sock_sendall(one, data))
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        data.append(2)


@kinds
async def test_only_the_beginning_is_sent_when_it_is_cancelled(kind):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    data = random.Random(0).randbytes(8 << 20)
    with one, other:
        sending = await suspended(loop.sock_sendall(one, data))
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        one.shutdown(socket.SHUT_WR)
        found = bytearray()
        while part := await loop.sock_recv(other, 1 << 18):
            found += part
        assert 0 < len(found) < len(data)
        assert data.startswith(found)


@pytest.mark.parametrize("bad", ["text", None, 5, memoryview(b"abcd")[::2]])
async def test_what_cannot_be_sent(bad):
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one, other:
        with pytest.raises((TypeError, BufferError)) as ours:
            await loop.sock_sendall(one, bad)
        with pytest.raises((TypeError, BufferError)) as theirs:
            one.send(bad)
        assert (type(ours.value), str(ours.value)) == (type(theirs.value), str(theirs.value))
        with pytest.raises(type(ours.value)):
            await loop.sock_sendto(one, bad, other.getsockname())


# -- errors ----------------------------------------------------------------------------------


def calls(loop, sock, name):
    """Every method, with arguments that are right for what the socket was."""
    yield lambda: loop.sock_recv(sock, 10)
    yield lambda: loop.sock_recv_into(sock, bytearray(10))
    yield lambda: loop.sock_recvfrom(sock, 10)
    yield lambda: loop.sock_recvfrom_into(sock, bytearray(10))
    yield lambda: loop.sock_sendall(sock, b"x")
    yield lambda: loop.sock_sendto(sock, b"x", name)
    yield lambda: loop.sock_accept(sock)
    yield lambda: loop.sock_connect(sock, name)


async def test_closed_sockets():
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.close()
    for call in calls(loop, sock, ("127.0.0.1", 9)):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            await call()
        assert caught.value.errno == errno.EBADF


async def test_a_connection_that_was_reset():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    waiting = await suspended(loop.sock_recv(one, 10))
    reset(other)
    with one:
        with pytest.raises(ConnectionResetError):
            await waiting
        assert await loop.sock_recv(one, 10) == b""
        with pytest.raises(BrokenPipeError):
            await loop.sock_sendall(one, b"x")


@kinds
async def test_reset_while_sending(kind):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    sending = await suspended(loop.sock_sendall(one, bytes(8 << 20)))
    reset(other)
    with one, pytest.raises((ConnectionResetError, BrokenPipeError)):
        await sending


async def test_sockets_that_are_not_connected():
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(OSError, match="not connected"):
            await loop.sock_recv(sock, 10)
        with pytest.raises(BrokenPipeError):
            await loop.sock_sendall(sock, b"x")


@pytest.mark.parametrize("bad", [-1, "10", 1.5, None, 1 << 70])
async def test_wrong_limits_are_refused_as_by_the_socket_module(bad):
    loop = asyncio.get_running_loop()
    with udp() as sock:
        for name in ("recv", "recvfrom"):
            with pytest.raises((TypeError, ValueError, OverflowError)) as ours:
                await getattr(loop, f"sock_{name}")(sock, bad)
            with pytest.raises((TypeError, ValueError, OverflowError)) as theirs:
                getattr(sock, name)(bad)
            assert repr(ours.value) == repr(theirs.value)
        for into in (bytearray(10), bytearray()):
            with pytest.raises((TypeError, ValueError, OverflowError)) as ours:
                await loop.sock_recvfrom_into(sock, into, bad or 1.5)
            with pytest.raises((TypeError, ValueError, OverflowError)) as theirs:
                sock.recvfrom_into(into, bad or 1.5)
            assert repr(ours.value) == repr(theirs.value)


@pytest.mark.parametrize("bad", [b"constant", memoryview(b"constant"), "text", None])
async def test_buffers_that_cannot_be_written_to(bad):
    loop = asyncio.get_running_loop()
    with udp() as sock:
        with pytest.raises((TypeError, BufferError)) as ours:
            await loop.sock_recv_into(sock, bad)
        with pytest.raises((TypeError, BufferError)) as theirs:
            sock.recv_into(bad)
        assert repr(ours.value) == repr(theirs.value)
        with pytest.raises((TypeError, BufferError)):
            await loop.sock_recvfrom_into(sock, bad)
        with pytest.raises(ValueError, match="greater than the length"):
            await loop.sock_recvfrom_into(sock, bytearray(2), 3)


async def test_a_limit_may_be_anything_that_counts():
    class Three:
        def __index__(self):
            return 3

    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one, other:
        one.send(b"12345678")
        assert await loop.sock_recv(other, Three()) == b"123"
        assert await loop.sock_recv(other, True) == b"4"


async def test_arguments_by_name():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one, other:
        await loop.sock_sendall(sock=one, data=b"123456")
        assert await loop.sock_recv(sock=other, n=1) == b"1"
        assert await loop.sock_recv_into(sock=other, buf=bytearray(1)) == 1
        assert await loop.sock_recvfrom(sock=other, bufsize=1) == (b"3", None)
        assert await loop.sock_recvfrom_into(sock=other, buf=bytearray(3), nbytes=2) == (2, None)
        with pytest.raises(TypeError):
            loop.sock_recv(one)
        with pytest.raises(TypeError):
            loop.sock_recv(one, 1, 2)


# -- modes of sockets ----------------------------------------------------------------------


async def test_debug_mode_refuses_blocking_sockets():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    with socket.socket() as sock:
        for timeout in (None, 5):
            sock.settimeout(timeout)
            for call in calls(loop, sock, ("127.0.0.1", 9)):
                with pytest.raises(ValueError, match="the socket must be non-blocking"):
                    await call()


@kinds
@pytest.mark.parametrize("timeout", [None, 5])
async def test_blocking_sockets_do_not_block(kind, timeout):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    with one, other:
        one.settimeout(timeout)
        other.settimeout(timeout)
        receiving = [
            await suspended(loop.sock_recv(other, 4)),
            await suspended(loop.sock_recv_into(other, bytearray(2))),
            await suspended(loop.sock_recvfrom(other, 2)),
            await suspended(loop.sock_recvfrom_into(other, bytearray(2))),
        ]
        sending = await suspended(loop.sock_sendall(one, bytes(8 << 20)))
        async with asyncio.timeout(HANG):
            assert await asyncio.gather(*receiving) == [bytes(4), 2, (bytes(2), None), (2, None)]
            await receive(other, (8 << 20) - 10)
            await sending


async def test_blocking_datagram_sockets_do_not_block():
    loop = asyncio.get_running_loop()
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with a, b:
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < UNTIL_FULL:
                sent += a.send(b"x", socket.MSG_DONTWAIT)
        sending = await suspended(loop.sock_sendall(a, b"last"))
        for _ in range(sent):
            b.recv(1)
        async with asyncio.timeout(HANG):
            await sending
            assert await loop.sock_recv(b, 10) == b"last"


# -- sockets that asyncio serves -----------------------------------------------------------


def test_what_is_native():
    class Plain(socket.socket):
        pass

    class Own(socket.socket):
        def recv(self, *args):
            return super().recv(*args)

    for kind in (socket.socket, Plain):
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            with kind(family) as sock:
                assert is_native_socket(sock)
    with Own() as sock:
        assert not is_native_socket(sock)
    with Plain() as sock:
        sock.recv = lambda n: b"patched"
        assert not is_native_socket(sock)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        assert not is_native_socket(sock)
    assert not is_native_socket(mock.Mock(socket.socket))
    assert not is_native_socket(object())


async def test_a_subclass_that_receives_differently():
    class Shouting(socket.socket):
        def recv(self, *args):
            return super().recv(*args).upper()

    loop = asyncio.get_running_loop()
    one, plain = tcp_pair()
    other = Shouting(fileno=plain.detach())
    with one, other:
        waiting = await suspended(loop.sock_recv(other, 10))
        one.send(b"hello")
        assert await waiting == b"HELLO"


async def test_a_subclass_that_changes_nothing_is_native():
    class Named(socket.socket):
        name = "mine"

    loop = asyncio.get_running_loop()
    one, plain = tcp_pair()
    other = Named(fileno=plain.detach())
    with one, other:
        call = loop.sock_recv(other, 10)
        assert type(call) is Call
        one.send(b"hello")
        assert await call == b"hello"


async def test_netlink():
    """A family that is asyncio's: ask the kernel for its interfaces."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.setblocking(False)
        sock.bind((0, 0))
        request = struct.pack("=IHHIIBxHiII", 32, 18, 0x301, 1, 0, 0, 0, 0, 0, 0)
        assert await loop.sock_sendto(sock, request, (0, 0)) == len(request)
        data, address = await loop.sock_recvfrom(sock, 1 << 16)
        assert address == (0, 0)
        assert struct.unpack_from("=IHHII", data)[1] == 16  # RTM_NEWLINK


async def test_tls_sockets_are_refused():
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context()
    one, other = tcp_pair()
    tls = context.wrap_socket(one, server_hostname="x", do_handshake_on_connect=False)
    with tls, other:
        for call in (
            lambda: loop.sock_recv(tls, 10),
            lambda: loop.sock_recv_into(tls, bytearray(10)),
            lambda: loop.sock_sendall(tls, b"x"),
            lambda: loop.sock_accept(tls),
            lambda: loop.sock_connect(tls, ("127.0.0.1", 9)),
        ):
            with pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
                await call()


async def test_objects_that_look_like_sockets():
    loop = asyncio.get_running_loop()
    fake = mock.Mock(socket.socket)
    fake.gettimeout.return_value = 0
    fake.recv.return_value = b"fake"
    fake.send.return_value = 4
    assert await loop.sock_recv(fake, 10) == b"fake"
    assert await loop.sock_sendall(fake, b"1234") is None
    fake.recv.assert_called_once_with(10)


async def test_where_the_memory_of_sockets_is_not_known(run_program):
    """Their methods are asked, with the same results."""
    loop = asyncio.get_running_loop()
    run_program("sock_methods", loop.backend)
