"""Clocks that differ: in a time namespace the boot clock is a day ahead.  Argument: backend.

Where this process may not make one, nothing is shown and the program ends well.
"""

import os
import sys
import time

CLONE_NEWTIME = 0x80
SHIFT = 86400


def main(backend):
    import asyncio

    import aiounify
    from aiounify.timers import after, every, sleep_until

    async def shifted():
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        assert boot - time.clock_gettime_ns(time.CLOCK_REALTIME) != 0
        for clock in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_REALTIME):
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
        offsets.write(f"boottime {SHIFT} 0\nmonotonic {SHIFT} 0\n")
except (OSError, AttributeError):  # not allowed, or Python before 3.12
    main(sys.argv[1])
else:
    child = os.fork()  # the namespace is the children's
    if child == 0:
        main(sys.argv[1])
    else:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
