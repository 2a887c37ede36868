"""How socket calls wait: registrations that stay, sharing, cancellation, reuse, closing.

`registered` asks the kernel what an epoll set holds, so that the tests see what is left
armed and what is not.
"""

import asyncio
import contextlib
import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sock_calls import HANG, fill, kinds, pair, receive, reset, suspended, tcp_pair, udp

pytestmark = pytest.mark.every_reactor
IN, OUT, EDGE = 1, 4, 1 << 31


def registered(sock):
    """The events for which an epoll set of this process holds the socket; 0 if none does."""
    number = sock if isinstance(sock, int) else sock.fileno()
    found = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - no object for each entry
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":  # noqa: PTH115
                for line in Path(f"/proc/self/fdinfo/{name}").read_text().splitlines():
                    words = line.split()
                    if words[0] == "tfd:" and int(words[1]) == number:
                        found |= int(words[3], 16)
    return found


async def until(condition):
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)


async def looks(n=3):
    """Some turns of the loop, each with a look at the kernel."""
    for _ in range(n):
        await asyncio.sleep(0.001)


async def cancelled(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- registrations ---------------------------------------------------------------------------


@kinds
async def test_a_registration_stays_between_calls(kind):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    with one, other:
        one.send(b"first")
        assert await receive(other, 5) == b"first"
        assert not registered(other)  # nothing was waited for
        for _ in range(20):
            waiting = await suspended(loop.sock_recv(other, 100))
            assert registered(other) & (IN | EDGE) == IN | EDGE
            one.send(b"more")
            assert await waiting == b"more"
            assert registered(other) & (IN | EDGE) == IN | EDGE
        assert not registered(one)
    assert loop.stats()["watched"] == 1  # the self-pipe


async def test_a_round_trip_is_two_sends_and_two_receives():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()

    async def echo():
        while data := await loop.sock_recv(other, 1 << 18):
            await loop.sock_sendall(other, data)

    async def ask(n):
        for _ in range(n):
            await loop.sock_sendall(one, b"x" * 1000)
            assert await receive(one, 1000) == b"x" * 1000

    older = not getattr(loop._reactor, "uses_epoll_wait", True)

    def direct():
        """At most so many system calls that are no waits; older rings wait by two."""
        stats = loop.stats()
        return stats["syscalls"] - stats["waits"] * (1 + older)

    with one, other:
        serving = asyncio.create_task(echo())
        await ask(10)
        before = direct()
        await ask(200)
        # a receive in vain, or a change of the epoll set, for each would be 400 more
        assert direct() - before <= 200 * 4 + 100
        one.shutdown(socket.SHUT_WR)
        await serving


async def test_events_that_nobody_waits_for_end_the_registration():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one, other:
        waiting = await suspended(loop.sock_recv(other, 100))
        one.send(b"a")
        await waiting
        assert registered(other)
        sent = 0
        while registered(other):
            one.send(b"b")
            sent += 1
            await looks(1)
            assert sent < 1000
        events = loop.stats()["readiness_events"]
        for _ in range(20):
            one.send(b"b")
            await looks(1)
        assert loop.stats()["readiness_events"] == events
        # and then it works as before
        data = await receive(other, sent + 20)
        waiting = await suspended(loop.sock_recv(other, 100))
        assert registered(other) & EDGE
        one.send(b"c")
        assert data == b"b" * (sent + 20)
        assert await waiting == b"c"


@kinds
async def test_both_directions_at_once(kind):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    data = random.Random(2).randbytes(3_000_000)
    with one, other:
        async with asyncio.timeout(HANG):
            sending = [asyncio.create_task(loop.sock_sendall(s, data)) for s in (one, other)]
            found = await asyncio.gather(receive(one, len(data)), receive(other, len(data)))
            assert found == [data, data]
            await asyncio.gather(*sending)
        receiving = await suspended(loop.sock_recv(one, 10))
        sending = await suspended(loop.sock_sendall(one, bytes(8 << 20)))
        assert registered(one) & (IN | OUT | EDGE) == IN | OUT | EDGE
        await cancelled(sending)
        await cancelled(receiving)
        assert registered(one) & EDGE


# -- a read that gave less than was asked for ----------------------------------------------------


@kinds
@pytest.mark.parametrize("waited", [False, True])
@pytest.mark.parametrize("end", ["with the data", "after it", "reset"])
async def test_the_end_behind_a_short_read_is_seen(kind, waited, end):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    with one, other:
        for _ in range(3 if waited else 0):
            waiting = await suspended(loop.sock_recv(other, 100))
            one.send(b"x")
            await waiting
        waiting = await suspended(loop.sock_recv(other, 100)) if waited else None
        one.send(b"last")
        if end == "with the data":
            one.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(HANG):
            data = await (waiting or loop.sock_recv(other, 100))
            assert data == b"last"
            if end == "after it":
                loop.call_soon(one.shutdown, socket.SHUT_WR)
            elif end == "reset":
                loop.call_soon(reset, one)
            try:
                assert await loop.sock_recv(other, 100) == b""
            except ConnectionResetError:
                assert end == "reset"
            assert await loop.sock_recv(other, 100) == b""


async def test_urgent_data_ends_a_read_but_not_the_reading():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one, other:
        waiting = await suspended(loop.sock_recv(other, 100))
        for _ in range(5):
            one.send(b"abc")
            one.send(b"!", socket.MSG_OOB)
            one.send(b"def")
            async with asyncio.timeout(HANG):
                data = await waiting
                while len(data) < 6:
                    data += await loop.sock_recv(other, 100)
                assert data == b"abcdef"
                waiting = await suspended(loop.sock_recv(other, 100))
        await cancelled(waiting)


async def test_urgent_data_in_line():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one, other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        for _ in range(5):
            waiting = await suspended(loop.sock_recv(other, 100))
            one.send(b"abc")
            one.send(b"!", socket.MSG_OOB)
            one.send(b"def")
            async with asyncio.timeout(HANG):
                data = await waiting
                while len(data) < 7:
                    data += await loop.sock_recv(other, 100)
            assert data == b"abc!def"


@pytest.mark.parametrize("when", ["while waiting", "before"])
async def test_own_end_of_reading(when):
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one, other:
        waiting = await suspended(loop.sock_recv(other, 100))
        one.send(b"x")
        await waiting
        if when == "before":
            other.shutdown(socket.SHUT_RD)
            waiting = asyncio.create_task(loop.sock_recv(other, 100))
        else:
            waiting = await suspended(loop.sock_recv(other, 100))
            other.shutdown(socket.SHUT_RD)
        async with asyncio.timeout(HANG):
            assert await waiting == b""


async def test_messages_with_descriptors_end_reads_of_unix_sockets():
    loop = asyncio.get_running_loop()
    one, other = pair("unix")
    with one, other:
        waiting = await suspended(loop.sock_recv(other, 100))
        one.send(b"a")
        await waiting
        for _ in range(5):
            one.send(b"plain")
            socket.send_fds(one, [b"with"], [one.fileno()])
            one.send(b"behind")
            async with asyncio.timeout(HANG):
                assert await receive(other, 15) == b"plainwithbehind"


async def test_data_that_came_meanwhile_is_found():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one, other:
        waiting = await suspended(loop.sock_recv(other, 100))
        one.send(b"a")
        assert await waiting == b"a"
        for look in (False, True):
            one.send(b"b")
            if look:
                await looks()
            async with asyncio.timeout(HANG):
                assert await loop.sock_recv(other, 100) == b"b"
                one.send(b"cd")
                assert await loop.sock_recv_into(other, bytearray(1)) == 1
                assert await loop.sock_recv_into(other, bytearray(10)) == 1


async def test_the_program_reads_by_itself_in_between():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one, other:
        for _ in range(5):
            waiting = await suspended(loop.sock_recv(other, 100))
            one.send(b"a")
            assert await waiting == b"a"
            one.send(b"12345")
            await until(lambda: other.recv(10, socket.MSG_PEEK | socket.MSG_DONTWAIT))
            assert other.recv(2) == b"12"
            async with asyncio.timeout(HANG):
                assert await loop.sock_recv(other, 100) == b"345"


async def test_another_thread_reads_too():
    """Events that turn out to be for somebody else only make a call try again."""
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    stop = threading.Event()
    stolen = bytearray()

    def steal():
        while not stop.is_set():
            with contextlib.suppress(BlockingIOError):
                stolen.extend(other.recv(1))

    thread = threading.Thread(target=steal)
    thread.start()
    found = bytearray()

    async def reads():
        while part := await loop.sock_recv(other, 100):
            found.extend(part)

    with one, other:
        reading = asyncio.create_task(reads())
        for i in range(200):
            one.send(bytes([i]))
            await asyncio.sleep(0)
        await until(lambda: len(found) + len(stolen) == 200)
        stop.set()
        thread.join()
        assert sorted(found + stolen) == list(range(200))
        one.shutdown(socket.SHUT_WR)
        await reading


# -- cancellation -----------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("method", ["recv", "recv_into", "recvfrom", "recvfrom_into"])
async def test_a_cancelled_receive_has_taken_nothing(kind, method):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    with one, other:
        for i in range(50):
            limit = bytearray(10) if method.endswith("into") else 10
            waiting = await suspended(getattr(loop, f"sock_{method}")(other, limit))
            one.send(b"x")
            if i % 3 == 1:
                await asyncio.sleep(0)  # it may be woken by now, but has not run
            if i % 3 == 2:
                await looks(1)
                assert waiting.done()
                continue
            if not waiting.done():
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting
            if waiting.cancelled():
                assert other.recv(10) == b"x"
            with pytest.raises(BlockingIOError):
                other.recv(1)


async def test_cancelled_after_the_event_and_before_its_turn():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one, other:
        for _ in range(20):
            waiting = await suspended(loop.sock_recv(other, 10))
            wait = waiting._fut_waiter
            one.send(b"x")
            done = loop.create_future()

            def cancel(waiting=waiting, done=done):
                waiting.cancel()
                done.set_result(None)

            wait.add_done_callback(lambda _, cancel=cancel: cancel())
            await done
            # its wake-up ran before ours: then it has the data; else it was cancelled
            try:
                data = await waiting
            except asyncio.CancelledError:
                data = other.recv(10)
            assert data == b"x"


async def test_a_cancelled_accept_has_accepted_nothing():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        for _ in range(20):
            waiting = await suspended(loop.sock_accept(listener))
            with socket.create_connection(listener.getsockname()) as client:
                await cancelled(waiting)
                sock, name = listener.accept()
                sock.close()
                assert name == client.getsockname()


async def test_timeouts():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one, other:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.sock_recv(other, 10), 0.001)
        one.send(b"x")
        assert await asyncio.wait_for(loop.sock_recv(other, 10), HANG) == b"x"


async def test_one_of_several_is_cancelled():
    loop = asyncio.get_running_loop()
    one, other = udp(), udp()
    with one, other:
        for victims in ([0], [1], [2], [0, 1], [1, 2], [0, 2], [0, 1, 2]):
            tasks = [await suspended(loop.sock_recv(one, 10)) for _ in range(3)]
            for i in victims:
                await cancelled(tasks[i])
            for _ in range(3 - len(victims)):
                other.sendto(b"x", one.getsockname())
            async with asyncio.timeout(HANG):
                for i, task in enumerate(tasks):
                    if i not in victims:
                        assert await task == b"x"


# -- several calls at one socket -----------------------------------------------------------------


async def test_everybody_who_accepts_gets_somebody():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        accepting = [await suspended(loop.sock_accept(listener)) for _ in range(5)]
        clients = []
        for n in range(1, 6):
            clients.append(socket.create_connection(listener.getsockname()))
            await until(lambda n=n: sum(task.done() for task in accepting) == n)
        accepted = [await task for task in accepting]
        assert {name for _, name in accepted} == {c.getsockname() for c in clients}
        for sock in (*clients, *(sock for sock, _ in accepted)):
            sock.close()


async def test_everybody_who_receives_gets_a_datagram():
    loop = asyncio.get_running_loop()
    one, other = udp(), udp()
    with one, other:
        for _ in range(10):
            tasks = [await suspended(loop.sock_recvfrom(one, 10)) for _ in range(4)]
            for i in range(4):
                other.sendto(b"%d" % i, one.getsockname())
                if i % 2:
                    await looks(1)
            async with asyncio.timeout(HANG):
                found = await asyncio.gather(*tasks)
            assert sorted(data for data, _ in found) == [b"0", b"1", b"2", b"3"]


@kinds
async def test_several_senders_all_come_through(kind):
    loop = asyncio.get_running_loop()
    one, other = pair(kind)
    with one, other:
        before = fill(one)
        tasks = [asyncio.create_task(loop.sock_sendall(one, b"%d" % i * 100)) for i in range(5)]
        data = await receive(other, before + 500)
        async with asyncio.timeout(HANG):
            await asyncio.gather(*tasks)
        assert sorted(data[before:]) == sorted(b"".join(b"%d" % i * 100 for i in range(5)))


# -- add_reader() and add_writer() beside ---------------------------------------------------------


async def test_watchers_and_calls_do_not_know_of_each_other():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    seen = []
    with one, other:
        for _ in range(3):
            waiting = await suspended(loop.sock_recv(other, 100))
            assert registered(other) & EDGE
            loop.add_reader(other, seen.append, 1)
            assert registered(other) == IN | 0x18  # level, and what the kernel adds
            one.send(b"x")
            async with asyncio.timeout(HANG):
                assert await waiting == b"x"
            await until(lambda: seen)
            # level-triggered: it comes again as long as there is something
            one.send(b"y")
            seen.clear()
            await until(lambda: len(seen) > 3)
            assert await loop.sock_recv(other, 100) == b"y"
            waiting = await suspended(loop.sock_recv(other, 100))
            assert loop.remove_reader(other)
            assert not loop.remove_reader(other)
            assert registered(other) & EDGE
            seen.clear()
            one.send(b"z")
            async with asyncio.timeout(HANG):
                assert await waiting == b"z"
            assert not seen


async def test_a_writer_beside_a_receive():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    seen = []
    with one, other:
        waiting = await suspended(loop.sock_recv(other, 100))
        loop.add_writer(other, seen.append, 1)
        await until(lambda: len(seen) > 3)
        assert not waiting.done()
        one.send(b"x")
        assert await waiting == b"x"
        assert registered(other) & (IN | OUT | EDGE) == OUT
        waiting = await suspended(loop.sock_recv(other, 100))
        assert registered(other) & (IN | OUT | EDGE) == IN | OUT
        await cancelled(waiting)
        assert registered(other) & (IN | OUT | EDGE) == OUT
        one.send(b"not wanted")  # must not make the loop spin
        await looks()
        events = loop.stats()["readiness_events"]
        fill(other)
        await looks(10)
        assert loop.stats()["readiness_events"] - events < 10
        loop.remove_writer(other)
        assert await loop.sock_recv(other, 100) == b"not wanted"


async def test_sendfile_of_a_socket_that_calls_wait_at(tmp_path):
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    data = random.Random(3).randbytes(3_000_000)
    (tmp_path / "data").write_bytes(data)
    with one, other, (tmp_path / "data").open("rb") as file:
        waiting = await suspended(loop.sock_recv(one, 100))
        sending = asyncio.create_task(loop.sock_sendfile(one, file))
        assert await receive(other, len(data)) == data
        assert await sending == len(data)
        other.send(b"thanks")
        assert await waiting == b"thanks"


# -- transports ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix", "udp", "unix datagram"])
async def test_a_transport_takes_the_socket(kind):
    """What waits is told; afterwards the transport works, and calls are refused."""
    loop = asyncio.get_running_loop()
    if kind == "udp":
        one, other = udp(), udp()
        one.connect(other.getsockname())
        other.connect(one.getsockname())
    elif kind == "unix datagram":
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.setblocking(False)
    else:
        one, other = pair(kind)
    received = asyncio.Queue()

    class Protocol(asyncio.Protocol):
        def data_received(self, data):
            received.put_nowait(data)

        def datagram_received(self, data, address):
            received.put_nowait(data)

        def error_received(self, exc):
            raise exc

    with one, other:
        waiting = await suspended(loop.sock_recv(one, 100))
        if kind in ("tcp", "unix"):
            transport, _ = await loop.create_connection(Protocol, sock=one)
        else:
            transport, _ = await loop.create_datagram_endpoint(Protocol, sock=one)
        if kind != "unix datagram":  # that transport is asyncio's, which tells nobody
            async with asyncio.timeout(HANG):
                with pytest.raises(RuntimeError, match="is used by transport"):
                    await waiting
        else:
            await cancelled(waiting)
        for call in (
            lambda: loop.sock_recv(one, 100),
            lambda: loop.sock_recvfrom(one, 100),
            lambda: loop.sock_recv_into(one, bytearray(10)),
        ):
            with pytest.raises(RuntimeError, match="is used by transport"):
                await call()
        other.send(b"for the transport")
        async with asyncio.timeout(HANG):
            assert await received.get() == b"for the transport"
        if kind != "unix datagram":
            (transport.sendto if kind == "udp" else transport.write)(b"back")
            assert await loop.sock_recv(other, 100) == b"back"
        transport.close()
        await looks()


async def test_a_number_comes_back_from_a_transport():
    loop = asyncio.get_running_loop()
    for _ in range(3):
        one, other = tcp_pair()
        with other:
            waiting = await suspended(loop.sock_recv(one, 100))
            other.send(b"x")
            await waiting
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=one)
            transport.close()
            await until(lambda: one.fileno() < 0)


# -- closing, and numbers that are used again -------------------------------------------------------


def at_number(number, make):
    """Make sockets until one of them gets this descriptor; it and the others."""
    others = []
    while True:
        found = make()
        for sock in found:
            if sock.fileno() == number:
                return sock, [*others, *(s for s in found if s is not sock)]
        others += found
        assert len(others) < 100


def close(socks):
    for sock in socks:
        sock.close()


async def test_a_number_that_is_used_again():
    """Registrations are the file's: the next socket of that number gets its own."""
    loop = asyncio.get_running_loop()
    for _ in range(3):
        one, other = tcp_pair()
        number = other.fileno()
        waiting = await suspended(loop.sock_recv(other, 100))
        one.send(b"x")
        await waiting
        assert registered(number)
        close([one, other])
        again, others = at_number(number, tcp_pair)
        assert not registered(number)
        peer = next(s for s in others if s.getsockname() == again.getpeername())
        waiting = await suspended(loop.sock_recv(again, 100))
        peer.send(b"y")
        async with asyncio.timeout(HANG):
            assert await waiting == b"y"
        close([again, *others])


async def test_closed_while_a_call_waits():
    """As in asyncio nothing tells; the call fails once the number is another socket's."""
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    number = other.fileno()
    waiting = [
        await suspended(loop.sock_recv(other, 100)),
        await suspended(loop.sock_recv(other, 100)),
        await suspended(loop.sock_sendall(other, bytes(16 << 20))),
    ]
    close([one, other])
    await looks()
    again, others = at_number(number, tcp_pair)
    peer = next(s for s in others if s.getsockname() == again.getpeername())
    new = await suspended(loop.sock_recv(again, 100))
    for task in waiting:
        with pytest.raises(OSError, match="Bad file descriptor"):
            async with asyncio.timeout(HANG):
                await task
    peer.send(b"z")
    assert await new == b"z"
    close([again, *others])


@pytest.mark.parametrize("user", ["reader", "transport"])
async def test_closed_while_a_call_waits_and_used_by_something_else(user):
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    number = other.fileno()
    waiting = await suspended(loop.sock_recv(other, 100))
    close([one, other])
    again, others = at_number(number, tcp_pair)
    peer = next(s for s in others if s.getsockname() == again.getpeername())
    got = asyncio.Event()
    if user == "reader":
        loop.add_reader(again, got.set)
        transport = None
    else:

        class Protocol(asyncio.Protocol):
            def data_received(self, data):
                got.set()

        transport, _ = await loop.create_connection(Protocol, sock=again)
    peer.send(b"x")
    async with asyncio.timeout(HANG):
        await got.wait()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await waiting
    if transport is None:
        assert loop.remove_reader(again)
    else:
        transport.close()
        await until(lambda: again.fileno() < 0)
    close([again, *others])


async def test_a_late_cancellation_does_not_disturb_the_next_socket():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    number = other.fileno()
    old = await suspended(loop.sock_recv(other, 100))
    close([one, other])
    again, others = at_number(number, tcp_pair)
    peer = next(s for s in others if s.getsockname() == again.getpeername())
    loop.add_reader(again, print)  # no call of the new socket has displaced the old one yet
    await cancelled(old)
    loop.remove_reader(again)
    new = await suspended(loop.sock_recv(again, 100))
    peer.send(b"x")
    async with asyncio.timeout(HANG):
        assert await new == b"x"
    close([again, *others])


async def test_a_duplicate_keeps_the_file_open():
    """Its registration outlives the socket: the loop forgets it and does not spin."""
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    duplicate = other.dup()
    duplicate.setblocking(False)
    waiting = await suspended(loop.sock_recv(other, 100))
    one.send(b"x")
    await waiting
    other.close()
    with one, duplicate:
        for _ in range(3):
            one.send(b"y")
            await looks()
        events = loop.stats()["readiness_events"]
        for _ in range(10):
            one.send(b"y")
            await looks(1)
        assert loop.stats()["readiness_events"] == events
        assert await receive(duplicate, 13) == b"y" * 13
        waiting = await suspended(loop.sock_recv(duplicate, 100))
        one.send(b"z")
        assert await waiting == b"z"


async def test_others_keep_waiting_when_a_registration_is_forgotten():
    loop = asyncio.get_running_loop()
    pairs = [tcp_pair() for _ in range(5)]
    waiting = [await suspended(loop.sock_recv(other, 100)) for _, other in pairs]
    full, sink = tcp_pair()
    sending = await suspended(loop.sock_sendall(full, bytes(8 << 20)))
    one, other = tcp_pair()
    duplicate = other.dup()
    task = await suspended(loop.sock_recv(other, 100))
    one.send(b"x")
    await task
    other.close()
    one.send(b"y")  # the event that nobody wants
    await looks()
    async with asyncio.timeout(HANG):
        for (mine, _), task in zip(pairs, waiting, strict=True):
            mine.send(b"still there")
            assert await task == b"still there"
        await receive(sink, 8 << 20)
        await sending
    close([one, duplicate, full, sink, *(s for both in pairs for s in both)])


async def test_two_objects_for_one_descriptor():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    twin = socket.socket(fileno=other.fileno())
    with one, other:
        for _ in range(5):
            tasks = [await suspended(loop.sock_recv(s, 1)) for s in (other, twin, other, twin)]
            events = loop.stats()["readiness_events"]
            await looks()
            assert loop.stats()["readiness_events"] - events < 10  # they do not wake each other
            one.send(b"1234")
            async with asyncio.timeout(HANG):
                assert sorted(await asyncio.gather(*tasks)) == [b"1", b"2", b"3", b"4"]
        twin.detach()


async def test_detached_and_wrapped_again():
    loop = asyncio.get_running_loop()
    one, other = tcp_pair()
    with one:
        for _ in range(3):
            waiting = await suspended(loop.sock_recv(other, 10))
            one.send(b"x")
            assert await waiting == b"x"
            other = socket.socket(fileno=other.detach())
        other.close()


# -- threads ------------------------------------------------------------------------------------


def test_a_loop_that_goes_on_in_another_thread(loop_factory):
    """What waits goes on waiting there."""
    loop = loop_factory()
    one, other = tcp_pair()
    task = loop.create_task(loop.sock_recv(other, 10))
    for _ in range(3):
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert not task.done()
    results = []

    def go_on():
        loop.call_later(0.001, one.send, b"x")
        results.append(loop.run_until_complete(task))

    thread = threading.Thread(target=go_on)
    thread.start()
    thread.join()
    assert results == [b"x"]
    loop.close()
    one.close()
    other.close()


# -- all of it at random ------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 300_000)),
        st.tuples(st.just("receive"), st.sampled_from([1, 10, 5000, 16_384, 70_000, 1 << 18])),
        st.tuples(st.just("into"), st.sampled_from([1, 10, 5000, 70_000])),
        st.tuples(st.just("turn"), st.integers(1, 3)),
        st.tuples(st.just("look"), st.integers(1, 2)),
        st.tuples(st.just("cancel receive"), st.booleans()),
        st.tuples(st.just("cancel send"), st.booleans()),
        st.tuples(st.just("read directly"), st.integers(1, 20_000)),
        st.tuples(st.just("watch"), st.booleans()),
    ),
    max_size=60,
)


class Conversation:
    """One direction of a pair of sockets, with one call at most pending at each end."""

    def __init__(self, one, other, rng):
        self.loop = asyncio.get_running_loop()
        self.one, self.other, self.rng = one, other, rng
        self.chunks = []  # [data, how sure it is that all of it was sent]
        self.received = bytearray()
        self.sending = self.receiving = self.buffer = None

    async def step(self, what, amount):
        await getattr(self, what.replace(" ", "_"))(amount)
        self.collect()

    def collect(self):
        if self.sending and self.sending.done():
            assert self.sending.result() is None
            self.chunks[-1][1] = True
            self.sending = None
        if self.receiving and self.receiving.done():
            result = self.receiving.result()
            self.received += result if self.buffer is None else self.buffer[:result]
            self.receiving = None

    async def send(self, size):
        if self.sending is None:
            self.chunks.append([self.rng.randbytes(16) + self.rng.randbytes(size), False])
            self.sending = asyncio.create_task(
                self.loop.sock_sendall(self.one, self.chunks[-1][0])
            )

    async def receive(self, limit):
        if self.receiving is None:
            self.buffer = None
            self.receiving = asyncio.create_task(self.loop.sock_recv(self.other, limit))

    async def into(self, size):
        if self.receiving is None:
            self.buffer = bytearray(size)
            self.receiving = asyncio.create_task(
                self.loop.sock_recv_into(self.other, self.buffer)
            )

    async def turn(self, n):
        for _ in range(n):
            await asyncio.sleep(0)

    async def look(self, n):
        await looks(n)

    async def cancel(self, task, later):
        if task is None:
            return
        task.cancel()
        if later:
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def cancel_receive(self, later):
        task = self.receiving
        await self.cancel(task, later)
        if task and task.cancelled():
            self.receiving = None

    async def cancel_send(self, later):
        task = self.sending
        await self.cancel(task, later)
        if task and task.cancelled():
            self.sending = None

    async def read_directly(self, n):
        if self.receiving is None:
            with contextlib.suppress(BlockingIOError):
                self.received += self.other.recv(n)

    async def watch(self, on):
        if on:
            self.loop.add_reader(self.other, int)
        else:
            self.loop.remove_reader(self.other)

    async def finish(self):
        self.loop.remove_reader(self.other)
        while self.sending:
            await self.receive(1 << 18)
            await asyncio.wait([self.sending, self.receiving], return_when="FIRST_COMPLETED")
            self.collect()
        self.one.shutdown(socket.SHUT_WR)
        while True:
            await self.receive(1 << 18)
            task = self.receiving
            await task
            self.collect()
            if not task.result():
                break

    def check(self):
        """All that was sent came, in order; of what was cancelled, the beginning."""
        at = 0
        for i, (data, sure) in enumerate(self.chunks):
            end = len(data)
            if not sure:
                following = [chunk[:16] for chunk, _ in self.chunks[i + 1 :]]
                ends = [self.received.find(mark, at) for mark in following]
                end = min([e for e in ends if e >= 0], default=len(self.received)) - at
                assert end <= len(data)
            assert self.received[at : at + end] == data[:end]
            at += end
        assert at == len(self.received)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=steps, seed=st.integers(0, 1 << 30))
def test_any_program_moves_every_byte_once(loop, kind, program, seed):
    async def main():
        one, other = pair(kind)
        with one, other:
            conversation = Conversation(one, other, random.Random(seed))
            async with asyncio.timeout(HANG):
                for what, amount in program:
                    await conversation.step(what, amount)
                await conversation.finish()
            conversation.check()

    loop.run_until_complete(main())
    assert loop.stats()["watched"] == 1


async def test_a_crowd_with_random_cancellations():
    """Many connections, each with an echo; requests are given up and taken up again."""
    loop = asyncio.get_running_loop()
    rng = random.Random(5)

    async def echo(sock):
        with sock:
            while data := await loop.sock_recv(sock, 1 << 18):
                await loop.sock_sendall(sock, data)

    async def ask(sock):
        with sock:
            for size in [rng.choice([1, 100, 30_000]) for _ in range(30)]:
                data = rng.randbytes(size)
                sending = asyncio.create_task(loop.sock_sendall(sock, data))
                found = bytearray()
                while len(found) < size:
                    task = asyncio.create_task(loop.sock_recv(sock, size - len(found)))
                    for _ in range(rng.randrange(4)):
                        await asyncio.sleep(0)
                    if rng.random() < 0.3:
                        task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        found += await task
                assert found == data
                await sending

    pairs = [pair(rng.choice(["tcp", "unix"])) for _ in range(40)]
    async with asyncio.timeout(HANG), asyncio.TaskGroup() as group:
        for one, other in pairs:
            group.create_task(echo(other))
            group.create_task(ask(one))
