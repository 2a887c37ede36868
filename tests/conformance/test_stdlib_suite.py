"""Whatever passes in `test.test_asyncio` on the standard library's loop passes on this one.

One test for each module of the suite and each backend. The modules run in processes of their own,
two at a time, the baseline among them, and as soon as the first of these tests begins: a test here
only waits for its module and compares.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import _compare, _suite
from .conftest import rerun_lines

try:
    MODULES = _suite.modules()
except _suite.SuiteMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

EXEMPTIONS = _compare.load_exemptions()

# A module may have to be started again after hangs, and waits for its turn before that.
pytestmark = [pytest.mark.conformance, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Instead of the one that counts descriptors: other modules are being run meanwhile."""


@pytest.fixture(scope="module")
def refused() -> dict[str, str]:
    """Why a backend cannot be had here, for those that cannot."""
    reasons = {backend: _suite.backend_refused(backend) for backend in _suite.BACKENDS}
    return {backend: reason for backend, reason in reasons.items() if reason}


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest, refused: dict[str, str]) -> Iterator[_suite.Suite]:
    """Starts everything that the tests selected in this session will ask for."""
    suite = _suite.Suite()
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.function is test_module:
            on = str(item.callspec.params["on"])
            module = str(item.callspec.params["module"])
            if on not in refused:
                suite.submit(_suite.BASELINE, module)
                suite.submit(on, module)
    yield suite
    suite.close()


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("on", _suite.BACKENDS)
def test_module(
    suite: _suite.Suite,
    refused: dict[str, str],
    pytestconfig: pytest.Config,
    on: str,
    module: str,
) -> None:
    if on in refused:
        pytest.skip(f"backend {on} cannot be had here: {refused[on]}")
    baseline = suite.submit(_suite.BASELINE, module).result()
    ours = suite.submit(on, module).result()
    for run in (baseline, ours):
        for test in run.rerun:
            outcome = run.outcomes[test]
            line = f"{run.backend}: {test}: {outcome.first}, then {outcome.status}"
            if line not in pytestconfig.stash[rerun_lines]:
                pytestconfig.stash[rerun_lines].append(line)
    findings = _compare.compare(baseline, ours, EXEMPTIONS, _compare.THIS_VERSION)
    if findings:
        report = "\n\n".join(f"{finding}\n{finding.detail}" for finding in findings)
        pytest.fail(f"{len(findings)} findings\n\n{report}", pytrace=False)
    if baseline.skipped:
        pytest.skip(baseline.skipped)


def test_exceptions_name_modules_that_exist() -> None:
    assert _compare.misplaced(EXEMPTIONS, MODULES) == []
