"""What loop.sock_recv() and its kin return: a coroutine to tasks, debuggers and drivers."""

import asyncio
import collections.abc
import gc
import inspect
import io
import os
import sys
import types
import warnings
import weakref

import pytest
from test_sock_calls import pair, suspended, tcp_pair, udp, until

import aiounify
from aiounify._core.endpoint import Wait
from aiounify._core.sock_calls import Call


@pytest.fixture
def unix():
    """A pair of connected sockets."""
    one, other = pair("unix")
    with one, other:
        yield one, other


@pytest.fixture
def unawaited():
    """The warnings of calls that were never awaited."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def calls(loop, sock):
    return {
        "sock_recv": loop.sock_recv(sock, 1),
        "sock_recv_into": loop.sock_recv_into(sock, bytearray(1)),
        "sock_recvfrom": loop.sock_recvfrom(sock, 1),
        "sock_recvfrom_into": loop.sock_recvfrom_into(sock, bytearray(1)),
        "sock_sendall": loop.sock_sendall(sock, b""),
        "sock_sendto": loop.sock_sendto(sock, b"", ("127.0.0.1", 9)),
        "sock_accept": loop.sock_accept(sock),
    }


# -- what it is ------------------------------------------------------------------------------


def test_it_is_a_coroutine_to_whoever_looks(loop, unix):
    for name, call in calls(loop, unix[0]).items():
        assert type(call) is Call
        assert asyncio.iscoroutine(call)
        assert inspect.isawaitable(call)
        assert isinstance(call, collections.abc.Coroutine)
        assert not asyncio.isfuture(call)
        assert call.__name__ == name
        assert call.__qualname__ == f"EventLoop.{name}"
        assert repr(call).startswith(f"<coroutine object EventLoop.{name} at 0x")
        assert not call.cr_running
        assert not call.cr_suspended
        assert call.cr_await is call.cr_frame is call.cr_code is call.cr_origin is None
        call.close()
    with pytest.raises(TypeError):
        Call()
    with pytest.raises(TypeError):
        Wait()


def test_methods_have_signatures():
    loop = aiounify.EventLoop
    assert [*inspect.signature(loop.sock_recv).parameters] == ["self", "sock", "n"]
    into = inspect.signature(loop.sock_recvfrom_into).parameters
    assert [*into] == ["self", "sock", "buf", "nbytes"]
    assert into["nbytes"].default == 0
    for name in ("recv", "recv_into", "recvfrom", "recvfrom_into", "sendall", "sendto", "accept"):
        assert getattr(aiounify.EventLoop, f"sock_{name}").__doc__


async def test_nothing_happens_before_it_is_awaited(unix):
    loop = asyncio.get_running_loop()
    one, other = unix
    other.send(b"12")
    calls = [loop.sock_recv(one, 1), loop.sock_recv(one, 1), loop.sock_sendall(one, b"x")]
    assert one.recv(1) == b"1"
    with pytest.raises(BlockingIOError):
        other.recv(1)
    assert await calls[1] == b"2"
    await calls[2]
    assert other.recv(1) == b"x"
    calls[0].close()


async def test_wrong_arguments_are_told_when_it_is_awaited(unix):
    loop = asyncio.get_running_loop()
    call = loop.sock_recv(unix[0], "many")
    with pytest.raises(TypeError, match="interpreted as an integer"):
        await call


async def test_all_ways_to_await(unix):
    loop = asyncio.get_running_loop()
    one, other = unix

    class Awaitable:
        def __await__(self):
            return (yield from loop.sock_recv(one, 1).__await__())

    @types.coroutine
    def generator():
        return (yield from loop.sock_recv(one, 1))

    ways = [
        lambda: loop.sock_recv(one, 1),
        lambda: asyncio.create_task(loop.sock_recv(one, 1)),
        lambda: asyncio.ensure_future(loop.sock_recv(one, 1)),
        lambda: loop.create_task(loop.sock_recv(one, 1), name="x"),
        lambda: asyncio.wait_for(loop.sock_recv(one, 1), 10),
        lambda: asyncio.shield(loop.sock_recv(one, 1)),
        Awaitable,
        generator,
    ]
    for ready in (True, False):
        for way in ways:
            if not ready:
                loop.call_later(0.001, other.send, b"x")
            else:
                other.send(b"x")
            assert await way() == b"x"
    other.send(b"abc")
    parts = await asyncio.gather(*[loop.sock_recv(one, 1) for _ in range(3)])
    assert parts == [b"a", b"b", b"c"]
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(loop.sock_recv(one, 1))
        group.create_task(loop.sock_sendall(other, b"d"))
    assert waiting.result() == b"d"


def test_run_until_complete_takes_it(loop, unix):
    one, other = unix
    loop.call_soon(other.send, b"x")
    assert loop.run_until_complete(loop.sock_recv(one, 10)) == b"x"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="of Python 3.12")
async def test_eager_tasks(unix):
    loop = asyncio.get_running_loop()
    one, other = unix
    loop.set_task_factory(asyncio.eager_task_factory)
    other.send(b"x")
    task = loop.create_task(loop.sock_recv(one, 1))
    assert task.done()
    assert task.result() == b"x"
    task = loop.create_task(loop.sock_recv(one, 1))
    assert not task.done()
    other.send(b"y")
    assert await task == b"y"
    loop.set_task_factory(None)


async def test_tasks_written_in_python(unix):
    """They use the wait by the rules of futures, without knowing of it."""
    loop = asyncio.get_running_loop()
    one, other = unix
    task = asyncio.tasks._PyTask(loop.sock_recv(one, 10), loop=loop)
    await asyncio.sleep(0)
    assert "wait_for=<Wait pending cb=[" in repr(task)
    other.send(b"x")
    assert await task == b"x"
    task = asyncio.tasks._PyTask(loop.sock_recv(one, 10), loop=loop)
    await asyncio.sleep(0)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("result", ["bytes", "tuple", "number", "none"])
async def test_results_of_every_kind_pass_through_coroutines(result):
    """From 3.12 on they pass as StopIteration, for which tuples are special."""
    loop = asyncio.get_running_loop()
    a, b = udp(), udp()
    with a, b:
        b.sendto(b"x", a.getsockname())
        call, expected = {
            "bytes": (lambda: loop.sock_recv(a, 10), b"x"),
            "tuple": (lambda: loop.sock_recvfrom(a, 10), (b"x", b.getsockname())),
            "number": (lambda: loop.sock_recv_into(a, bytearray(10)), 1),
            "none": (lambda: loop.sock_connect(a, b.getsockname()), None),
        }[result]

        async def outer():
            async def inner():
                return await call()

            return await inner()

        assert await outer() == expected


# -- driven by hand ---------------------------------------------------------------------------


async def test_sent_to_by_hand(unix):
    loop = asyncio.get_running_loop()
    one, other = unix
    call = loop.sock_recv(one, 10)
    with pytest.raises(TypeError, match="can't send non-None value to a just-started coroutine"):
        call.send(1)
    wait = call.send(None)
    assert type(wait) is Wait
    assert asyncio.isfuture(wait)
    assert wait._asyncio_future_blocking
    assert wait.get_loop() is loop
    assert call.cr_await is wait
    assert call.cr_suspended
    assert not call.cr_running
    called = []
    wait.add_done_callback(called.append)
    wait.add_done_callback(called.append, context=None)
    wait.add_done_callback(print)
    assert wait.remove_done_callback(print) == 1
    assert wait.remove_done_callback(print) == 0
    other.send(b"x")
    await until(lambda: called)
    assert called == [wait, wait]
    assert wait.done()
    assert not wait.cancelled()
    assert not wait.cancel()
    assert wait.result() is None
    wait.add_done_callback(called.append)  # late: called at once
    await asyncio.sleep(0)
    assert called == [wait] * 3
    with pytest.raises(StopIteration) as caught:
        call.send(None)
    assert caught.value.value == b"x"
    assert caught.value.args == (b"x",)
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        call.send(None)
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        await call
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        call.throw(ZeroDivisionError)
    call.close()


async def test_sent_to_before_the_wait_is_over(unix):
    loop = asyncio.get_running_loop()
    one, other = unix
    call = loop.sock_recv(one, 10)
    first = call.send(None)
    second = call.send(None)
    assert not first.done()
    other.send(b"x")
    await asyncio.sleep(0.01)
    assert second.done()
    assert not first.done()
    with pytest.raises(StopIteration):
        next(call)


async def test_a_wait_that_is_cancelled(unix):
    loop = asyncio.get_running_loop()
    for arguments, message in (((), ()), (("why",), ("why",)), ((None,), ())):
        call = loop.sock_recv(unix[0], 10)
        wait = call.send(None)
        with pytest.raises(RuntimeError, match="not over"):
            wait.result()
        assert wait.cancel(*arguments)
        assert wait.cancelled()
        assert wait.done()
        assert "cancelled" in repr(wait)
        with pytest.raises(asyncio.CancelledError) as caught:
            wait.result()
        assert caught.value.args == message
        call.close()
    with pytest.raises(TypeError):
        wait.cancel(1, 2)
    with pytest.raises(TypeError):
        wait.add_done_callback(print, wrong=1)
    with pytest.raises(AttributeError):
        wait.something = 1


@pytest.mark.parametrize("begun", [False, True])
async def test_throw(unix, begun):
    loop = asyncio.get_running_loop()

    def call():
        call = loop.sock_recv(unix[0], 10)
        if begun:
            call.send(None)
        return call

    with pytest.raises(ZeroDivisionError):
        call().throw(ZeroDivisionError)
    error = ZeroDivisionError("mine")
    with pytest.raises(ZeroDivisionError) as caught:
        call().throw(error)
    assert caught.value is error
    with pytest.raises(ZeroDivisionError, match="text") as caught:
        call().throw(ZeroDivisionError, "text", None)
    here = caught.value.__traceback__
    with pytest.raises(ZeroDivisionError) as caught:
        call().throw(ZeroDivisionError, ZeroDivisionError("text"), here)
    assert here in traceback_of(caught.value)
    for wrong in ((1,), (int,), (error, 1), (error, None, 1), (), (error, None, None, None)):
        each = call()
        with pytest.raises(TypeError):
            each.throw(*wrong)
        assert each.cr_suspended is begun  # it can go on
        each.close()


def traceback_of(error):
    found, each = [], error.__traceback__
    while each is not None:
        found.append(each)
        each = each.tb_next
    return found


async def test_awaited_by_two(unix):
    loop = asyncio.get_running_loop()
    one, other = unix
    call = loop.sock_recv(one, 10)

    async def awaits():
        return await call

    first = await suspended(awaits())
    with pytest.raises(RuntimeError, match="coroutine is being awaited already"):
        await call
    other.send(b"x")
    assert await first == b"x"


async def test_it_refuses_to_run_inside_itself(unix):
    loop = asyncio.get_running_loop()
    seen = []

    class Limit:
        def __index__(self):
            assert call.cr_running
            for go_on in (call.close, lambda: call.send(None), lambda: call.throw(KeyError)):
                with pytest.raises(ValueError, match="coroutine already executing"):
                    go_on()
            seen.append(1)
            return 1

    call = loop.sock_recv(unix[0], Limit())
    unix[1].send(b"x")
    assert await call == b"x"
    assert seen == [1]


# -- never awaited -----------------------------------------------------------------------------


def test_a_call_that_is_dropped_warns(loop, unix, unawaited):
    made = calls(loop, unix[0])
    del made
    gc.collect()
    assert sorted(str(each.message) for each in unawaited) == sorted(
        f"coroutine 'EventLoop.{name}' was never awaited" for name in calls_of_loop()
    )
    assert {each.category for each in unawaited} == {RuntimeWarning}
    assert {each.filename for each in unawaited} == {__file__}


def calls_of_loop():
    return (
        "sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into",
        "sock_sendall", "sock_sendto", "sock_accept",
    )  # fmt: skip


def test_one_in_a_cycle_warns_too(loop, unix, unawaited):
    class Limit:
        pass

    limit = Limit()
    limit.call = loop.sock_recv(unix[0], limit)
    gone = weakref.ref(limit.call)
    del limit
    gc.collect()
    assert gone() is None
    assert len(unawaited) == 1


async def test_no_warning_once_it_was_closed_or_begun(unix, unawaited):
    loop = asyncio.get_running_loop()
    loop.sock_recv(unix[0], 1).close()
    call = loop.sock_recv(unix[0], 1)
    call.send(None)
    del call
    with pytest.raises(ZeroDivisionError):
        loop.sock_recv(unix[0], 1).throw(ZeroDivisionError)
    gc.collect()
    assert not unawaited


async def test_debug_mode_says_where_it_was_made(unix, unawaited):
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    sys.set_coroutine_origin_tracking_depth(2)
    try:
        call = loop.sock_recv(unix[0], 1)
        line = inspect.currentframe().f_lineno - 1
        assert call.cr_origin[0] == (__file__, line, "test_debug_mode_says_where_it_was_made")
        assert len(call.cr_origin) == 2
        del call
    finally:
        sys.set_coroutine_origin_tracking_depth(0)
    text = str(unawaited[0].message)
    assert "Coroutine created at (most recent call last)\n" in text
    assert text.splitlines()[-1].strip() == "call = loop.sock_recv(unix[0], 1)"
    assert loop.sock_recv(unix[0], 1).close() is None


# -- debuggers ---------------------------------------------------------------------------------


async def test_tasks_show_what_they_wait_for(unix):
    loop = asyncio.get_running_loop()
    task = await suspended(loop.sock_recv(unix[0], 1))
    assert "coro=<EventLoop.sock_recv()>" in repr(task)
    assert "wait_for=<Wait pending cb=[" in repr(task)
    assert task.get_stack() == []
    text = io.StringIO()
    task.print_stack(file=text)
    assert text.getvalue().startswith("No stack for <Task pending")
    unix[1].send(b"x")
    assert await task == b"x"
    assert "result=b'x'" in repr(task)

    async def outer():
        return await loop.sock_recv(unix[0], 1)

    task = await suspended(outer())
    coroutine = task.get_coro()
    assert type(coroutine.cr_await) is Call
    assert type(coroutine.cr_await.cr_await) is Wait
    assert len(task.get_stack()) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_debug_mode_works(unix):
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 100
    one, other = unix
    for _ in range(3):
        waiting = await suspended(loop.sock_recv(one, 10))
        await loop.sock_sendall(other, b"x")
        assert await waiting == b"x"
    waiting.cancel()


def test_weak_references(loop, unix):
    call = loop.sock_recv(unix[0], 1)
    ref = weakref.ref(call)
    assert ref() is call
    call.close()
    del call
    assert ref() is None


# -- whose it is ---------------------------------------------------------------------------------


async def test_another_loops_call_is_refused_where_it_would_wait(loop_factory):
    mine, (one, other) = asyncio.get_running_loop(), tcp_pair()
    theirs = loop_factory()
    try:
        with one, other:
            other.send(b"x")
            await asyncio.sleep(0.01)
            assert await theirs.sock_recv(one, 1) == b"x"  # as in asyncio: nothing to wait for
            with pytest.raises(RuntimeError, match="attached to a different loop"):
                await theirs.sock_recv(one, 1)
            # nothing of it is left in either loop
            other.send(b"y")
            assert await mine.sock_recv(one, 1) == b"y"
    finally:
        theirs.close()


def test_a_closed_loop(loop_factory, unix):
    loop = loop_factory()
    loop.close()
    call = loop.sock_recv(unix[0], 1)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        call.send(None)
    unix[1].send(b"x")
    call = loop.sock_recv(unix[0], 1)
    with pytest.raises(StopIteration) as caught:
        call.send(None)
    assert caught.value.value == b"x"


def test_after_a_fork(loop, unix):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            loop.sock_recv(unix[0], 1).send(None)
        except RuntimeError as exc:
            status = 0 if "cannot be used after a fork" in str(exc) else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    unix[1].send(b"x")
    assert loop.run_until_complete(loop.sock_recv(unix[0], 1)) == b"x"


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # that is the point
@pytest.mark.parametrize("kept", ["nothing", "task", "loop"])
def test_loops_that_are_dropped_while_calls_wait(loop_factory, kept):
    """Calls, waits, sockets: everything is collected, and no descriptor is left."""
    loop = loop_factory()
    one, other = pair("unix")

    async def waits(loop, one, other):
        with one, other:
            await asyncio.gather(loop.sock_recv(one, 1), loop.sock_sendall(one, bytes(8 << 20)))

    task = loop.create_task(waits(loop, one, other))
    for _ in range(4):
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert not task.done()
    assert len(asyncio.all_tasks(loop)) == 3
    # nobody is to be told of tasks that are destroyed here on purpose
    for each in asyncio.all_tasks(loop):
        each._log_destroy_pending = False
    del each
    socks = [weakref.ref(one), weakref.ref(other)]
    del one, other
    loop.close()
    keep = {"nothing": None, "task": task, "loop": loop}[kept]
    del task, loop
    gc.collect()
    if kept != "task":
        assert [ref() for ref in socks] == [None, None]
    del keep
    gc.collect()
    assert [ref() for ref in socks] == [None, None]
