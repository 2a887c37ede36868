"""Run modules of `test.test_asyncio` in processes of their own and gather the outcomes.

Rules:
- One process per module and backend: no module can spoil the next one, and a hang or a crash costs
  one test. The process is then started again with the tests that are still to be run.
- A test that did not pass is run again alone, up to `RERUNS` times, and the outcome says so. The
  baseline gets the same second chance. A module with more than `RERUN_LIMIT` such tests is not
  flaky but broken, and gets none.
- Nothing is stored between runs: the baseline is the same interpreter on the same day.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("_child.py")
BASELINE = "stdlib"
# "uring-poll" is the uring backend as it is on kernels before 6.15, without IORING_OP_EPOLL_WAIT.
BACKENDS = ("uring", "epoll", "uring-poll")
SECONDS_PER_MODULE = 400.0
RERUNS = 2
RERUN_LIMIT = 25
RESTARTS = 8  # of one module, after hangs or crashes
# The longest ones, to be started first so that the last minute is not one process.
LONGEST = ("test_events", "test_ssl", "test_sendfile", "test_subprocess", "test_sock_lowlevel")


class SuiteMissing(Exception):  # noqa: N818 - a fact about the interpreter, not a failure
    """This interpreter was installed without the `test` package."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one test came to. Statuses: ok, skip, fail, error, hang, crash."""

    status: str
    detail: str = ""
    first: str = ""  # the status before the reruns, if there were any

    @property
    def passed(self) -> bool:
        return self.status == "ok"


@dataclass(slots=True)
class ModuleRun:
    """All that one module did on one backend."""

    backend: str
    module: str
    planned: list[str] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    fixtures: list[tuple[str, str]] = field(default_factory=list)  # failed ones: setUpClass...
    skipped: str = ""  # the module as a whole, and why
    broken: str = ""  # the process could not go on, and why
    left_open: list[str] | None = None  # None: unknown, since the process did not end by itself
    unraisable: list[tuple[str, str]] = field(default_factory=list)
    loops: int = 0  # of the class under test that were made
    strays: int = 0  # of the standard library's class, all the same
    stderr: str = ""
    seconds: float = 0.0

    @property
    def counts(self) -> Counter[str]:
        return Counter(outcome.status for outcome in self.outcomes.values())

    @property
    def rerun(self) -> list[str]:
        return [name for name, outcome in self.outcomes.items() if outcome.first]


@dataclass(frozen=True, slots=True)
class Process:
    """How one child ended, and the events it wrote."""

    events: list[dict[str, Any]]
    stderr: str
    ending: str


def suite_directory() -> Path:
    """Where the interpreter keeps `test.test_asyncio`; raises SuiteMissing."""
    try:
        spec = importlib.util.find_spec("test.test_asyncio")
        support = importlib.util.find_spec("test.support")
    except ImportError:  # not even an empty package `test`
        spec = support = None
    if spec is None or support is None or not spec.submodule_search_locations:
        version = ".".join(map(str, sys.version_info[:3]))
        raise SuiteMissing(f"CPython {version} at {sys.executable} has no `test.test_asyncio`")
    return Path(spec.submodule_search_locations[0])


def modules() -> list[str]:
    """Every test module of the suite, the longest first."""
    found = sorted(path.stem for path in suite_directory().glob("test_*.py"))
    first = [name for name in LONGEST if name in found]
    return first + [name for name in found if name not in first]


def aiounify_directory() -> Path:
    spec = importlib.util.find_spec("aiounify")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("aiounify cannot be imported: build it, or run from the checkout")
    return Path(spec.submodule_search_locations[0])


def backend_refused(backend: str) -> str:
    """Why the loop cannot be had with this backend here; empty when it can."""
    code = "import aiounify, sys; aiounify.new_event_loop(backend=sys.argv[1]).close()"
    environment = {**os.environ, "PYTHONPATH": str(aiounify_directory().parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, backend.removesuffix("-poll")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def _spawn(backend: str, module: str, *options: str) -> Process:
    """Run one child to its end, in a directory of its own, and kill what it leaves behind."""
    command = [sys.executable, "-P", str(CHILD), module, "--backend", backend]
    if backend != BASELINE:
        command += ["--aiounify", str(aiounify_directory())]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PYTEST", "AIOUNIFY"))
    }
    with tempfile.TemporaryDirectory(prefix="conformance-") as directory:
        output = Path(directory, "events.jsonl")
        output.touch()
        work = Path(directory, "cwd")
        work.mkdir()
        environment["TMPDIR"] = str(work)
        with Path(directory, "stderr").open("w+", errors="replace") as stderr:
            child = subprocess.Popen(
                [*command, "--output", str(output), *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=work,
                env=environment,
                start_new_session=True,
            )
            ending = _wait(child)
            stderr.seek(0)
            text = stderr.read()
        events = [json.loads(line) for line in output.read_text().splitlines()]
    return Process(events, text[-20_000:], ending)


def _wait(child: subprocess.Popen[bytes]) -> str:
    ending = ""
    try:
        code = child.wait(SECONDS_PER_MODULE)
    except subprocess.TimeoutExpired:
        ending = f"no end after {SECONDS_PER_MODULE:.0f} s"
        child.send_signal(signal.SIGABRT)  # faulthandler prints every thread's stack
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    else:
        if code < 0:
            ending = f"killed by {signal.Signals(-code).name}"
        elif code > 0:
            ending = f"exit status {code}"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # its children, if any are left
    return ending


def run_module(backend: str, module: str, *options: str) -> ModuleRun:
    """Run all tests of a module; `options` are for each child, and for tests of this file."""
    started = time.monotonic()
    run = ModuleRun(backend, module)
    for _ in range(RESTARTS):
        if _run_rest(run, *options):
            break
    else:
        run.broken = f"given up after {RESTARTS} hangs or crashes"
    again = [
        name
        for name, outcome in run.outcomes.items()
        if outcome.status in ("fail", "error", "hang", "crash")
    ]
    if len(again) <= RERUN_LIMIT:
        for name in again:
            run.outcomes[name] = _rerun(run, name, *options)
    run.seconds = time.monotonic() - started
    return run


def _run_rest(run: ModuleRun, *options: str) -> bool:
    """Run the tests that have no outcome yet; False if the process must be started again."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as skip:
        json.dump(list(run.outcomes), skip)
        skip.flush()
        process = _spawn(run.backend, run.module, "--skip", skip.name, *options)
    first = not run.outcomes
    run.stderr += process.stderr
    running = ""
    ended = False
    for event in process.events:
        match event["event"]:
            case "plan":
                run.planned = event["tests"]
            case "skip":
                run.skipped = event["detail"]
                ended = True
            case "start":
                running = event["test"]
            case "stop":
                run.outcomes[event["test"]] = Outcome(event["status"], event["detail"])
                running = ""
            case "fixture" if event["status"] == "error":
                run.fixtures.append((event["name"], event["detail"]))
            case "unraisable":
                run.unraisable.append((event["kind"], event["detail"]))
            case "end":
                ended = True
                run.loops += event["loops"]
                run.strays += event["strays"]
                run.left_open = event["left_open"] if first else None
    if ended:
        if process.ending:  # all tests were run, then the interpreter failed to shut down
            run.broken = f"after the last test: {process.ending}\n{process.stderr[-3000:]}"
        return True
    if not running:
        run.broken = f"between tests: {process.ending}\n{process.stderr[-3000:]}"
        return True
    run.outcomes[running] = _unfinished(process)
    return False


def _unfinished(process: Process) -> Outcome:
    hung = process.ending.startswith("no end") or "Timeout (" in process.stderr
    detail = f"{process.ending}\n{process.stderr[-5000:]}"
    return Outcome("hang" if hung else "crash", detail)


def _rerun(run: ModuleRun, name: str, *options: str) -> Outcome:
    """The outcome of a test that did not pass, after up to `RERUNS` more runs of it alone."""
    outcome = run.outcomes[name]
    for _ in range(RERUNS):
        process = _spawn(run.backend, run.module, "--only", name, *options)
        stops = [event for event in process.events if event["event"] == "stop"]
        again = Outcome(stops[-1]["status"], stops[-1]["detail"]) if stops else _unfinished(process)
        if again.status in ("ok", "skip"):
            return Outcome(again.status, outcome.detail, first=outcome.status)
    return Outcome(outcome.status, outcome.detail, first=outcome.status)


class Suite:
    """Runs modules on a few worker processes and hands out each result when it is there."""

    def __init__(self, jobs: int = 2) -> None:
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="conformance")
        self._runs: dict[tuple[str, str], Future[ModuleRun]] = {}

    def submit(self, backend: str, module: str) -> Future[ModuleRun]:
        """Run this module on this backend, once however often it is asked for."""
        key = (backend, module)
        if key not in self._runs:
            self._runs[key] = self._pool.submit(run_module, backend, module)
        return self._runs[key]

    def close(self) -> None:
        """Let the children that are running end, and start no more."""
        self._pool.shutdown(cancel_futures=True)
