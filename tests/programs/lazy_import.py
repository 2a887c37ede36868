"""Importing the package neither loads the policy nor makes a ring."""

import sys
from pathlib import Path

before = {path.name for path in Path("/proc/self/fd").iterdir()}

import aiounify  # noqa: E402

assert "aiounify.policy" not in sys.modules
assert "aiounify.bench" not in sys.modules
assert "aiounify.mailbox" not in sys.modules
assert {path.name for path in Path("/proc/self/fd").iterdir()} == before
assert aiounify.EventLoopPolicy.__module__ == "aiounify.policy"
assert "aiounify.policy" in sys.modules
