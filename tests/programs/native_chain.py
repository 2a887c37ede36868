"""Ctrl-C while the loop runs callbacks that are all native code.  Argument: backend."""

import os
import signal
import sys

import aiounify

loop = aiounify.new_event_loop(sys.argv[1])
pid = os.fork()
if not pid:
    import time

    time.sleep(0.2)
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(20)
    os.kill(os.getppid(), signal.SIGKILL)  # it was not noticed
    os._exit(0)
r, w = os.pipe()
os.write(w, b"x")
loop.add_reader(r, int)  # always readable, and never read: no bytecode in any turn
try:
    loop.run_forever()
except KeyboardInterrupt:
    pass
else:
    raise AssertionError("the loop ended by itself")
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
loop.close()
