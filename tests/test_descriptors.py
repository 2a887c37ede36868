"""aiounify.events: counters, readiness, exceptional conditions, the error queue, descriptors."""
# ruff: noqa: ASYNC110, ASYNC222, ASYNC230 - the tests cause what is awaited

import asyncio
import contextlib
import errno
import gc
import os
import select
import socket
import struct
import threading

import pytest

import aiounify
from aiounify.events import (
    EventFD,
    error_queue,
    priority,
    readable,
    received,
    recv_fds,
    recv_oob,
    send_fds,
    writable,
)

pytestmark = pytest.mark.every_reactor


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    with a, b:
        yield a, b


@pytest.fixture
def tcp():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
        with a, b:
            yield a, b


async def begun(awaitable):
    """A task that awaits it and has begun to wait."""
    task = asyncio.ensure_future(awaitable)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    return task


# -- EventFD ---------------------------------------------------------------------


async def test_counter():
    async with EventFD(2) as counter:
        assert await counter == 2
        task = await begun(counter.wait())
        counter.add(3)
        counter.add()
        assert await task == 4
        assert not counter.semaphore


async def test_semaphore_serves_each_waiter_once():
    with EventFD(semaphore=True) as semaphore:
        tasks = [await begun(semaphore.wait()) for _ in range(5)]
        semaphore.add(3)
        while sum(task.done() for task in tasks) < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)
        pending = [task for task in tasks if not task.done()]
        assert len(pending) == 2
        semaphore.add(2)
        await asyncio.wait(pending)
        task = await begun(semaphore.wait())
        task.cancel()


async def test_cancelled_waits_lose_no_count():
    with EventFD(semaphore=True) as semaphore:
        taken = 0
        for _ in range(200):
            tasks = [asyncio.create_task(semaphore.wait()) for _ in range(3)]
            await asyncio.sleep(0)
            semaphore.add(2)
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            taken += results.count(1)
        left = 0
        with contextlib.suppress(BlockingIOError):
            while os.eventfd_read(semaphore.fileno()):
                left += 1
        assert taken + left == 400


async def test_add_from_threads():
    with EventFD() as counter:

        def work():
            for _ in range(100):
                counter.add(1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        total = 0
        async for n in counter:
            total += n
            if total == 400:
                break
        for thread in threads:
            thread.join()


async def test_shared_with_another_process(run_program):
    with EventFD() as counter:
        pid = os.fork()
        if not pid:
            os.eventfd_write(counter.fileno(), 7)
            os._exit(0)
        assert await counter == 7
        os.waitpid(pid, 0)


async def test_adopting_and_detaching():
    fd = os.eventfd(5)  # blocking
    counter = EventFD(fd=fd)
    assert await counter == 5
    task = await begun(counter.wait())
    assert counter.detach() == fd
    with pytest.raises(ValueError, match="closed"):
        await task
    assert counter.closed
    os.close(fd)


async def test_closing_wakes_who_waits():
    counter = EventFD()
    task = await begun(counter.wait())
    counter.close()
    counter.close()
    with pytest.raises(ValueError, match="closed"):
        await task
    with pytest.raises(ValueError, match="closed"):
        counter.add(1)
    assert "closed" in repr(counter)


async def test_counter_limits():
    with EventFD(2**64 - 2) as counter:
        with pytest.raises(BlockingIOError):
            counter.add(1)
        assert await counter == 2**64 - 2
        for bad in (-1, 2**64 - 1):
            with pytest.raises(ValueError, match="2\\*\\*64"):
                counter.add(bad)
    with pytest.raises(ValueError, match="initial"):
        EventFD(-1)
    with pytest.raises(OSError) as caught:
        EventFD(fd=10_000)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(TypeError, match="fileno"):
        EventFD(fd="x")
    with open("/dev/zero", "rb") as zero, pytest.raises(ValueError, match="initial"):
        EventFD(1, fd=zero)


# -- readiness ---------------------------------------------------------------------


async def test_readable_and_writable(pair):
    a, b = pair
    assert await writable(a) & select.POLLOUT
    tasks = [await begun(readable(a)) for _ in range(3)]
    b.send(b"x")
    assert [await task for task in tasks] == [select.POLLIN] * 3
    assert a.recv(1) == b"x"
    a.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            a.send(bytes(65536))
    task = await begun(writable(a))
    while not task.done():
        with contextlib.suppress(BlockingIOError):
            b.recv(1 << 20, socket.MSG_DONTWAIT)
        await asyncio.sleep(0)
    assert await task & select.POLLOUT


async def test_readable_and_writable_at_once(pair):
    a, b = pair
    reading = await begun(readable(a))
    assert await writable(a) == select.POLLOUT
    b.close()
    assert await reading & select.POLLHUP


async def test_readable_beside_add_reader_and_sock_recv(pair):
    a, b = pair
    a.setblocking(False)
    loop = asyncio.get_running_loop()
    calls = []
    loop.add_reader(a, calls.append, 1)
    waits = await begun(readable(a))
    b.send(b"x")
    assert await waits == select.POLLIN
    assert calls
    loop.remove_reader(a)
    a.recv(1)
    receives = await begun(loop.sock_recv(a, 10))
    waits = await begun(readable(a))
    b.send(b"abc")
    assert await receives == b"abc"
    if not waits.done():  # it looked after the other had taken all
        b.send(b"d")
    assert await waits == select.POLLIN


async def test_what_another_has_taken_is_not_told(pair):
    a, b = pair
    first = await begun(readable(a))
    second = await begun(readable(a))
    first.add_done_callback(lambda _: a.recv(10))
    b.send(b"x")
    await first
    await asyncio.sleep(0.005)
    b.send(b"y")
    assert await second == select.POLLIN


async def test_a_pipe_that_hangs_up():
    r, w = os.pipe()
    task = await begun(readable(r))
    os.close(w)
    assert await task & select.POLLHUP
    os.close(r)


async def test_regular_files_are_always_ready(tmp_path):
    with open(tmp_path / "file", "w+b") as file:
        assert await readable(file) == select.POLLIN
        assert await writable(file.fileno()) == select.POLLOUT


async def test_bad_descriptors(pair):
    with pytest.raises(OSError) as caught:
        await readable(10_000)
    assert caught.value.errno == errno.EBADF
    for bad in (object(), None, "x"):
        with pytest.raises(TypeError, match="fileno"):
            readable(bad)
    with pytest.raises(ValueError, match="-1"):
        readable(-1)
    a, _ = pair
    waits = readable(a)
    a.close()
    with pytest.raises(ValueError, match="closed"):
        await waits


async def test_cancelled_waits_leave_nothing_in_flight(pair):
    a, _ = pair
    for _ in range(50):
        task = asyncio.ensure_future(readable(a))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    fd = a.fileno()
    a.close()
    # the number is another's now: its readiness is told, and the old file's is not
    r, w = os.pipe()
    os.dup2(r, fd)
    task = await begun(readable(fd))
    os.write(w, b"x")
    assert await task == select.POLLIN
    for each in {r, w, fd}:
        os.close(each)


def test_a_loop_closed_with_a_wait(loop, pair):
    a, _b = pair

    async def main():
        await begun(readable(a))
        await begun(priority(a))

    loop.run_until_complete(main())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_a_loop_closed_with_tasks_that_wait_for_ever(loop_factory, pair):
    a, _ = pair
    loop = loop_factory()

    async def main():
        source = readable(a)
        source.arm(lambda: None)
        source = priority(a)
        source.arm(lambda: None)

    loop.run_until_complete(main())
    loop.close()
    gc.collect()


# -- exceptional conditions -----------------------------------------------------------


async def test_urgent_byte_between_normal_bytes(tcp):
    a, b = tcp
    urgent = await begun(recv_oob(a))
    condition = await begun(priority(a))
    b.send(b"before")
    await asyncio.sleep(0.002)
    assert not urgent.done()
    b.send(b"!", socket.MSG_OOB)
    b.send(b"after")
    assert await condition & select.POLLPRI
    assert await urgent == b"!"
    read = b""
    while len(read) < 11:
        read += await received(a)
    assert read == b"beforeafter"
    task = await begun(recv_oob(a))
    b.send(b"?", socket.MSG_OOB)
    assert await task == b"?"


async def test_urgent_byte_and_the_end(tcp):
    a, b = tcp
    task = await begun(recv_oob(a))
    b.send(b"x")
    b.shutdown(socket.SHUT_WR)
    assert await task == b""


async def test_a_cancelled_wait_for_urgent_data_loses_none(tcp):
    a, b = tcp
    for i in range(50):
        task = asyncio.ensure_future(recv_oob(a))
        await asyncio.sleep(0)
        b.send(bytes([i]), socket.MSG_OOB)
        await asyncio.sleep(0)
        task.cancel()
        result = await asyncio.gather(task, return_exceptions=True)
        if result != [bytes([i])]:
            assert await recv_oob(a) == bytes([i])


async def test_pressure_trigger():
    for name in ("cpu", "memory", "io"):
        try:
            trigger = os.open(f"/proc/pressure/{name}", os.O_RDWR | os.O_NONBLOCK)
            os.write(trigger, b"some 1000 2000000\0")
            break
        except OSError:
            continue
    else:
        pytest.skip("this kernel or container has no pressure triggers")
    try:
        if name != "cpu":
            pytest.skip("no pressure to be made")

        children = []
        for _ in range(2 * (os.cpu_count() or 1)):
            pid = os.fork()
            if not pid:
                while True:
                    pass
            children.append(pid)
        try:
            async with asyncio.timeout(20):
                assert await priority(trigger) & select.POLLPRI
        finally:
            for pid in children:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
    finally:
        os.close(trigger)


async def test_a_packet_mode_terminal():
    """TIOCPKT: the master's exceptional condition is a change of the slave's state."""
    import fcntl
    import pty
    import termios
    import tty

    master, slave = pty.openpty()
    tty.setraw(slave)
    fcntl.ioctl(master, termios.TIOCPKT, struct.pack("i", 1))
    task = await begun(priority(master))
    termios.tcflush(slave, termios.TCIFLUSH)
    assert await task & select.POLLPRI
    assert os.read(master, 10)[0] & termios.TIOCPKT_FLUSHREAD
    os.close(slave)
    os.close(master)


async def test_an_attribute_that_changes():
    """/proc/self/mounts is one: POLLPRI when something is mounted."""
    with open("/proc/self/mounts", "rb") as mounts:
        mounts.read()
        task = await begun(priority(mounts))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await asyncio.shield(task)
        task.cancel()


async def test_error_queue():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.1", 0))
            address = gone.getsockname()
        sock.connect(address)
        task = await begun(error_queue(sock))
        sock.send(b"nobody there")
        assert await task & select.POLLERR
        data, ancillary, flags, _ = sock.recvmsg(100, 1000, socket.MSG_ERRQUEUE)
        assert data == b"nobody there"
        assert flags & socket.MSG_ERRQUEUE
        assert struct.unpack_from("I", ancillary[0][2])[0] == errno.ECONNREFUSED


# -- receiving, and passing descriptors ----------------------------------------------


async def test_received(pair):
    a, b = pair
    task = await begun(received(a))
    b.send(b"one")
    assert await task == b"one"
    b.send(b"abcdef")
    assert [await received(a, 4), await received(a, 4)] == [b"abcd", b"ef"]
    big = bytes(range(256)) * 300
    b.send(big)
    b.close()
    got = [data async for data in received(a, 1 << 20)]
    assert got[-1] == b""
    assert b"".join(got) == big


async def test_received_of_a_stream(pair):
    a, b = pair
    reader, writer = await asyncio.open_connection(sock=a, limit=1000)
    there = received(reader, 4000)
    task = await begun(there)
    with pytest.raises(RuntimeError, match="waiting"):
        await reader.read(1)
    with pytest.raises(RuntimeError, match="waits"):
        await received(reader)
    b.send(b"one")
    assert await task == b"one"
    # no task, and what a loser was told of stays in the reader
    never = asyncio.get_running_loop().create_future()
    tasks = len(asyncio.all_tasks())
    async with aiounify.select(there, never) as events:
        waiting = await begun(events)
        assert len(asyncio.all_tasks()) == tasks + 1
        b.send(b"two")
        while not reader._buffer:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert await reader.read(2) == b"tw"
    assert await there == b"o"
    # more than the reader's limit, which pauses the connection
    big = bytes(range(256)) * 200
    sending = asyncio.create_task(asyncio.to_thread(lambda: (b.sendall(big), b.close())))
    got = []
    async with asyncio.timeout(20):
        async for data in there:
            assert len(data) <= 4000
            got.append(data)
    await sending
    assert got.pop() == b""
    assert b"".join(got) == big
    writer.close()
    await writer.wait_closed()
    reader.set_exception(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        await received(reader)
    with pytest.raises(ValueError, match="size"):
        received(reader, 0)


async def test_a_stream_that_fails_while_it_is_awaited():
    reader = asyncio.StreamReader()
    task = await begun(received(reader))
    reader.set_exception(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        await task


async def test_received_error(tcp):
    a, b = tcp
    task = await begun(received(a))
    b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    b.close()
    with pytest.raises(ConnectionResetError):
        await task
    with pytest.raises(ValueError, match="size"):
        received(a, 0)


async def test_send_and_receive_descriptors(pair, tmp_path):
    a, b = pair
    waits = await begun(recv_fds(b, 100, 3))
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"content")
        file.flush()
        assert await send_fds(a, [b"ab", b"c"], [file.fileno(), file.fileno()]) == 3
    message = await waits
    assert message.data == b"abc"
    assert not message.truncated
    for fd in message.fds:
        assert not os.get_inheritable(fd)
        assert os.pread(fd, 100, 0) == b"content"
        os.close(fd)
    a.close()
    assert (await recv_fds(b, 10, 1)).data == b""


async def test_descriptors_that_did_not_fit(pair):
    a, b = pair
    await send_fds(a, [b"x"], [0, 1, 2, 0, 1, 2])
    message = await recv_fds(b, 10, 2)
    assert message.truncated
    assert len(message.fds) in (1, 2, 3)  # the kernel rounds the room up
    for fd in message.fds:
        os.close(fd)
    with pytest.raises(ValueError, match="one byte"):
        await send_fds(a, [b""], [0])
    with pytest.raises(ValueError, match="size"):
        await recv_fds(b, 0, 1)


async def test_descriptors_wait_for_room(pair):
    a, b = pair
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += a.send(bytes(65536), socket.MSG_DONTWAIT)
    task = await begun(send_fds(a, [b"!"], [0]))
    while sent:
        sent -= len(b.recv(1 << 20))
    assert await task == 1
    message = await recv_fds(b, 10, 1)
    assert message.data == b"!"
    os.close(message.fds[0])


def test_another_event_loop(pair):
    for make in (lambda: readable(pair[0]), lambda: received(pair[0]), lambda: priority(pair[0])):

        async def main(make=make):
            await make()

        with pytest.raises(RuntimeError, match=r"aiounify\.run\(\)"):
            asyncio.run(main())


async def test_one_source_in_two_loops(loop_factory, pair):
    a, _ = pair
    source = readable(a)
    task = await begun(source)

    async def other():
        with pytest.raises(RuntimeError, match="another event loop"):
            await source

    await asyncio.to_thread(lambda: aiounify.run(other(), loop_factory=loop_factory))
    task.cancel()


async def test_a_wait_begun_again_at_once():
    """The one that was cancelled is still in the kernel, and serves the next."""
    with EventFD() as counter:
        for _ in range(3):
            first = await begun(counter)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            second = await begun(counter)
            counter.add(5)
            assert await second == 5
        # nobody waits when it becomes ready, and it is taken meanwhile
        first = await begun(counter)
        first.cancel()
        await asyncio.wait([first])
        counter.add(1)
        assert await counter == 1
        await asyncio.sleep(0.01)
        second = await begun(counter)
        await asyncio.sleep(0.01)
        assert not second.done()
        counter.add(2)
        assert await second == 2
        first = await begun(counter)
        first.cancel()
        await asyncio.wait([first])
    await asyncio.sleep(0)


@pytest.mark.parametrize("turns", [0, 3])
def test_a_wait_begun_again_in_another_loop(loop_factory, turns):
    async def give_up() -> None:
        task = await begun(counter)
        task.cancel()
        await asyncio.wait([task])
        for _ in range(turns):
            await asyncio.sleep(0)

    async def take() -> int:
        task = await begun(counter)
        counter.add(7)
        return await task

    first, second = loop_factory(), loop_factory()
    with EventFD() as counter, contextlib.closing(first), contextlib.closing(second):
        for _ in range(3):
            first.run_until_complete(give_up())
            assert second.run_until_complete(take()) == 7
            second.run_until_complete(give_up())
            assert first.run_until_complete(take()) == 7
        first.run_until_complete(give_up())
        first.close()
        assert second.run_until_complete(take()) == 7
