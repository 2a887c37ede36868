"""Importing the package neither loads the policy nor makes a ring."""

import os
import sys

before = set(os.listdir("/proc/self/fd"))

import aiounify  # noqa: E402

assert "aiounify.policy" not in sys.modules
assert "aiounify.bench" not in sys.modules
assert set(os.listdir("/proc/self/fd")) == before
assert aiounify.EventLoopPolicy.__module__ == "aiounify.policy"
assert "aiounify.policy" in sys.modules
