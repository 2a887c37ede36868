"""A process of its own for a coroutine, by fork; shared by the stress programs of aiounify.sync."""

import os
import sys

import aiounify


def start(backend, coroutine, *args):
    """Run coroutine(*args) on a new loop in a child: its pid.  It says what it raised: status 1."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        aiounify.run(coroutine(*args), loop_factory=lambda: aiounify.new_event_loop(backend))
        status = 0
    except BaseException as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)
