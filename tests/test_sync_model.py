"""The algorithms of the lock and of the queue, in every order in which processes can run.

Each process is a small machine that does one access to shared memory in a step; the explorer
follows all orders, with and without killing some of them at any point.  The machines are those of
aiounify/_core/robust.h, in its order of accesses; the kernel's part is as futex(2) and its
handling of robust lists say: sleeping compares and sleeps in one step, a wake takes any
sleeper.
"""

import pytest

WAITERS, DIED = 1 << 8, 1 << 9
OWNER = 0xFF


def explore(start, successors, check):
    """All states that can be reached; `check` is called with each, and whether it is an end."""
    seen, todo = {start}, [start]
    while todo:
        state = todo.pop()
        following = list(successors(state))
        check(state, not following)
        for one in following:
            if one not in seen:
                seen.add(one)
                todo.append(one)
    return len(seen)


def put(threads, i, thread):
    return (*threads[:i], thread, *threads[i + 1 :])


def wakes(threads, awake):
    """Wake one sleeper, whichever the kernel chooses; none if nobody sleeps."""
    sleeping = [i for i, thread in enumerate(threads) if thread[0] == "asleep"]
    return [put(threads, i, awake(threads[i])) for i in sleeping] or [threads]


# -- lock: a state is (word, threads, kills left); a thread (place, value seen, bits) ----------


def free(word):
    return not word & OWNER or word & DIED


def lock_step(word, threads, i, rounds):
    """What thread i does next: pairs (word, threads)."""
    place, seen, bits = threads[i]
    me = i + 1

    def at(*thread, word=word):
        return [(word, put(threads, i, thread))]

    if place == "load":
        return at("compare" if free(word) else "announce", word, bits)
    if place == "compare":
        if word == seen:
            return at("inside", 0, bits, word=me | seen & WAITERS | bits)
        return at("compare" if free(word) else "announce", word, bits)
    if place == "announce":
        if free(word):
            return at("load", 0, WAITERS)
        return at("sleep" if word & WAITERS else "mark", word, bits)
    if place == "mark":
        if word == seen:
            return at("sleep", word | WAITERS, bits, word=word | WAITERS)
        return at("announce", 0, bits)
    if place == "sleep":
        return at("asleep", seen, bits) if word == seen else at("load", 0, WAITERS)
    if place == "inside":
        return at("wake" if word & WAITERS else "done", 0, 0, word=0)
    if place == "wake":
        after = put(threads, i, ("done", 0, 0))
        return [(word, woken) for woken in wakes(after, lambda _: ("load", 0, WAITERS))]
    return []


def lock_killed(word, threads, i):
    """The kernel ends thread i: its claim to the lock, and a wake if it has one to give."""
    place = threads[i][0]
    after = put(threads, i, ("dead", 0, 0))
    awake = lambda _: ("load", 0, WAITERS)  # noqa: E731
    if word & OWNER == i + 1 and not word & DIED:
        word, had = word & WAITERS | DIED, word & WAITERS
        return [(word, woken) for woken in (wakes(after, awake) if had else [after])]
    if place == "wake" and word == 0:  # list_op_pending
        return [(word, woken) for woken in wakes(after, awake)]
    return [(word, after)]


@pytest.mark.parametrize(("threads", "kills"), [(2, 0), (3, 0), (2, 1), (3, 1), (2, 2), (3, 2)])
def test_lock(threads, kills):
    def successors(state):
        word, all_, left = state
        for i, (place, *_) in enumerate(all_):
            for word_, threads_ in lock_step(word, all_, i, 1):
                yield word_, threads_, left
            if left and place not in ("done", "dead"):
                for word_, threads_ in lock_killed(word, all_, i):
                    yield word_, threads_, left - 1
            # The patrol.  Without a kill it must not be needed.
            if kills and place == "asleep" and free(word):
                yield word, put(all_, i, ("load", 0, WAITERS)), left

    def check(state, end):
        word, all_, _ = state
        inside = [i for i, thread in enumerate(all_) if thread[0] == "inside"]
        assert len(inside) <= 1, state
        assert not inside or word & OWNER == inside[0] + 1, state
        if end:
            assert all(thread[0] in ("done", "dead") for thread in all_), f"sleeps on: {state}"

    start = (0, (("load", 0, 0),) * threads, kills)
    assert explore(start, successors, check) > 20


def test_the_explorer_finds_a_lost_wake():
    """The same lock, if who slept did not set WAITERS again for the others."""

    def successors(state):
        word, all_ = state
        for i in range(3):
            for word_, threads_ in lock_step(word, all_, i, 1):
                yield word_, tuple((p, s, 0) for p, s, _ in threads_)

    stuck = []
    explore(
        (0, (("load", 0, 0),) * 3),
        successors,
        lambda state, end: stuck.append(state) if end else None,
    )
    assert any("asleep" in [thread[0] for thread in state[1]] for state in stuck)


# -- queue: (messages, filled, getters, threads, kills left); what the lock guards is one step,
#    but for the death in it, before or after the one store that counts ---------------------------


@pytest.mark.parametrize(
    ("putters", "getters", "kills"), [(1, 1, 0), (2, 2, 0), (2, 3, 0), (2, 2, 1)]
)
def test_queue(putters, getters, kills):
    def step(state, i):
        messages, filled, waiting, threads, left = state
        place, seen = threads[i]

        def to(*thread, m=messages, f=filled, w=waiting):
            return (m, f, w, put(threads, i, thread), left)

        if place == "put":
            yield to("store", 0, f=filled + 1)
        elif place == "store":  # of tail; dying before it leaves no message
            yield to("look", 0, m=messages + 1)
        elif place == "look":
            yield to("wake", 0) if waiting else to("done", 0)
        elif place == "wake":
            after = put(threads, i, ("done", 0))
            for woken in wakes(after, lambda _: ("leave", 0)):
                yield messages, filled, waiting, woken, left
        elif place == "get":
            if any(thread[0] == "store" for thread in threads):
                return  # a putter has the lock
            if messages:
                yield to("done", 0, m=messages - 1)
            else:
                yield to("sleep", filled, w=waiting + 1)
        elif place == "sleep":
            yield to("asleep", seen) if filled == seen else to("leave", 0)
        elif place == "leave":
            yield to("get", 0, w=waiting - 1)

    def successors(state):
        messages, filled, waiting, threads, left = state
        for i, (place, seen) in enumerate(threads):
            if place == "put" and any(t[0] == "store" for t in threads):
                continue
            yield from step(state, i)
            if left and place not in ("done", "dead"):
                yield messages, filled, waiting, put(threads, i, ("dead", 0)), left - 1
            if kills and place == "asleep" and filled != seen:
                yield messages, filled, waiting, put(threads, i, ("leave", 0)), left

    def check(state, end):
        messages, _, waiting, threads, _ = state
        assert messages >= 0 and waiting >= 0
        if end:
            asleep = [thread for thread in threads if thread[0] == "asleep"]
            assert not (messages and asleep), f"a message and a getter that sleeps on: {state}"
            assert all(thread[0] in ("done", "dead", "asleep") for thread in threads), state

    start = (0, 0, 0, (("put", 0),) * putters + (("get", 0),) * getters, kills)
    assert explore(start, successors, check) > 10
