"""What it costs to import a loop at all, in a fresh interpreter each time."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import aiounify.bench
from aiounify.bench.channel import Measurement
from aiounify.bench.rows.base import LoopRow, Run

__all__ = ["ROWS"]

_PROGRAM = """
import time
began, cpu = time.perf_counter_ns(), time.process_time_ns()
import {module}
print(time.perf_counter_ns() - began, time.process_time_ns() - cpu)
"""


def _import(loop: asyncio.AbstractEventLoop) -> Run:
    module = type(loop).__module__.partition(".")[0]
    root = str(Path(aiounify.bench.__file__).parents[2])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", _PROGRAM.format(module=module)]

    def run(n: int) -> Measurement:
        wall = cpu = 0
        for _ in range(n):
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            wall_ns, cpu_ns = map(int, done.stdout.split())
            wall += wall_ns
            cpu += cpu_ns
        # The counters of this process say nothing about its children: no split, no instructions.
        return {
            "seconds": wall / 1e9,
            "cpu": cpu / 1e9,
            "user": None,
            "system": None,
            "instructions_user": None,
            "instructions": None,
        }

    return run


ROWS = (
    LoopRow(
        "import",
        "The loop's package imported in a fresh interpreter (asyncio is part of each).",
        ("import",),
        "import",
        _import,
        counted=0,
    ),
)
