"""The futex calls declared by cffi and the engine's own: two ways to the same words.

What one of them does the other has to see, in the same words: values, sleepers, locks.
"""

import ctypes
import errno
import mmap
import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiounify import sync
from aiounify._kernel_futex import ffi, lib
from aiounify.futex import Futex, wait_any_blocking

VALUES = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1]))
ORDERS = st.sampled_from(
    [lib.FX_RELAXED, lib.FX_ACQUIRE, lib.FX_RELEASE, lib.FX_ACQ_REL, lib.FX_SEQ_CST]
)


@pytest.fixture
def words():
    """Words 64 bytes apart: as the engine has them, and as cffi does."""
    with mmap.mmap(-1, 4096) as memory:
        ours = [Futex(memory, 64 * i) for i in range(4)]
        yield ours, [ffi.cast("uint32_t *", word.address) for word in ours]
        for word in ours:
            word.release()


class Sleeper(threading.Thread):
    """call() in a thread; its result."""

    def __init__(self, call):
        super().__init__()
        self.call = call
        self.start()

    def run(self):
        self.result = self.call()

    def woken_by(self, wake):
        """Wake until it has been: it may not sleep yet.  How many the wakes said they woke."""
        woken = 0
        while self.is_alive():
            woken += wake()
            self.join(0.001)
        return woken


def soon():
    return time.monotonic_ns() + 20_000_000_000


# -- atomics -----------------------------------------------------------------------------


@given(
    VALUES,
    st.lists(
        st.tuples(
            st.sampled_from(["load", "store", "add", "exchange", "compare"]),
            st.booleans(),
            VALUES,
            VALUES,
            ORDERS,
            ORDERS,
        ),
        max_size=40,
    ),
)
@settings(deadline=None)
def test_both_agree_on_every_operation(start, operations):
    """Either of the two does each operation, and both and a model see the same afterwards."""
    memory = bytearray(b"\xaa" * 12)
    word = Futex(memory, 4)
    at = ffi.cast("uint32_t *", word.address)
    word.store(start)
    value = start
    for kind, ours, a, b, order, failure in operations:
        if kind == "load":
            assert (word.load() if ours else lib.fx_load(at, order)) == value
        elif kind == "store":
            word.store(a) if ours else lib.fx_store(at, a, order)
            value = a
        elif kind == "add":
            assert (word.add(a) if ours else lib.fx_add(at, a, order)) == value
            value = (value + a) % 2**32
        elif kind == "exchange":
            assert (word.exchange(a) if ours else lib.fx_exchange(at, a, order)) == value
            value = a
        else:
            expected = value if b % 2 else a
            if ours:
                swapped = word.compare_exchange(expected, b)
            else:
                seen = ffi.new("uint32_t *", expected)
                swapped = lib.fx_compare_exchange(at, seen, b, order, failure)
                assert seen[0] == value
            assert swapped == (expected == value)
            value = b if expected == value else value
        assert word.load() == lib.fx_load(at, lib.FX_SEQ_CST) == value
    assert memory[:4] == memory[8:] == b"\xaa" * 4  # neighbours
    word.release()


@given(VALUES, VALUES, ORDERS)
def test_or(start, bits, order):
    at = ffi.new("uint32_t *", start)
    assert lib.fx_or(at, bits, order) == start
    assert at[0] == start | bits


def test_additions_of_both_add_up(words):
    """Two threads, one by each way: no addition is lost."""
    (word, *_), (at, *_) = words
    n = 20_000

    def theirs():
        for _ in range(n):
            lib.fx_add(at, 1, lib.FX_RELAXED)

    thread = threading.Thread(target=theirs)
    thread.start()
    for _ in range(n):
        word.add(1)
    thread.join()
    assert word.load() == 2 * n


# -- sleeping and waking -----------------------------------------------------------------


def test_each_wakes_what_sleeps_by_the_other(words):
    (word, *_), (at, *_) = words
    sleeper = Sleeper(lambda: lib.fx_wait_bitset(at, 0, soon(), 0xFFFFFFFF))
    assert sleeper.woken_by(word.wake) == 1
    assert sleeper.result == 0
    sleeper = Sleeper(lambda: word.wait_blocking(0, 20))
    sleeper.woken_by(lambda: lib.fx_wake_bitset(at, 1, 0xFFFFFFFF))
    assert sleeper.result


def test_masks(words):
    (word, *_), (at, *_) = words
    sleeper = Sleeper(lambda: lib.fx_wait_bitset(at, 0, soon(), 2))
    assert sleeper.woken_by(lambda: word.wake(mask=1) or word.wake(mask=6)) == 1
    assert lib.fx_wait_bitset(at, 0, soon(), 0) == -1 and ffi.errno == errno.EINVAL


def test_errors_are_the_same(words):
    (word, *_), (at, *_) = words
    assert lib.fx_wait_bitset(at, 1, -1, 0xFFFFFFFF) == -1 and ffi.errno == errno.EAGAIN
    assert word.sleep(1, 0xFFFFFFFF, -1) == -errno.EAGAIN
    assert lib.fx_wait_bitset(at, 0, 0, 0xFFFFFFFF) == -1 and ffi.errno == errno.ETIMEDOUT
    assert word.sleep(0, 0xFFFFFFFF, 0) == -errno.ETIMEDOUT
    assert lib.fx_cmp_requeue(at, 1, 1, at + 16, 1) == -1 and ffi.errno == errno.EAGAIN
    odd = ffi.cast("uint32_t *", word.address + 2)
    assert lib.fx_wake_bitset(odd, 1, 0xFFFFFFFF) == -1 and ffi.errno == errno.EINVAL


def test_requeue(words):
    (one, two, *_), (at_one, at_two, *_) = words
    sleeper = Sleeper(lambda: lib.fx_wait_bitset(at_one, 0, soon(), 0xFFFFFFFF))
    while not one.requeue(two, 0, 0):
        time.sleep(0.001)
    assert one.wake() == 0
    assert lib.fx_cmp_requeue(at_two, 0, 1, at_one, 0) == 1  # and back, by the other way
    assert two.wake() == 0
    assert sleeper.woken_by(one.wake) == 1


def test_wake_op(words):
    """FUTEX_WAKE_OP: change one word, wake sleepers of two, by what the word was."""
    (_, two, *_), (at_one, at_two, *_) = words
    two.store(5)
    add = lib.fx_operation(lib.FUTEX_OP_ADD, 3, lib.FUTEX_OP_CMP_EQ, 5)
    assert lib.fx_wake_op(at_one, 1, at_two, 1, add) == 0
    assert two.load() == 8
    sleepers = [Sleeper(lambda: lib.fx_wait_bitset(at_one, 0, soon(), 0xFFFFFFFF))]
    sleepers.append(Sleeper(lambda: lib.fx_wait_bitset(at_two, 8, soon(), 0xFFFFFFFF)))
    keep = lib.fx_operation(lib.FUTEX_OP_ADD, 0, lib.FUTEX_OP_CMP_EQ, 8)
    woken = 0
    while woken < 2:
        woken += lib.fx_wake_op(at_one, 1, at_two, 1, keep)
        time.sleep(0.001)
    for sleeper in sleepers:
        sleeper.join()
        assert sleeper.result == 0
    other = lib.fx_operation(lib.FUTEX_OP_SET, 0, lib.FUTEX_OP_CMP_GT, 9)
    sleeper = Sleeper(lambda: lib.fx_wait_bitset(at_two, 0, soon(), 0xFFFFFFFF))
    lib.fx_wake_op(at_one, 1, at_two, 1, other)  # 8 is not above 9: nobody of the second is woken
    assert two.load() == 0
    sleeper.woken_by(two.wake)


def test_waitv(words):
    ours, at = words
    vector = ffi.new("struct futex_waitv[4]")
    for entry, word in zip(vector, ours, strict=True):
        entry.uaddr, entry.flags = word.address, lib.FUTEX2_SIZE_U32
    if lib.fx_waitv(vector, 4, 0) == -1 and ffi.errno == errno.ENOSYS:
        pytest.skip("futex_waitv needs Linux 5.16")
    sleeper = Sleeper(lambda: lib.fx_waitv(vector, 4, soon()))
    assert sleeper.woken_by(ours[2].wake) == 1
    assert sleeper.result == 2
    ours[3].store(1)
    assert lib.fx_waitv(vector, 4, -1) == -1 and ffi.errno == errno.EAGAIN
    assert lib.fx_waitv(vector, lib.FUTEX_WAITV_MAX + 1, -1) == -1 and ffi.errno == errno.EINVAL
    sleeper = Sleeper(lambda: wait_any_blocking([(word, word.load()) for word in ours], 20))
    sleeper.woken_by(lambda: lib.fx_wake_bitset(at[1], 1, 0xFFFFFFFF))
    assert sleeper.result == 1


# -- robust locks ------------------------------------------------------------------------


def links():
    """The addresses in this thread's robust list, and how far behind a link its word is."""
    head, size = ffi.new("struct robust_list_head **"), ffi.new("size_t *")
    assert lib.fx_get_robust_list(0, head, size) == 0
    assert size[0] == ffi.sizeof("struct robust_list_head")
    assert not head[0].list_op_pending
    found, link = [], head[0].list.next
    end = int(ffi.cast("uintptr_t", head[0]))
    while (at := int(ffi.cast("uintptr_t", link)) & ~1) != end:
        found.append(at)
        link = ffi.cast("struct robust_list *", at).next
    return found, head[0].futex_offset


def test_a_held_lock_stands_in_the_robust_list():
    locks = [sync.Lock() for _ in range(3)]
    before, _ = links()
    for lock in locks:
        lock.acquire_blocking()
    found, offset = links()
    held = [lock._core.word.address for lock in locks]
    assert [at + offset for at in found if at not in before] == held[::-1]
    tid = threading.get_native_id()
    for at in held:
        assert ctypes.c_uint32.from_address(at).value & lib.FUTEX_TID_MASK == tid
    locks[1].release()
    found, _ = links()
    assert [at + offset for at in found if at not in before] == [held[2], held[0]]
    for lock in (locks[0], locks[2]):
        lock.release()
    assert links()[0] == before
    for lock in locks:
        lock.close()


def test_the_kernel_marks_the_word_of_an_owner_that_died():
    lock = sync.Lock()
    word = ffi.cast("uint32_t *", lock._core.word.address)
    pid = os.fork()
    if not pid:
        lock.acquire_blocking()
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert lib.fx_load(word, lib.FX_ACQUIRE) == lib.FUTEX_OWNER_DIED
    with pytest.raises(sync.OwnerDied):
        lock.acquire_blocking()
    assert lib.fx_load(word, lib.FX_ACQUIRE) & lib.FUTEX_TID_MASK == threading.get_native_id()
    lock.make_consistent()
    lock.release()
    assert lib.fx_load(word, lib.FX_ACQUIRE) == 0
    lock.close()
