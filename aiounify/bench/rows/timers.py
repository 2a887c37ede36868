"""Timers: setting, cancelling and firing them, and how late they fire."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import repeat

from aiounify.bench.channel import Measurement
from aiounify.bench.rows.base import LoopRow, Run, noop
from aiounify.loop import EventLoop

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


def _sleeping(loop: asyncio.AbstractEventLoop) -> Run:
    """100,000 tasks asleep at once, each for 0.2 to 1.2 seconds."""

    async def sleeps(count: int) -> None:
        for _ in repeat(None, count):
            tasks = [
                loop.create_task(asyncio.sleep(0.2 + i * 7919 % _HELD / _HELD))
                for i in range(_HELD)
            ]
            await asyncio.gather(*tasks)

    return lambda n: loop.run_until_complete(sleeps(n // _HELD))


def _sleeping_until(loop: asyncio.AbstractEventLoop) -> Run:
    """The same by deadlines: sleep_until() here, asyncio.sleep() on other loops."""
    until: Callable[[float], Awaitable[object]]
    if isinstance(loop, EventLoop):
        from aiounify.timers import sleep_until

        until = sleep_until
    else:

        def until(deadline: float) -> Awaitable[object]:
            return asyncio.sleep(deadline - time.monotonic())

    async def one(deadline: float) -> None:
        await until(deadline)

    async def sleeps(count: int) -> None:
        for _ in repeat(None, count):
            begin = time.monotonic() + 0.2
            tasks = [loop.create_task(one(begin + i * 7919 % _HELD / _HELD)) for i in range(_HELD)]
            await asyncio.gather(*tasks)

    return lambda n: loop.run_until_complete(sleeps(n // _HELD))


_TICK_NS = 1_000_000
_WORK = range(300)


def _ticking(loop: asyncio.AbstractEventLoop) -> Run:
    """Ticks of a millisecond while other tasks work; how late each is taken."""

    async def work() -> None:
        while True:
            sum(_WORK)
            await asyncio.sleep(0)

    async def every_ours(n: int, late: list[int]) -> None:
        from aiounify.timers import every

        now = time.monotonic_ns
        async for tick in every(_TICK_NS):
            late.append(now() - tick.due_ns)
            if len(late) == n:
                return

    async def every_by_sleep(n: int, late: list[int]) -> None:
        # what a program does without every(): sleep until the next point of the grid
        now = time.monotonic_ns
        due = now() + _TICK_NS
        while len(late) < n:
            await asyncio.sleep(max(0, due - now()) / 1e9)
            late.append(now() - due)
            due += max(1, (now() - due) // _TICK_NS + 1) * _TICK_NS

    async def ticks(n: int, late: list[int]) -> None:
        workers = [loop.create_task(work()) for _ in range(5)]
        await (every_ours if isinstance(loop, EventLoop) else every_by_sleep)(n, late)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    def run(n: int) -> Measurement:
        late: list[int] = []
        loop.run_until_complete(ticks(n, late))
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
    LoopRow(
        "sleep-100k",
        "100,000 tasks in asyncio.sleep() of 0.2 to 1.2 seconds, made and gathered.",
        ("loops", "timers"),
        "sleep",
        _sleeping,
        batch=_HELD,
        counted=0,
    ),
    LoopRow(
        "sleep-until-100k",
        "The same by sleep_until(); on other loops asyncio.sleep() of the difference.",
        ("loops", "timers"),
        "sleep",
        _sleeping_until,
        batch=_HELD,
        counted=0,
    ),
)

LATENESS_ROWS = (
    *(
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
    ),
    LoopRow(
        "lateness-every-1ms",
        "How late ticks of 1 ms are while five tasks work; every() here, sleeps on other loops.",
        ("lateness", "timers"),
        "tick",
        _ticking,
        lateness=True,
        counted=0,
    ),
)
