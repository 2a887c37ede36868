"""The tour: on each backend, and where io_uring is refused, every event comes."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NO_URING, complaints

import aiounify

ROOT = Path(aiounify.__file__).parents[1]
TOUR = Path(__file__).parents[1] / "examples" / "tour.py"
KINDS = [
    "TCP accept",
    "TCP read",
    "TCP write",
    "TCP out-of-band data",
    "unix socket read",
    "pipe read",
    "file change",
    "timer",
    "timer of the wall clock",
    "tick",
    "eventfd",
    "descriptor passed",
    "child process",
    "child with its usage",
    "signal",
    "signal with its sender",
    "first of six kinds",
    "wake-up from a thread",
    "message from a thread",
    "socket error queue",
    "DNS lookup of localhost",
    "futex",
    "file",
]


def tour(program: Path = TOUR, **environment: str) -> tuple[list[str], dict[str, list[str]]]:
    """Run the tour; its lines, and those of the table as kind -> [cause, mechanism, time]."""
    clean = {k: v for k, v in os.environ.items() if k != "AIOUNIFY_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", program],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert not complaints(done.stderr), done.stderr
    lines = done.stdout.splitlines()
    header = lines.index("") + 1
    table = {}
    for line in lines[header + 1 : lines.index("", header)]:
        kind, *rest = re.split(r" {2,}", line)
        table[kind] = rest
    return lines, table


def test_tour(backend):
    lines, table = tour(AIOUNIFY_BACKEND=backend)
    version = f"aiounify {aiounify.__version__}, CPython {platform.python_version()}"
    assert lines[0] == f"{version}, Linux {platform.release()}"
    name = {"uring": "io_uring", "epoll": "epoll"}[backend]
    assert lines[1].endswith(f"; using {name} (AIOUNIFY_BACKEND={backend})")
    number = len(KINDS)
    assert lines[-1].startswith(
        f"{number} of {number} kinds of event awaited by one loop ({backend}) in "
    )

    assert list(table) == KINDS
    for kind, (cause, mechanism, microseconds) in table.items():
        assert cause and mechanism, kind
        assert float(microseconds) >= 0, kind

    mechanisms = {kind: columns[1] for kind, columns in table.items()}
    if backend == "epoll":
        assert mechanisms["TCP read"] == "epoll_wait"
        assert mechanisms["timer"] == "timerfd, epoll_wait"
        assert "ring" not in str(mechanisms)
    else:
        on = aiounify.features()["uring_epoll_wait"].on
        assert mechanisms["TCP read"].startswith("EPOLL_WAIT" if on else "POLL_ADD")
        assert mechanisms["timer"] == "timeout of io_uring_enter"
        assert mechanisms["file"] == "FSYNC in the ring"
    assert mechanisms["DNS lookup of localhost"].startswith("getaddrinfo in a thread")


def test_tour_chooses_the_backend_itself():
    lines, _ = tour()
    assert lines[1].endswith("; using epoll" if NO_URING else "; using io_uring")


def test_tour_where_seccomp_refuses_io_uring():
    lines, table = tour(Path(__file__).parent / "programs" / "tour_seccomp.py")
    assert lines[1] == "io_uring: refused by seccomp (EPERM); using epoll"
    assert list(table) == KINDS
    assert table["TCP read"][1] == "epoll_wait"


@pytest.mark.skipif(bool(NO_URING), reason=f"io_uring: {NO_URING}")
def test_tour_with_a_forced_backend_that_is_refused():
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "programs" / "tour_seccomp.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "AIOUNIFY_BACKEND": "uring"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr == (
        "tour: [Errno 1] the io_uring backend cannot be had: refused by seccomp (EPERM); "
        "use backend='auto' or 'epoll'\n"
    )
