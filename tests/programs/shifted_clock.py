"""Clocks as after a suspend: in a time namespace the boot clock is a day ahead.  Argument: backend.

Where this process may not make one, nothing is shown and the program ends well.
"""

import os
import sys
import time

CLONE_NEWTIME = 0x80
# Apart from each other by more than anybody here waits.
BOOT, MONOTONIC = 86400, 3600
CLOCKS = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)


def main(backend, apart):
    import asyncio

    import aiounify
    from aiounify.timers import after, every, sleep_until

    async def shifted():
        if apart:
            boot, monotonic = map(time.clock_gettime, (time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC))
            assert boot - monotonic > BOOT - MONOTONIC - 60
            # a time of one clock is none of the other's
            both = {clock: after(0.001, clock) for clock in CLOCKS}
            for clock, alarm in both.items():
                async with asyncio.timeout(20):
                    assert await alarm >= 0
                assert alarm.deadline_ns <= time.clock_gettime_ns(clock)
            assert both[CLOCKS[1]].deadline_ns - both[CLOCKS[0]].deadline_ns > 20 * 10**9
        for clock in (*CLOCKS, time.CLOCK_REALTIME):
            for _ in range(20):
                deadline = time.clock_gettime_ns(clock) + 300_000
                async with asyncio.timeout(20):
                    late = await sleep_until(deadline, clock)
                assert 0 <= late <= time.clock_gettime_ns(clock) - deadline
        async with asyncio.timeout(20):
            assert (await every(0.001, time.CLOCK_BOOTTIME)).late_ns >= 0
            assert await after(0.001, time.CLOCK_BOOTTIME) >= 0

    aiounify.run(shifted(), loop_factory=lambda: aiounify.new_event_loop(backend))


try:
    os.unshare(CLONE_NEWTIME)
    with open("/proc/self/timens_offsets", "w") as offsets:
        offsets.write(f"boottime {BOOT} 0\nmonotonic {MONOTONIC} 0\n")
except (OSError, AttributeError):  # not allowed, or Python before 3.12
    main(sys.argv[1], apart=False)
else:
    child = os.fork()  # the namespace is the children's
    if child == 0:
        main(sys.argv[1], apart=True)
    else:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
