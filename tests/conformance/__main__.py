"""`python -m tests.conformance`: the comparison by hand. See docs/conformance.md."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from . import _compare, _suite
from ._suite import BACKENDS, BASELINE, ModuleRun, Suite


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Run the interpreter's test.test_asyncio on this loop and compare the outcomes"
        " with the same tests on the standard library's loop.",
    )
    parser.add_argument(
        "--backend",
        action="append",
        choices=[*BACKENDS, BASELINE],
        help="repeatable; default: all but stdlib. 'stdlib' alone runs the baseline only",
    )
    parser.add_argument(
        "--module", nargs="+", action="extend", help="such as test_events; default: all of them"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--json", type=Path, help="write outcomes here, one JSON object a line")
    parser.add_argument("-v", "--verbose", action="store_true", help="with tracebacks")
    return parser.parse_args(arguments)


def write_json(path: Path, runs: list[ModuleRun]) -> None:
    with path.open("w") as file:
        for run in runs:
            for test, outcome in run.outcomes.items():
                line = {
                    "version": _compare.THIS_VERSION,
                    "backend": run.backend,
                    "test": test,
                    "status": outcome.status,
                    "first": outcome.first,
                    "detail": outcome.detail,
                }
                file.write(json.dumps(line) + "\n")


def summary(run: ModuleRun) -> str:
    if run.skipped:
        return f"skipped: {run.skipped}"
    counts = ", ".join(f"{number} {status}" for status, number in sorted(run.counts.items()))
    rerun = f", rerun: {' '.join(run.rerun)}" if run.rerun else ""
    loops = f", {run.loops} loops" if run.backend != BASELINE else ""
    return f"{counts} ({run.seconds:.1f} s{loops}{rerun})"


def main() -> int:
    arguments = parse()
    try:
        modules = _suite.modules()
    except _suite.SuiteMissing as missing:
        print(f"skipped: {missing}")
        return 0
    chosen = arguments.module or modules
    unknown = sorted(set(chosen) - set(modules))
    if unknown:
        print(f"no such module here: {', '.join(unknown)}", file=sys.stderr)
        return 2
    backends = [name for name in arguments.backend or BACKENDS if name != BASELINE]
    for backend in backends:
        if refused := _suite.backend_refused(backend):
            print(f"backend {backend} cannot be had here: {refused}", file=sys.stderr)
            return 2

    exemptions = _compare.load_exemptions()
    findings = _compare.misplaced(exemptions, modules)
    runs: list[ModuleRun] = []
    started = time.monotonic()
    suite = Suite(arguments.jobs)
    try:
        for module in chosen:
            for backend in (BASELINE, *backends):
                suite.submit(backend, module)
        for module in chosen:
            baseline = suite.submit(BASELINE, module).result()
            runs.append(baseline)
            print(f"{module}\n  {BASELINE:<11}{summary(baseline)}", flush=True)
            for backend in backends:
                ours = suite.submit(backend, module).result()
                runs.append(ours)
                print(f"  {backend:<11}{summary(ours)}", flush=True)
                for finding in _compare.compare(baseline, ours, exemptions, _compare.THIS_VERSION):
                    findings.append(finding)
                    print(f"    {finding}", flush=True)
                    if arguments.verbose and finding.detail:
                        print(finding.detail)
    finally:
        suite.close()
    if arguments.json:
        write_json(arguments.json, runs)
    seconds = time.monotonic() - started
    print(f"CPython {_compare.THIS_VERSION}: {len(findings)} findings in {seconds:.0f} s")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
