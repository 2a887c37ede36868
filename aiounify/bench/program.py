"""The process that has a measured program: starts it on the row's CPU, and reads what it uses.

`python -m aiounify.bench.program --fd N --cpu N --row NAME --program NAME` answers as a worker
does (worker.py), for a server that is not Python.  Its counters are those of all processes of this
one's session except itself: a program may have a master and workers.  CPU time is the scheduler's,
exact to the nanosecond; of a process that ends within a window it is lost.  Instructions are not
counted.
"""

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from aiounify.bench.channel import Channel, ClosedError, Reply
from aiounify.bench.child import ChildError
from aiounify.bench.counters import Sample
from aiounify.bench.limits import raise_open_files
from aiounify.bench.rows import PROGRAMS, ROWS, Program
from aiounify.bench.rows.base import Address

__all__ = ["main", "version"]

_START = 20.0
_GRACE = 1.5


def executable(program: Program) -> str:
    """Its path; ChildError that says how to install it."""
    # where Debian has servers, which the PATH of a user often leaves out
    where = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which(program.executable, path=where)
    if found is None:
        raise ChildError(program.install, "")
    return found


def version(program: Program) -> str:
    """What it says about itself, or ""; ChildError if it is not installed."""
    done = subprocess.run(
        [executable(program), *program.version],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    found = re.search(r"\d+\.\d+[\w.]*", done.stdout)
    return found[0] if found else ""


def _members() -> list[Path]:
    """The processes of this session except this one."""
    session, found = os.getsid(0), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == session:
                    found.append(entry)
    return found


def _sample() -> Sample:
    cpu, user, system = 0, 0, 0
    for process in _members():
        with contextlib.suppress(OSError):
            for task in (process / "task").iterdir():
                cpu += int((task / "schedstat").read_text().split()[0])
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            user += int(fields[11])
            system += int(fields[12])
    ticks = os.sysconf("SC_CLK_TCK")
    return Sample(time.perf_counter_ns(), cpu, user / ticks, system / ticks, None, None)


def _wait_listening(address: Address, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START
    while True:
        try:
            if len(address) == 1:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(str(address[0]))
            else:
                socket.create_connection((str(address[0]), int(address[1])), 1.0).close()
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"ended with status {process.returncode}") from None
            if time.monotonic() > deadline:
                raise RuntimeError(f"does not listen after {_START:g} s") from None
            time.sleep(0.01)
        else:
            return


def _answer(channel: Channel) -> None:
    with contextlib.suppress(ClosedError):
        while True:
            command = channel.command()
            if command["cmd"] == "collect":
                channel.send(Reply(ready=True))
            elif command["cmd"] == "sample":
                channel.send(Reply(sample=_sample().values()))
            else:
                channel.send(Reply(failed=f"unknown command {command['cmd']!r}"))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="aiounify.bench.program")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--cpu", type=int, required=True)
    parser.add_argument("--row", required=True, choices=list(ROWS))
    parser.add_argument("--program", required=True, choices=list(PROGRAMS))
    options = parser.parse_args(argv)

    os.sched_setaffinity(0, {options.cpu})
    os.set_inheritable(options.fd, False)
    channel = Channel(socket.socket(fileno=options.fd))
    raise_open_files()
    row = ROWS[options.row]
    program = next(p for p in getattr(row, "programs", ()) if p.name == options.program)
    process: subprocess.Popen[bytes] | None = None
    with tempfile.TemporaryDirectory(prefix="aiounify-bench-") as directory:
        try:
            try:
                launch = program.launch(Path(directory))
                argv = list(launch.argv)
                if not launch.built:
                    argv[0] = executable(program)
                process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, cwd=directory)
                _wait_listening(launch.address, process)
            except (OSError, RuntimeError, ChildError) as exc:
                traceback.print_exc()
                channel.send(Reply(failed=str(exc)))
                return 1
            channel.send(Reply(ready=True, address=list(launch.address)))
            _answer(channel)
        finally:
            if process is not None:
                process.terminate()
                try:
                    process.wait(_GRACE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
