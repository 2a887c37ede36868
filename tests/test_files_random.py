"""Handles against a model of the file: any calls, cancelled at any of their waits.

The model is the content of the file and the offset of the handle.  A call that was cancelled may
have had its effect or not, where docs/files.md allows both; whatever it was, the handle and the
file must agree with one of the two from then on.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiounify.files as files
from aiounify.files.operation import service

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiounify

SIZES = st.sampled_from([0, 1, 3, 100, 4096, 70_000])
CALLS = st.one_of(
    st.tuples(st.just("read"), SIZES),
    st.tuples(st.just("readline"), st.just(0)),
    st.tuples(st.just("readinto"), SIZES),
    st.tuples(st.just("write"), SIZES),
    st.tuples(st.just("seek"), st.integers(0, 80_000)),
    st.tuples(st.just("tell"), st.just(0)),
    st.tuples(st.just("pread"), st.integers(0, 80_000)),
    st.tuples(st.just("pwrite"), st.integers(0, 80_000)),
    st.tuples(st.just("truncate"), st.integers(0, 80_000)),
    st.tuples(st.just("flush"), st.just(0)),
)
# a call, and after how many turns of the loop it is cancelled; None: never
STEPS = st.lists(st.tuples(CALLS, st.none() | st.integers(0, 4)), max_size=25)


class Model:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def put(self, data: bytes, offset: int) -> None:
        if data:
            padded = self.data.ljust(offset, b"\0")
            self.data = padded[:offset] + data + padded[offset + len(data) :]

    def read(self, n: int) -> bytes:
        found = self.data[self.at : self.at + n]
        self.at += len(found)
        return found

    def readinto(self, n: int) -> int:
        return len(self.read(n))

    def readline(self, _: int) -> bytes:
        end = self.data.find(b"\n", self.at)
        return self.read((end + 1 if end >= 0 else max(len(self.data), self.at)) - self.at)

    def write(self, n: int) -> int:
        self.put(b"w" * n, self.at)
        self.at += n
        return n

    def seek(self, offset: int) -> int:
        self.at = offset
        return offset

    def tell(self, _: int) -> int:
        return self.at

    def pread(self, offset: int) -> bytes:
        return self.data[offset : offset + 1000]

    def pwrite(self, offset: int) -> int:
        self.put(b"p" * 1000, offset)
        return 1000

    def truncate(self, size: int) -> int:
        self.data = self.data[:size].ljust(size, b"\0")
        return size

    def flush(self, _: int) -> None:
        pass


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def begin(file: Any, name: str, n: int) -> Any:
    match name:
        case "read" | "seek" | "truncate":
            return getattr(file, name)(n)
        case "readinto":
            return file.readinto(bytearray(n))
        case "write":
            return file.write(b"w" * n)
        case "pread":
            return file.pread(1000, n)
        case "pwrite":
            return file.pwrite(b"p" * 1000, n)
        case _:
            return getattr(file, name)()


async def check(path: Path, steps: list[Any], buffering: int, waits: bool) -> None:
    model = Model(content_of(path))
    async with files.open(path, "r+b", buffering=buffering) as file:
        if waits:
            file.nowait = 0
        for (name, n), cancel in steps:
            started = False

            async def call(name: str = name, n: int = n) -> Any:
                nonlocal started
                started = True
                return await begin(file, name, n)

            task = asyncio.ensure_future(call())
            if cancel is not None:
                for _ in range(cancel):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                got = await task
            except asyncio.CancelledError:
                if not started:
                    continue
                if name == "write":
                    getattr(model, name)(n)  # what has begun is written
                elif name in ("seek", "truncate", "pwrite"):
                    await settle(file, path, model, name, n)
            else:
                assert got == getattr(model, name)(n), (name, n)
        assert await file.tell() == model.at
    assert content_of(path) == model.data


async def settle(file: Any, path: Path, model: Model, name: str, n: int) -> None:
    """See which of the two it was."""
    await file.flush()
    if name == "seek":
        assert await file.tell() in (model.at, n)
        model.at = await file.tell()
        return
    content = content_of(path)
    if content != model.data:
        getattr(model, name)(n)
    assert content == model.data


@settings(
    max_examples=int((os.environ.get("AIOUNIFY_STRESS") and "2000") or "60"),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    steps=STEPS,
    size=st.sampled_from([0, 10, 5000, 75_000]),
    buffering=st.sampled_from([-1, 10, 5000]),
    waits=st.booleans(),
    plain=st.booleans(),
)
def test_cancelled_calls_leave_what_the_model_says(
    loop_factory: Callable[[], aiounify.EventLoop],
    steps: list[Any],
    size: int,
    buffering: int,
    waits: bool,
    plain: bool,
) -> None:
    async def main(path: Path) -> None:
        if plain:  # a ring that knows nothing, and no openat2
            service().ops = frozenset()
            service().opens_cached = False
        await check(path, steps, buffering, waits)

    with TemporaryDirectory() as directory:
        path = Path(directory) / "f"
        path.write_bytes(b"some text, and a line\n".ljust(50, b".") * (size // 50 + 1))
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main(path))


TURNS = 7  # more than any of the calls takes here
EACH = [
    ("read", 100),
    ("read", 70_000),
    ("readline", 0),
    ("readinto", 4096),
    ("write", 100),
    ("write", 70_000),
    ("seek", 3),
    ("tell", 0),
    ("pread", 10),
    ("pwrite", 10),
    ("truncate", 50),
    ("flush", 0),
]


@pytest.mark.parametrize("plain", [False, True])
async def test_each_call_cancelled_after_each_turn(tmp_path: Path, plain: bool) -> None:
    if plain:
        service().ops = frozenset()
        service().opens_cached = False
    path = tmp_path / "f"
    for call in EACH:
        for turns in range(TURNS):
            for before in ([], [(("write", 10), None)], [(("read", 5), None)]):
                path.write_bytes(b"some text, and a line\n" * 4000)
                await check(path, [*before, (call, turns), (("read", 30), None)], 5000, waits=True)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", ["read", "readline", "next", "write", "tell", "seek"])
async def test_text_cancelled_after_each_turn(tmp_path: Path, plain: bool, name: str) -> None:
    if plain:
        service().ops = frozenset()
        service().opens_cached = False
    path = tmp_path / "f"
    lines = [f"línea {i}\r\n" for i in range(3000)]
    for turns in range(TURNS):
        path.write_bytes("".join(lines).encode("utf-8"))
        expected = [line.replace("\r", "") for line in lines]
        async with files.open(path, "r+", encoding="utf-8", buffering=1000) as file:
            file.buffer.nowait = 0
            assert await file.readline() == expected[0]
            mark = await file.tell()
            left = "".join(expected[1:])
            await file.seek(mark)  # a write is behind what was decoded otherwise
            task = asyncio.ensure_future(step_of(file, name, mark))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                done = await task
            except asyncio.CancelledError:
                done = None
            if name == "write":
                await file.flush()
                await file.seek(mark)
                found = await file.read()
                # what has begun is written; with no turn it has not
                assert found.startswith("W" * 100 if turns else left[:100])
                assert found.endswith(left[200:])
            else:
                rest = await file.read()
                taken = done if isinstance(done, str) else ""
                assert taken + rest == left


async def step_of(file: Any, name: str, mark: int) -> Any:
    match name:
        case "read":
            return await file.read(7000)
        case "readline":
            return await file.readline()
        case "next":
            return await file.__anext__()
        case "write":
            return await file.write("W" * 100)
        case "tell":
            return await file.tell()
        case _:
            return await file.seek(mark)
