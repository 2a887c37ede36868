"""`python -m aiounify.bench`: the same as `python -m aiounify bench`."""

import sys

from aiounify._pipe_end import run_tool
from aiounify.bench import main

sys.exit(run_tool(main, sys.argv[1:]))
