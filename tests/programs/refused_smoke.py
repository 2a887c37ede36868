"""Runs the tests of transports and children where io_uring is refused.  Argument: errno's name."""

import errno
import sys
from pathlib import Path

import seccomp

seccomp.refuse(seccomp.IO_URING, getattr(errno, sys.argv[1]))

import pytest  # noqa: E402 - not before the filter

tests = Path(__file__).parents[1]
files = ["test_transports.py", "test_children.py"]
raise SystemExit(
    pytest.main(
        ["-q", "-p", "no:cacheprovider", "--rootdir", str(tests.parent)]
        + [str(tests / name) for name in files]
        + [f"{tests / 'test_entry_points.py'}::test_io_uring_is_tested_here"]
    )
)
