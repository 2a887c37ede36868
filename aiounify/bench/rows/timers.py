"""Timers: setting, cancelling and firing them, and how late they fire."""

import asyncio
import time
from functools import partial
from itertools import repeat

from aiounify.bench.channel import Measurement
from aiounify.bench.rows.base import LoopRow, Run, noop

__all__ = ["LATENESS_ROWS", "ROWS"]

_HELD = 100_000
# Timers set and cancelled within one turn: a loop that drops cancelled timers lazily must come to
# sweep them, as it would in a server.
_A_TURN = 100
# uvloop counts in whole milliseconds and turns a shorter delay into call_soon, so the delays start
# at 1 ms.  So many timers are set at once that the first are due before the last is set: the loop
# has no time to sleep, and what is measured is firing.
_FIRED = 50_000
_DELAYS = [0.001 + (i * 7919 % 1000) / 1e6 for i in range(1000)]
_LAST_DELAY = 0.0021


def _cancel(loop: asyncio.AbstractEventLoop) -> Run:
    async def cancels(turns: int) -> None:
        call_later = loop.call_later
        for _ in repeat(None, turns):
            for _ in repeat(None, _A_TURN):
                call_later(60, noop).cancel()
            await asyncio.sleep(0)

    return lambda n: loop.run_until_complete(cancels(n // _A_TURN))


def _cancel_held(loop: asyncio.AbstractEventLoop) -> Run:
    held: list[asyncio.TimerHandle] = []

    async def hold() -> None:
        # Due in an hour and more, in an order that is neither rising nor falling.
        held.extend(loop.call_later(3600 + i * 7919 % _HELD / 100, noop) for i in range(_HELD))

    loop.run_until_complete(hold())
    return _cancel(loop)


def _fire(loop: asyncio.AbstractEventLoop) -> Run:
    async def fires(count: int) -> None:
        call_later = loop.call_later
        for _ in repeat(None, count):
            done = loop.create_future()
            for _ in repeat(None, _FIRED // len(_DELAYS)):
                for delay in _DELAYS:
                    call_later(delay, noop)
            call_later(_LAST_DELAY, done.set_result, None)
            await done

    return lambda n: loop.run_until_complete(fires(n // _FIRED))


def _lateness(delay_ns: int, loop: asyncio.AbstractEventLoop) -> Run:
    async def sleeps(n: int, late: list[int]) -> None:
        now, sleep, delay = time.monotonic_ns, asyncio.sleep, delay_ns / 1e9
        for _ in repeat(None, n):
            began = now()
            await sleep(delay)
            late.append(now() - began - delay_ns)

    def run(n: int) -> Measurement:
        late: list[int] = []
        loop.run_until_complete(sleeps(n, late))
        return {"lateness_ns": late}

    return run


ROWS = (
    LoopRow(
        "timer-cancel",
        "call_later(60, ...) and cancel, one at a time.",
        ("loops", "timers"),
        "timer",
        _cancel,
        batch=_A_TURN,
    ),
    LoopRow(
        "timer-cancel-100k",
        "call_later(60, ...) and cancel while 100,000 other timers wait.",
        ("loops", "timers"),
        "timer",
        _cancel_held,
        batch=_A_TURN,
    ),
    LoopRow(
        "timer-fire",
        "50,000 timers of 1 to 2 ms are set, then all fire.",
        ("loops", "timers"),
        "timer",
        _fire,
        batch=_FIRED,
    ),
)

LATENESS_ROWS = tuple(
    LoopRow(
        f"lateness-{name}",
        f"How late asyncio.sleep({seconds}) returns, and how often too early.",
        ("lateness", "timers"),
        "sleep",
        partial(_lateness, delay_ns),
        lateness=True,
        counted=0,
    )
    for name, seconds, delay_ns in (
        ("50us", "50e-6", 50_000),
        ("500us", "500e-6", 500_000),
        ("5ms", "5e-3", 5_000_000),
    )
)
