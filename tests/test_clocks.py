"""aiounify.timers: never early on any clock, no drift, missed ticks counted, a set clock told."""
# ruff: noqa: ASYNC251 - the tests cause what is awaited

import asyncio
import errno
import itertools
import os
import shutil
import subprocess
import time
from fractions import Fraction

import pytest
from conftest import PROGRAMS
from hypothesis import given
from hypothesis import strategies as st

import aiounify
from aiounify import timers
from aiounify.timers import ClockSetError, after, every, sleep_until

CLOCKS = [time.CLOCK_MONOTONIC, time.CLOCK_REALTIME, time.CLOCK_BOOTTIME]
FAR = 4e9 - 1
STRESS = "AIOUNIFY_STRESS" in os.environ

every_clock = pytest.mark.parametrize("clock", CLOCKS, ids=["monotonic", "realtime", "boottime"])


@every_clock
async def test_sleep_until_is_never_early(clock):
    for i in range(1000 if STRESS else 50):
        deadline = time.clock_gettime_ns(clock) + 100_000 + i * 997
        late = await sleep_until(deadline, clock)
        now = time.clock_gettime_ns(clock)
        assert 0 <= late <= now - deadline


@every_clock
async def test_many_deadlines_at_once_are_never_early_and_in_order(clock):
    number = 100_000 if STRESS else 3000
    begin = time.clock_gettime_ns(clock) + 5_000_000
    rang = []

    async def one(i):
        due = begin + i * 7919 % number * 10_000
        await sleep_until(due, clock)
        assert time.clock_gettime_ns(clock) >= due
        rang.append(due)

    await asyncio.gather(*(one(i) for i in range(number)))
    assert len(rang) == number


@every_clock
async def test_a_past_deadline_does_not_wait(clock):
    loop = asyncio.get_running_loop()
    turns = loop.stats()["turns"]
    assert await sleep_until(0, clock) > 0
    assert await sleep_until(-5.5, clock) > 0
    assert await after(0.0, clock) >= 0
    assert await after(-1, clock) >= 1
    assert loop.stats()["turns"] == turns


@every_clock
async def test_an_alarm_can_be_awaited_by_many_and_again(clock):
    alarm = after(0.005, clock)
    first, second, third = await asyncio.gather(*(alarm.wait() for _ in range(3)))
    assert 0 <= first <= second <= third
    assert await alarm >= third


@every_clock
async def test_cancelled_waits_leave_the_others_alone(clock):
    alarm = after(0.4, clock)
    tasks = [asyncio.create_task(alarm.wait()) for _ in range(200)]
    alone = [asyncio.create_task(after(0.4 + i / 1e6, clock).wait()) for i in range(200)]
    await asyncio.sleep(0)
    for task in tasks[::2] + alone[:199]:
        task.cancel()
    done = await asyncio.gather(*tasks, *alone, return_exceptions=True)
    assert [type(each) for each in done[:200]] == [asyncio.CancelledError, int] * 100
    assert isinstance(done[-1], int)
    assert asyncio.get_running_loop().stats()["timers_pending"] == 0


@given(st.floats(min_value=-1e9, max_value=3.9e9))
def test_seconds_are_taken_exactly_and_rounded_up(seconds):
    ns = timers._deadline_ns(seconds, time.CLOCK_MONOTONIC, "deadline")
    assert 0 <= Fraction(ns) - Fraction(seconds) * 10**9 < 1


@every_clock
async def test_ticks_do_not_drift(clock):
    ticks = every(2_000_000, clock)
    dues = []
    async for tick in ticks:
        assert tick.late_ns >= 0
        assert time.clock_gettime_ns(clock) >= tick.due_ns + tick.late_ns
        dues.append((tick.due_ns, tick.missed))
        if len(dues) == 20:
            break
    for (before, _), (due, missed) in itertools.pairwise(dues):
        assert due - before == 2_000_000 * (1 + missed)


@every_clock
async def test_missed_ticks_are_counted(clock):
    ticks = every(0.001, clock)
    first = await ticks
    time.sleep(0.01)
    late = await ticks
    assert late.missed >= 8
    assert late.due_ns == first.due_ns + (1 + late.missed) * 1_000_000
    assert late.late_ns < 1_000_000


async def test_first_and_aligned():
    first = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 3_000_000
    assert (await every(60.0, time.CLOCK_BOOTTIME, first=first)).due_ns == first
    tick = await every(0.01, time.CLOCK_REALTIME, aligned=True)
    assert tick.due_ns % 10_000_000 == 0
    # a first tick may be far away: that is no sign of a clock that was set
    far = every(1.0, time.CLOCK_REALTIME, first=time.time() + 3600)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await far
    assert far.deadline_ns > time.time_ns() + 3500 * 10**9


async def test_a_cancelled_await_of_a_tick_loses_none():
    ticks = every(0.002)
    seen = 0
    first = ticks.deadline_ns
    while seen < 10:
        try:
            async with asyncio.timeout(0.0007):
                tick = await ticks
        except TimeoutError:
            continue
        seen += 1 + tick.missed
        assert tick.due_ns == first + (seen - 1) * 2_000_000


class FakeTimerfd:
    """Stands in for the kernel's answers about one loop's clock, which nobody may set here."""

    def __init__(self, clock, monkeypatch):
        self.clock = clock
        self.monkeypatch = monkeypatch

    def set_clock(self):
        def read(fd, n):
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

        with self.monkeypatch.context() as patch:
            patch.setattr(timers.os, "read", read)
            self.clock._readable()


@pytest.fixture
async def realtime(monkeypatch):
    """The running loop's CLOCK_REALTIME."""
    loop = asyncio.get_running_loop()
    return FakeTimerfd(timers._clock_of(loop, time.CLOCK_REALTIME), monkeypatch)


async def test_who_asked_is_told_that_the_clock_was_set(realtime):
    deadline = time.time() + 0.05
    told = asyncio.create_task(sleep_until(deadline, time.CLOCK_REALTIME, clock_set="raise").wait())
    alarm = sleep_until(deadline, time.CLOCK_REALTIME)
    waits = asyncio.create_task(alarm.wait())
    await asyncio.sleep(0)
    realtime.set_clock()
    with pytest.raises(ClockSetError) as caught:
        await told
    assert caught.value.errno == errno.ECANCELED
    assert not waits.done()
    assert await waits >= 0
    assert time.time() >= deadline
    assert alarm.clock_set


async def test_a_tick_tells_that_the_clock_was_set(realtime):
    ticks = every(0.02, time.CLOCK_REALTIME)
    waits = asyncio.create_task(ticks.wait())
    await asyncio.sleep(0)
    realtime.set_clock()
    assert (await waits).clock_set
    assert not (await ticks).clock_set


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_a_clock_that_is_set(tmp_path, run_program, backend):
    """CLOCK_REALTIME as the process sees it is set forward and back by a preloaded library."""
    library = tmp_path / "shift.so"
    source = PROGRAMS / "shift_clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", source, "-o", library], check=True)
    # sanitizers want to be first
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
    run_program("set_clock", backend, LD_PRELOAD=preload)


async def test_the_timerfd_is_told_of_a_set_clock(monkeypatch):
    asked = []
    real = timers.lib.au_timerfd_set

    class Lib:
        au_timerfd_create = staticmethod(timers.lib.au_timerfd_create)

        @staticmethod
        def au_timerfd_set(fd, when, told):
            asked.append(told)
            return real(fd, when, told)

    monkeypatch.setattr(timers, "lib", Lib)
    await after(0.001, time.CLOCK_REALTIME)
    assert asked and all(asked)
    asked.clear()
    await after(0.001, time.CLOCK_BOOTTIME)
    assert asked and not any(asked)


def test_in_a_time_namespace_that_was_shifted(run_program, backend):
    run_program("shifted_clock", backend)


def test_a_process_that_stands_still_while_its_clocks_go_on(run_program, backend):
    run_program("stopped_clock", backend)


@pytest.mark.skipif(
    not STRESS, reason="sets the machine's clock, to what it shows: AIOUNIFY_STRESS"
)
async def test_the_kernel_tells_of_a_clock_that_is_set():
    wait = asyncio.create_task(sleep_until(FAR, time.CLOCK_REALTIME, clock_set="raise").wait())
    ticks = every(3600.0, time.CLOCK_REALTIME)
    tick = asyncio.create_task(ticks.wait())
    for _ in range(2):
        await asyncio.sleep(0)
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, time.clock_gettime_ns(time.CLOCK_REALTIME))
    except PermissionError:
        tick.cancel()
        wait.cancel()
        await asyncio.wait([tick, wait])
        pytest.skip("setting the clock is not allowed here (CAP_SYS_TIME)")
    async with asyncio.timeout(20):
        with pytest.raises(ClockSetError):
            await wait
    assert not tick.done()
    tick.cancel()
    await asyncio.wait([tick])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sleep_until(float("nan")), ValueError, "NaN"),
        (lambda: sleep_until(12345), ValueError, r"nanoseconds.*12345\.0"),
        (lambda: sleep_until(1_800_000_000, time.CLOCK_REALTIME), ValueError, "nanoseconds"),
        (lambda: sleep_until(1.0, time.CLOCK_PROCESS_CPUTIME_ID), ValueError, "CLOCK_BOOTTIME"),
        (lambda: sleep_until(1.0, clock_set="tell"), ValueError, "clock_set"),
        (lambda: every(1), ValueError, "nanoseconds"),
        (lambda: every(0.0), ValueError, "microsecond"),
        (lambda: every(-1.0), ValueError, "positive"),
        (lambda: every(float("nan")), ValueError, "positive"),
        (lambda: every(float("inf")), ValueError, "positive"),
        (lambda: every(1.0, first=5.0, aligned=True), ValueError, "exclude"),
        (lambda: every(1.0, 99), ValueError, "clock"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


async def test_forever():
    for alarm in (
        sleep_until(float("inf")),
        sleep_until(2**80, time.CLOCK_REALTIME),
        after(float("inf"), time.CLOCK_BOOTTIME),
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await alarm


def test_another_event_loop():
    async def main():
        await after(0.01)

    with pytest.raises(RuntimeError, match="aiounify"):
        asyncio.run(main())


def test_an_alarm_outlives_its_loop(loop_factory):
    async def main(alarm):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await alarm

    alarm = after(60.0, time.CLOCK_REALTIME)
    for _ in range(2):
        aiounify.run(main(alarm), loop_factory=loop_factory)


def test_closing_a_loop_with_waits_left(loop):
    alarms = [after(60.0, clock) for clock in CLOCKS]
    for alarm in alarms:
        loop.run_until_complete(arm(alarm))
    loop.close()


async def arm(source):
    source.take()
    source.arm(lambda: None)
