"""Ends with one loop referred to, one in a cycle, one running in a thread.  Argument: backend."""

import os
import sys
import threading
import warnings

import aiounify

warnings.simplefilter("ignore", ResourceWarning)
kept = aiounify.new_event_loop(sys.argv[1])
kept.call_later(1000, print, kept)
in_cycle = aiounify.new_event_loop(sys.argv[1])
in_cycle.me = in_cycle
r, w = os.pipe()
in_cycle.add_reader(r, print, in_cycle)
del in_cycle
running = aiounify.new_event_loop(sys.argv[1])
started = threading.Event()
running.call_soon(started.set)
threading.Thread(target=running.run_forever, daemon=True).start()
started.wait()
print("end")
