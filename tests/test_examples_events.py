"""The examples of timers, children, signals and select(), run as a user runs them."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from program_output import Program, environment

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_scheduler(backend):
    with Program(
        backend, EXAMPLES / "scheduler.py", "* * * * * *", "exit 3", "0 0 0 29 2 *", "never today"
    ) as program:
        late = program.next(r"started 'exit 3', (.*) ms after it was due", times=2)
        assert float(late[1]) >= 0
        program.next(r"'exit 3' ended with 3, .* s of processor time")
        program.process.send_signal(signal.SIGTERM)
        program.next(rf"SIGTERM from process {os.getpid()}: ending")
        assert program.process.wait() == 0


@pytest.mark.parametrize("when", ["* * *", "60 * * * * *", "a * * * * *", "*/0 * * * * *"])
def test_scheduler_refuses(when):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "scheduler.py", when, "true"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("scheduler: ")


def test_supervisor(backend, tmp_path):
    config, address = tmp_path / "config", tmp_path / "socket"
    config.write_text("one: exec sleep 60\ntwo: sleep 0.05; exit 7\n")
    with Program(backend, EXAMPLES / "supervisor.py", config, str(address)) as program:
        one = int(program.next(r"started one pid (\d+)")[1])
        program.next(r"ended two: process \d+ exited \(7\)", times=2)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(address))
            assert f"one pid {one} starts 1\n".encode() in client.recv(1000)
        config.write_text("one: exec sleep 61\nthree: exec sleep 60\n")
        program.next("the configuration has changed")
        again = int(program.next(r"started one pid (\d+)")[1])
        program.next(r"started three pid")
        assert again != one
        program.process.send_signal(signal.SIGHUP)
        program.next(rf"SIGHUP from process {os.getpid()}")
        os.kill(again, signal.SIGKILL)
        program.next(r"ended one: process \d+ killed \(9\)")
        program.next(r"started one pid \d+ starts 2")
        program.process.send_signal(signal.SIGTERM)
        program.next("all have ended")
        assert program.process.wait() == 0
    assert not address.exists()
