"""examples/kvstore as a user runs it.

With a disk that is full (by RLIMIT_FSIZE, so that the kernel says so), with no descriptors left,
with kill -9, and with redis-cli and redis-benchmark.
"""

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kvstore_served import (
    EXAMPLES,
    encode,
)

import aiounify

ROOT = Path(aiounify.__file__).parents[1]
STRESS = os.environ.get("AIOUNIFY_STRESS") == "1"


# -- the program


class Program:
    """examples/kvstore as a user runs it."""

    def __init__(self, loop, directory, *arguments):
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", EXAMPLES / "kvstore"),
                *("--loop", loop, "--dir", directory, "--port", "0", *arguments),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.decode())
            if b"listening on" in line:
                host, _, port = line.split()[-1].decode().rpartition(":")
                self.address = host, int(port)
                return
        self.process.wait()

    def ask(self, *args):
        """One request, its reply as it came."""
        with socket.create_connection(self.address, 30) as sock:
            sock.sendall(encode(*args))
            return sock.recv(65536)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()


def test_a_disk_that_is_full_by_the_kernel(backend, tmp_path):
    with Program(backend, tmp_path) as program:
        pid = program.process.pid
        assert program.ask("SET", "k", "old") == b"+OK\r\n"
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (2000, hard))
        # a part of it fits: a short write first
        found = program.ask("SET", "k", "x" * 5000)
        assert found.startswith(b"-MISCONF writing to the log failed (File too large)"), found
        assert program.ask("SET", "k", "small").startswith(b"-MISCONF")
        assert program.ask("GET", "k") == b"$3\r\nold\r\n"
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        deadline = time.monotonic() + 30
        while (found := program.ask("SET", "k", "y" * 3000)) != b"+OK\r\n":
            assert found.startswith(b"-MISCONF")
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert program.process.returncode == 0
    with Program(backend, tmp_path) as program:
        assert program.ask("STRLEN", "k") == b":3000\r\n"


@pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
def test_on_other_event_loops(loop_name, tmp_path):
    if loop_name == "uvloop":
        pytest.importorskip("uvloop")
    with Program(loop_name, tmp_path) as program:
        assert program.ask("SET", "k", 1) == b"+OK\r\n"
        assert program.ask("BGREWRITEAOF").startswith(b"+Background")
        assert program.ask("SHUTDOWN") == b""
        assert program.process.wait(30) == 0
    with Program(loop_name, tmp_path) as program:
        assert program.ask("GET", "k") == b"$1\r\n1\r\n"


def test_damage_is_told_to_the_user(backend, tmp_path):
    with Program(backend, tmp_path) as program:
        for i in range(3):
            assert program.ask("SET", f"k{i}", i) == b"+OK\r\n"
    path = tmp_path / "kvstore.log"
    data = bytearray(path.read_bytes())
    data[80] ^= 255
    path.write_bytes(data)
    with Program(backend, tmp_path) as program:
        assert program.process.returncode == 1
        text = "".join(program.lines)
        assert "damaged at byte" in text
        assert "--lossy" in text
        assert "Traceback" not in text


def test_running_out_of_descriptors(backend, tmp_path):
    with Program(backend, tmp_path) as program:
        pid = program.process.pid
        assert program.ask("SET", "k", 1) == b"+OK\r\n"
        used = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - names, no Path each
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 3, hard))
        with contextlib.ExitStack() as stack:
            waiting = [
                stack.enter_context(socket.create_connection(program.address, 30))
                for _ in range(10)
            ]
            for i, sock in enumerate(waiting[:3]):
                sock.sendall(encode("INCRBY", "k", i))
                assert sock.recv(100).startswith(b":")
            waiting[0].sendall(encode("BGREWRITEAOF"))
            assert waiting[0].recv(100).startswith(b"+Background")
            while b"status:err: Too many open files" not in info(waiting[0]):
                time.sleep(0.01)
            waiting[1].sendall(encode("INCR", "k"))
            assert waiting[1].recv(100) == b":5\r\n"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert program.ask("GET", "k") == b"$1\r\n5\r\n"


def info(sock):
    sock.sendall(encode("INFO"))
    found = b""
    while not found.endswith(b"avg_ttl=0\r\n\r\n"):
        found += sock.recv(65536)
    return found


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
def test_redis_cli(backend, tmp_path):
    with Program(backend, tmp_path) as program:
        host, port = program.address

        def cli(*args, text=None):
            done = subprocess.run(
                ["redis-cli", "-h", host, "-p", str(port), *args],
                input=text,
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            return done.stdout

        assert cli("SET", "a key", "a value") == "OK\n"
        assert cli("GET", "a key") == "a value\n"
        assert cli("-3", "GET", "a key").endswith("a value\n")
        assert cli(text="set x 1\nincr x\nget x\n") == "OK\n2\n2\n"
        assert sorted(cli("--scan").split("\n")) == ["", "a key", "x"]
        assert "redis_version" in cli("INFO")
        wire = b"".join(encode("SET", f"k{i}", i) for i in range(5000)).decode()
        assert "errors: 0, replies: 5000" in cli("--pipe", text=wire)
        assert cli("DBSIZE") == "5002\n"


@pytest.mark.skipif(shutil.which("redis-benchmark") is None, reason="redis-benchmark missing")
def test_redis_benchmark(backend, tmp_path):
    with Program(backend, tmp_path) as program:
        host, port = program.address
        for more in (["-c", "50"], ["-c", "10", "-P", "16", "-r", "1000"]):
            done = subprocess.run(
                [
                    *("redis-benchmark", "-h", host, "-p", str(port), "-q", "--csv", *more),
                    *("-t", "ping,set,get,incr,mset", "-n", "2000"),
                ],
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            )
            assert not done.stderr.replace("WARNING: Could not fetch server CONFIG", "").strip()
            assert done.stdout.count("\n") == 7, done.stdout


@pytest.mark.timeout(1300 if STRESS else 150)
def test_no_acknowledged_write_is_lost_by_kills(backend, tmp_path, run_program):
    kills = 200 if STRESS else 10
    done = run_program("kvstore_kills", backend, str(kills), str(tmp_path), timeout=60 + 6 * kills)
    assert f"{kills} kills" in done.stdout
    assert "none lost" in done.stdout
