"""The command `watch` and the example that reloads a server, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import aiounify

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(aiounify.__file__).parents[1]
RELOAD = Path(__file__).parents[1] / "examples" / "reload.py"


@contextmanager
def running(*command: object, backend: str) -> Iterator[subprocess.Popen[str]]:
    """A process with pipes, killed if it is still there afterwards."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "AIOUNIFY_BACKEND": backend},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def line(stream) -> str:
    return stream.readline().rstrip("\n")


def test_changes_as_text_and_as_json(tmp_path, backend):
    root = tmp_path / "root"
    root.mkdir()
    with running("-m", "aiounify", "watch", root, "--json", backend=backend) as process:
        assert line(process.stderr) == f"watching {root}"
        (root / "a").mkdir()
        assert json.loads(line(process.stdout)) == {
            "kind": "created",
            "path": str(root / "a"),
            "old_path": None,
            "directory": True,
            "found": False,
        }
        root.rename(tmp_path / "other")
        assert process.wait(20) == 1
        assert line(process.stderr) == f"aiounify: {root}: moved"
    root.mkdir()
    with running("-m", "aiounify", "watch", root, backend=backend) as process:
        assert line(process.stderr) == f"watching {root}"
        (root / "a").mkdir()
        assert line(process.stdout) == f"created     {root}/a/"
        (root / "a").rename(root / "b")
        assert line(process.stdout) == f"moved       {root}/b/  from {root}/a"
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM


def test_a_command_that_is_started_again(tmp_path, backend):
    program = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    command = [sys.executable, "-c", program]
    with running("-m", "aiounify", "watch", tmp_path, "--", *command, backend=backend) as process:
        pids = [line(process.stdout)]
        for name in ("a", "b"):
            (tmp_path / name).touch()
            pids.append(line(process.stdout))
        assert len(set(pids)) == 3
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    for pid in pids:
        assert not Path("/proc", pid).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/missing"], "aiounify: /missing: No such file or directory"),
        (["/", "--quiet", "-1"], "--quiet must be"),
        (["/", "--"], "a command is missing"),
        ([], "PATH"),
    ],
)
def test_bad_usage(arguments, message):
    with running("-m", "aiounify", "watch", *arguments, backend="auto") as process:
        assert process.wait(20) == 2
        assert message in process.stderr.read()


def test_the_server_reloads(tmp_path, backend):
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "index.html").write_text("one")
    with running(RELOAD, folder, backend=backend) as process:
        address = line(process.stdout)
        workers = [line(process.stdout)]
        with urllib.request.urlopen(address) as page:
            assert page.read() == b"one"
        (folder / "new.tmp").write_text("two")
        (folder / "new.tmp").rename(folder / "index.html")
        text = b"one"
        while text == b"one":  # never refused meanwhile
            with urllib.request.urlopen(address) as page:
                text = page.read()
        assert text == b"two"
        workers.append(line(process.stdout))
        assert workers[0] != workers[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0


@pytest.mark.timeout(200)  # 20,000 directories are made and removed
def test_benchmark_rows(tmp_path, monkeypatch):
    rows = ["watch-latency", "watch-latency-c", "watch-burst", "watch-burst-c"]
    rows += ["watch-tree", "watch-tree-c"]
    report = tmp_path / "report.json"
    if os.access("/dev/shm", os.W_OK):
        monkeypatch.setenv("TMPDIR", "/dev/shm")  # a disk takes long for so many
    command = ["-m", "aiounify", "bench", *rows, "--loops", "aiounify-epoll", "--quick"]
    with running(*command, "--json", report, backend="auto") as process:
        out, err = process.communicate(timeout=180)
    assert process.returncode == 0, f"{out}\n{err}"
    measured = json.loads(report.read_text())["rows"]
    assert [row["name"] for row in measured] == rows
    for row in measured:
        assert row["loops"]["aiounify-epoll"]["windows"], row
