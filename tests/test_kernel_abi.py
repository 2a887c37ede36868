"""What the kernel build declares, against what the kernel writes."""

import ctypes
import fcntl
import os
import re
import select
import signal
import struct
import time
from pathlib import Path

import pytest

from aiounify._kernel_events import ffi, lib

NUMBER = signal.SIGRTMIN + 3


def fdinfo(fd):
    """What /proc says of a descriptor, by name."""
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return {
        name: value.strip()
        for name, _, value in (line.partition(":") for line in text.splitlines())
    }


def made(fd):
    """A descriptor, of which everybody here asks the same: non-blocking and not inherited."""
    assert fd >= 0, os.strerror(ffi.errno)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    return fd


def test_sizes_and_offsets():
    """signalfd(2) and inotify(7) say where the kernel puts things."""
    assert ffi.sizeof("struct signalfd_siginfo") == 128
    places = {
        "ssi_signo": 0, "ssi_errno": 4, "ssi_code": 8, "ssi_pid": 12, "ssi_uid": 16, "ssi_fd": 20,
        "ssi_tid": 24, "ssi_band": 28, "ssi_overrun": 32, "ssi_trapno": 36, "ssi_status": 40,
        "ssi_int": 44, "ssi_ptr": 48, "ssi_utime": 56, "ssi_stime": 64, "ssi_addr": 72,
    }  # fmt: skip
    assert {n: ffi.offsetof("struct signalfd_siginfo", n) for n in places} == places
    assert ffi.sizeof("struct inotify_event") == 16
    places = {"wd": 0, "mask": 4, "cookie": 8, "len": 12}
    assert {n: ffi.offsetof("struct inotify_event", n) for n in places} == places


def test_signalfd():
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {NUMBER})
    fd = made(lib.au_signalfd(-1, 1 << (NUMBER - 1)))
    try:
        assert int(fdinfo(fd)["sigmask"], 16) == 1 << (NUMBER - 1)
        with pytest.raises(BlockingIOError):
            os.read(fd, 128)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.sigqueue(os.getpid(), int(NUMBER), ctypes.c_void_p(0x1234)) == 0
        os.kill(os.getpid(), NUMBER)
        record = ffi.new("struct signalfd_siginfo[2]")
        assert os.readv(fd, [ffi.buffer(record)]) == 256  # both at once
        queued, sent = record
        for each in (queued, sent):
            assert each.ssi_signo == NUMBER
            assert (each.ssi_pid, each.ssi_uid) == (os.getpid(), os.getuid())
            assert each.ssi_errno == 0
        assert queued.ssi_code == -1  # SI_QUEUE
        assert queued.ssi_int == queued.ssi_ptr == 0x1234
        assert sent.ssi_code == 0  # SI_USER
        # told another signal: the first stays pending and is not read
        assert lib.au_signalfd(fd, 1 << (signal.SIGRTMAX - 1)) == fd
        os.kill(os.getpid(), NUMBER)
        with pytest.raises(BlockingIOError):
            os.read(fd, 128)
        assert signal.sigtimedwait({NUMBER}, 0) is not None
    finally:
        os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def test_signalfd_of_a_child():
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    fd = made(lib.au_signalfd(-1, 1 << (signal.SIGCHLD - 1)))
    try:
        child = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
        while True:
            assert select.select([fd], [], [], 30)[0]
            record = ffi.new("struct signalfd_siginfo *")
            assert os.readv(fd, [ffi.buffer(record)]) == 128
            if record.ssi_pid == child:
                break
        assert record.ssi_code == 1  # CLD_EXITED
        assert record.ssi_status == 7
        os.waitpid(child, 0)
    finally:
        os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@pytest.mark.parametrize("semaphore", [0, 1])
def test_eventfd(semaphore):
    fd = made(lib.au_eventfd(5, semaphore))
    try:
        assert int(fdinfo(fd)["eventfd-count"], 16) == 5
        assert os.read(fd, 8) == struct.pack("Q", 1 if semaphore else 5)
        assert int(fdinfo(fd)["eventfd-count"], 16) == (4 if semaphore else 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("clock", [time.CLOCK_MONOTONIC, time.CLOCK_REALTIME, time.CLOCK_BOOTTIME])
def test_timerfd(clock):
    fd = made(lib.au_timerfd_create(clock))
    try:
        assert int(fdinfo(fd)["clockid"]) == clock
        due = time.clock_gettime_ns(clock) + 1000 * 10**9 + 123
        told = clock == time.CLOCK_REALTIME
        assert lib.au_timerfd_set(fd, due, told) == 0
        info = fdinfo(fd)
        flags = 1 | 2 * told  # TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET
        assert int(info["settime flags"], 8) == flags
        seconds, nanoseconds = map(int, re.findall(r"\d+", info["it_value"]))
        assert seconds * 10**9 + nanoseconds <= 1000 * 10**9 + 123  # what is left
        assert seconds > 0
        assert lib.au_timerfd_set(fd, 0, told) == 0  # past
        assert select.select([fd], [], [], 30)[0]
        assert os.read(fd, 8) == struct.pack("Q", 1)
        assert lib.au_timerfd_set(fd, -1, told) == 0  # disarmed
        assert fdinfo(fd)["it_value"] == "(0, 0)"
    finally:
        os.close(fd)


def test_pidfd():
    child = os.posix_spawn("/bin/sleep", ["sleep", "30"], {}, setpgroup=0)
    fd = lib.au_pidfd_open(child)
    try:
        assert fd >= 0, os.strerror(ffi.errno)
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert int(fdinfo(fd)["Pid"]) == child
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        assert select.select([fd], [], [], 30)[0]
        found = ffi.new("au_exit *")
        assert lib.au_waitid(1, fd, 0, found) == 1
        assert (found.pid, found.uid) == (child, os.getuid())
        assert (found.code, found.status) == (os.CLD_KILLED, signal.SIGKILL)
        assert found.counts[0] > 0  # ru_maxrss
        assert lib.au_pidfd_open(child) == -1  # it was reaped
    finally:
        os.close(fd)


def test_inotify(tmp_path):
    fd = made(lib.au_inotify_init())
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        mask = lib.IN_CREATE | 0x40 | 0x80  # IN_MOVED_FROM, IN_MOVED_TO
        assert lib.IN_MOVED_FROM == 0x40
        watch = libc.inotify_add_watch(fd, os.fsencode(tmp_path), mask)
        assert watch >= 0
        (tmp_path / "old").touch()
        (tmp_path / "old").rename(tmp_path / "a longer new name")
        data = os.read(fd, 4096)
        at, got = 0, []
        while at < len(data):
            event = ffi.from_buffer("struct inotify_event *", data[at : at + 16])
            assert event.wd == watch
            name = data[at + 16 : at + 16 + event.len].rstrip(b"\0")
            got.append((event.mask, event.cookie, name))
            at += 16 + event.len
        assert at == len(data)
        (_, none, _), (_, one, _), (_, same, _) = got
        assert none == 0 != one == same
        assert [(mask, name) for mask, _, name in got] == [
            (lib.IN_CREATE, b"old"),
            (lib.IN_MOVED_FROM, b"old"),
            (0x80, b"a longer new name"),
        ]
    finally:
        os.close(fd)
