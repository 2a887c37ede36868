"""`python -m aiounify.bench`: the same as `python -m aiounify bench`."""

import sys

from aiounify.bench import main

sys.exit(main(sys.argv[1:]))
