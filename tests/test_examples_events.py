"""The examples of timers, children, signals and select(), run as a user runs them."""

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
EXAMPLES = Path(__file__).parents[1] / "examples"


class Program:
    """An example that runs; its lines."""

    def __init__(self, backend, name, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "AIOUNIFY_BACKEND": backend},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.lines = []
        self.rest = b""

    def until(self, pattern, *, times=1):
        """Read lines until that many have matched; the last match."""
        deadline = time.monotonic() + 40
        fd = self.process.stdout.fileno()
        while True:
            while b"\n" in self.rest:
                line, _, self.rest = self.rest.partition(b"\n")
                self.lines.append(line.decode())
                if found := re.search(pattern, self.lines[-1]):
                    times -= 1
                    if not times:
                        return found
            ready = select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]
            data = os.read(fd, 65536) if ready else b""
            assert data, f"{pattern!r} did not come: {self.lines}"
            self.rest += data

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def test_scheduler(backend):
    with Program(
        backend, "scheduler.py", "* * * * * *", "exit 3", "0 0 0 29 2 *", "never today"
    ) as program:
        late = program.until(r"started 'exit 3', (.*) ms after it was due", times=2)
        assert float(late[1]) >= 0
        program.until(r"'exit 3' ended with 3, .* s of processor time")
        program.process.send_signal(signal.SIGTERM)
        program.until(rf"SIGTERM from process {os.getpid()}: ending")
        assert program.process.wait() == 0


@pytest.mark.parametrize("when", ["* * *", "60 * * * * *", "a * * * * *", "*/0 * * * * *"])
def test_scheduler_refuses(when):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "scheduler.py", when, "true"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("scheduler: ")


def test_supervisor(backend, tmp_path):
    config, address = tmp_path / "config", tmp_path / "socket"
    config.write_text("one: exec sleep 60\ntwo: sleep 0.05; exit 7\n")
    with Program(backend, "supervisor.py", config, str(address)) as program:
        one = int(program.until(r"started one pid (\d+)")[1])
        program.until(r"ended two: process \d+ exited \(7\)", times=2)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(address))
            assert f"one pid {one} starts 1\n".encode() in client.recv(1000)
        config.write_text("one: exec sleep 61\nthree: exec sleep 60\n")
        program.until("the configuration has changed")
        again = int(program.until(r"started one pid (\d+)")[1])
        program.until(r"started three pid")
        assert again != one
        program.process.send_signal(signal.SIGHUP)
        program.until(rf"SIGHUP from process {os.getpid()}")
        os.kill(again, signal.SIGKILL)
        program.until(r"ended one: process \d+ killed \(9\)")
        program.until(r"started one pid \d+ starts 2")
        program.process.send_signal(signal.SIGTERM)
        program.until("all have ended")
        assert program.process.wait() == 0
    assert not address.exists()
