"""CLOCK_REALTIME is set while ticks are awaited; see shift_clock.c.  Argument: backend.

The kernel's clock stays as it is, so the timerfd's part is played here: its wake-up.
"""

import asyncio
import ctypes
import errno
import os
import sys
import time
from unittest import mock

import aiounify
from aiounify import timers
from aiounify.timers import every, sleep_until

REALTIME = time.CLOCK_REALTIME
HOUR = 3600 * 10**9
INTERVAL = 100_000_000
shift = ctypes.c_longlong.in_dll(ctypes.CDLL(None), "shift_ns")


def set_clock(by_ns):
    """What the kernel does: the clock jumps, and the timerfd says so."""
    shift.value += by_ns
    clock = timers._clock_of(asyncio.get_running_loop(), REALTIME)
    cancelled = OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
    with mock.patch.object(timers.os, "read", side_effect=cancelled):
        clock._readable()


async def begun(source):
    while True:
        task = asyncio.create_task(source.wait())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not task.done():
            return task


async def main():
    ticks = every(INTERVAL, REALTIME)
    grid = ticks.deadline_ns % INTERVAL
    before = await ticks
    assert not before.clock_set

    waits = await begun(ticks)
    set_clock(HOUR)
    forward = await waits
    assert forward.clock_set
    assert forward.due_ns % INTERVAL == grid
    assert forward.missed >= HOUR // INTERVAL - 2
    assert 0 <= forward.late_ns < INTERVAL

    waits = await begun(ticks)
    set_clock(-HOUR)
    async with asyncio.timeout(20):  # and not an hour
        back = await waits
    assert back.clock_set
    assert back.due_ns % INTERVAL == grid
    assert before.due_ns < back.due_ns < forward.due_ns

    # a deadline that the clock jumps over is due at once, one it jumps away from waits
    alarm = sleep_until(time.time_ns() + HOUR // 2, REALTIME)
    waits = await begun(alarm)
    set_clock(HOUR)
    assert await waits >= HOUR // 2

    # set back while nobody waits: seen from the ticks themselves
    set_clock(-HOUR)
    await ticks
    shift.value -= HOUR
    async with asyncio.timeout(20):
        assert (await ticks).clock_set


aiounify.run(main(), loop_factory=lambda: aiounify.new_event_loop(sys.argv[1]))
