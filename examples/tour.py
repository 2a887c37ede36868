"""A tour: one coroutine program that awaits each kind of event the loop can await.

Every event happens to a real kernel object and is caused somewhere else: in a client process
(tour_client.py), in a thread, or by the clock.  For each the tour prints what was awaited, who
caused it, by what the kernel woke the loop, and the time from the cause to the moment the
coroutine went on.  Single wake-ups of a sleeping process are shown, so the times vary from run
to run; `python -m aiounify bench` is what measures.

AIOUNIFY_BACKEND=epoll (or uring) chooses the backend.  The exit status is 0 if every event
came.

To add a kind of event, write a coroutine that takes the `Tour` and returns a `Wakeup`, and give
it the decorator `event`.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import platform
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import aiounify
from aiounify import files, process
from aiounify.events import EventFD, error_queue, readable, recv_fds
from aiounify.features import backend_line
from aiounify.futex import Futex
from aiounify.signals import signals
from aiounify.timers import after, every

CLIENT = Path(__file__).with_name("tour_client.py")
SECONDS_PER_EVENT = 5.0
CLOCK_SECONDS = 0.02
IP_RECVERR = 11  # ip(7)


class Wakeup(NamedTuple):
    """How one event reached its coroutine: by what mechanism, and how long after its cause."""

    mechanism: str
    latency_ns: int


class Client:
    """A process that causes events on command; see tour_client.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, *, keep: tuple[int, ...] = ()) -> Client:
        """Start one; it inherits the descriptors `keep`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-SE",
            CLIENT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=keep,
        )
        return cls(process)

    def tell(self, *command: object) -> None:
        """Tell it to cause something; that happens a few milliseconds later."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{' '.join(map(str, command))}\n".encode())

    async def answer(self) -> int:
        """When it did what it was told last, by the monotonic clock, in nanoseconds."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise ConnectionError("the client process has ended")
        return int(line)

    async def stop(self) -> None:
        """Let it end and wait for that."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


class Mechanisms:
    """What the loop is woken by, in the words of this machine and the backend that runs."""

    def __init__(self, backend: str) -> None:
        found = aiounify.features()
        if backend == "epoll":
            self.readiness = "epoll_wait"
            self.timer = "timerfd, epoll_wait"
            self.poll = "epoll_wait"
        else:
            self.timer = "timeout of io_uring_enter"
            self.poll = "POLL_ADD in the ring"
            if found["uring_epoll_wait"].on:
                self.readiness = "EPOLL_WAIT in the ring"
            else:
                self.readiness = "POLL_ADD in the ring, epoll_wait"
        if backend == "epoll":
            self.file = "fsync in a thread, eventfd"
        else:
            self.file = "FSYNC in the ring"
        self.thread = f"eventfd, {self.readiness}"
        self.signal = f"signal wakeup fd, {self.readiness}"
        if backend == "uring" and found["uring_futex_wait"].on:
            self.futex = "FUTEX_WAIT in the ring"
        else:
            self.futex = "futex_waitv in a thread, eventfd"
        if backend == "uring" and found["uring_waitid"].on:
            self.waited = "WAITID in the ring"
        elif found["pidfd"].on:
            self.waited = f"pidfd, {self.poll}"
        else:
            self.waited = "waitid in a thread, eventfd"
        if found["pidfd"].on:
            self.child = f"pidfd, {self.readiness}"
        else:
            self.child = "waitpid in a thread, eventfd"


@dataclass
class Tour:
    """What the events share: the loop, the client, and one TCP connection to it."""

    loop: aiounify.EventLoop
    by: Mechanisms
    client: Client
    listener: socket.socket
    folder: Path
    pipe: tuple[int, int]
    counter: EventFD
    connection: socket.socket | None = None

    @property
    def tcp(self) -> socket.socket:
        """This end of the connection that the event "TCP accept" made."""
        if self.connection is None:
            raise ConnectionError("the client's connection was not accepted")
        return self.connection

    async def since_cause(self) -> int:
        """Nanoseconds from what the client did last until now."""
        now = time.monotonic_ns()
        return now - await self.client.answer()


class Event(NamedTuple):
    """One line of the table."""

    kind: str
    cause: str
    wait: Callable[[Tour], Awaitable[Wakeup]]


EVENTS: list[Event] = []


def event(
    kind: str, cause: str
) -> Callable[[Callable[[Tour], Awaitable[Wakeup]]], Callable[[Tour], Awaitable[Wakeup]]]:
    """Put a coroutine function on the tour; the order is that of the definitions."""

    def add(wait: Callable[[Tour], Awaitable[Wakeup]]) -> Callable[[Tour], Awaitable[Wakeup]]:
        EVENTS.append(Event(kind, cause, wait))
        return wait

    return add


# -- the events ------------------------------------------------------------------


@event("TCP accept", "client connects")
async def tcp_accept(tour: Tour) -> Wakeup:
    tour.client.tell("tcp-connect", *tour.listener.getsockname())
    tour.connection, _ = await tour.loop.sock_accept(tour.listener)
    return Wakeup(tour.by.readiness, await tour.since_cause())


@event("TCP read", "client sends a byte")
async def tcp_read(tour: Tour) -> Wakeup:
    tour.client.tell("tcp-send")
    await tour.loop.sock_recv(tour.tcp, 1)
    return Wakeup(tour.by.readiness, await tour.since_cause())


@event("TCP write", "client empties a full connection")
async def tcp_write(tour: Tour) -> Wakeup:
    tour.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    filled = 0
    try:
        while True:
            filled += tour.tcp.send(b"x" * 4096)
    except BlockingIOError:
        pass  # the kernel takes no more: from here on a write has to wait
    tour.client.tell("tcp-drain", filled + 1)
    await tour.loop.sock_sendall(tour.tcp, b"x")
    return Wakeup(tour.by.readiness, await tour.since_cause())


@event("TCP out-of-band data", "client sends an urgent byte")
async def tcp_urgent(tour: Tour) -> Wakeup:
    arrived = tour.loop.create_future()

    def exceptional() -> None:
        tour.loop.remove_priority(tour.tcp)
        arrived.set_result(tour.tcp.recv(1, socket.MSG_OOB))

    tour.loop.add_priority(tour.tcp, exceptional)
    tour.client.tell("tcp-urgent")
    await arrived
    return Wakeup(tour.by.readiness, await tour.since_cause())


@event("unix socket read", "client sends a byte")
async def unix_read(tour: Tour) -> Wakeup:
    streams: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    path = tour.folder / "tour.sock"
    server = await asyncio.start_unix_server(lambda *pair: streams.put_nowait(pair), path)
    tour.client.tell("unix-connect", path)
    reader, writer = await streams.get()
    await tour.client.answer()
    tour.client.tell("unix-send")
    await reader.readexactly(1)
    latency = await tour.since_cause()
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    return Wakeup(tour.by.readiness, latency)


@event("pipe read", "client writes a byte")
async def pipe_read(tour: Tour) -> Wakeup:
    reader = asyncio.StreamReader()
    transport, _ = await tour.loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader),
        os.fdopen(os.dup(tour.pipe[0]), "rb", buffering=0),  # the transport closes it
    )
    tour.client.tell("pipe-write", tour.pipe[1])
    await reader.readexactly(1)
    latency = await tour.since_cause()
    transport.close()
    return Wakeup(tour.by.readiness, latency)


@event("file change", "client creates a file")
async def file_change(tour: Tour) -> Wakeup:
    async with aiounify.watch(tour.folder) as changes:
        tour.client.tell("create", tour.folder / "new")
        change = await changes.wait()
        assert change.path == str(tour.folder / "new")
        return Wakeup(f"inotify, {tour.by.readiness}", await tour.since_cause())


@event("timer", "the deadline")
async def timer(tour: Tour) -> Wakeup:
    due_ns = time.monotonic_ns() + int(CLOCK_SECONDS * 1e9)
    rung = tour.loop.create_future()
    tour.loop.call_at(due_ns / 1e9, rung.set_result, None)
    await rung
    return Wakeup(tour.by.timer, time.monotonic_ns() - due_ns)


@event("timer of the wall clock", "the deadline")
async def clock_timer(tour: Tour) -> Wakeup:
    late_ns = await after(CLOCK_SECONDS, time.CLOCK_REALTIME)
    return Wakeup(f"timerfd, {tour.by.readiness}", late_ns)


@event("tick", "the clock, every 5 ms")
async def tick_comes(tour: Tour) -> Wakeup:
    tick = await every(0.005)
    return Wakeup(tour.by.timer, tick.late_ns)


@event("eventfd", "client adds to the counter")
async def eventfd_counts(tour: Tour) -> Wakeup:
    tour.client.tell("eventfd-add", tour.counter.fileno())
    await tour.counter
    return Wakeup(tour.by.poll, await tour.since_cause())


@event("descriptor passed", "this program sends it to itself")
async def descriptor_passed(tour: Tour) -> Wakeup:
    here, there = socket.socketpair()
    with here, there:
        cause = time.monotonic_ns() + int(CLOCK_SECONDS * 1e9)
        sends = tour.loop.call_at(
            cause / 1e9, socket.send_fds, there, [b"x"], [tour.counter.fileno()]
        )
        message = await recv_fds(here, 1, 1)
        now = time.monotonic_ns()
    os.close(message.fds[0])
    assert not sends.cancelled()
    return Wakeup(tour.by.poll, now - cause)


@event("child process", "child exits")
async def child_exit(tour: Tour) -> Wakeup:
    child = await Client.start()
    child.tell("exit")
    await child.process.wait()
    now = time.monotonic_ns()
    cause = await child.answer()
    await child.stop()
    return Wakeup(tour.by.child, now - cause)


@event("child with its usage", "child exits")
async def child_with_usage(tour: Tour) -> Wakeup:
    note = tour.folder / "ended"
    program = "import sys, time; open(sys.argv[1], 'w').write(str(time.monotonic_ns()))"
    command = [sys.executable, "-SEc", program, str(note)]
    child = os.posix_spawn(sys.executable, command, os.environ)  # noqa: ASYNC221 - it does not block
    ended = await process.wait(child)
    now = time.monotonic_ns()
    assert ended.returncode == 0
    assert ended.rusage.ru_maxrss > 0
    return Wakeup(tour.by.waited, now - int(note.read_text()))


@event("signal", "client sends SIGUSR1")
async def signal_arrives(tour: Tour) -> Wakeup:
    arrived = tour.loop.create_future()
    tour.loop.add_signal_handler(signal.SIGUSR1, arrived.set_result, None)
    tour.client.tell("signal", "SIGUSR1")
    await arrived
    latency = await tour.since_cause()
    tour.loop.remove_signal_handler(signal.SIGUSR1)
    return Wakeup(tour.by.signal, latency)


@event("signal with its sender", "client sends SIGUSR2")
async def signal_with_sender(tour: Tour) -> Wakeup:
    async with signals(signal.SIGUSR2) as arriving:
        tour.client.tell("signal", "SIGUSR2")
        info = await arriving.wait()
        latency = await tour.since_cause()
        assert info.sender_pid == tour.client.process.pid
    return Wakeup(f"handler in C, pipe, {tour.by.poll}", latency)


@event("first of six kinds", "client adds to the counter")
async def first_of_six(tour: Tour) -> Wakeup:
    never = tour.loop.create_future()
    async with (
        signals(signal.SIGUSR2) as arriving,
        aiounify.select(
            arriving, readable(tour.pipe[0]), after(60.0), every(60.0), never, tour.counter
        ) as events,
    ):
        tour.client.tell("eventfd-add", tour.counter.fileno())
        source, _ = await events
        latency = await tour.since_cause()
        assert source is tour.counter
    return Wakeup(tour.by.poll, latency)


@event("wake-up from a thread", "thread: call_soon_threadsafe")
async def thread_wakes(tour: Tour) -> Wakeup:
    woken: asyncio.Future[int] = tour.loop.create_future()

    def other_thread() -> None:
        time.sleep(CLOCK_SECONDS)
        tour.loop.call_soon_threadsafe(woken.set_result, time.monotonic_ns())

    thread = threading.Thread(target=other_thread)
    thread.start()
    cause = await woken
    now = time.monotonic_ns()
    thread.join()
    return Wakeup(tour.by.thread, now - cause)


@event("message from a thread", "thread: Mailbox.put_nowait")
async def message_arrives(tour: Tour) -> Wakeup:
    box = aiounify.Mailbox[int]()

    def other_thread() -> None:
        time.sleep(CLOCK_SECONDS)
        box.put_nowait(time.monotonic_ns())

    thread = threading.Thread(target=other_thread)
    thread.start()
    cause = await box.get()
    now = time.monotonic_ns()
    thread.join()
    return Wakeup(tour.by.thread, now - cause)


@event("socket error queue", "the kernel: nobody has that port")
async def error_queued(tour: Tour) -> Wakeup:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody,
    ):
        nobody.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.connect(nobody.getsockname())
        nobody.close()
        cause = time.monotonic_ns() + int(CLOCK_SECONDS * 1e9)
        sends = tour.loop.call_at(cause / 1e9, sock.send, b"x")
        await error_queue(sock)
        now = time.monotonic_ns()
        data, *_ = sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
    assert data == b"x"
    assert not sends.cancelled()
    return Wakeup(tour.by.poll, now - cause)


@event("DNS lookup of localhost", "the call; includes the lookup")
async def dns_lookup(tour: Tour) -> Wakeup:
    cause = time.monotonic_ns()
    await tour.loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
    return Wakeup("getaddrinfo in a thread, eventfd", time.monotonic_ns() - cause)


@event("futex", "process changes a shared word")
async def futex(tour: Tour) -> Wakeup:
    path = tour.folder / "word"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        word = Futex(memory)
        tour.client.tell("futex-wake", path)
        while word.load() == 0:
            await word.wait(0)
        latency = await tour.since_cause()
        word.release()
    return Wakeup(tour.by.futex, latency)


@event("file", "the disk has what was written")
async def file_synced(tour: Tour) -> Wakeup:
    async with files.open(tour.folder / "file", "wb") as file:
        await file.write(b"worth keeping")
        await file.flush()
        cause = time.monotonic_ns()
        await file.fsync()
        latency = time.monotonic_ns() - cause
    return Wakeup(tour.by.file, latency)


# -- the tour --------------------------------------------------------------------


def print_row(kind: str, cause: str, mechanism: str, latency: str) -> None:
    print(f"{kind:<25}{cause:<34}{mechanism:<41}{latency:>9}", flush=True)


async def walk(tour: Tour) -> int:
    """Await every event in turn and print a line for each; return how many did not come."""
    print_row("awaited", "cause", "the loop was woken by", "after, us")
    failed = 0
    for kind, cause, wait in EVENTS:
        try:
            async with asyncio.timeout(SECONDS_PER_EVENT):
                wakeup = await wait(tour)
        except Exception as exc:
            failed += 1
            print_row(kind, cause, f"FAILED: {exc or type(exc).__name__}", "")
        else:
            print_row(kind, cause, wakeup.mechanism, f"{wakeup.latency_ns / 1000:.1f}")
    return failed


async def main() -> int:
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, aiounify.EventLoop)
    system = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"aiounify {aiounify.__version__}, {system}, Linux {platform.release()}")
    print(f"{backend_line()}\n")

    async with AsyncExitStack() as stack:
        pipe = os.pipe()
        for fd in pipe:
            stack.callback(os.close, fd)
        counter = stack.enter_context(EventFD())
        client = await Client.start(keep=(pipe[1], counter.fileno()))
        stack.push_async_callback(client.stop)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tour = Tour(loop, Mechanisms(loop.backend), client, listener, folder, pipe, counter)
        failed = await walk(tour)
        if tour.connection is not None:
            tour.connection.close()

    print(
        f"\n{len(EVENTS) - failed} of {len(EVENTS)} kinds of event awaited by one loop "
        f"({loop.backend}) in {time.monotonic() - started:.2f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        aiounify.new_event_loop().close()
    except (OSError, ValueError) as exc:  # AIOUNIFY_BACKEND names a backend that cannot be had
        sys.exit(f"tour: {exc}")
    sys.exit(aiounify.run(main()))
