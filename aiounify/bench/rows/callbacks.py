"""call_soon: the smallest thing a loop does."""

import asyncio
from itertools import repeat

from aiounify.bench.rows.base import LoopRow, Run, noop

__all__ = ["ROWS"]

_BURST = 1000


def _chain(loop: asyncio.AbstractEventLoop) -> Run:
    def run(n: int) -> None:
        call_soon = loop.call_soon
        left = iter(repeat(None, n - 1))
        done = loop.create_future()

        # A shared iterator counts down in C; `left -= 1` would cost more than the loop.
        def step() -> None:
            for _ in left:
                call_soon(step)
                return
            done.set_result(None)

        call_soon(step)
        loop.run_until_complete(done)

    return run


def _burst(loop: asyncio.AbstractEventLoop) -> Run:
    async def bursts(count: int) -> None:
        call_soon = loop.call_soon
        for _ in repeat(None, count):
            for _ in repeat(None, _BURST):
                call_soon(noop)
            await asyncio.sleep(0)

    def run(n: int) -> None:
        loop.run_until_complete(bursts(n // _BURST))

    return run


ROWS = (
    LoopRow(
        "call_soon-chain",
        "A callback that schedules itself again: one loop turn for each.",
        ("loops", "call_soon"),
        "callback",
        _chain,
    ),
    LoopRow(
        "call_soon-burst",
        "1000 empty callbacks are scheduled, then run in one turn.",
        ("loops", "call_soon"),
        "callback",
        _burst,
        batch=_BURST,
    ),
)
