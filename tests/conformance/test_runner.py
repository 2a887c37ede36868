"""The runner and the comparison themselves: every way in which a test can end is reported."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from . import __main__, _compare, _suite
from ._compare import Exemption
from ._suite import ModuleRun, Outcome

SAMPLE = Path(__file__).with_name("sample")
DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
OPTIONS = ("--package", "conformance_sample", "--path", str(SAMPLE))

try:
    missing = not _suite.suite_directory()
except _suite.SuiteMissing:
    missing = True
needs_suite = pytest.mark.skipif(missing, reason="no `test` package here")


@needs_suite
@pytest.mark.timeout(120)
def test_every_ending_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONFORMANCE_SAMPLE", str(tmp_path / "seen"))
    run = _suite.run_module(_suite.BASELINE, "bad_endings", *OPTIONS, "--seconds-per-test", "1")
    found = {name.rpartition(".")[2]: outcome for name, outcome in run.outcomes.items()}
    assert {name: outcome.status for name, outcome in found.items()} == {
        "test_a_ok": "ok",
        "test_b_crash": "crash",
        "test_c_ok": "ok",
        "test_d_hang": "hang",
        "test_e_exit": "crash",
        "test_f_fail": "fail",
        "test_g_flaky": "ok",
        "test_h_subtest": "fail",
        "test_i_skip": "skip",
        "test_j_expected": "ok",
        "test_k_unexpected": "fail",
        "test_l_forks": "ok",
    }
    assert "SIGSEGV" in found["test_b_crash"].detail
    assert "in test_d_hang" in found["test_d_hang"].detail  # the stack of the test that hangs
    assert "exit status 3" in found["test_e_exit"].detail
    assert "always" in found["test_f_fail"].detail
    assert "(number=1)" in found["test_h_subtest"].detail
    assert found["test_g_flaky"].first == "error"
    assert set(run.rerun) >= {"bad_endings.Endings.test_g_flaky", "bad_endings.Endings.test_f_fail"}
    assert "bad_endings.NoFixture.test_never" in run.planned
    assert [name for name, _ in run.fixtures] == [
        "setUpClass (conformance_sample.bad_endings.NoFixture)"
    ]
    assert run.left_open is None  # the process was started again, so nobody knows
    assert not run.broken


@needs_suite
def test_what_is_left_behind_is_reported() -> None:
    run = _suite.run_module(_suite.BASELINE, "leaks", *OPTIONS)
    assert run.left_open == ["/dev/null"]
    assert [kind for kind, _ in run.unraisable] == ["RuntimeError"]
    clean = ModuleRun(_suite.BASELINE, "leaks", run.planned, dict(run.outcomes), left_open=[])
    run.backend = "epoll"
    assert [str(finding) for finding in _compare.compare(clean, run, [], "3.13")] == [
        "leaks: 1 more descriptors left open than on the standard library's loop",
        "leaks: 1 more ignored exceptions (RuntimeError)",
    ]


@needs_suite
def test_a_module_that_cannot_be_imported_is_reported() -> None:
    run = _suite.run_module(_suite.BASELINE, "absent", *OPTIONS)
    assert [outcome.status for outcome in run.outcomes.values()] == ["error"]


@pytest.mark.parametrize("error", [None, ModuleNotFoundError("No module named 'test'")])
def test_an_interpreter_without_the_suite_is_skipped(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception | None,
) -> None:
    def find_spec(name: str) -> None:
        if error:
            raise error

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr("sys.argv", ["conformance"])
    assert __main__.main() == 0
    assert re.fullmatch(
        r"skipped: CPython .* has no `test.test_asyncio`\n", capsys.readouterr().out
    )


def run_with(backend: str, **statuses: str) -> ModuleRun:
    outcomes = {f"test_x.C.{name}": Outcome(status) for name, status in statuses.items()}
    run = ModuleRun(backend, "test_x", list(outcomes), outcomes, left_open=[])
    run.planned = [f"test_x.C.{name}" for name in ("a", "b", "c")]
    return run


def findings(baseline: ModuleRun, ours: ModuleRun, *exemptions: Exemption) -> list[str]:
    return [str(finding) for finding in _compare.compare(baseline, ours, exemptions, "3.13")]


def test_only_what_passes_there_must_pass_here() -> None:
    baseline = run_with(_suite.BASELINE, a="ok", b="fail", c="ok")
    assert findings(baseline, run_with("uring", a="ok", b="error", c="ok")) == []
    assert findings(baseline, run_with("uring", a="skip", b="ok", c="hang")) == [
        "test_x.C.a: skip",
        "test_x.C.c: hang",
    ]
    assert findings(baseline, run_with("uring", a="ok")) == ["test_x.C.c: not run"]


def test_the_list_of_exceptions_is_strict() -> None:
    baseline = run_with(_suite.BASELINE, a="ok", b="fail", c="ok")
    ours = run_with("uring", a="fail", b="fail", c="ok")
    a, b, c, d = (Exemption(f"test_x.C.{name}", "private") for name in "abcd")
    assert findings(baseline, ours, a) == []
    assert findings(baseline, ours, a, b, c, d) == [
        "test_x.C.b: exception for a test that is fail there",
        "test_x.C.c: exception for a test that passes: remove it",
        "test_x.C.d: exception for a test that does not exist",
    ]
    elsewhere = Exemption("test_x.C.a", "private", ("3.11",)), Exemption("test_y.C.a", "private")
    assert findings(baseline, ours, *elsewhere) == ["test_x.C.a: fail"]
    other_backend = Exemption("test_x.C.a", "private", backends=("epoll",))
    assert findings(baseline, ours, other_backend) == ["test_x.C.a: fail"]
    (finding,) = _compare.misplaced(
        [Exemption("test_z.C.a", "private"), Exemption("test_x.C.a", "private")], ["test_x"]
    )
    assert str(finding) == "test_z.C.a: exception for a module that does not exist"


def test_a_module_that_does_not_use_the_loop_is_a_finding() -> None:
    baseline = ModuleRun(_suite.BASELINE, "test_events", left_open=[])
    ours = ModuleRun("uring", "test_events", left_open=[], loops=0, strays=2)
    assert findings(baseline, ours) == [
        "test_events: made no loop of the class under test",
        "test_events: made 2 loops of the standard library",
    ]


@pytest.mark.parametrize(
    "entry",
    [
        'test = "a.B.c"\nreason = ""',
        'test = "a.B.c"\nreason = "two\\nlines"',
        'test = "a.B.c"\nreason = "x"\nversions = ["3.9"]',
        'test = "a.B.c"\nreason = "x"\nbackends = ["kqueue"]',
        'test = "a.B.c"\nreason = "x"\nversion = ["3.11"]',
        'test = "a.B.c"\nreason = "x"\n[[exception]]\ntest = "a.B.c"\nreason = "x"',
    ],
)
def test_a_bad_list_of_exceptions_is_refused(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "exceptions.toml"
    path.write_text(f"[[exception]]\n{entry}\n")
    with pytest.raises(ValueError, match=r"exceptions\.toml"):
        _compare.load_exemptions(path)


def test_the_document_has_the_same_list() -> None:
    rows = re.findall(
        r"^\| `(test_\S+)` \| (.*?) \| (.*?) \| (.*?) \|$", DOCUMENT.read_text(), re.M
    )
    listed = [
        (item.test, ", ".join(item.versions), ", ".join(item.backends), item.reason)
        for item in _compare.load_exemptions()
    ]
    assert rows == listed
