"""The ways in: run(), new_event_loop(), Runner, the policy, the environment, the names."""

import asyncio
import inspect
import sys

import pytest
from conftest import NO_URING

import aiounify


@pytest.mark.skipif(bool(NO_URING), reason=f"io_uring: {NO_URING}; epoll alone is tested")
def test_io_uring_is_tested_here():
    loop = aiounify.new_event_loop()
    try:
        assert loop.backend == "uring"
    finally:
        loop.close()


def test_public_names():
    assert set(aiounify.__all__) == {
        "EventLoop",
        "EventLoopPolicy",
        "Feature",
        "Mailbox",
        "__version__",
        "features",
        "install",
        "new_event_loop",
        "run",
        "select",
        "watch",
    }
    assert set(aiounify.__all__) <= set(dir(aiounify))
    for name in aiounify.__all__:
        assert getattr(aiounify, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'aiounify' has no attribute 'Loop'"):
        aiounify.Loop  # noqa: B018


def test_public_methods_of_the_loop():
    """What the loop adds to asyncio's, and nothing else."""
    own = {name for name in dir(aiounify.EventLoop) if not name.startswith("_")}
    asyncios = {name for name in dir(asyncio.SelectorEventLoop) if not name.startswith("_")}
    assert own - asyncios == {"add_priority", "backend", "remove_priority", "stats"}


def test_public_names_are_documented():
    for name in aiounify.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(aiounify, name)), name
    for name in dir(aiounify.EventLoop):
        if not name.startswith("_") and name in {
            *vars(aiounify.EventLoop),
            *vars(aiounify.EventLoop.__mro__[1]),
        }:
            assert inspect.getdoc(getattr(aiounify.EventLoop, name)), name


async def test_the_loop_is_what_it_says(request):
    loop = asyncio.get_running_loop()
    assert isinstance(loop, aiounify.EventLoop)
    assert isinstance(loop, asyncio.SelectorEventLoop)
    assert isinstance(loop, asyncio.AbstractEventLoop)
    assert loop.backend in request.node.name or NO_URING
    assert f"backend={loop.backend} running=True closed=False debug=" in repr(loop)


def test_run_returns_the_result(loop_factory):
    async def main():
        await asyncio.sleep(0)
        return type(asyncio.get_running_loop())

    assert issubclass(aiounify.run(main(), loop_factory=loop_factory), aiounify.EventLoop)


def test_run_raises_what_the_coroutine_raises(loop_factory):
    async def main():
        raise LookupError("from main")

    with pytest.raises(LookupError, match="from main"):
        aiounify.run(main(), loop_factory=loop_factory)


def test_run_cancels_what_is_left_and_closes(loop_factory):
    seen = {}

    async def forever():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen["cancelled"] = True
            raise

    async def main():
        seen["loop"] = asyncio.get_running_loop()
        seen["task"] = asyncio.create_task(forever())
        await asyncio.sleep(0)

    aiounify.run(main(), loop_factory=loop_factory)
    assert seen["cancelled"]
    assert seen["task"].cancelled()
    assert seen["loop"].is_closed()


@pytest.mark.parametrize("debug", [True, False])
def test_run_sets_debug(debug):
    async def main():
        return asyncio.get_running_loop().get_debug()

    assert aiounify.run(main(), debug=debug) is debug


async def test_run_inside_a_running_loop_is_refused():
    async def main():
        pass

    coroutine = main()
    with pytest.raises(RuntimeError, match="running event loop"):
        aiounify.run(coroutine)
    coroutine.close()


def test_run_of_something_else_is_refused():
    with pytest.raises((TypeError, ValueError), match="coroutine"):
        aiounify.run(42)


def test_runner_takes_the_factory():
    async def main():
        return asyncio.get_running_loop()

    with asyncio.Runner(loop_factory=aiounify.new_event_loop) as runner:
        first, second = runner.run(main()), runner.run(main())
        assert first is second is runner.get_loop()
        assert isinstance(first, aiounify.EventLoop)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run(loop_factory=) is of 3.12")
def test_asyncio_run_takes_the_class_and_the_function(backend):
    async def main():
        return asyncio.get_running_loop().backend

    for factory in (aiounify.EventLoop, aiounify.new_event_loop):
        assert asyncio.run(main(), loop_factory=factory) in ("uring", "epoll")
    assert asyncio.run(main(), loop_factory=lambda: aiounify.EventLoop(backend)) == backend


def test_backend_by_argument(backend):
    for make in (aiounify.new_event_loop, aiounify.EventLoop):
        for loop in (make(backend), make(backend=backend)):
            assert loop.backend == backend
            assert f"backend={backend}" in repr(loop)
            loop.close()
            assert loop.backend == backend
            assert "closed=True" in repr(loop)


def test_backend_cannot_be_set(loop):
    with pytest.raises(AttributeError):
        loop.backend = "epoll"


@pytest.mark.parametrize("asked", [None, "auto"])
def test_backend_by_environment(backend, asked, monkeypatch):
    monkeypatch.setenv("AIOUNIFY_BACKEND", backend)
    loop = aiounify.EventLoop(asked)
    loop.close()
    assert loop.backend == backend


def test_argument_goes_before_the_environment(backend, monkeypatch):
    monkeypatch.setenv("AIOUNIFY_BACKEND", "nonsense")
    loop = aiounify.EventLoop(backend)
    loop.close()
    assert loop.backend == backend


def test_empty_environment_is_none(monkeypatch):
    monkeypatch.setenv("AIOUNIFY_BACKEND", "")
    loop = aiounify.new_event_loop()
    loop.close()
    assert loop.backend == ("epoll" if NO_URING else "uring")


@pytest.mark.parametrize("name", ["iocp", "URING", "", 5, b"epoll"])
def test_wrong_backend_is_a_value_error(name):
    with pytest.raises(ValueError, match=r"^backend must be one of 'auto', 'uring', 'epoll', not"):
        aiounify.new_event_loop(name)


def test_wrong_backend_in_the_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("AIOUNIFY_BACKEND", "kqueue")
    with pytest.raises(ValueError, match=r"AIOUNIFY_BACKEND must be one of .* not 'kqueue'"):
        aiounify.new_event_loop()


@pytest.mark.parametrize("args", [("epoll", 1), ("epoll", "uring")])
def test_too_many_arguments_are_a_type_error(args):
    with pytest.raises(TypeError):
        aiounify.EventLoop(*args)
    with pytest.raises(TypeError):
        aiounify.EventLoop(selector=None)


def test_features():
    table = aiounify.features()
    assert set(table) == {
        "epoll",
        "files_libaio",
        "files_nowait",
        "files_openat2",
        "files_statx",
        "futex_waitv",
        "io_uring",
        "multiprocessing_locks",
        "inotify",
        "fanotify",
        "timerfd_realtime",
        "timerfd_boottime",
        "pressure",
        "pidfd",
        "robust_locks",
        "uring_defer_taskrun",
        "uring_epoll_wait",
        "uring_futex_wait",
        "uring_no_iowait",
        "uring_read_multishot",
        "uring_waitid",
    }
    for name, feature in table.items():
        assert isinstance(feature, aiounify.Feature)
        assert type(feature.on) is bool, name
        assert feature.detail, name
        assert tuple(feature) == (feature.on, feature.detail)
    assert table["io_uring"].on is not bool(NO_URING)
    assert table["epoll"].on


def test_importing_makes_no_policy(run_program):
    run_program("lazy_import")


def test_policy_makes_this_loop():
    policy = aiounify.EventLoopPolicy()
    loop = policy.new_event_loop()
    loop.close()
    assert isinstance(loop, aiounify.EventLoop)
    assert aiounify.EventLoopPolicy is aiounify.EventLoopPolicy


def test_install(run_program):
    run_program("install")


def test_install_is_deprecated_where_asyncio_has_a_factory(monkeypatch):
    installed = []
    monkeypatch.setattr(asyncio, "set_event_loop_policy", installed.append)
    if sys.version_info >= (3, 12):
        with pytest.warns(DeprecationWarning, match="loop_factory") as caught:
            aiounify.install()
        assert caught[0].filename == __file__
    else:
        aiounify.install()
    assert [type(policy) for policy in installed] == [aiounify.EventLoopPolicy]
