"""Timers: never early, in order, any number, any argument."""

import asyncio
import contextvars
import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiounify


def noop():
    pass


def run_for(loop, seconds):
    loop.call_later(seconds, loop.stop)
    loop.run_forever()


def test_clock_is_the_monotonic_one(loop):
    before = time.monotonic()
    now = loop.time()
    assert before <= now <= time.monotonic()


# -- never early ------------------------------------------------------------------

DELAYS = [
    0.0,
    1e-12,
    1e-9,
    1.5e-9,
    1e-7,
    1e-6,
    49e-6,
    50e-6,
    51e-6,
    1e-4,
    0.0005,
    0.00099999999,
    0.001,
    0.0010000001,
    0.0019,
    0.0025,
    0.01,
    0.02,
]


async def test_call_later_is_never_early():
    """Each delay on its own, so that the wait of the loop ends for this timer alone."""
    loop = asyncio.get_running_loop()
    early = []
    for delay in DELAYS * 8:
        done = loop.create_future()

        def fire(asked, delay=delay, done=done):
            passed = time.monotonic_ns() - asked
            if passed < delay * 1e9:
                early.append((delay, passed))
            done.set_result(None)

        loop.call_later(delay, fire, time.monotonic_ns())
        await done
    assert early == []


async def test_call_at_is_never_early():
    loop, early = asyncio.get_running_loop(), []
    for delay in DELAYS * 8:
        done = loop.create_future()

        def fire(when, done=done):
            if loop.time() < when or time.monotonic() < when:
                early.append(when)
            done.set_result(None)

        when = loop.time() + delay
        loop.call_at(when, fire, when)
        await done
    assert early == []


async def test_a_hundred_thousand_timers_are_never_early():
    loop, rng, early = asyncio.get_running_loop(), random.Random(1), []
    left, done = 100_000, loop.create_future()

    def fire(due):
        nonlocal left
        left -= 1
        if time.monotonic_ns() < due:
            early.append(due)
        if not left:
            done.set_result(None)

    for _ in range(left):
        delay = rng.random() * 0.1
        due = time.monotonic_ns() + math.floor(delay * 1e9)
        loop.call_later(delay, fire, due)
    await done
    assert early == []


async def test_timer_is_not_early_while_the_loop_is_busy():
    loop, early, spinning = asyncio.get_running_loop(), [], True

    def spin():
        if spinning:
            loop.call_soon(spin)

    spin()
    for delay in DELAYS:
        done = loop.create_future()
        due = time.monotonic_ns() + math.ceil(delay * 1e9)
        loop.call_later(delay, lambda done=done: done.set_result(time.monotonic_ns()))
        if await done < due:
            early.append(delay)
    spinning = False
    assert early == []


def test_when(loop):
    now = loop.time()
    assert loop.call_at(now + 1.1, print).when() == now + 1.1
    assert loop.call_at(12, print).when() == 12.0
    assert isinstance(loop.call_at(12, print).when(), float)
    before = loop.time()
    timer = loop.call_later(60, print)
    assert before + 60 <= timer.when() <= loop.time() + 60 + 1e-8
    assert timer._when == timer.when()
    assert timer._scheduled
    timer.cancel()
    assert not timer._scheduled


# -- arguments ----------------------------------------------------------------------


@pytest.mark.parametrize("delay", [-1, -1e-9, -1e300, -math.inf, 0, -0.0, False, 5e-324])
@pytest.mark.parametrize("how", ["call_later", "call_at"])
def test_what_is_past_runs_at_once(loop, delay, how):
    loop.call_soon(loop.call_soon, loop.stop)
    seen = []
    getattr(loop, how)(delay, seen.append, 1)
    loop.run_forever()
    assert seen == [1]


@pytest.mark.parametrize("delay", [3e9, 4e9, 9.3e9, 1e18, 1e300, 10**300, math.inf])
@pytest.mark.parametrize("how", ["call_later", "call_at"])
def test_far_future_is_not_now(loop, delay, how):
    seen = []
    timer = getattr(loop, how)(delay, seen.append, 1)
    run_for(loop, 0.002)
    run_for(loop, 0.002)
    assert seen == []
    if how == "call_at":
        assert timer.when() == float(delay)
    timer.cancel()
    assert loop.stats()["timers_pending"] == 0


def test_far_futures_keep_their_order(loop):
    """... as far as the clock's range goes; the loop waits for the nearest."""
    order = [loop.call_later(d, print) for d in (math.inf, 3e9, 60, 1e6)]
    assert min(loop._scheduled) == order[2]
    assert len(loop._scheduled) == 4


@pytest.mark.parametrize("how", ["call_later", "call_at"])
def test_nan_is_refused(loop, how):
    for nan in (math.nan, -math.nan, float("nan")):
        with pytest.raises(ValueError, match="NaN"):
            getattr(loop, how)(nan, print)
    assert loop.stats()["timers_pending"] == 0


@pytest.mark.parametrize("wrong", [None, "1", [], b"1", 1j, object()])
@pytest.mark.parametrize("how", ["call_later", "call_at"])
def test_wrong_types_are_refused(loop, how, wrong):
    with pytest.raises(TypeError):
        getattr(loop, how)(wrong, print)
    assert loop.stats()["timers_pending"] == 0


@pytest.mark.parametrize("how", ["call_later", "call_at"])
def test_number_too_large_for_a_float(loop, how):
    with pytest.raises(OverflowError):
        getattr(loop, how)(10**400, print)
    assert loop.stats()["timers_pending"] == 0


def test_other_numbers_are_taken(loop):
    import decimal
    import fractions

    class Index:
        def __index__(self):
            return 0

    seen = []
    for number in (decimal.Decimal("0.001"), fractions.Fraction(1, 1000), 0, Index()):
        loop.call_later(number, seen.append, 1)
    run_for(loop, 0.01)
    assert seen == [1] * 4


def test_number_whose_conversion_raises(loop):
    class Number:
        def __float__(self):
            raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        loop.call_later(Number(), print)


# -- order -------------------------------------------------------------------------


async def test_equal_deadlines_run_in_the_order_they_were_set():
    loop, seen = asyncio.get_running_loop(), []
    when = loop.time() + 0.005
    done = loop.create_future()
    for i in range(1000):
        loop.call_at(when, seen.append, i)
    loop.call_at(when, done.set_result, None)
    await done
    assert seen == list(range(1000))


def test_due_timers_run_in_the_order_of_their_times(loop):
    seen, now = [], loop.time()
    whens = [now - i * 1e-6 for i in range(500)]
    random.Random(2).shuffle(whens)
    for when in whens:
        loop.call_at(when, seen.append, when)
    run_for(loop, 0.001)
    assert seen == sorted(whens)


async def test_what_is_ready_runs_before_timers_that_are_due():
    loop, seen = asyncio.get_running_loop(), []
    loop.call_later(0, seen.append, "timer")
    loop.call_soon(seen.append, "soon")
    await asyncio.sleep(0.001)
    assert seen == ["soon", "timer"]


async def test_timer_set_by_a_timer_does_not_run_in_the_same_turn():
    loop, turns = asyncio.get_running_loop(), []

    def again(n):
        turns.append(loop.stats()["turns"])
        if n:
            loop.call_later(0, again, n - 1)

    loop.call_later(0, again, 20)
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(set(turns)) == 21


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "set", "cancel", "run"]),
            st.integers(0, 12),
        ),
        max_size=70,
    )
)
def test_any_mixture_of_setting_cancelling_and_running(steps):
    """Against a model: a sorted list of (time, number)."""
    loop = aiounify.EventLoop("epoll")
    try:
        base = loop.time()
        handles, model, seen = [], {}, []
        for step, n in steps:
            if step == "set":
                # even numbers are past, odd ones are hours away; many are equal
                when = base - 1000 + n if n % 2 == 0 else base + 3600 * n
                model[len(handles)] = when
                handles.append(loop.call_at(when, seen.append, len(handles)))
            elif step == "cancel" and handles:
                number = n % len(handles)
                handles[number].cancel()
                model.pop(number, None)
            elif step == "run":
                loop.call_soon(loop.stop)
                loop.run_forever()
                due = sorted((w, i) for i, w in model.items() if w <= base)
                assert seen == [i for _, i in due]
                seen.clear()
                for _, i in due:
                    del model[i]
            assert loop.stats()["timers_pending"] == len(model)
            assert {h.when() for h in loop._scheduled} == set(model.values())
    finally:
        loop.close()


# -- many, and cancelled -------------------------------------------------------------


async def test_a_hundred_thousand_timers():
    loop, rng, seen = asyncio.get_running_loop(), random.Random(3), []
    base = loop.time()
    whens = [base - rng.randrange(10**6) * 1e-6 for _ in range(100_000)]
    handles = [loop.call_at(when, seen.append, when) for when in whens]
    for handle in handles[::3]:
        handle.cancel()
    assert loop.stats()["timers_pending"] == len(handles) - len(handles[::3])
    await asyncio.sleep(0.001)
    del whens[::3]
    assert seen == sorted(whens)
    assert loop.stats()["timers_pending"] == 0


async def test_cancelled_timers_leave_nothing_behind():
    """A program that sets and cancels a timeout per request keeps an empty heap."""
    loop = asyncio.get_running_loop()
    for _ in range(100_000):
        loop.call_later(30, print).cancel()
    assert loop.stats()["timers_pending"] == 0
    assert len(loop._scheduled) == 0


async def test_timer_cancelled_by_another_of_the_same_turn():
    loop, seen = asyncio.get_running_loop(), []
    now = loop.time()
    loop.call_at(now - 2, lambda: second.cancel())
    second = loop.call_at(now - 1, seen.append, "never")
    await asyncio.sleep(0.001)
    assert seen == []


async def test_timer_that_cancels_itself():
    loop, seen = asyncio.get_running_loop(), []

    def fire():
        timer.cancel()
        seen.append(timer.cancelled())

    timer = loop.call_later(0, fire)
    await asyncio.sleep(0.001)
    timer.cancel()
    assert seen == [True]


async def test_earlier_timer_set_while_a_later_one_is_awaited():
    """The wait is armed for the nearest deadline, whichever was set first."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    later = loop.call_later(1000, pytest.fail)
    await asyncio.sleep(0.001)
    loop.call_later(0.002, done.set_result, None)
    await done
    later.cancel()


async def test_later_timer_after_the_nearest_was_cancelled():
    """The wait may be armed for a deadline that is nobody's any more."""
    loop, seen = asyncio.get_running_loop(), []
    done = loop.create_future()
    near = loop.call_later(0.2, seen.append, "cancelled")
    loop.call_later(0.21, done.set_result, None)
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    near.cancel()
    await done
    assert seen == []


def test_timers_compare_as_asyncios_do(loop):
    a, b = loop.call_at(1, print, 1), loop.call_at(2, print, 1)
    same = loop.call_at(1, print, 1)
    assert a < b <= b
    assert b > a >= same
    assert a == same
    assert a != b
    assert hash(a) == hash(same) == hash(1.0)
    assert a != 1
    assert a != loop.call_soon(print)
    with pytest.raises(TypeError):
        a < 1  # noqa: B015


async def test_timeouts_of_asyncio():
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.001)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()
    async with asyncio.timeout(60) as timeout:
        timeout.reschedule(asyncio.get_running_loop().time() + 30)
        await asyncio.sleep(0)
    assert asyncio.get_running_loop().stats()["timers_pending"] == 0


def _set(loop, distances_us):
    """Timers at these distances from a time to come: their times, in nanoseconds."""
    base = loop.time() + 3600
    return [round(loop.call_at(base + us / 1e6, noop).when() * 1e9) for us in distances_us]


@pytest.mark.parametrize(
    ("distances_us", "until_us"),
    [
        ([], None),
        ([0], 0),
        ([10 * i for i in range(7)], 0),  # few: each has its own wake-up
        ([10 * i for i in range(8)], 70),
        ([10 * i for i in reversed(range(20))], 190),
        ([0] * 100, 0),  # many of one instant do not wait
        ([0] + [300 + i for i in range(100)], 0),  # nor one alone for a crowd behind it
        ([30 * i for i in range(7)] + [250] * 20, 0),
    ],
)
def test_a_crowd_of_timers_is_one_wake_up(loop, distances_us, until_us):
    times = _set(loop, distances_us)
    wakes_at = loop._wakes_at()
    if until_us is None:
        assert wakes_at is None
    else:
        # rounded up to a nanosecond from floating point
        assert abs(wakes_at - (min(times) + until_us * 1000)) <= 200


@pytest.mark.parametrize("distance_us", [1, 5, 20])
def test_a_large_crowd_does_not_delay_its_first_by_more_than_a_fifth_of_a_millisecond(
    loop, distance_us
):
    times = _set(loop, [distance_us * i for i in range(5000)])
    assert min(times) < loop._wakes_at() <= min(times) + 200_200


def test_a_crowd_that_was_cancelled_is_none(loop):
    handles = [loop.call_at(loop.time() + 3600 + i / 1e5, noop) for i in range(20)]
    for handle in handles[1:14]:
        handle.cancel()
    assert abs(loop._wakes_at() - handles[0].when() * 1e9) <= 200


async def test_the_order_in_a_crowd():
    loop, got = asyncio.get_running_loop(), []
    base = loop.time() + 0.01
    done = loop.create_future()
    for i in [i * 7919 % 1000 for i in range(1000)]:
        loop.call_at(base + i / 1e6, lambda i=i: got.append((i, loop.time() >= base + i / 1e6)))
    loop.call_at(base + 0.002, done.set_result, None)
    await done
    assert got == [(i, True) for i in range(1000)]


# -- the end of asyncio.sleep(), which is native -------------------------------------


async def test_sleep_gives_its_result():
    assert await asyncio.sleep(0.001, "value") == "value"
    assert await asyncio.gather(*(asyncio.sleep(0.001, i) for i in range(100))) == list(range(100))


@pytest.mark.parametrize("first", [True, False])
async def test_a_sleep_that_is_cancelled_in_the_turn_of_its_end(first):
    loop, tasks = asyncio.get_running_loop(), []

    def cancel():
        tasks[0].cancel()

    due = loop.time() + 0.001
    if first:
        loop.call_at(due, cancel)
    tasks.append(asyncio.create_task(asyncio.sleep(due - loop.time())))
    await asyncio.sleep(0)
    if not first:
        loop.call_at(loop.time() + 0.001, cancel)
    try:
        assert await tasks[0] is None
    except asyncio.CancelledError:
        assert tasks[0].cancelled()


def _ends_sleep(future, value):
    """Ask for what asyncio.sleep() asks for."""
    loop = asyncio.get_running_loop()
    return loop.call_later(0.001, asyncio.futures._set_result_unless_cancelled, future, value)


@pytest.mark.parametrize("debug", [False, True])
async def test_futures_that_are_done_and_futures_of_other_classes(debug):
    class Other(asyncio.Future):
        asked = ()

        def set_result(self, result):
            self.asked = (*self.asked, result)
            super().set_result(result)

    loop = asyncio.get_running_loop()
    loop.set_debug(debug)
    complaints = []
    loop.set_exception_handler(
        lambda _, context: complaints.append(
            (type(context["exception"]), context["handle"]._callback)
        )
    )
    other = Other(loop=loop)
    cancelled, done, plain = (loop.create_future() for _ in range(3))
    cancelled.cancel()
    done.set_result("before")
    for future in (other, cancelled, done, plain):
        _ends_sleep(future, "value")
    assert await plain == "value"
    assert other.asked == ("value",) and other.result() == "value"
    assert cancelled.cancelled()
    assert done.result() == "before"
    end = asyncio.futures._set_result_unless_cancelled
    assert complaints == [(asyncio.InvalidStateError, end)]


async def test_the_end_of_a_sleep_that_was_replaced(monkeypatch):
    real, ended = asyncio.futures._set_result_unless_cancelled, []

    def replaced(future, result):
        ended.append(result)
        real(future, result)

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.futures, "_set_result_unless_cancelled", replaced)
        await asyncio.sleep(0.001, 1)
    assert ended == [1]

    def other(fut, result):
        fut.set_result((result, "by other code"))

    with monkeypatch.context() as patch:
        patch.setattr(real, "__code__", other.__code__)
        assert await asyncio.sleep(0.001, 2) == (2, "by other code")
    assert await asyncio.sleep(0.001, 3) == 3


async def test_callbacks_of_a_sleep_run_in_their_own_context():
    variable = contextvars.ContextVar("variable", default="none")
    loop, seen = asyncio.get_running_loop(), []
    future = loop.create_future()
    variable.set("of the callback")
    future.add_done_callback(lambda _: seen.append(variable.get()))
    variable.set("of the timer")
    _ends_sleep(future, None)
    variable.set("later")
    await future
    await asyncio.sleep(0)
    assert seen == ["of the callback"]
