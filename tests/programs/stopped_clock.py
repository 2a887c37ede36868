"""A process stands still while its clocks go on, as in a suspended machine.  Argument: backend.

The process stops itself while it waits; its parent lets it go on after PAUSE.
"""

import asyncio
import os
import signal
import sys
import time

import aiounify
from aiounify.timers import every, sleep_until

PAUSE = 0.3
INTERVAL = 5_000_000
AT_LEAST = int(PAUSE * 1e9) // INTERVAL - 1


async def main():
    for clock in (time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC, time.CLOCK_REALTIME):
        ticks = every(INTERVAL, clock)
        grid = ticks.deadline_ns % INTERVAL
        before = await ticks
        # due in the middle of what is slept through
        deadline = time.clock_gettime_ns(clock) + int(PAUSE * 1e9) // 2
        alarm = asyncio.create_task(sleep_until(deadline, clock).wait())
        waits = asyncio.create_task(ticks.wait())
        await asyncio.sleep(0)
        stopped = time.clock_gettime_ns(clock)
        os.kill(os.getpid(), signal.SIGSTOP)
        slept = time.clock_gettime_ns(clock) - stopped
        assert slept >= PAUSE * 1e9, slept
        tick, late = await waits, await alarm
        if not tick.missed:  # that one was due before the stop, and this is the next
            tick = await ticks
        assert tick.missed >= AT_LEAST, tick
        assert tick.due_ns % INTERVAL == grid
        assert tick.due_ns > before.due_ns and tick.late_ns >= 0
        # the clock reads at least `slept` more than when it was asked for half of that
        assert late >= stopped + slept - deadline >= 0
        after = await ticks
        assert after.due_ns > tick.due_ns and after.due_ns % INTERVAL == grid


child = os.fork()
if child == 0:
    aiounify.run(main(), loop_factory=lambda: aiounify.new_event_loop(sys.argv[1]))
else:
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
        time.sleep(PAUSE)
        os.kill(child, signal.SIGCONT)
