"""add_reader, add_writer, add_priority: level-triggered, on whatever the number now stands for."""

import asyncio
import gc
import os
import random
import select
import socket
import tempfile
import weakref

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiounify
from aiounify._core.reactor import NopOp

pytestmark = pytest.mark.every_reactor


@pytest.fixture
def pipe():
    r, w = os.pipe2(os.O_NONBLOCK)
    yield r, w
    for fd in (r, w):
        try:
            os.close(fd)
        except OSError:
            continue


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    with a, b:
        yield a, b


@pytest.fixture
def tcp():
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    with client, accepted:
        yield client, accepted


async def turns(n=30):
    """Enough turns for the reactor to have asked the kernel, asleep and awake."""
    for _ in range(n):
        await asyncio.sleep(0)
    await asyncio.sleep(0.002)


async def test_reader_is_level_triggered(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    os.write(w, b"abc")
    seen, done = [], loop.create_future()

    def read():
        seen.append(os.read(r, 1))
        if len(seen) == 3:
            done.set_result(None)

    loop.add_reader(r, read)
    await done
    await turns()
    assert seen == [b"a", b"b", b"c"]
    assert loop.remove_reader(r) is True
    assert loop.remove_reader(r) is False


async def test_reader_that_does_not_read_is_called_every_turn(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    os.write(w, b"x")
    count, done = 0, loop.create_future()

    def ready():
        nonlocal count
        count += 1
        if count == 100:
            done.set_result(None)

    loop.add_reader(r, ready)
    await done
    loop.remove_reader(r)
    before = count
    await turns()
    assert count == before


async def test_reader_gets_its_arguments(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    for args in [(), (1,), (1, 2, 3), (1, 2, 3, 4, 5)]:
        done = loop.create_future()
        loop.add_reader(r, lambda *got, done=done: done.done() or done.set_result(got), *args)
        os.write(w, b"x")
        assert await done == args
        os.read(r, 10)
    loop.remove_reader(r)


async def test_end_of_file_is_readable(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    done = loop.create_future()

    def read():
        loop.remove_reader(r)
        done.set_result(os.read(r, 10))

    loop.add_reader(r, read)
    await turns()
    assert not done.done()
    os.close(w)
    assert await done == b""


async def test_writer_until_the_buffer_is_full(pair):
    loop, (a, b) = asyncio.get_running_loop(), pair
    sent, done = 0, loop.create_future()

    def write():
        nonlocal sent
        try:
            sent += a.send(b"x" * 65536)
        except BlockingIOError:
            if not done.done():
                done.set_result(None)

    calls = 0

    def write_again():
        nonlocal calls
        calls += 1

    loop.add_writer(a, write)
    await turns(200)
    assert sent > 0
    loop.add_writer(a, write_again)  # the buffer is full
    before = calls
    await turns()
    assert calls == before == 0
    while sent:
        sent -= len(b.recv(1 << 20))
    await turns()
    assert calls > 0
    loop.remove_writer(a)


async def test_both_directions_of_one_descriptor(pair):
    loop, (a, b) = asyncio.get_running_loop(), pair
    seen = []
    loop.add_reader(a, seen.append, "read")
    loop.add_writer(a, seen.append, "write")
    await turns()
    assert set(seen) == {"write"}
    b.send(b"x")
    await turns()
    assert set(seen) == {"write", "read"}
    assert loop.remove_writer(a)
    seen.clear()
    await turns()
    assert set(seen) == {"read"}
    loop.add_writer(a, seen.append, "write")
    assert loop.remove_reader(a)
    seen.clear()
    await turns()
    assert set(seen) == {"write"}
    assert loop.remove_writer(a)
    seen.clear()
    await turns()
    assert seen == []


async def test_replacing_cancels_the_earlier_one(pipe):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    os.write(w, b"x")
    seen = []
    first = loop._add_reader(r, seen.append, "first")
    loop.add_reader(r, seen.append, "second")
    assert first.cancelled()
    await turns()
    assert set(seen) == {"second"}
    assert loop.stats()["watched"] == 2  # with the loop's own
    loop.remove_reader(r)
    assert loop.stats()["watched"] == 1


@pytest.mark.parametrize("replace", [False, True])
async def test_removed_or_replaced_within_its_own_callback(pipe, replace):
    loop, (r, w) = asyncio.get_running_loop(), pipe
    os.write(w, b"x")
    seen = []

    def ready():
        seen.append("first")
        if replace:
            loop.add_reader(r, seen.append, "second")
        else:
            loop.remove_reader(r)

    loop.add_reader(r, ready)
    await turns()
    assert seen.count("first") == 1
    assert ("second" in seen) is replace
    loop.remove_reader(r)


async def test_removed_by_another_callback_of_the_same_turn():
    """Both are ready; whichever runs first removes the other, which must not run."""
    loop, seen = asyncio.get_running_loop(), []
    pipes = [os.pipe() for _ in range(2)]

    def ready(me, other):
        seen.append(me)
        loop.remove_reader(pipes[other][0])
        loop.remove_reader(pipes[me][0])

    for _, w in pipes:
        os.write(w, b"x")
    loop.add_reader(pipes[0][0], ready, 0, 1)
    loop.add_reader(pipes[1][0], ready, 1, 0)
    await turns()
    assert len(seen) == 1
    for r, w in pipes:
        os.close(r)
        os.close(w)


async def test_objects_with_fileno_and_numbers_are_the_same(pair):
    loop, (a, b) = asyncio.get_running_loop(), pair
    b.send(b"x")
    seen = []
    loop.add_reader(a, seen.append, 1)
    await turns()
    assert seen
    assert loop.remove_reader(a.fileno())
    assert not loop.remove_reader(a)


@pytest.mark.parametrize("method", ["add_reader", "add_writer", "add_priority"])
@pytest.mark.parametrize("wrong", [-1, "1", None, 1.5, object()])
async def test_what_is_no_descriptor_is_a_value_error(method, wrong):
    loop = asyncio.get_running_loop()
    with pytest.raises(ValueError, match="Invalid file"):
        getattr(loop, method)(wrong, print)
    assert loop.stats()["watched"] == 1


@pytest.mark.parametrize("method", ["add_reader", "add_writer", "add_priority"])
async def test_closed_descriptor_is_an_os_error(method):
    loop = asyncio.get_running_loop()
    r, w = os.pipe()
    os.close(r)
    os.close(w)
    with pytest.raises(OSError, match="file descriptor"):
        getattr(loop, method)(r, print)
    assert loop.stats()["watched"] == 1


@pytest.mark.plain_memory
def test_number_beyond_all_limits(run_program, backend):
    run_program("huge_descriptor", backend)


@pytest.mark.parametrize("method", ["add_reader", "add_writer", "add_priority"])
async def test_regular_file_is_a_permission_error(method, tmp_path):
    """epoll cannot watch what is always ready; asyncio's selector loop says the same."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile(dir=tmp_path) as file, pytest.raises(PermissionError):
        getattr(loop, method)(file, print)
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(PermissionError):
        getattr(loop, method)(directory, print)
    os.close(directory)
    assert loop.stats()["watched"] == 1


async def test_refused_descriptor_keeps_its_earlier_watcher(pipe):
    """A failing add_writer() must leave the reader as it was."""
    loop, (r, _) = asyncio.get_running_loop(), pipe
    loop.add_reader(r, print)
    copy = os.dup(r)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), r)
        with pytest.raises(PermissionError):
            loop.add_writer(r, print)
    assert loop._watchers(r)[0] is not None
    assert loop._watchers(r)[1] is None
    os.dup2(copy, r)
    os.close(copy)
    loop.remove_reader(r)


async def test_transports_descriptor_is_refused(pair):
    loop, (a, _) = asyncio.get_running_loop(), pair
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=a)
    for method in (loop.add_reader, loop.add_writer, loop.add_priority):
        with pytest.raises(RuntimeError, match="is used by transport"):
            method(a.fileno(), print)
    for method in (loop.remove_reader, loop.remove_writer, loop.remove_priority):
        with pytest.raises(RuntimeError, match="is used by transport"):
            method(a.fileno())
    transport.close()
    await asyncio.sleep(0)


# -- exceptional conditions ------------------------------------------------------------


async def test_out_of_band_data(tcp):
    loop, (client, server) = asyncio.get_running_loop(), tcp
    got, done = [], loop.create_future()

    def urgent():
        got.append(server.recv(1, socket.MSG_OOB))
        loop.remove_priority(server)
        done.set_result(None)

    loop.add_priority(server, urgent)
    client.send(b"ordinary")
    await turns()
    assert got == []
    client.send(b"!", socket.MSG_OOB)
    await done
    assert got == [b"!"]
    assert server.recv(100) == b"ordinary"
    assert loop.remove_priority(server) is False


async def test_priority_beside_reader_and_writer(tcp):
    loop, (client, server) = asyncio.get_running_loop(), tcp
    seen = []
    loop.add_priority(server, seen.append, "priority")
    loop.add_reader(server, seen.append, "read")
    loop.add_writer(server, seen.append, "write")
    client.send(b"x", socket.MSG_OOB)
    await turns()
    assert "priority" in seen
    assert "write" in seen
    assert loop.remove_priority(server)
    seen.clear()
    client.send(b"y")
    await turns()
    assert set(seen) == {"read", "write"}
    assert loop.remove_writer(server)
    assert loop.remove_reader(server)
    assert loop.stats()["watched"] == 1


# -- descriptors closed and used again ---------------------------------------------------


async def test_closed_under_its_reader(pipe):
    """The kernel forgets a closed file; its number may be watched again."""
    loop, (r, _) = asyncio.get_running_loop(), pipe
    seen = []
    loop.add_reader(r, seen.append, "old")
    os.close(r)
    await turns()
    with pytest.raises(OSError, match="file descriptor"):
        loop.add_writer(r, print)
    new_r, new_w = os.pipe()
    if new_r != r:
        os.dup2(new_r, r)
        os.close(new_r)
    os.write(new_w, b"x")
    await turns()
    assert seen == []  # the old watcher is not the new file's
    loop.add_reader(r, seen.append, "new")
    await turns()
    assert set(seen) == {"new"}
    assert loop.remove_reader(r)
    seen.clear()
    await turns()
    assert seen == []
    os.close(new_w)


@pytest.mark.parametrize("kind", ["reader", "writer", "priority"])
async def test_a_socket_closed_first_and_then_removed(pair, kind):
    """As selectors allow; anyio does so."""
    loop, (one, other) = asyncio.get_running_loop(), pair
    add, remove = getattr(loop, f"add_{kind}"), getattr(loop, f"remove_{kind}")
    before = loop.stats()["watched"]
    add(one, print)
    loop.add_reader(other, print)
    one.close()
    assert remove(one) is True
    assert remove(one) is False
    assert loop.remove_reader(other) is True
    assert loop.stats()["watched"] == before
    with pytest.raises(ValueError, match="-1"):
        add(one, print)


async def test_both_watchers_of_a_closed_socket_and_its_end(pair):
    loop, (one, _) = asyncio.get_running_loop(), pair
    loop.add_reader(one, print)
    loop.add_writer(one, int)
    one.close()
    assert loop.remove_reader(one) is True
    assert loop.remove_writer(one) is True
    assert loop.remove_writer(one) is False
    gone = weakref.ref(one)
    with socket.socket() as another:
        loop.add_reader(another, print)
        loop.remove_reader(another)
        ended = weakref.ref(another)
    del another
    gc.collect()
    assert ended() is None
    assert gone() is one  # the fixture's


async def test_closed_and_its_number_watched_as_another_socket(pair):
    """What is left of the old one must not touch the new one."""
    loop, (one, other) = asyncio.get_running_loop(), pair
    number = one.fileno()
    loop.add_reader(one, print)
    one.close()
    with socket.socket(fileno=os.dup(other.fileno())) as new:
        assert new.fileno() == number
        seen = []
        loop.add_writer(new, seen.append, 1)
        loop.add_reader(new, print)
        assert loop.remove_reader(one) is False
        assert loop.remove_writer(one) is False
        assert loop.remove_reader(new) is True
        await turns()
        assert seen
        assert loop.remove_writer(new) is True


async def test_closed_and_reused_without_telling_the_loop_then_removed(pipe):
    loop, (r, _) = asyncio.get_running_loop(), pipe
    loop.add_reader(r, print)
    os.close(r)
    assert os.open("/dev/null", os.O_RDONLY) == r
    assert loop.remove_reader(r) is True
    assert loop.remove_reader(r) is False
    os.close(r)
    r2, w2 = os.pipe()
    seen = []
    loop.add_reader(r2, seen.append, 1)
    os.write(w2, b"x")
    await turns()
    assert seen
    loop.remove_reader(r2)
    os.close(r2)
    os.close(w2)


async def test_duplicate_keeps_the_file_alive(pipe):
    """epoll watches files, not numbers: a duplicate must not make the loop spin or misfire."""
    loop, (r, w) = asyncio.get_running_loop(), pipe
    seen = []
    loop.add_reader(r, seen.append, "reader")
    copy = os.dup(r)
    loop.remove_reader(r)
    os.close(r)
    os.write(w, b"x")
    await turns()
    assert seen == []
    loop.add_reader(copy, seen.append, "copy")
    await turns()
    assert set(seen) == {"copy"}
    loop.remove_reader(copy)
    os.close(copy)


async def test_both_of_two_duplicates(pair):
    loop, (a, b) = asyncio.get_running_loop(), pair
    copy = a.dup()
    seen = []
    loop.add_reader(a, seen.append, "a")
    loop.add_reader(copy, seen.append, "copy")
    b.send(b"x")
    await turns()
    assert set(seen) == {"a", "copy"}
    loop.remove_reader(a)
    seen.clear()
    await turns()
    assert set(seen) == {"copy"}
    loop.remove_reader(copy)
    copy.close()


async def test_closed_with_a_duplicate_open_does_not_spin(pipe):
    """The registration outlives its number: the loop has to sleep all the same."""
    loop, (r, w) = asyncio.get_running_loop(), pipe
    seen = []
    loop.add_reader(r, seen.append, 1)
    copy = os.dup(r)
    os.close(r)  # nobody told the loop
    loop.remove_reader(r)
    os.write(w, b"x")
    await turns()
    before = loop.stats()["turns"]
    await asyncio.sleep(0.05)
    turned = loop.stats()["turns"] - before
    os.close(copy)
    assert turned < 50
    assert seen == []


def test_event_taken_before_the_number_was_reused_is_not_delivered(loop):
    """Nothing that happened to the old file may reach the new file's watcher."""
    for submit in (False, True):
        old_r, old_w = os.pipe()
        loop.add_reader(old_r, int)

        def last(old_w=old_w, submit=submit):
            os.write(old_w, b"x")
            if submit:  # something to submit when the loop stops: it enters the kernel
                loop._submit(NopOp(), lambda op: None)
            loop.stop()

        loop.call_later(0.002, last)
        loop.run_forever()
        loop.remove_reader(old_r)
        os.close(old_r)
        os.close(old_w)
        new_r, new_w = os.pipe()
        seen = []
        assert new_r == old_r
        loop.add_reader(new_r, seen.append, "never readable")
        loop.call_later(0.005, loop.stop)
        loop.run_forever()
        loop.remove_reader(new_r)
        os.close(new_r)
        os.close(new_w)
        assert seen == []


# -- many ---------------------------------------------------------------------------------


async def test_a_thousand_pipes():
    """More than one wait can bring along, and the descriptor table grows."""
    loop, rng = asyncio.get_running_loop(), random.Random(4)
    pipes = [os.pipe() for _ in range(1000)]
    seen, done = {}, loop.create_future()

    def read(r):
        assert os.read(r, 10) == b"x"
        seen[r] = seen.get(r, 0) + 1
        if len(seen) == len(pipes):
            done.set_result(None)

    for r, _ in pipes:
        loop.add_reader(r, read, r)
    assert loop.stats()["watched"] == 1001
    rng.shuffle(pipes)
    for _, w in pipes:
        os.write(w, b"x")
    await done
    await turns()
    assert seen == {r: 1 for r, _ in pipes}
    for r, w in pipes:
        assert loop.remove_reader(r)
        os.close(r)
        os.close(w)
    assert loop.stats()["watched"] == 1


async def test_all_of_many_ready_descriptors_get_their_turn():
    """400 that are always ready (a wait takes 256): none of them starves."""
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(400)]
    counts = [0] * len(pairs)

    def ready(i):
        counts[i] += 1

    for i, (a, _) in enumerate(pairs):
        loop.add_writer(a, ready, i)
    for _ in range(500):
        if min(counts) >= 3:
            break
        await asyncio.sleep(0.001)
    assert min(counts) >= 3
    for a, b in pairs:
        loop.remove_writer(a)
        a.close()
        b.close()


KINDS = ["reader", "writer", "priority"]
BITS = {"reader": select.EPOLLIN, "writer": select.EPOLLOUT, "priority": select.EPOLLPRI}
steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "remove", "fill", "drain", "close", "turn", "turn"]),
        st.integers(0, 2),
        st.sampled_from(KINDS),
    ),
    max_size=40,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the factory has no state
)
@given(steps=steps)
def test_any_history_fires_what_epoll_would(steps, loop_factory):
    """A second epoll set is asked what each descriptor is ready for."""
    loop = loop_factory()
    model = select.epoll()
    pairs = [socket.socketpair() for _ in range(3)]
    wanted, fired = {}, set()
    for end, _ in pairs:
        end.setblocking(False)
    try:
        for step, i, kind in steps:
            end, peer = pairs[i]
            fd = end.fileno()
            if step == "add":
                wanted.setdefault(fd, set()).add(kind)
                getattr(loop, f"add_{kind}")(end, fired.add, (fd, kind))
            elif step == "remove":
                had = kind in wanted.get(fd, ())
                assert getattr(loop, f"remove_{kind}")(end) is had
                wanted.get(fd, set()).discard(kind)
            elif step == "fill":
                peer.send(b"x")
            elif step == "drain":
                try:
                    end.recv(1000)
                except BlockingIOError:
                    continue
            elif step == "close":  # closed under its watchers, the number used again
                peer.close()
                end.close()
                pairs[i] = socket.socketpair()
                pairs[i][0].setblocking(False)
                for kind in KINDS:
                    getattr(loop, f"remove_{kind}")(fd)
                wanted.pop(fd, None)
            else:
                fired.clear()
                loop.call_later(0.0002, loop.stop)
                loop.run_forever()
                expected = set()
                for fd, kinds in wanted.items():
                    if kinds:
                        model.register(fd, sum(BITS[kind] for kind in kinds))
                for fd, events in model.poll(0):
                    always = events & (select.EPOLLHUP | select.EPOLLERR)
                    expected |= {(fd, k) for k in wanted[fd] if events & BITS[k] or always}
                for fd, kinds in wanted.items():
                    if kinds:
                        model.unregister(fd)
                assert fired == expected
    finally:
        loop.close()
        model.close()
        for end, peer in pairs:
            end.close()
            peer.close()


# -- the selector's view --------------------------------------------------------------------


async def test_selector_shows_the_watchers(pair):
    loop, (a, _) = asyncio.get_running_loop(), pair
    loop.add_reader(a, print)
    table = loop._selector.get_map()
    assert a.fileno() in table
    assert set(table) >= {a.fileno()}
    assert len(table) == 2
    key = loop._selector.get_key(a)
    assert (key.fd, key.events) == (a.fileno(), 1)
    assert isinstance(key.data[0], asyncio.Handle)
    assert key.data[1] is None
    loop.add_writer(a, print)
    assert loop._selector.get_key(a).events == 3
    with pytest.raises(RuntimeError, match="add_reader"):
        loop._selector.register(a, 1)
    with pytest.raises(RuntimeError, match="reactor"):
        loop._selector.select()
    loop._selector.unregister(a)
    with pytest.raises(KeyError):
        loop._selector.get_key(a)
    assert not loop.remove_reader(a)


def test_the_older_path_is_another_path(loop_factory, request):
    """The third loop of this file really is the one without EPOLL_WAIT."""
    loop = loop_factory()
    uses = getattr(loop._reactor, "uses_epoll_wait", None)
    loop.close()
    if "uring-poll" in request.node.name:
        assert uses is False
    elif loop.backend == "epoll":
        assert uses is None
    else:
        assert uses is aiounify.features()["uring_epoll_wait"].on
