"""Signals at random moments around the wait; each has to be noticed.

Arguments: backend, way, number of signals.

A second process sends one signal after the other to the loop's thread, each only when
the one before was answered, after a random pause.  After the answer the loop runs a
callback that is C and looks at no signal, for a random time as well, and goes to sleep:
most signals land where Python's flag is set but nobody looks before the wait.  Nothing
else happens in the loop: a signal that is missed leaves it asleep, and the sender gives
up after 10 seconds.
"""

import ctypes
import os
import random
import select
import signal
import sys
import threading
import time

import aiounify

BACKEND, WAY, COUNT = sys.argv[1], sys.argv[2], int(sys.argv[3])


def sender(pid: int, thread: int, answers: int) -> int:
    rng = random.Random(5)
    tgkill = ctypes.CDLL(None).tgkill
    for i in range(COUNT):
        pause = time.perf_counter_ns() + rng.randrange(200_000)
        while time.perf_counter_ns() < pause:
            pass
        assert tgkill(pid, thread, signal.SIGUSR1) == 0
        ready, _, _ = select.select([answers], [], [], 10)
        if not ready:
            print(f"signal {i} was not noticed", flush=True)
            os.kill(pid, signal.SIGKILL)
            return 1
        os.read(answers, 1)
    return 0


def main() -> None:
    answers, answer = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        thread = int.from_bytes(os.read(told, 4), "little")  # not before there is a handler
        os._exit(sender(os.getppid(), thread, answers))
    loop = aiounify.new_event_loop(BACKEND)
    awake, wake = os.pipe2(os.O_NONBLOCK)
    seen, rng = 0, random.Random(7)

    def noticed(*_):
        nonlocal seen
        seen += 1
        loop.call_soon(sum, range(rng.randrange(20_000)))
        os.write(answer, b"x")
        if seen == COUNT:
            loop.stop()
            if WAY == "other thread":
                os.write(wake, b"x")

    def started():
        os.write(tell, os.getpid().to_bytes(4, "little"))

    if WAY != "other thread":
        loop.call_soon(started)
    if WAY == "loop handler":
        loop.add_signal_handler(signal.SIGUSR1, noticed)
        loop.run_forever()
        loop.remove_signal_handler(signal.SIGUSR1)
    elif WAY == "python handler":
        # the handler asks the loop, so that the loop itself must come round
        signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon(noticed))
        loop.run_forever()
    else:
        # The loop runs elsewhere, and its wait is the one that the signals interrupt.
        # Python runs handlers in the main thread, which sleeps on the wake-up descriptor.
        signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon_threadsafe(noticed))
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        os.write(tell, thread.native_id.to_bytes(4, "little"))
        while seen < COUNT:
            select.select([awake], [], [])
            os.read(awake, 100)
        thread.join()
        signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    loop.close()
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    assert seen == COUNT, seen


main()
