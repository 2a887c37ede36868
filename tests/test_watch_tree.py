"""Watched trees against a shadow that knows only what it was told."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import PROGRAMS
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

import aiounify
from aiounify.watching import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(PROGRAMS))
from shadow import Shadow
from tree_shaker import shake

MAX_QUEUED = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
STRESS = bool(os.environ.get("AIOUNIFY_STRESS"))


def tree_machine(backend: str) -> type[RuleBasedStateMachine]:
    """Operations of this process and, meanwhile, of a second one."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.stack = ExitStack()
            folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
            self.root, self.outside = folder / "root", folder / "outside"
            self.root.mkdir()
            self.outside.mkdir()
            shake(1, 30, self.root, self.outside)
            self.shaker = self.stack.enter_context(
                subprocess.Popen(
                    [sys.executable, PROGRAMS / "tree_shaker.py", self.root, self.outside],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            self.shaking = 0
            self.loop = aiounify.new_event_loop(backend)
            self.stack.callback(self.loop.close)
            self.shadow = Shadow(self.root)
            self.watch = aiounify.watch(self.root, recursive=True)
            self.run(self.watch.__aenter__())
            self.stack.callback(self.watch.close)

        def run(self, coroutine):
            return self.loop.run_until_complete(coroutine)

        @rule(seed=st.integers(0, 1 << 30), count=st.integers(1, 60))
        def other_process(self, seed, count):
            assert self.shaker.stdin is not None
            self.shaker.stdin.write(f"{seed} {count}\n")
            self.shaker.stdin.flush()
            self.shaking += 1

        @rule(seed=st.integers(0, 1 << 30), count=st.integers(1, 20))
        def this_process(self, seed, count):
            shake(seed, count, self.root, self.outside)

        @rule(turns=st.integers(1, 20))
        def turns(self, turns):
            async def some() -> None:
                for _ in range(turns):
                    await asyncio.sleep(0)

            self.run(some())

        @rule()
        def take_some(self):
            for change in self.watch.drain():
                self.shadow.apply(change)

        @rule(seconds=st.floats(0, 0.002))
        def cancelled_wait(self, seconds):
            async def wait() -> None:
                try:
                    async with asyncio.timeout(seconds):
                        while True:
                            self.shadow.apply(await self.watch.wait())
                except TimeoutError:
                    pass

            self.run(wait())

        @rule()
        def compare(self):
            assert self.shaker.stdout is not None
            while self.shaking:
                assert self.shaker.stdout.readline() == "done\n"
                self.shaking -= 1
            self.run(self.shadow.follow(self.watch))

        def teardown(self):
            try:
                self.compare()
            finally:
                assert self.shaker.stdin is not None
                self.shaker.stdin.close()
                self.stack.close()

    return Machine


def test_every_state_is_reached_by_what_is_told(backend):
    run_state_machine_as_test(
        tree_machine(backend),
        settings=settings(
            max_examples=300 if STRESS else 15,
            stateful_step_count=60 if STRESS else 30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory if possible: how long a disk takes for 100,000 files varies tenfold."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", 7) else tmp_path) as f:
        yield Path(f)


@pytest.mark.timeout(180)
async def test_a_burst_of_100000_files(quick_folder):
    shadow = Shadow(quick_folder)
    async with aiounify.watch(quick_folder, mask=Kind.CREATED | Kind.DELETED) as watch:
        number = 100_000
        for i in range(number):  # nothing is read meanwhile: the queue overflows
            os.close(os.open(f"{quick_folder}/{i}", os.O_CREAT | os.O_WRONLY))
        told = await shadow.follow(watch)
    assert len(shadow.tree) == number
    if number > MAX_QUEUED:
        assert shadow.overflows
        assert any(change.found for change in told)


def test_a_small_queue(run_program, backend):
    done = run_program("watch_overflow", check=False, AIOUNIFY_BACKEND=backend)
    if done.returncode == 77:
        pytest.skip(f"fs.inotify.max_queued_events cannot be set: {done.stdout}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_unmounting(run_program, backend):
    done = run_program("watch_unmount", check=False, AIOUNIFY_BACKEND=backend)
    if done.returncode == 77:
        pytest.skip(f"mounting is not allowed: {done.stdout}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_bind_mounts(run_program, backend):
    done = run_program("watch_bind_mounts", check=False, AIOUNIFY_BACKEND=backend)
    if done.returncode == 77:
        pytest.skip(f"mounting is not allowed: {done.stdout}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


MAKER = """
import os, sys
for i in range(300):
    path = os.path.join(sys.argv[1], str(i))
    for name in ("a", "b", "c"):
        path = os.path.join(path, name)
        os.makedirs(path)
        open(os.path.join(path, "file"), "w").close()
"""


async def test_directories_that_are_made_and_filled_at_once(tmp_path):
    files: list[str] = []
    folders: list[str] = []
    async with aiounify.watch(tmp_path, recursive=True, mask=Kind.CREATED) as watch:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", MAKER, str(tmp_path))
        async with asyncio.timeout(40):
            while len(files) < 900:
                change = await watch.wait()
                (folders if change.is_dir else files).append(change.path)
        assert await child.wait() == 0
        rest = watch.drain()
    folders += [change.path for change in rest if change.is_dir]
    assert not [change for change in rest if not change.is_dir]
    assert len(set(files)) == len(files) == 900
    assert len(set(folders)) == len(folders) == 1200
