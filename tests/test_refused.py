"""io_uring refused or short of memory, by real seccomp filters in processes of their own."""

import os
import sys

import pytest
from conftest import NO_URING

import aiounify
from aiounify import backends

needs_uring = pytest.mark.skipif(bool(NO_URING), reason=f"io_uring: {NO_URING}")


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS", "EACCES"])
def test_refused(run_program, error):
    run_program("refused", error)


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_everything_works_where_it_is_refused(run_program, error):
    """The tests of transports and children pass on what is left."""
    done = run_program("refused_smoke", error, options=("-X", "dev"), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" in done.stdout  # visibly: the report names the reason
    assert "passed" in done.stdout


@needs_uring
@pytest.mark.parametrize("most", [1024, 128, 64, 8, 7, 0])
def test_short_of_memory(run_program, most):
    """ENOMEM for rings of more than so many entries: halved, and epoll if even 8 are too many."""
    run_program("short_of_memory", most)


@needs_uring
@pytest.mark.parametrize("call", ["enter", "register"])
def test_ring_that_can_be_made_but_not_used(run_program, call):
    run_program("half_refused", call)


def test_child_of_a_process_that_may_is_asked_anew(run_program):
    run_program("probe_after_fork")


def test_forced_backend_that_cannot_be_had_says_why(monkeypatch):
    """Without a filter: the probe alone says that the kernel refuses."""

    class Refused:
        error, step, ops = 1, "io_uring_setup", frozenset()
        defer_taskrun = no_iowait = False

    monkeypatch.setattr(backends, "probe", Refused)
    with pytest.raises(PermissionError, match=r"the io_uring backend cannot be had: .*EPERM"):
        aiounify.new_event_loop("uring")
    loop = aiounify.new_event_loop()
    loop.close()
    assert loop.backend == "epoll"


@pytest.mark.parametrize(
    ("error", "sysctl", "filtered", "text"),
    [
        (1, 2, False, "disabled by the sysctl kernel.io_uring_disabled=2 (EPERM)"),
        (1, 0, True, "refused by seccomp (EPERM)"),
        (38, 0, True, "refused by seccomp (ENOSYS)"),
        (38, 0, False, "not offered by this kernel (ENOSYS)"),
        (12, 0, False, f"io_uring_setup failed: {os.strerror(12)} (ENOMEM)"),
        (0, 0, False, ""),
    ],
)
def test_reasons(monkeypatch, error, sysctl, filtered, text):
    class Found:
        step = "io_uring_setup"

    Found.error = error
    monkeypatch.setattr(backends, "_sysctl", lambda: sysctl)
    monkeypatch.setattr(backends, "_seccomp_filtered", lambda: filtered)
    assert backends.why_not_uring(Found()) == text


def test_program_under_a_filter_is_really_filtered(run_program):
    """The filters of this file would be no test if they let calls pass."""
    run_program("filter_works")
    assert sys.platform == "linux"
