"""Work that crosses threads.  All threads share the worker's one CPU, like everything else."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from itertools import repeat

from aiounify.bench.rows.base import LoopRow, Run, noop
from aiounify.loop import EventLoop

__all__ = ["ROWS"]


def _run_beside(
    loop: asyncio.AbstractEventLoop,
    body: Callable[[int], None],
    n: int,
) -> None:
    """Run `body(n)` in a thread while the loop runs, until everything it posted was called."""
    done = loop.create_future()

    def thread() -> None:
        try:
            body(n)
        finally:
            loop.call_soon_threadsafe(done.set_result, None)

    worker = threading.Thread(target=thread)
    worker.start()
    loop.run_until_complete(done)
    worker.join()


def _one_way(loop: asyncio.AbstractEventLoop) -> Run:
    def post(n: int) -> None:
        call = loop.call_soon_threadsafe
        for _ in repeat(None, n):
            call(noop)

    return lambda n: _run_beside(loop, post, n)


def _wake(loop: asyncio.AbstractEventLoop) -> Run:
    def ping(n: int) -> None:
        call = loop.call_soon_threadsafe
        turn = threading.Lock()
        turn.acquire()
        release, acquire = turn.release, turn.acquire
        for _ in repeat(None, n):
            call(release)
            acquire()

    return lambda n: _run_beside(loop, ping, n)


def _messages(loop: asyncio.AbstractEventLoop) -> Run:
    """A Mailbox, or what a program without aiounify has: a queue and call_soon_threadsafe()."""

    async def receive(n: int) -> None:
        if isinstance(loop, EventLoop):
            from aiounify.mailbox import Mailbox

            box = Mailbox[int]()
            put: Callable[[int], object] = box.put_nowait
            get = box.get
        else:
            queue: asyncio.Queue[int] = asyncio.Queue()
            call: Callable[..., object] = loop.call_soon_threadsafe
            put = partial(call, queue.put_nowait)
            get = queue.get

        def send() -> None:
            for i in range(n):
                put(i)

        sender = threading.Thread(target=send)
        sender.start()
        for _ in repeat(None, n):
            await get()
        sender.join()

    return lambda n: loop.run_until_complete(receive(n))


def _executor(loop: asyncio.AbstractEventLoop) -> Run:
    async def trips(n: int) -> None:
        run_in_executor = loop.run_in_executor
        for _ in repeat(None, n):
            await run_in_executor(None, noop)

    return lambda n: loop.run_until_complete(trips(n))


ROWS = (
    LoopRow(
        "threadsafe",
        "A thread posts call_soon_threadsafe as fast as it can while the loop runs.",
        ("loops", "threads"),
        "callback",
        _one_way,
    ),
    LoopRow(
        "threadsafe-wake",
        "A thread posts one callback to an idle loop and waits until it was called.",
        ("loops", "threads"),
        "round trip",
        _wake,
    ),
    LoopRow(
        "mailbox",
        "A thread sends messages as fast as it can to a task of the loop.",
        ("loops", "threads"),
        "message",
        _messages,
    ),
    LoopRow(
        "executor",
        "await run_in_executor(None, f) of an empty function.",
        ("loops", "threads"),
        "round trip",
        _executor,
    ),
)
