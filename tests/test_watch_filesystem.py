"""Whole file systems, by fanotify: each test has a mount of its own, in a process of its own."""

import os

import pytest

import aiounify


@pytest.mark.parametrize(
    "test", ["meaning", "randomly", "merged", "overflow", "unmounting", "forking", "refused"]
)
def test_a_whole_file_system(run_program, backend, test):
    steps = "3000" if os.environ.get("AIOUNIFY_STRESS") else "150"
    done = run_program("watch_filesystem", test, check=False, AIOUNIFY_BACKEND=backend, STEPS=steps)
    if done.returncode == 77:
        pytest.skip(f"not allowed here: {done.stdout}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


async def test_without_the_privilege(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may")
    with pytest.raises(PermissionError, match="CAP_SYS_ADMIN"):
        await aiounify.watch(tmp_path, filesystem=True).__aenter__()
