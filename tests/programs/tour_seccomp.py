"""The tour where io_uring is refused, as in most containers."""

import errno
import runpy
import sys
from pathlib import Path

import seccomp

seccomp.refuse(seccomp.IO_URING, errno.EPERM)
tour = Path(__file__).parents[2] / "examples" / "tour.py"
sys.argv[:] = [str(tour)]
runpy.run_path(str(tour), run_name="__main__")
