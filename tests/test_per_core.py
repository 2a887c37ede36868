"""examples/per_core.py: one loop for each core, run as a user runs it."""

import os
import re
import signal
import socket
from pathlib import Path

import pytest
from program_output import Program

PROGRAM = Path(__file__).parents[1] / "examples" / "per_core.py"


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_connections_are_dealt_out(backend, kind):
    arguments = ["--threads"] if kind == "threads" else []
    with Program(backend, PROGRAM, *arguments, "--workers", "3", "0") as program:
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
    with Program(backend, PROGRAM, "--workers", "2", "0") as program:
        program.until(r"^worker \d listens$", 2)
        pid = program.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        program.until(r"^worker \d failed: .*9")
        program.until(r"^worker \d had 0 connections$")
        assert program.process.wait(40) == 1
