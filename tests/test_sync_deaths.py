"""Deaths at every step of the robust lock and of the queue, in every order.

As tests/test_sync_model.py, with the steps in between that matter to whoever is killed there:
of the lock, the robust list and its pending entry, as the kernel reads them when a thread ends
(handle_futex_death() of Linux 6.18); of the queue, each store that is made with its lock held, on
both sides of it.
"""

import pytest
from test_sync_model import DIED, OWNER, WAITERS, explore, free, put

# -- lock ----------------------------------------------------------------------------------
#
# A state is (word, inconsistent, dirty, threads, kills left); a thread (place, value seen, bits,
# linked, pending, told).  `dirty`: what the lock guards is half changed.


def wakes(threads):
    """Wake one sleeper, whichever the kernel chooses; none if nobody sleeps."""
    asleep = [i for i, thread in enumerate(threads) if thread[0] == "asleep"]
    return [put(threads, i, ("load", 0, WAITERS, *threads[i][3:])) for i in asleep] or [threads]


def lock_step(state, i, repairs, pends):
    """What thread i does next.  Without `pends` it forgets list_op_pending."""
    word, inconsistent, dirty, threads, left = state
    place, seen, bits, linked, pending, told = threads[i]

    def to(
        place,
        seen=seen,
        bits=bits,
        linked=linked,
        pending=pending,
        told=told,
        *,
        w=word,
        inc=inconsistent,
        d=dirty,
    ):
        thread = (place, seen, bits, linked, pending and pends, told)
        return [(w, inc, d, put(threads, i, thread), left)]

    if place == "load":
        return to("pend" if free(word) else "announce", word)
    if place == "pend":
        return to("compare", pending=True)
    if place == "compare":
        if word == seen:
            return to("mark", w=i + 1 | seen & WAITERS | bits)
        return to("compare", word) if free(word) else to("announce", word, pending=False)
    if place == "mark":
        return to("link", 0, inc=inconsistent or bool(seen & DIED))
    if place == "link":
        return to("unpend", linked=True)
    if place == "unpend":
        return to("change", pending=False, told=inconsistent)
    if place == "change":
        if not told:
            return to("changed", d=True)
        # it repairs what it found, or leaves it to the next one
        return to("unlock", d=False, inc=False) if repairs else to("unlock")
    if place == "changed":
        return to("unlock", d=False)
    if place == "unlock":
        return to("unlink", pending=True)
    if place == "unlink":
        return to("exchange", linked=False)
    if place == "exchange":
        return to("wake" if word & WAITERS else "last", w=0)
    if place == "wake":
        after = put(threads, i, ("last", 0, 0, linked, pending, told))
        return [(word, inconsistent, dirty, woken, left) for woken in wakes(after)]
    if place == "last":
        return to("done", pending=False)
    if place == "announce":
        if free(word):
            return to("load", 0, WAITERS)
        return to("sleep" if word & WAITERS else "set", word)
    if place == "set":
        if word == seen:
            return to("sleep", word | WAITERS, w=word | WAITERS)
        return to("announce", 0)
    if place == "sleep":
        return to("asleep") if word == seen else to("load", 0, WAITERS)
    return []


def lock_killed(state, i):
    """The kernel ends thread i, and walks through its list."""
    word, inconsistent, dirty, threads, left = state
    _, _, _, linked, pending, _ = threads[i]
    after = put(threads, i, ("dead", 0, 0, False, False, False))
    woken = [after]
    if pending and not word & OWNER:
        woken = wakes(after)
    elif (linked or pending) and word & OWNER == i + 1:
        woken = wakes(after) if word & WAITERS else [after]
        word = word & WAITERS | DIED
    return [(word, inconsistent, dirty, one, left - 1) for one in woken]


def explore_lock(threads, kills, repairs=True, pends=True):
    def successors(state):
        word, inconsistent, dirty, all_, left = state
        for i, (place, *rest) in enumerate(all_):
            yield from lock_step(state, i, repairs, pends)
            if left and place not in ("done", "dead"):
                yield from lock_killed(state, i)
            # the patrol, which without a kill must not be needed
            if kills and place == "asleep" and free(word):
                yield word, inconsistent, dirty, put(all_, i, ("load", 0, WAITERS, *rest[2:])), left

    def check(state, end):
        word, _, dirty, all_, _ = state
        holds = ("mark", "link", "unpend", "change", "changed", "unlock", "unlink", "exchange")
        holders = [i for i, thread in enumerate(all_) if thread[0] in holds]
        assert len(holders) <= 1, f"two owners: {state}"
        assert not holders or word & OWNER == holders[0] + 1, f"not its owner: {state}"
        for place, *_, told in all_:
            assert place != "change" or told or not dirty, f"half changed, and not told: {state}"
        if end:
            stuck = [thread for thread in all_ if thread[0] not in ("done", "dead")]
            assert not stuck, f"cannot go on: {state}"

    start = (0, False, False, (("load", 0, 0, False, False, False),) * threads, kills)
    return explore(start, successors, check)


@pytest.mark.parametrize("repairs", [True, False])
@pytest.mark.parametrize(("threads", "kills"), [(2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)])
def test_owner_that_dies_at_any_step(threads, kills, repairs):
    assert explore_lock(threads, kills, repairs) > 100


def test_the_explorer_finds_a_lock_that_is_lost_with_its_owner():
    """The same without list_op_pending: one dies between taking the lock and linking it."""
    with pytest.raises(AssertionError, match="cannot go on"):
        explore_lock(2, 1, pends=False)


# -- queue -----------------------------------------------------------------------------------
#
# A state is (owner of the lock, head, tail, filled, emptied, getters, putters, threads, kills
# left); a thread (kind, place, value seen, whether its store of head or tail was made).


def queue_step(state, i, capacity, bell_first):
    owner, head, tail, filled, emptied, getters, putters, threads, left = state
    kind, place, seen, stored = threads[i]
    putting = kind == "put"

    def to(
        place,
        seen=seen,
        stored=stored,
        *,
        o=owner,
        h=head,
        t=tail,
        f=filled,
        e=emptied,
        g=getters,
        p=putters,
        all_=threads,
    ):
        return (o, h, t, f, e, g, p, put(all_, i, (kind, place, seen, stored)), left)

    if place == "enter" and not owner:
        yield to("check", o=i + 1)
    elif place == "check":
        if (tail - head >= capacity) if putting else (head == tail):
            yield to("count", emptied if putting else filled)
        else:
            yield to("bell" if bell_first else "store")
    elif place == "count":
        step = {"p": putters + 1} if putting else {"g": getters + 1}
        yield to("unlock to sleep", **step)
    elif place == "unlock to sleep":
        yield to("sleep", o=0)
    elif place == "sleep":
        yield to("asleep" if (emptied if putting else filled) == seen else "leave")
    elif place == "leave":
        yield to("enter", **({"p": putters - 1} if putting else {"g": getters - 1}))
    elif place == "bell":
        step = {"f": filled + 1} if putting else {"e": emptied + 1}
        yield to("store" if bell_first else "unlock", **step)
    elif place == "store":
        step = {"t": tail + 1} if putting else {"h": head + 1}
        yield to("unlock" if bell_first else "bell", 0, True, **step)
    elif place == "unlock":
        yield to("look", o=0)
    elif place == "look":
        yield to("wake" if (getters if putting else putters) else "done")
    elif place == "wake":
        other = "get" if putting else "put"
        asleep = [j for j, t in enumerate(threads) if t[0] == other and t[1] == "asleep"]
        if not putting and asleep:  # a getter wakes all putters: sizes differ
            all_ = threads
            for j in asleep:
                all_ = put(all_, j, (other, "leave", *threads[j][2:]))
            yield to("done", all_=all_)
        for j in asleep if putting else ():
            yield to("done", all_=put(threads, j, (other, "leave", *threads[j][2:])))
        if not asleep:
            yield to("done")


def explore_queue(putting, getting, capacity, kills, bell_first=True):
    def successors(state):
        owner, head, tail, filled, emptied, getters, putters, threads, left = state
        rest = (head, tail, filled, emptied, getters, putters)
        for i, (kind, place, seen, stored) in enumerate(threads):
            yield from queue_step(state, i, capacity, bell_first)
            if left and place not in ("done", "dead"):
                # the kernel frees the lock; all else stays as it is, also the count of sleepers
                dead = put(threads, i, (kind, "dead", 0, stored))
                yield (0 if owner == i + 1 else owner, *rest, dead, left - 1)
            word = emptied if kind == "put" else filled
            if kills and place == "asleep" and word != seen:  # the patrol
                yield (owner, *rest, put(threads, i, (kind, "leave", seen, stored)), left)

    def check(state, end):
        owner, head, tail, _, _, getters, putters, threads, _ = state
        assert 0 <= tail - head <= capacity and getters >= 0 and putters >= 0, state
        for kind, position in (("put", tail), ("get", head)):
            stored = sum(thread[3] for thread in threads if thread[0] == kind)
            assert stored == position, f"lost or doubled: {state}"
        if not end:
            return
        assert not owner, f"locked for ever: {state}"
        for kind, place, _, stored in threads:
            assert place in ("done", "dead", "asleep"), state
            assert place != "done" or stored, f"done without having done it: {state}"
            reason = tail == head if kind == "get" else tail - head >= capacity
            assert place != "asleep" or reason, f"sleeps without a reason: {state}"

    threads = (("put", "enter", 0, False),) * putting + (("get", "enter", 0, False),) * getting
    return explore((0,) * 7 + (threads, kills), successors, check)


@pytest.mark.parametrize(
    ("putting", "getting", "capacity", "kills"),
    [(2, 1, 1, 0), (1, 2, 1, 0), (2, 2, 1, 0), (2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 1, 2),
     (2, 2, 1, 1), (3, 1, 2, 1), (2, 2, 1, 2), (3, 2, 2, 1)],
)  # fmt: skip
def test_putters_and_getters_that_die_at_any_step(putting, getting, capacity, kills):
    assert explore_queue(putting, getting, capacity, kills) > 100


def test_the_explorer_finds_why_the_word_changes_before_the_message_is_there():
    """A putter that dies between the two leaves a message that no patrol would look for."""
    with pytest.raises(AssertionError, match="sleeps without a reason"):
        explore_queue(1, 1, 1, 1, bell_first=False)
