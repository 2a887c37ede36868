"""Exceptions that leave callbacks: reported with asyncio's words, or carried out of the loop."""

import asyncio
import contextlib
import gc
import os
import re
import sys

import pytest


class OddError(Exception):
    pass


def run_ready(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


def boom(*args):
    raise OddError("boom")


def report_of(loop, schedule):
    """The one report that schedule(loop) leads to, with the handle as it looks in it."""
    reports = []

    def handler(of, report):
        report["repr"] = repr(report["handle"]).split(" when=")[0]
        reports.append((of, report))

    loop.set_exception_handler(handler)
    handle = schedule(loop)
    loop.call_later(0.002, loop.stop)
    loop.run_forever()
    ((of, report),) = reports
    assert of is loop
    return handle, report


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("schedule", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_report_of_a_callback(loop, schedule, debug):
    loop.set_debug(debug)
    when = {"call_later": (0,), "call_at": (0,)}.get(schedule, ())

    def start(loop):
        return getattr(loop, schedule)(*when, boom, 1, "x")

    handle, report = report_of(loop, start)
    with contextlib.closing(asyncio.SelectorEventLoop()) as theirs:
        theirs.set_debug(debug)
        _, expected = report_of(theirs, start)
    assert report["message"] == expected["message"]
    assert report["repr"] == expected["repr"]
    assert set(report) == set(expected)
    assert type(report["exception"]) is OddError
    assert report["exception"].__traceback__.tb_frame.f_code is boom.__code__
    assert report["handle"] is handle
    assert ("source_traceback" in report) is debug


def log_of(loop, caplog, debug):
    caplog.clear()
    loop.set_debug(debug)
    loop.call_soon(boom, 1)
    loop.call_soon(boom, 1, 2, 3, 4, 5)
    r, w = os.pipe()
    os.write(w, b"x")

    def read():
        loop.remove_reader(r)
        raise OddError("in a reader")

    loop.add_reader(r, read)
    loop.call_later(0.002, loop.stop)
    loop.run_forever()
    os.close(r)
    os.close(w)
    assert all(record.exc_info[0] is OddError for record in caplog.records), caplog.text
    # without addresses, and without the line of asyncio's own that made a reader's handle
    text = [re.sub(r" at 0x\w+|selector_events.py:\d+", "", r.getMessage()) for r in caplog.records]
    return [line for message in text for line in message.splitlines()[:2]]


@pytest.mark.parametrize("debug", [False, True])
def test_default_handler_logs_what_asyncio_logs(loop, caplog, debug):
    with contextlib.closing(asyncio.SelectorEventLoop()) as theirs:
        expected = log_of(theirs, caplog, debug)
    assert len(expected) == 6
    assert log_of(loop, caplog, debug) == expected


def test_exception_in_a_reader(loop):
    r, w = os.pipe()
    os.write(w, b"x")

    def read(fd):
        loop.remove_reader(fd)
        raise OddError("in a reader")

    try:
        _, report = report_of(loop, lambda loop: loop.add_reader(r, read, r))
        assert report["message"].startswith("Exception in callback")
        assert str(report["exception"]) == "in a reader"
    finally:
        os.close(r)
        os.close(w)


def test_reader_that_raises_stays(loop):
    r, w = os.pipe()
    os.write(w, b"xyz")
    reports = []
    loop.set_exception_handler(lambda _, report: reports.append(report))

    def read():
        os.read(r, 1)
        if len(reports) == 2:
            loop.stop()
        raise OddError

    loop.add_reader(r, read)
    loop.run_forever()
    loop.remove_reader(r)
    os.close(r)
    os.close(w)
    assert len(reports) == 3


def test_callbacks_after_one_that_raises_still_run(loop):
    seen = []
    loop.set_exception_handler(lambda *_: seen.append("report"))
    loop.call_soon(seen.append, 1)
    loop.call_soon(boom)
    loop.call_soon(seen.append, 2)
    run_ready(loop)
    assert seen == [1, "report", 2]


def test_exception_handler_that_raises(loop, caplog):
    def handler(loop, report):
        raise ValueError("in the handler")

    loop.set_exception_handler(handler)
    loop.call_soon(boom)
    seen = []
    loop.call_soon(seen.append, 1)
    run_ready(loop)
    assert seen == [1]
    (record,) = caplog.records
    assert "Unhandled error in exception handler" in record.getMessage()


def test_exception_handler_may_be_changed_and_dropped(loop, caplog):
    seen = []
    loop.set_exception_handler(lambda *_: seen.append(1))
    run_ready(loop)
    loop.call_soon(boom)
    run_ready(loop)
    loop.set_exception_handler(None)
    loop.call_soon(boom)
    run_ready(loop)
    assert seen == [1]
    assert len(caplog.records) == 1
    with pytest.raises(TypeError, match="callable"):
        loop.set_exception_handler(5)


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["soon", "timer", "reader", "task"])
@pytest.mark.parametrize("debug", [False, True])
def test_what_must_end_the_program_leaves_the_loop(loop, fatal, where, debug):
    """... which can go on afterwards, and forgets nothing of what it had to do."""
    seen, fds = [], []
    loop.set_debug(debug)

    def end():
        if fds:
            loop.remove_reader(fds[0])
        raise fatal("end")

    async def task():
        end()

    if where == "soon":
        loop.call_soon(end)
    elif where == "timer":
        loop.call_later(0, end)
    elif where == "reader":
        fds += os.pipe()
        os.write(fds[1], b"x")
        loop.add_reader(fds[0], end)
    else:
        ended = loop.create_task(task())
    if where == "soon":
        loop.call_soon(seen.append, "after")
    with pytest.raises(fatal, match="end"):
        loop.run_forever()
    assert not loop.is_running()
    assert asyncio._get_running_loop() is None
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    if where == "soon":
        assert seen == ["after"]
    for fd in fds:
        os.close(fd)
    if where == "task":
        assert isinstance(ended.exception(), fatal)


def test_fatal_exception_in_the_exception_handler(loop):
    def handler(loop, report):
        raise KeyboardInterrupt("in the handler")

    loop.set_exception_handler(handler)
    loop.call_soon(boom)
    with pytest.raises(KeyboardInterrupt, match="in the handler"):
        loop.run_forever()
    assert not loop.is_running()


def test_stop_inside_a_callback_that_raises(loop):
    seen = []
    loop.set_exception_handler(lambda *_: seen.append("report"))

    def stop():
        loop.stop()
        raise OddError

    loop.call_soon(stop)
    loop.run_forever()
    assert seen == ["report"]


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, StopIteration])
def test_other_base_exceptions_are_reported(loop, error):
    def callback():
        raise error("odd")

    _, report = report_of(loop, lambda loop: loop.call_soon(callback))
    assert type(report["exception"]) is error


async def test_exception_nobody_retrieved():
    loop, reports = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, report: reports.append(report))

    async def fail():
        raise OddError("unseen")

    task = loop.create_task(fail())
    future = loop.create_future()
    future.set_exception(OddError("unseen too"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task, future
    gc.collect()
    assert sorted(str(report["exception"]) for report in reports) == ["unseen", "unseen too"]
    assert {report["message"].split()[0] for report in reports} == {"Task", "Future"}


async def test_task_destroyed_while_pending():
    loop, reports = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, report: reports.append(report))

    async def wait():
        await loop.create_future()

    task = loop.create_task(wait())
    await asyncio.sleep(0)
    del task
    gc.collect()
    assert [report["message"] for report in reports] == ["Task was destroyed but it is pending!"]


def test_traceback_and_frames_are_let_go(loop):
    """The report is the last owner of the exception."""

    class Big:
        pass

    alive = []

    def callback():
        big = Big()
        alive.append(sys.getrefcount(big))
        raise OddError(big)

    loop.set_exception_handler(lambda *_: None)
    loop.call_soon(callback)
    run_ready(loop)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Big]
