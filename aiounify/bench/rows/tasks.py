"""Tasks and futures: what `await` costs on top of a callback."""

import asyncio
from itertools import repeat

from aiounify.bench.rows.base import LoopRow, Run

__all__ = ["ROWS"]

_GATHERED = 10_000


async def _nothing() -> None:
    pass


def _sleep0(loop: asyncio.AbstractEventLoop) -> Run:
    async def sleeps(n: int) -> None:
        sleep = asyncio.sleep
        for _ in repeat(None, n):
            await sleep(0)

    return lambda n: loop.run_until_complete(sleeps(n))


def _create(loop: asyncio.AbstractEventLoop) -> Run:
    async def creations(n: int) -> None:
        create_task = loop.create_task
        for _ in repeat(None, n):
            await create_task(_nothing())

    return lambda n: loop.run_until_complete(creations(n))


def _future(loop: asyncio.AbstractEventLoop) -> Run:
    async def wakeups(n: int) -> None:
        create_future, call_soon = loop.create_future, loop.call_soon
        for _ in repeat(None, n):
            future = create_future()
            call_soon(future.set_result, None)
            await future

    return lambda n: loop.run_until_complete(wakeups(n))


def _queue(loop: asyncio.AbstractEventLoop) -> Run:
    async def echo(requests: asyncio.Queue[int], answers: asyncio.Queue[int], n: int) -> None:
        for _ in repeat(None, n):
            await answers.put(await requests.get())

    async def rounds(n: int) -> None:
        requests: asyncio.Queue[int] = asyncio.Queue()
        answers: asyncio.Queue[int] = asyncio.Queue()
        other = loop.create_task(echo(requests, answers, n))
        for _ in repeat(None, n):
            await requests.put(1)
            await answers.get()
        await other

    return lambda n: loop.run_until_complete(rounds(n))


def _gather(loop: asyncio.AbstractEventLoop) -> Run:
    async def gathers(count: int) -> None:
        for _ in repeat(None, count):
            await asyncio.gather(*[_nothing() for _ in repeat(None, _GATHERED)])

    return lambda n: loop.run_until_complete(gathers(n // _GATHERED))


ROWS = (
    LoopRow(
        "sleep0",
        "One task awaits asyncio.sleep(0).",
        ("loops", "tasks"),
        "sleep(0)",
        _sleep0,
    ),
    LoopRow(
        "task",
        "create_task of an empty coroutine, awaited.",
        ("loops", "tasks"),
        "task",
        _create,
    ),
    LoopRow(
        "future",
        "create_future, call_soon of its set_result, await it.",
        ("loops", "tasks"),
        "wake-up",
        _future,
    ),
    LoopRow(
        "queue",
        "Two tasks play ping-pong through two asyncio.Queue.",
        ("loops", "tasks"),
        "round trip",
        _queue,
    ),
    LoopRow(
        "gather",
        "gather() of 10,000 empty coroutines.",
        ("loops", "tasks"),
        "coroutine",
        _gather,
        batch=_GATHERED,
    ),
)
