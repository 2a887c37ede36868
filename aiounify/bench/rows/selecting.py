"""One event, awaited alone and among six kinds."""

import asyncio
import os
import signal
import socket
from collections.abc import Coroutine
from functools import partial
from itertools import repeat
from typing import Self

from aiounify.bench.rows.base import LoopRow, Run
from aiounify.loop import EventLoop

__all__ = ["ROWS"]


class _Counter:
    """An eventfd as a program has it without aiounify: a reader callback and a future."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.fd)

    def add(self, value: int) -> None:
        os.eventfd_write(self.fd, value)

    async def wait(self) -> int:
        while True:
            try:
                return os.eventfd_read(self.fd)
            except BlockingIOError:
                pass
            future = self.loop.create_future()
            self.loop.add_reader(self.fd, future.set_result, None)
            try:
                await future
            finally:
                self.loop.remove_reader(self.fd)


def _alone(loop: asyncio.AbstractEventLoop) -> Run:
    async def ours(n: int) -> None:
        from aiounify.events import EventFD

        with EventFD() as counter:
            call_soon, add = loop.call_soon, counter.add
            for _ in repeat(None, n):
                call_soon(add, 1)
                await counter

    async def theirs(n: int) -> None:
        with _Counter(loop) as counter:
            call_soon, add = loop.call_soon, counter.add
            for _ in repeat(None, n):
                call_soon(add, 1)
                await counter.wait()

    waits = ours if isinstance(loop, EventLoop) else theirs
    return lambda n: loop.run_until_complete(waits(n))


def _select(loop: asyncio.AbstractEventLoop, *, once: bool = False) -> Run:
    async def with_select(n: int, left: socket.socket) -> None:
        from aiounify.events import EventFD, received
        from aiounify.selection import select
        from aiounify.signals import signals
        from aiounify.sources import Arrivals
        from aiounify.timers import every, sleep_until

        counter, arrivals = EventFD(), Arrivals[int]()
        call_soon, add = loop.call_soon, counter.add
        async with signals(signal.SIGUSR2) as arriving:
            sources = (
                counter,
                received(left),
                arrivals,
                arriving,
                every(3600.0),
                sleep_until(loop.time() + 3600),
            )
            if once:
                for _ in repeat(None, n):
                    call_soon(add, 1)
                    await select(*sources)
            else:
                async with select(*sources) as events:
                    for _ in repeat(None, n):
                        call_soon(add, 1)
                        await events
        counter.close()

    async def with_tasks(n: int, left: socket.socket) -> None:
        counter = _Counter(loop)
        queue: asyncio.Queue[int] = asyncio.Queue()
        arrived = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR2, arrived.set)
        kinds: list[Coroutine[object, object, object]] = [
            loop.sock_recv(left, 65536),
            queue.get(),
            arrived.wait(),
            asyncio.sleep(3600),
            asyncio.sleep(3601),
        ]
        others = {loop.create_task(kind) for kind in kinds}
        for _ in repeat(None, n):
            loop.call_soon(counter.add, 1)
            mine = loop.create_task(counter.wait())
            await asyncio.wait({mine, *others}, return_when=asyncio.FIRST_COMPLETED)
            mine.result()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        loop.remove_signal_handler(signal.SIGUSR2)
        counter.close()

    def run(n: int) -> None:
        left, right = socket.socketpair()
        left.setblocking(False)
        with left, right:
            waits = with_select if isinstance(loop, EventLoop) else with_tasks
            loop.run_until_complete(waits(n, left))

    return run


ROWS = (
    LoopRow(
        "wait-1",
        "An eventfd becomes ready and the task that awaits it goes on.",
        ("loops", "select"),
        "event",
        _alone,
    ),
    LoopRow(
        "select-6",
        "The same, awaited among six kinds: select(), on other loops asyncio.wait().",
        ("loops", "select"),
        "event",
        _select,
    ),
    LoopRow(
        "select-6-once",
        "The same with a new select() for each event.",
        ("loops", "select"),
        "event",
        partial(_select, once=True),
    ),
)
