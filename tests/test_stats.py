"""loop.stats(): what is counted, and that it counts."""

import asyncio
import os

import pytest

KEYS = {
    "backend": str,
    "callbacks": int,
    "completions": int,
    "inline_hits": int,
    "operations": dict,
    "polls": int,
    "readiness_events": int,
    "ready": int,
    "syscalls": int,
    "timers_fired": int,
    "timers_pending": int,
    "turns": int,
    "wait_seconds": float,
    "waits": int,
    "wakeups": int,
    "watched": int,
}


def test_keys_and_types(loop):
    stats = loop.stats()
    assert set(stats) >= set(KEYS)
    assert {key: type(stats[key]) for key in KEYS} == KEYS
    assert stats["backend"] == loop.backend
    assert stats is not loop.stats()


def test_new_loop_has_done_nothing(loop):
    stats = loop.stats()
    for key in ("callbacks", "turns", "timers_fired", "ready", "timers_pending", "waits"):
        assert stats[key] == 0, key
    assert stats["watched"] == 1  # the loop's own, for signals


def test_what_is_pending(loop):
    r, w = os.pipe()
    loop.call_soon(print)
    timer = loop.call_later(60, print)
    loop.add_reader(r, print)
    loop.add_writer(w, print)
    stats = loop.stats()
    assert (stats["ready"], stats["timers_pending"], stats["watched"]) == (1, 1, 3)
    timer.cancel()
    loop.remove_reader(r)
    loop.remove_writer(w)
    stats = loop.stats()
    assert (stats["timers_pending"], stats["watched"]) == (0, 1)
    os.close(r)
    os.close(w)


async def test_turns_and_callbacks():
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)
    before = loop.stats()
    for _ in range(100):
        await asyncio.sleep(0)
    after = loop.stats()
    assert after["turns"] - before["turns"] == 100
    assert after["callbacks"] - before["callbacks"] == 100


async def test_waits_and_timers():
    loop = asyncio.get_running_loop()
    before = loop.stats()
    for _ in range(5):
        await asyncio.sleep(0.002)
    after = loop.stats()
    assert after["timers_fired"] - before["timers_fired"] == 5
    assert after["waits"] - before["waits"] >= 5
    waited = after["wait_seconds"] - before["wait_seconds"]
    assert 0.004 < waited < 60


async def test_wakeups_and_events():
    loop = asyncio.get_running_loop()
    before = loop.stats()
    r, w = os.pipe()
    done = loop.create_future()
    loop.add_reader(r, done.set_result, None)
    os.write(w, b"x")
    await done
    loop.remove_reader(r)
    os.close(r)
    os.close(w)
    after = loop.stats()
    assert after["readiness_events"] > before["readiness_events"]
    assert after["syscalls"] > before["syscalls"]


async def test_idle_turns_make_hardly_any_system_call():
    """A turn with callbacks ready shares its look at the kernel with others."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)
    before = loop.stats()
    for _ in range(10_000):
        await asyncio.sleep(0)
    after = loop.stats()
    turns = after["turns"] - before["turns"]
    assert turns == 10_000
    assert after["syscalls"] - before["syscalls"] < turns


@pytest.mark.parametrize("ran", [False, True])
def test_after_closing(loop_factory, ran):
    loop = loop_factory()
    if ran:
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()
    stats = loop.stats()
    assert stats["turns"] == (1 if ran else 0)
    assert stats["watched"] == stats["ready"] == stats["timers_pending"] == 0
