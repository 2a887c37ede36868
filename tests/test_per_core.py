"""examples/per_core.py: one loop for each core, run as a user runs it."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import aiounify

ROOT = Path(aiounify.__file__).parents[1]
PROGRAM = Path(__file__).parents[1] / "examples" / "per_core.py"


class Program:
    """The example that runs; its lines."""

    def __init__(self, backend, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", PROGRAM, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "AIOUNIFY_BACKEND": backend},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.text = ""

    def until(self, pattern, times=1):
        """Read until that many places match, and return them."""
        deadline = time.monotonic() + 40
        fd = self.process.stdout.fileno()
        while len(found := re.findall(pattern, self.text, re.MULTILINE)) < times:
            ready = select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]
            data = os.read(fd, 65536) if ready else b""
            assert data, f"{pattern!r} did not come: {self.text}"
            self.text += data.decode()
        return found

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_connections_are_dealt_out(backend, kind):
    arguments = ["--threads"] if kind == "threads" else []
    with Program(backend, *arguments, "--workers", "3", "0") as program:
        port = int(program.until(rf"^port (\d+), 3 {kind}$")[0])
        program.until(r"^worker \d listens$", 3)
        served = dict.fromkeys(range(3), 0)
        for i in range(90):
            with socket.create_connection(("127.0.0.1", port), 40) as client:
                client.sendall(b"line %d\n" % i)
                with client.makefile() as lines:
                    worker, line = re.fullmatch(r"worker (\d): (.*)\n", lines.readline()).groups()
                assert line == f"line {i}"
                served[int(worker)] += 1
        # each connection falls to one of three by its hash
        assert all(served.values())
        program.process.send_signal(signal.SIGTERM)
        had = program.until(r"^worker (\d) had (\d+) connections$", 3)
        assert {int(worker): int(n) for worker, n in had} == served
        assert program.process.wait(40) == 0


def test_a_worker_that_dies_ends_the_others(backend):
    with Program(backend, "--workers", "2", "0") as program:
        program.until(r"^worker \d listens$", 2)
        pid = program.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        program.until(r"^worker \d failed: .*9")
        program.until(r"^worker \d had 0 connections$")
        assert program.process.wait(40) == 1
