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
from pathlib import Path

import pytest
from test_sock_calls import (
    HANG,
    fill,
    kinds,
    pair,
    receive,
    reset,
    suspended,
    tcp_pair,
    udp,
    until,
)

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
                await until(waiting.done)  # mostly at once: this is loopback
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
