"""What asyncio documents about looking at descriptors, and its own suite checks only by luck.

`loop.stop()` before `run_forever()`: "the loop will poll the I/O selector once with a timeout of
zero, run all callbacks scheduled in response to I/O events (and those that were already scheduled),
and then exit". Test suites everywhere build their `run_once()` and `run_briefly()` on it. A loop
that saves looks while callbacks are ready must not save those.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest

import aiounify

from . import _suite
from ._child import conformance_loop

ROUNDS = 200  # a look that is skipped for being early is skipped in nearly all of them


def make_loop(backend: str) -> asyncio.AbstractEventLoop:
    if backend == _suite.BASELINE:
        return asyncio.SelectorEventLoop()
    try:
        loop: asyncio.AbstractEventLoop = conformance_loop(aiounify, backend)()
    except OSError as error:
        pytest.skip(f"backend {backend} cannot be had here: {error}")
    return loop


@pytest.fixture(params=[_suite.BASELINE, *_suite.BACKENDS])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop = make_loop(request.param)
    yield loop
    loop.close()


async def nothing() -> None:
    pass


def turn_once(loop: asyncio.AbstractEventLoop) -> None:
    loop.stop()
    loop.run_forever()


def stop_by_callback(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(loop.stop)
    loop.run_forever()


def run_briefly(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_until_complete(nothing())


@pytest.mark.parametrize("run", [turn_once, stop_by_callback, run_briefly])
def test_a_short_run_sees_what_is_ready(
    loop: asyncio.AbstractEventLoop, run: Callable[[asyncio.AbstractEventLoop], None]
) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        received: list[bytes] = []
        loop.add_reader(here, lambda: received.append(here.recv(1)))
        for number in range(ROUNDS):
            there.send(b"x")
            run(loop)
            assert len(received) == number + 1
        loop.remove_reader(here)


@pytest.mark.parametrize("add", ["add_reader", "add_writer"])
def test_a_new_watch_is_seen_in_the_next_turn(loop: asyncio.AbstractEventLoop, add: str) -> None:
    here, there = socket.socketpair()
    calls: list[int] = []

    async def watch_and_end(number: int) -> None:
        getattr(loop, add)(here, calls.append, number)

    with here, there:
        here.setblocking(False)
        there.send(b"x")  # never read: `here` stays ready in both directions
        for number in range(ROUNDS):
            # The watch is added in one turn; the run ends in the next one, which must look.
            loop.run_until_complete(watch_and_end(number))
            assert calls == [number]
            calls.clear()
            loop.remove_reader(here)
            loop.remove_writer(here)
