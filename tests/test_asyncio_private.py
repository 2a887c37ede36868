"""Every private part of the library that the package leans on is there, in the known shape."""

import asyncio
import importlib
import inspect
import queue
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor, thread

import pytest

import aiounify
from aiounify import _asyncio_private as private
from aiounify._core.scheduler import Scheduler


def lookup(entry):
    found = importlib.import_module(entry.module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for part in entry.name.split("."):
            found = getattr(found, part)
    return found


@pytest.mark.parametrize("entry", private.PRIVATE, ids=lambda e: f"{e.module}.{e.name}")
def test_is_there(entry):
    if entry.until and sys.version_info >= entry.until:
        pytest.skip(
            f"not in Python {sys.version_info[0]}.{sys.version_info[1]}, and not used there"
        )
    lookup(entry)


def test_missing_names_what_is_gone(monkeypatch):
    assert private.missing() == []
    monkeypatch.setattr(
        private, "PRIVATE", (private.Private("asyncio.events", "Handle._nowhere", "a test"),)
    )
    assert private.missing() == ["asyncio.events.Handle._nowhere (needed for a test)"]


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_signatures():
    base = asyncio.base_events.BaseEventLoop
    assert parameters(base._check_closed) == ["self"]
    assert parameters(base._check_running) == ["self"]
    assert parameters(base._check_thread) == ["self"]
    assert parameters(base._check_callback) == ["self", "callback", "method"]
    assert parameters(base._set_coroutine_origin_tracking) == ["self", "enabled"]
    assert parameters(base._asyncgen_firstiter_hook) == ["self", "agen"]
    assert parameters(base._asyncgen_finalizer_hook) == ["self", "agen"]
    assert parameters(asyncio.base_events._format_handle) == ["handle"]
    helpers = asyncio.format_helpers
    assert parameters(helpers._format_callback_source)[:2] == ["func", "args"]
    assert parameters(helpers.extract_stack)[:1] == ["f"]
    start = parameters(asyncio.base_subprocess.BaseSubprocessTransport.__init__)
    assert start[1:9] == [
        "loop", "protocol", "args", "shell", "stdin", "stdout", "stderr", "bufsize",
    ]  # fmt: skip
    assert "waiter" in start


def test_constructor_assigns_what_the_scheduler_has_as_properties():
    assert issubclass(aiounify.EventLoop, Scheduler)
    source = inspect.getsource(asyncio.base_events.BaseEventLoop)
    for name in private.PROPERTIES:
        assert inspect.isdatadescriptor(getattr(Scheduler, name)), name
        assert f"self.{name}" in source, name


def test_self_pipe_is_a_pair_of_sockets():
    loop = aiounify.new_event_loop()
    try:
        assert loop._ssock.fileno() != loop._csock.fileno()
        assert not loop._csock.getblocking()
        assert loop._internal_fds == 1
        assert loop._signal_handlers == {}
    finally:
        loop.close()


def test_thread_pool_runs_work_items_from_its_queue():
    pool = ThreadPoolExecutor(1)
    try:
        for name in private.POOL_ATTRIBUTES:
            assert hasattr(pool, name), name
        assert parameters(pool._adjust_thread_count) == []
        done = queue.SimpleQueue()

        class Item:
            future = None

            def run(self, *_):
                done.put("ran")

        with pool._shutdown_lock, thread._global_shutdown_lock:
            pool._work_queue.put(Item())
            pool._adjust_thread_count()
        assert done.get(timeout=30) == "ran"
    finally:
        pool.shutdown()


async def test_readers_wake_whoever_stands_in_the_place_of_their_waiter():
    class Waiter:
        def __init__(self):
            self.seen = []

        def cancelled(self):
            return False

        def set_result(self, result):
            self.seen.append(result)

        def set_exception(self, exc):
            self.seen.append(exc)

    reader, waiter, error = asyncio.StreamReader(), Waiter(), OSError()
    for name in private.READER_ATTRIBUTES:
        assert hasattr(reader, name), name
    reader._waiter = waiter
    reader.feed_data(b"x")
    assert reader._waiter is None and reader._buffer == b"x"
    reader._waiter = waiter
    reader.set_exception(error)
    assert reader._waiter is None and reader._exception is error
    reader._waiter = waiter
    reader.feed_eof()
    assert reader._waiter is None and reader._eof
    assert waiter.seen == [None, error, None]


def test_executor_takes_the_short_way():
    # Where the names above are gone, run_in_executor silently goes asyncio's way; say so.
    from aiounify import executor

    assert executor._FAST
