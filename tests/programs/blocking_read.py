"""A read operation on a pipe that is not O_NONBLOCK must not stop the loop.  Argument: backend."""

import os
import sys

import aiounify
from aiounify._core.reactor import ReadOp

loop = aiounify.new_event_loop(sys.argv[1])
r, w = os.pipe()
got = []
loop.call_later(0.01, os.write, w, b"x")
loop._submit(ReadOp(r, 10), lambda op: (got.append(op.data), loop.stop()))
loop.run_forever()
loop.close()
assert got == [b"x"]
