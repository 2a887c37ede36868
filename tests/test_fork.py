"""fork() while a loop exists: the child is refused clearly, the parent notices nothing."""

import pytest

CASES = [
    "idle loop",
    "running loop",
    "child returns to the loop",
    "debug mode",
    "work in flight",
    "child makes its own",
    "child closes the copy",
    "child lets the copy go",
    "other thread's loop",
    "multiprocessing",
]


@pytest.mark.parametrize("case", CASES)
def test_fork(run_program, backend, case):
    run_program("fork", backend, case, options=("-X", "dev"))


def test_every_case_is_run():
    """The program has no case that the list above forgets."""
    from conftest import PROGRAMS

    text = (PROGRAMS / "fork.py").read_text()
    assert sorted(CASES) == sorted(
        line.split('"')[1] for line in text.splitlines() if "@case" in line
    )
