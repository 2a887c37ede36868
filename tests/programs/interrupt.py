"""Ctrl-C at random moments always ends run() with KeyboardInterrupt.

Arguments: backend, how many times.  A loop that misses one sleeps for ever.
"""

import asyncio
import os
import random
import signal
import sys
import threading
import time

import aiounify

BACKEND, COUNT = sys.argv[1], int(sys.argv[2])
rng = random.Random(6)
go = threading.Semaphore(0)


def interrupt():
    for _ in range(COUNT):
        go.acquire()
        pause = time.perf_counter_ns() + rng.randrange(300_000)
        while time.perf_counter_ns() < pause:
            pass
        os.kill(os.getpid(), signal.SIGINT)


async def main():
    go.release()
    await asyncio.Event().wait()


thread = threading.Thread(target=interrupt)
thread.start()
for i in range(COUNT):
    try:
        aiounify.run(main(), loop_factory=lambda: aiounify.new_event_loop(BACKEND))
    except KeyboardInterrupt:
        continue
    raise AssertionError(f"run {i} ended without KeyboardInterrupt")
thread.join()
