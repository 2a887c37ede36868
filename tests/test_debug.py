"""Debug mode: slow callbacks, wrong threads, where a handle was made."""

import asyncio
import logging
import re
import threading
import time

import pytest


def run_ready(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


@pytest.fixture
def debugged(loop):
    loop.set_debug(True)
    return loop


def slow(seconds=0.02):
    time.sleep(seconds)


def test_slow_callback_is_named(debugged, caplog):
    debugged.slow_callback_duration = 0.01
    debugged.call_soon(slow)
    debugged.call_soon(int)
    with caplog.at_level(logging.WARNING, "asyncio"):
        run_ready(debugged)
    (record,) = caplog.records
    assert record.name == "asyncio"
    assert re.fullmatch(
        r"Executing <Handle.*slow.*test_debug\.py:\d+.*> took 0\.\d{3} seconds", record.getMessage()
    )


def test_slow_timer_is_named(debugged, caplog):
    debugged.slow_callback_duration = 0.01
    debugged.call_later(0, slow, 0.02)
    debugged.call_later(0.001, debugged.stop)
    debugged.run_forever()
    assert re.search(r"Executing <TimerHandle.* took 0\.\d{3} seconds", caplog.text)


def test_slow_step_of_a_task_names_the_task(debugged, caplog):
    debugged.slow_callback_duration = 0.01

    async def sluggish():
        slow()

    debugged.run_until_complete(debugged.create_task(sluggish(), name="the sluggish one"))
    assert "Executing <Task" in caplog.text
    assert "the sluggish one" in caplog.text


def test_slow_reader_is_named(debugged, caplog):
    import os

    debugged.slow_callback_duration = 0.01
    r, w = os.pipe()
    os.write(w, b"x")

    def read_slowly():
        debugged.remove_reader(r)
        slow()
        debugged.stop()

    debugged.add_reader(r, read_slowly)
    debugged.run_forever()
    os.close(r)
    os.close(w)
    assert "Executing <Handle" in caplog.text


def test_slow_callback_that_raises(debugged, caplog):
    """The exception is reported, and the loop goes on."""
    debugged.slow_callback_duration = 0.01

    def slow_and_broken():
        slow()
        raise LookupError("broken")

    debugged.call_soon(slow_and_broken)
    run_ready(debugged)
    assert "Exception in callback" in caplog.text
    run_ready(debugged)


def test_nothing_is_slow_by_default(loop, caplog):
    loop.slow_callback_duration = 0.0
    loop.call_soon(slow, 0.002)
    run_ready(loop)
    assert caplog.records == []


def test_slow_callback_duration_is_asyncios(loop):
    assert loop.slow_callback_duration == 0.1


@pytest.mark.parametrize("method", ["call_soon", "call_later", "call_at"])
def test_wrong_thread_is_refused(debugged, method):
    errors = []

    def elsewhere():
        when = () if method == "call_soon" else (0,)
        try:
            getattr(debugged, method)(*when, print)
        except RuntimeError as error:
            errors.append(str(error))

    def start():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    debugged.call_soon(start)
    run_ready(debugged)
    assert errors == [
        "Non-thread-safe operation invoked on an event loop other than the current one"
    ]
    assert debugged.stats()["timers_pending"] == 0


def test_right_ways_from_another_thread_are_taken(debugged):
    seen = []

    def elsewhere():
        debugged.call_soon_threadsafe(seen.append, 1)

    def start():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    debugged.call_soon(start)
    run_ready(debugged)
    run_ready(debugged)
    assert seen == [1]


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_what_cannot_be_called_is_refused(debugged, method):
    async def coroutine_function():
        pass

    when = (0,) if method in ("call_later", "call_at") else ()
    with pytest.raises(TypeError, match=f"coroutines cannot be used with {method}"):
        getattr(debugged, method)(*when, coroutine_function)
    with pytest.raises(TypeError, match=f"a callable object was expected by {method}"):
        getattr(debugged, method)(*when, 5)
    assert debugged.stats()["ready"] == debugged.stats()["timers_pending"] == 0


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_handle_knows_where_it_was_made(debugged, method):
    when = (60,) if method in ("call_later", "call_at") else ()
    handle = getattr(debugged, method)(*when, print)
    last = handle._source_traceback[-1]
    assert (last.filename, last.name) == (__file__, "test_handle_knows_where_it_was_made")
    assert f"created at {__file__}:{last.lineno}" in repr(handle)
    handle.cancel()
    assert repr(handle).startswith(("<Handle cancelled print(", "<TimerHandle cancelled "))
    assert f"created at {__file__}:{last.lineno}" in repr(handle)


def test_watcher_knows_where_it_was_made(debugged):
    handle = debugged._add_reader(debugged._ssock, print)
    assert handle._source_traceback[-1].filename == __file__
    debugged._add_reader(debugged._ssock, debugged._read_from_self)


async def test_task_and_future_know_where_they_were_made():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    task, future = loop.create_task(asyncio.sleep(0)), loop.create_future()
    for made in (task, asyncio.create_task(asyncio.sleep(0)), future):
        traceback = made._source_traceback
        assert any(frame.filename == __file__ for frame in traceback)
    assert task._source_traceback[-1].name == "test_task_and_future_know_where_they_were_made"
    await asyncio.sleep(0.001)


async def test_switched_while_running(caplog):
    loop = asyncio.get_running_loop()
    assert loop.get_debug() is False
    loop.slow_callback_duration = 0.01
    loop.set_debug(True)
    assert loop.get_debug() is True
    await asyncio.sleep(0)
    assert loop.call_soon(slow)._source_traceback
    await asyncio.sleep(0)
    loop.set_debug(False)
    assert loop.call_soon(slow)._source_traceback is None
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sum("slow(" in record.getMessage() for record in caplog.records) == 1


async def test_coroutine_origins_are_tracked():
    import sys

    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    await asyncio.sleep(0)
    assert sys.get_coroutine_origin_tracking_depth() > 0
    loop.set_debug(False)
    await asyncio.sleep(0)
    assert sys.get_coroutine_origin_tracking_depth() == 0


def test_current_handle_while_a_callback_runs(debugged):
    seen = []
    handle = debugged.call_soon(lambda: seen.append(debugged._current_handle))
    run_ready(debugged)
    assert seen == [handle]
    assert debugged._current_handle is None


def test_same_order_and_results_as_without(debugged):
    seen = []
    for i in range(100):
        debugged.call_soon(seen.append, i)
    debugged.call_soon(seen.append, "x").cancel()
    debugged.call_later(0, seen.append, "timer")
    debugged.call_later(0.001, debugged.stop)
    debugged.run_forever()
    assert seen == [*range(100), "timer"]


@pytest.mark.parametrize("value", ["1", ""])
def test_by_environment(run_program, backend, value):
    done = run_program("print_debug", backend, options=(), PYTHONASYNCIODEBUG=value)
    assert done.stdout == f"{bool(value)}\n"


def test_in_development_mode(run_program, backend):
    assert run_program("print_debug", backend).stdout == "True\n"
