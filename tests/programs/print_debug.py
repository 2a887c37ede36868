"""Whether a new loop is in debug mode.  Argument: backend."""

import sys

import aiounify

loop = aiounify.new_event_loop(sys.argv[1])
print(loop.get_debug())
loop.close()
