"""Compare a run on this loop with the baseline, apart from the exceptions that are named.

The list of exceptions is strict: one that passes, one whose test does not exist, and one whose
test does not pass on the standard library either, are findings just like a test that fails.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ._suite import BACKENDS, ModuleRun, Outcome

EXCEPTIONS_FILE = Path(__file__).with_name("exceptions.toml")
VERSIONS = ("3.11", "3.12", "3.13")
# Modules that do nothing but use the loop: one that makes none of ours was not put in its place.
LOOP_MODULES = (
    "test_buffered_proto",
    "test_events",
    "test_sendfile",
    "test_server",
    "test_sock_lowlevel",
    "test_ssl",
    "test_sslproto",
    "test_streams",
    "test_subprocess",
    "test_unix_events",
)
THIS_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True)
class Exemption:
    """One named test that need not pass here."""

    test: str
    reason: str
    versions: tuple[str, ...] = VERSIONS
    backends: tuple[str, ...] = BACKENDS

    @property
    def module(self) -> str:
        return self.test.partition(".")[0]

    def applies(self, version: str, backend: str) -> bool:
        return version in self.versions and backend in self.backends


def load_exemptions(path: Path = EXCEPTIONS_FILE) -> list[Exemption]:
    """Read and check the file: known keys, known versions and backends, one line of reason."""
    found: list[Exemption] = []
    for entry in tomllib.loads(path.read_text()).get("exception", []):
        unknown = entry.keys() - {"test", "reason", "versions", "backends"}
        if unknown:
            raise ValueError(f"{path.name}: unknown keys {sorted(unknown)}")
        exemption = Exemption(
            entry["test"],
            entry["reason"],
            tuple(entry.get("versions", VERSIONS)),
            tuple(entry.get("backends", BACKENDS)),
        )
        if not set(exemption.versions) <= set(VERSIONS):
            raise ValueError(f"{path.name}: {exemption.test}: versions {exemption.versions}")
        if not set(exemption.backends) <= set(BACKENDS):
            raise ValueError(f"{path.name}: {exemption.test}: backends {exemption.backends}")
        if not exemption.reason.strip() or "\n" in exemption.reason:
            raise ValueError(f"{path.name}: {exemption.test}: the reason must be one line")
        found.append(exemption)
    twice = [test for test, times in Counter(item.test for item in found).items() if times > 1]
    if twice:
        raise ValueError(f"{path.name}: named twice: {', '.join(twice)}")
    return found


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why the comparison fails."""

    subject: str
    what: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}"


def compare(
    baseline: ModuleRun, ours: ModuleRun, exemptions: Sequence[Exemption], version: str
) -> list[Finding]:
    """Everything that is worse on our loop than on the standard library's, in one module."""
    named = {
        item.test: item
        for item in exemptions
        if item.module == ours.module and item.applies(version, ours.backend)
    }
    findings = list(_fixtures(baseline, ours))
    if baseline.skipped:
        findings += (Finding(test, "exception for a module that is skipped") for test in named)
        return findings
    missing = Outcome("not run")
    for test in baseline.planned:
        here = ours.outcomes.get(test, missing)
        there = baseline.outcomes.get(test, missing)
        if test in named:
            if not there.passed:
                findings.append(Finding(test, f"exception for a test that is {there.status} there"))
            elif here.passed:
                findings.append(Finding(test, "exception for a test that passes: remove it"))
        elif there.passed and not here.passed:
            findings.append(Finding(test, here.status, here.detail))
    planned = set(baseline.planned)
    findings += (
        Finding(test, "exception for a test that does not exist")
        for test in named
        if test not in planned
    )
    if ours.module in LOOP_MODULES and ours.left_open is not None and not ours.loops:
        findings.append(Finding(ours.module, "made no loop of the class under test"))
    if ours.strays:
        findings.append(Finding(ours.module, f"made {ours.strays} loops of the standard library"))
    findings += _descriptors(baseline, ours)
    findings += _unraisable(baseline, ours)
    return findings


def misplaced(exemptions: Iterable[Exemption], modules: Sequence[str]) -> list[Finding]:
    """Exceptions for this version whose module the interpreter does not have."""
    return [
        Finding(item.test, "exception for a module that does not exist")
        for item in exemptions
        if THIS_VERSION in item.versions and item.module not in modules
    ]


def _fixtures(baseline: ModuleRun, ours: ModuleRun) -> Iterable[Finding]:
    if baseline.broken:
        yield Finding(f"{ours.module} (stdlib)", "the baseline could not be run", baseline.broken)
    if ours.broken:
        yield Finding(ours.module, "the module could not be run to its end", ours.broken)
    if ours.skipped and not baseline.skipped:
        yield Finding(ours.module, "skipped", ours.skipped)
    known = {name for name, _ in baseline.fixtures}
    for name, detail in ours.fixtures:
        if name not in known:
            yield Finding(name, "error", detail)


def _descriptors(baseline: ModuleRun, ours: ModuleRun) -> Iterable[Finding]:
    if baseline.left_open is None or ours.left_open is None:
        return
    extra = len(ours.left_open) - len(baseline.left_open)
    if extra > 0:
        yield Finding(
            ours.module,
            f"{extra} more descriptors left open than on the standard library's loop",
            f"here: {sorted(ours.left_open)}\nthere: {sorted(baseline.left_open)}",
        )


def _unraisable(baseline: ModuleRun, ours: ModuleRun) -> Iterable[Finding]:
    there = Counter(kind for kind, _ in baseline.unraisable)
    here = Counter(kind for kind, _ in ours.unraisable)
    for kind, times in (here - there).items():
        detail = next(text for name, text in ours.unraisable if name == kind)
        yield Finding(ours.module, f"{times} more ignored exceptions ({kind})", detail)
