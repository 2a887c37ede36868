"""Every async test runs once for each backend; whatever a test leaves behind fails it.

* `pytest_asyncio_loop_factories` gives async tests the loops; synchronous tests ask for
  `loop`, `loop_factory` or `backend` and are repeated in the same way.  A test marked
  `every_reactor` runs on a third loop too: io_uring as it is on kernels before 6.15; one
  marked `as_asyncio` on asyncio's own loop, which shows that it tests asyncio's contract.
* `nothing_left` compares descriptors and threads before and after each test, and
  `pytest_pyfunc_call` looks for tasks that are still pending when the test is over.
* `kernel` repeats a test of files on a ring that knows no file operation.
* `run_program` runs one of the small programs in tests/programs in a fresh process.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import aiounify
from aiounify._core.uring import UringReactor
from aiounify.backends import why_not_uring

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

NO_URING = why_not_uring()
# Under .ci/sanitize each freed block is kept for a while, and each object is a block.
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
PROGRAMS = Path(__file__).parent / "programs"

_loops: weakref.WeakSet[aiounify.EventLoop] = weakref.WeakSet()


class PollLoop(aiounify.EventLoop):
    """The io_uring loop of older kernels, which waits for the epoll set by POLL_ADD."""

    def _make_reactor(self, backend: str, forced: str | None) -> UringReactor:
        return UringReactor(self._backlog, epoll_wait_op=False)


def _uring_poll() -> aiounify.EventLoop:
    loop = PollLoop("uring")
    _loops.add(loop)
    return loop


def _new_loop(backend: str) -> aiounify.EventLoop:
    loop = aiounify.new_event_loop(backend)
    _loops.add(loop)
    return loop


def _factories(item: pytest.Item) -> dict[str, Callable[[], aiounify.EventLoop]]:
    names = ("epoll",) if NO_URING else ("uring", "epoll")
    factories = {name: functools.partial(_new_loop, name) for name in names}
    if item.get_closest_marker("every_reactor") and not NO_URING:
        factories["uring-poll"] = _uring_poll
    if item.get_closest_marker("as_asyncio"):
        factories["asyncio"] = asyncio.SelectorEventLoop  # type: ignore[assignment]
    return factories


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_reactor: run on the older io_uring path as well")
    config.addinivalue_line("markers", "as_asyncio: has to pass on asyncio's own loop as well")
    config.addinivalue_line("markers", "plain_memory: not with sanitizers, which keep memory")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if SANITIZED and item.get_closest_marker("plain_memory"):
        pytest.skip("memory is measured, and sanitizers keep it")


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    return _factories(item)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    factories = _factories(metafunc.definition)
    if "loop_factory" in metafunc.fixturenames:
        metafunc.parametrize("loop_factory", factories.values(), ids=factories, indirect=True)
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", [name for name in factories if name in ("uring", "epoll")])


@pytest.fixture
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], aiounify.EventLoop]:
    """Makes loops of one backend; the test closes them."""
    factory: Callable[[], aiounify.EventLoop] = request.param
    return factory


@pytest.fixture
def loop(loop_factory: Callable[[], aiounify.EventLoop]) -> Iterator[aiounify.EventLoop]:
    """A loop that does not run yet, closed after the test."""
    loop = loop_factory()
    yield loop
    loop.close()


# -- leaks --------------------------------------------------------------------


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - no object for each entry
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No descriptor and no thread may be left behind."""
    descriptors, threads = _descriptors(), set(threading.enumerate())
    yield
    if (tracker := sys.modules.get("multiprocessing.resource_tracker")) is not None:
        tracker._resource_tracker._stop()  # a process with a pipe, begun by whoever needs it
    if _descriptors() != descriptors:
        gc.collect()
    deadline = time.monotonic() + 5
    while left := [t for t in threading.enumerate() if t not in threads]:
        if time.monotonic() > deadline:
            pytest.fail(f"threads left behind: {left}")
        time.sleep(0.001)
    now = _descriptors()
    leaked = {fd: name for fd, name in now.items() if descriptors.get(fd) != name}
    lost = {fd: name for fd, name in descriptors.items() if fd not in now}
    assert not leaked, f"descriptors left behind: {leaked}"
    assert not lost, f"descriptors closed that belong to others: {lost}"


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """No task may be pending once the test function has returned."""
    result = yield
    for loop in list(_loops):
        if loop.is_closed():
            continue
        deadline = time.monotonic() + 2
        while asyncio.all_tasks(loop) and time.monotonic() < deadline:
            # a server's tasks may just see the end of their connections
            loop.run_until_complete(asyncio.sleep(0.001))
        assert not asyncio.all_tasks(loop), "tasks left behind"
    return result


# -- programs of their own -------------------------------------------------------


def complaints(stderr: str) -> list[str]:
    """What a program in development mode said, but for the callbacks that took long.

    Development mode means debug mode, which reports every callback of over 100 ms: on a
    loaded machine that may be any.
    """
    return [line for line in stderr.splitlines() if not line.startswith("Executing <")]


def _run_program(
    name: str,
    *args: object,
    options: tuple[str, ...] = ("-X", "dev", "-W", "error"),
    timeout: float = 50,
    check: bool = True,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    package = Path(aiounify.__file__).parents[1]
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *options, PROGRAMS / f"{name}.py", *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check:
        report = f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, report
        assert not complaints(done.stderr), report
    return done


@pytest.fixture(params=["full", "ring without operations"])
async def kernel(request: pytest.FixtureRequest) -> str:
    """The loop's backend as it is, and with a ring that knows no file operation."""
    from aiounify.files.operation import service

    if request.param != "full":
        shared = service()
        shared.ops = frozenset()
        shared.opens_cached = False
    return str(request.param)


@pytest.fixture
def run_program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run tests/programs/NAME.py in development mode, warnings being errors.

    It must end with status 0 and a silent stderr; with check=False the caller looks.
    """
    return _run_program
