"""call_soon() and what it returns: order, arguments, contexts, cancellation, handles."""

import asyncio
import contextvars
import gc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiounify

variable = contextvars.ContextVar("variable", default="unset")


def run_ready(loop):
    """One full turn: everything that is ready now."""
    loop.call_soon(loop.stop)
    loop.run_forever()


async def test_callbacks_run_in_the_order_of_the_calls():
    loop, seen = asyncio.get_running_loop(), []
    for i in range(5000):  # more than the queue has room for at first
        loop.call_soon(seen.append, i)
    assert seen == []
    await asyncio.sleep(0)
    assert seen == list(range(5000))


async def test_what_a_callback_schedules_runs_in_the_next_turn():
    loop, seen = asyncio.get_running_loop(), []

    def first():
        seen.append("first")
        loop.call_soon(seen.append, "third")

    loop.call_soon(first)
    loop.call_soon(seen.append, "second")
    await asyncio.sleep(0)
    assert seen == ["first", "second"]
    await asyncio.sleep(0)
    assert seen == ["first", "second", "third"]


def test_queue_that_wraps_around_keeps_its_order(loop):
    """The ring of handles grows while its head is somewhere in the middle."""
    seen, number = [], iter(range(10**6))

    def more(n):
        for _ in range(n):
            loop.call_soon(seen.append, next(number))

    for n in (200, 100, 255, 1, 700, 3, 5000):
        more(n)
        loop.call_soon(more, n)
        run_ready(loop)
    run_ready(loop)
    assert seen == list(range(len(seen)))
    assert len(seen) == 2 * (200 + 100 + 255 + 1 + 700 + 3 + 5000)


@pytest.mark.parametrize("n", range(8))
@pytest.mark.parametrize("how", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_any_number_of_arguments(loop, n, how):
    seen, args = [], tuple(object() for _ in range(n))
    when = {"call_later": (0,), "call_at": (loop.time(),)}.get(how, ())
    handle = getattr(loop, how)(*when, lambda *got: seen.append(got), *args)
    assert handle._args == args
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert seen == [args]


class Callable:
    def __init__(self):
        self.seen = []

    def __call__(self, *args):
        self.seen.append(args)

    def method(self, *args):
        self.seen.append(args)

    @classmethod
    def of_class(cls, seen, *args):
        seen.append(args)


async def test_every_sort_of_callable():
    loop, thing, seen = asyncio.get_running_loop(), Callable(), []
    loop.call_soon(thing, 1)
    loop.call_soon(thing.method, 2)
    loop.call_soon(Callable.of_class, thing.seen, 3)
    loop.call_soon(thing.seen.append, (4,))
    loop.call_soon(lambda *args, key=5: seen.append((*args, key)), 4)
    await asyncio.sleep(0)
    assert thing.seen == [(1,), (2,), (3,), (4,)]
    assert seen == [(4, 5)]


@pytest.mark.parametrize(
    ("how", "args", "missing"),
    [
        ("call_soon", (), "callback"),
        ("call_soon_threadsafe", (), "callback"),
        ("call_later", (), "delay"),
        ("call_later", (1,), "callback"),
        ("call_at", (), "when"),
        ("call_at", (1,), "callback"),
    ],
)
def test_missing_arguments(loop, how, args, missing):
    with pytest.raises(TypeError, match=f"'{missing}'"):
        getattr(loop, how)(*args)
    assert loop.stats()["ready"] == loop.stats()["timers_pending"] == 0


@pytest.mark.parametrize("how", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_unknown_keywords(loop, how):
    when = (1,) if how in ("call_later", "call_at") else ()
    for keywords in ({"contexts": None}, {"context": None, "x": 1}):
        with pytest.raises(TypeError, match=f"{how}.*unexpected keyword argument"):
            getattr(loop, how)(*when, print, **keywords)
    assert loop.stats()["ready"] == loop.stats()["timers_pending"] == 0


def test_arguments_by_keyword_as_asyncio_has_them(loop):
    """asyncio's call_soon(callback, *args) takes `callback` by name as well."""
    seen = []
    loop.call_soon(callback=lambda: seen.append("soon"))
    loop.call_soon_threadsafe(callback=lambda: seen.append("threadsafe"))
    loop.call_later(delay=0, callback=lambda: seen.append("later"))
    loop.call_at(when=0, callback=lambda: seen.append("at"))
    loop.call_later(0.001, callback=loop.stop)
    loop.run_forever()
    assert sorted(seen) == ["at", "later", "soon", "threadsafe"]


@pytest.mark.parametrize("context", [1, "context", {}, object()])
def test_context_must_be_a_context(loop, context):
    with pytest.raises((TypeError, AttributeError)):
        loop.call_soon(print, context=context)
        pytest.fail("a context of a wrong type was taken")


async def test_callback_runs_in_the_given_context():
    loop, seen = asyncio.get_running_loop(), []
    context = contextvars.copy_context()
    context.run(variable.set, "given")
    for schedule in (loop.call_soon, loop.call_soon_threadsafe):
        handle = schedule(lambda: seen.append(variable.get()), context=context)
        assert handle.get_context() is context
    loop.call_later(0, lambda: seen.append(variable.get()), context=context)
    loop.call_at(0, lambda: seen.append(variable.get()), context=context)
    await asyncio.sleep(0.001)
    assert seen == ["given"] * 4


async def test_callback_runs_in_a_copy_of_the_current_context():
    loop, seen = asyncio.get_running_loop(), []

    def callback(name):
        seen.append((name, variable.get()))
        variable.set(name)  # seen by nobody else

    variable.set("before")
    handle = loop.call_soon(callback, "a")
    loop.call_soon(callback, "b", context=None)
    variable.set("after")
    loop.call_soon(callback, "c")
    assert handle.get_context()[variable] == "before"
    await asyncio.sleep(0)
    assert seen == [("a", "before"), ("b", "before"), ("c", "after")]
    assert variable.get() == "after"


async def test_change_made_in_a_shared_context_is_seen_by_the_next():
    loop, seen, context = asyncio.get_running_loop(), [], contextvars.Context()
    loop.call_soon(variable.set, "changed", context=context)
    loop.call_soon(lambda: seen.append(variable.get()), context=context)
    await asyncio.sleep(0)
    assert seen == ["changed"]
    assert context[variable] == "changed"


def test_entered_context_is_reported_as_by_asyncio(loop, caplog):
    """A callback whose context is entered already cannot run; the loop goes on."""

    def log_of(loop):
        seen, context = [], contextvars.copy_context()
        caplog.clear()
        loop.call_soon(seen.append, "never", context=context)
        loop.call_soon(seen.append, "next")
        context.run(run_ready, loop)
        assert seen == ["next"]
        return [record.getMessage().split(" at 0x")[0] for record in caplog.records]

    theirs = asyncio.SelectorEventLoop()
    theirs_log = log_of(theirs)
    theirs.close()
    assert log_of(loop) == theirs_log
    assert len(theirs_log) == 1


# -- handles --------------------------------------------------------------------


def test_handles_are_asyncios_to_isinstance(loop):
    soon = loop.call_soon(print)
    later = loop.call_later(60, print)
    at = loop.call_at(loop.time() + 60, print)
    assert isinstance(soon, asyncio.Handle)
    assert not isinstance(soon, asyncio.TimerHandle)
    for timer in (later, at):
        assert isinstance(timer, asyncio.Handle)
        assert isinstance(timer, asyncio.TimerHandle)
    assert soon.__class__ is asyncio.Handle
    assert later.__class__ is asyncio.TimerHandle


def test_handle_types_cannot_be_made_by_hand(loop):
    for handle in (loop.call_soon(print), loop.call_later(60, print)):
        with pytest.raises(TypeError):
            type(handle)()


def shapes(loop):
    """The same handles in every state, with a repr each, for two loops to compare."""
    when = 12345.5
    made = [loop.call_soon(max, 1), loop.call_later(60, max), loop.call_at(when, max, 1, 2)]
    made.append(loop.call_soon(Callable.of_class, 1, "x"))
    yield repr(made[0])
    yield repr(made[2])
    yield repr(made[3])
    for handle in made:
        handle.cancel()
    yield repr(made[0])
    yield repr(made[2])
    yield repr(made[3])


@pytest.mark.parametrize("debug", [False, True])
def test_repr_is_asyncios(loop, debug):
    theirs = asyncio.SelectorEventLoop()
    try:
        for each in (loop, theirs):
            each.set_debug(debug)
        assert list(shapes(loop)) == list(shapes(theirs))
    finally:
        theirs.close()


def test_private_names_that_debuggers_read(loop):
    for handle in (loop.call_soon(max, 1, 2), loop.call_later(60, max, 1, 2)):
        assert handle._callback is max
        assert handle._args == (1, 2)
        assert handle._cancelled is False
        assert handle._loop is loop
        assert isinstance(handle._context, contextvars.Context)
        assert handle._source_traceback is None
        handle.cancel()
        assert handle._callback is handle._args is None
        assert handle._cancelled is True


def test_run_by_hand(loop):
    seen = []
    handle = loop.call_soon(seen.append, 1)
    handle._run()
    assert seen == [1]
    run_ready(loop)
    assert seen == [1, 1]
    handle._run()  # has run: nothing is left of it
    assert seen == [1, 1]


def test_weak_references_and_hashes(loop):
    for handle in (loop.call_soon(print), loop.call_later(60, print)):
        assert handle in {handle}
        ref = weakref.ref(handle)
        assert ref() is handle
        handle.cancel()
    run_ready(loop)
    del handle
    gc.collect()
    assert ref() is None


def test_weak_callback_of_a_handle_that_is_used_again(loop):
    """Handles come from a freelist: the next one must not inherit anything."""
    gone = []
    handle = loop.call_soon(print)
    ref = weakref.ref(handle, gone.append)
    handle.cancel()
    run_ready(loop)
    del handle
    assert gone == [ref]
    fresh = loop.call_soon(int)
    assert ref() is None
    assert not fresh.cancelled()
    assert weakref.getweakrefcount(fresh) == 0


def test_handles_compare_by_identity(loop):
    a, b = loop.call_soon(print), loop.call_soon(print)
    assert a == a
    assert a != b


# -- cancelling -------------------------------------------------------------------


async def test_cancelled_before_it_runs():
    loop, seen = asyncio.get_running_loop(), []
    handles = [loop.call_soon(seen.append, i) for i in range(10)]
    for handle in handles[::2]:
        assert not handle.cancelled()
        handle.cancel()
        handle.cancel()
        assert handle.cancelled()
    await asyncio.sleep(0)
    assert seen == [1, 3, 5, 7, 9]
    assert not handles[1].cancelled()


async def test_cancelled_by_an_earlier_callback_of_the_same_turn():
    loop, seen = asyncio.get_running_loop(), []
    loop.call_soon(lambda: handle.cancel())
    handle = loop.call_soon(seen.append, "never")
    await asyncio.sleep(0)
    assert seen == []


async def test_cancelled_by_its_own_callback():
    loop, seen = asyncio.get_running_loop(), []

    def callback(argument):
        handle.cancel()
        seen.append((argument, handle.cancelled()))

    handle = loop.call_soon(callback, "argument")
    await asyncio.sleep(0)
    assert seen == [("argument", True)]


async def test_cancelled_by_its_own_callback_which_then_raises():
    loop, reports = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, report: reports.append(report))

    def callback():
        handle.cancel()
        raise LookupError("late")

    handle = loop.call_soon(callback)
    await asyncio.sleep(0)
    assert str(reports[0]["exception"]) == "late"
    assert reports[0]["handle"] is handle


async def test_cancelled_after_it_ran():
    loop, seen = asyncio.get_running_loop(), []
    handle = loop.call_soon(seen.append, 1)
    await asyncio.sleep(0)
    handle.cancel()
    assert seen == [1]
    assert handle.cancelled()


def test_cancelling_lets_go_of_everything_at_once(loop):
    class Argument:
        pass

    for schedule in (loop.call_soon, lambda *args: loop.call_later(60, *args)):
        callback, argument = Callable(), Argument()
        refs = weakref.ref(callback), weakref.ref(argument)
        handle = schedule(callback, argument)
        del callback, argument
        gc.collect()
        assert None not in [ref() for ref in refs]
        handle.cancel()
        assert [ref() for ref in refs] == [None, None]


def test_having_run_lets_go_of_everything(loop):
    callback = Callable()
    ref = weakref.ref(callback)
    handle = loop.call_soon(callback)
    del callback
    run_ready(loop)
    assert ref() is None
    assert handle._callback is None


def test_argument_whose_end_schedules_and_cancels(loop):
    """Freeing what a handle held runs code, which may use the loop and this handle."""
    seen = []

    class Final:
        def __del__(self):
            seen.append("gone")
            loop.call_soon(seen.append, "scheduled by the end")
            handle.cancel()

    handle = loop.call_soon(print, Final())
    handle.cancel()
    handle = loop.call_soon(lambda final: None, Final())
    run_ready(loop)
    run_ready(loop)
    assert sorted(seen) == ["gone"] * 2 + ["scheduled by the end"] * 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("sctn"), st.integers(0, 30)), max_size=60))
def test_any_mixture_runs_what_a_list_would(steps):
    """s: schedule, c: cancel one, t: schedule thread-safely, n: run a turn."""
    loop = aiounify.EventLoop("epoll")
    try:
        handles, expected, seen = [], {}, []
        for step, n in steps:
            if step in "st":
                schedule = loop.call_soon if step == "s" else loop.call_soon_threadsafe
                expected[len(handles)] = None
                handles.append(schedule(seen.append, len(handles)))
            elif step == "c" and handles:
                handles[n % len(handles)].cancel()
                expected.pop(n % len(handles), None)
            elif step == "n":
                run_ready(loop)
                assert seen == list(expected)
                seen.clear()
                expected.clear()
        run_ready(loop)
        assert seen == list(expected)
    finally:
        loop.close()
