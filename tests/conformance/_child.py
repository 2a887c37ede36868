"""Run one module of `test.test_asyncio` in this process and write what happened as JSON lines.

Started by `_suite.py`, one process per module and backend, by path and not by name: the file must
work from any directory and may import nothing of this package.

Rules:
- The loop is put in place before the test module is imported, and only under the names by which
  tests reach *the* selector loop. `selector_events.BaseSelectorEventLoop` and `BaseEventLoop` stay:
  tests that subclass or mock those test the standard library itself.
- Each event is one `os.write`, so what was written before a hang or a crash can be read, and a
  test that forks cannot write the same buffer twice.
- Nothing is judged here. Statuses are facts; `_compare.py` decides what they mean.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import importlib
import importlib.util
import json
import os
import sys
import traceback
import unittest
from asyncio import unix_events
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from selectors import BaseSelector

    ExcInfo = (
        tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    )

PACKAGE = "test.test_asyncio"
DETAIL_LIMIT = 6000  # characters of a traceback that are kept: the last ones


class Reporter(unittest.TestResult):
    """One event when a test starts, one with its worst outcome when it has stopped."""

    def __init__(self, output: int, package: str, seconds_per_test: float) -> None:
        super().__init__()
        self._output = output
        self._prefix = package + "."
        self._pid = os.getpid()
        self._limit = seconds_per_test
        self._status = ""
        self._details: list[str] = []

    def emit(self, event: str, **fields: object) -> None:
        # A forked child may get here, by an exception that it ignores.
        if os.getpid() == self._pid:
            line = json.dumps({"event": event, **fields}) + "\n"
            os.write(self._output, line.encode())

    def arm(self) -> None:
        """Give the next test, or the fixture between two tests, a fresh time limit."""
        faulthandler.dump_traceback_later(
            self._limit, exit=True, file=2
        )  # tests replace sys.stderr

    def name(self, test: unittest.TestCase) -> str:
        """`test_events.HandleTests.test_handle`: the id without the package."""
        return test.id().removeprefix(self._prefix)

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        self.arm()
        self._status, self._details = "", []
        self.emit("start", test=self.name(test))
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        if os.getpid() != self._pid:
            os._exit(70)  # a forked child that fell out of its test must not run the rest
        self.arm()
        self.emit(
            "stop",
            test=self.name(test),
            status=self._status or "error",
            detail="\n".join(self._details)[-DETAIL_LIMIT:],
        )

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._status = self._status or "ok"

    def addExpectedFailure(self, test: unittest.TestCase, err: ExcInfo) -> None:  # noqa: N802
        self._status = self._status or "ok"

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        if isinstance(test, unittest.TestCase):
            self._status = self._status or "skip"
            self._details.append(reason)
        else:
            self.emit("fixture", name=str(test), status="skip", detail=reason)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._failed("fail", ["unexpected success"])

    def addFailure(self, test: unittest.TestCase, err: ExcInfo) -> None:  # noqa: N802
        self._failed("fail", traceback.format_exception(err[1]))

    def addError(self, test: unittest.TestCase, err: ExcInfo) -> None:  # noqa: N802
        lines = traceback.format_exception(err[1])
        if isinstance(test, unittest.TestCase):
            self._failed("error", lines)
        else:  # setUpClass, tearDownModule and their like
            self.emit("fixture", name=str(test), status="error", detail="".join(lines))

    def addSubTest(  # noqa: N802
        self, test: unittest.TestCase, subtest: unittest.TestCase, err: ExcInfo | None
    ) -> None:
        if err is not None:
            self._failed("fail", [f"{subtest}\n", *traceback.format_exception(err[1])])

    def _failed(self, status: str, lines: list[str]) -> None:
        self._status = "error" if "error" in (status, self._status) else status
        self._details.append("".join(lines))


def import_aiounify(directory: Path) -> ModuleType:
    """Import the package from the place where the runner found it, whatever `sys.path` says."""
    spec = importlib.util.spec_from_file_location(
        "aiounify", directory / "__init__.py", submodule_search_locations=[str(directory)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no aiounify in {directory}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["aiounify"] = module
    spec.loader.exec_module(module)
    return module


def conformance_loop(aiounify: ModuleType, backend: str) -> Any:
    """The class of the loop under test, with the constructor that the tests know."""
    base: Any = aiounify.EventLoop

    class ConformanceLoop(base):  # type: ignore[misc]
        made = 0
        strays = 0

        def __init__(self, selector: BaseSelector | None = None) -> None:
            # EPollEventLoopTests and others hand in the selector they want. Here the reactor is
            # the selector, so theirs is closed unused and the tests run on the reactor.
            if selector is not None:
                selector.close()
            ConformanceLoop.made += 1
            super().__init__(backend=backend.removesuffix("-poll"))

        def _make_reactor(self, chosen: str, forced: str | None) -> Any:
            if backend != "uring-poll":
                return super()._make_reactor(chosen, forced)
            from aiounify._core.uring import UringReactor

            return UringReactor(self._backlog, epoll_wait_op=False)

    return ConformanceLoop


def put_in_place(loop_class: Any) -> None:
    """Replace every name by which the tests reach the selector loop."""
    count_strays(asyncio.SelectorEventLoop, loop_class)
    policy: Any = asyncio.DefaultEventLoopPolicy
    policy._loop_factory = loop_class  # new_event_loop, Runner, run, IsolatedAsyncioTestCase
    places: tuple[Any, ...] = (asyncio, unix_events)
    for place in places:
        for name in ("SelectorEventLoop", "_UnixSelectorEventLoop", "EventLoop"):
            if hasattr(place, name):  # asyncio.EventLoop is new in 3.13
                setattr(place, name, loop_class)


def count_strays(original: Any, loop_class: Any) -> None:
    """Count in `loop_class.strays` the stdlib's loops that a test gets hold of all the same."""
    inherited = original.__init__

    def counting(self: Any, *arguments: Any, **named: Any) -> None:
        loop_class.strays += type(self) is original
        inherited(self, *arguments, **named)

    original.__init__ = counting


def flatten(suite: Iterable[Any]) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def descriptors() -> list[str]:
    """What each open descriptor of this process refers to."""
    gc.collect()
    found = []
    for link in list(Path("/proc/self/fd").iterdir()):
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:  # the one that was reading the directory
            continue
    return found


def watch_unraisable(reporter: Reporter) -> None:
    """Report exceptions that were ignored in destructors and callbacks of C code."""

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, ResourceWarning):
            return
        reporter.emit(
            "unraisable",
            kind=unraisable.exc_type.__name__,
            detail=f"{unraisable.err_msg or 'Exception ignored in'}: {unraisable.object!r}\n"
            + "".join(traceback.format_exception(unraisable.exc_value)),
        )

    sys.unraisablehook = hook


def run(arguments: argparse.Namespace, reporter: Reporter) -> None:
    loop_class = None
    if arguments.backend != "stdlib":
        loop_class = conformance_loop(import_aiounify(arguments.aiounify), arguments.backend)
        put_in_place(loop_class)
    reporter.arm()
    support: Any = importlib.import_module("test.support")
    support.use_resources = ["cpu", "walltime"]  # the network outside this machine is no part of it
    try:
        loaded = unittest.defaultTestLoader.loadTestsFromName(
            f"{arguments.package}.{arguments.module}"
        )
    except unittest.SkipTest as skip:
        reporter.emit("skip", detail=str(skip))
        return
    tests = list(flatten(loaded))
    reporter.emit("plan", tests=[reporter.name(test) for test in tests])
    if arguments.only:
        tests = [test for test in tests if reporter.name(test) in arguments.only]
    done = set(json.loads(arguments.skip.read_text())) if arguments.skip else set()
    tests = [test for test in tests if reporter.name(test) not in done]

    before = descriptors()
    watch_unraisable(reporter)
    unittest.TestSuite(tests).run(reporter)
    gc.collect()
    after = descriptors()
    for target in before:
        if target in after:
            after.remove(target)
    reporter.emit(
        "end",
        left_open=after,
        loops=loop_class.made if loop_class else 0,
        strays=loop_class.strays if loop_class else 0,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--aiounify", type=Path)
    parser.add_argument("--skip", type=Path, help="a JSON list of tests that have been run")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--package", default=PACKAGE)
    parser.add_argument("--path", help="where to find the package, if not where the interpreter is")
    parser.add_argument("--seconds-per-test", type=float, default=90.0)
    arguments = parser.parse_args()
    faulthandler.enable()
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("default")
    output = os.open(arguments.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    if arguments.path:
        sys.path.append(arguments.path)
    run(arguments, Reporter(output, arguments.package, arguments.seconds_per_test))
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
