"""examples/files.py: what it says about two trees, on each backend."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import aiounify

EXAMPLE = Path(__file__).parents[1] / "examples" / "files.py"


def run(backend, *args, **how):
    package = str(Path(aiounify.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", EXAMPLE, *args],
        env={**os.environ, "PYTHONPATH": package, "AIOUNIFY_BACKEND": backend},
        stdout=subprocess.PIPE,
        text=True,
        timeout=50,
        check=False,
        **how,
    )


@pytest.fixture
def trees(tmp_path):
    """Two directories with the same in them."""
    for side in ("left", "right"):
        top = tmp_path / side
        for i in range(40):
            folder = top / f"d{i % 4}" / "sub"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"f{i}").write_bytes(f"{i} ".encode() * (i * 2000))
        (top / "link").symlink_to("d0")
        os.mkfifo(top / "fifo")
    return tmp_path / "left", tmp_path / "right"


def test_same(backend, trees):
    done = run(backend, *trees)
    size = sum(len(f"{i} ") * i * 2000 for i in range(40))
    assert done.stdout == f"78 files read, {2 * size} bytes, 0 differences\n"
    assert done.returncode == 0


def test_differences(backend, trees):
    left, right = trees
    (left / "d0" / "new").write_text("x")
    (right / "d1" / "other").mkdir()
    changed = right / "d2" / "sub" / "f10"
    changed.write_bytes(changed.read_bytes()[:-1] + b"!")
    (right / "d3" / "sub" / "f11").write_text("shorter")
    (right / "link").unlink()
    (right / "link").symlink_to("d1")
    done = run(backend, "--jobs", "3", *trees)
    assert done.stdout.splitlines()[:-1] == [
        f"only in {left}: d0/new",
        f"only in {right}: d1/other",
        "differs: d2/sub/f10",
        "differs: d3/sub/f11",
        "differs: link",
    ]
    assert done.returncode == 1


def test_what_cannot_be_read(backend, trees, tmp_path):
    done = run(backend, trees[0], tmp_path / "none", stderr=subprocess.PIPE)
    assert "No such file or directory" in done.stderr
    assert str(tmp_path / "none") in done.stderr
    assert done.returncode == 2


def test_progress_bar(backend, trees):
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        try:
            done = run(backend, *trees, stderr=theirs)
        finally:
            os.close(theirs)
        shown = terminal.read(1 << 16).decode()
    assert done.returncode == 0
    assert "100%  78/78 files" in shown
    assert "[" + "#" * 30 + "]" in shown
