"""The declared kernel interface of files: each call is made, and does what its manual page says."""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING, Any

import pytest

import aiounify
from aiounify import _kernel_files_probe
from aiounify._kernel_files import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AT_FDCWD = -100


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"0123456789")
    yield fd
    os.close(fd)


def offered(key: str) -> None:
    if not aiounify.features()[key].on:
        pytest.skip(aiounify.features()[key].detail)


def test_statx(tmp_path: Path, fd: int) -> None:
    offered("files_statx")
    found: Any = ffi.new("struct statx *")
    path = os.fsencode(tmp_path / "f")
    assert lib.aio_statx(AT_FDCWD, path, 0, lib.STATX_BASIC | lib.STATX_BTIME, found) == 0
    status = os.fstat(fd)
    assert (found.stx_ino, found.stx_size, found.stx_mode) == (status.st_ino, 10, status.st_mode)
    assert os.makedev(found.stx_dev_major, found.stx_dev_minor) == status.st_dev
    assert found.stx_mtime.tv_sec * 10**9 + found.stx_mtime.tv_nsec == status.st_mtime_ns
    assert lib.aio_statx(fd, b"", lib.AT_EMPTY_PATH, lib.STATX_BASIC, found) == 0
    assert found.stx_ino == status.st_ino
    (tmp_path / "link").symlink_to("f")
    link = os.fsencode(tmp_path / "link")
    assert lib.aio_statx(AT_FDCWD, link, lib.AT_SYMLINK_NOFOLLOW, lib.STATX_BASIC, found) == 0
    assert found.stx_ino == (tmp_path / "link").lstat().st_ino
    assert lib.aio_statx(AT_FDCWD, b"/nonexistent", 0, lib.STATX_BASIC, found) == -1
    assert ffi.errno == errno.ENOENT


def test_openat2(tmp_path: Path, fd: int) -> None:
    offered("files_openat2")
    path = os.fsencode(tmp_path / "f")
    flags = os.O_RDONLY | os.O_CLOEXEC
    opened = lib.aio_openat2(AT_FDCWD, path, flags, 0, lib.RESOLVE_CACHED)
    assert os.fstat(opened).st_ino == os.fstat(fd).st_ino
    os.close(opened)
    assert lib.aio_openat2(AT_FDCWD, path, flags, 0, 1 << 60) == -1
    assert ffi.errno == errno.EINVAL
    # what has to be made is never cached
    flags |= os.O_CREAT | os.O_WRONLY
    new = os.fsencode(tmp_path / "new")
    assert lib.aio_openat2(AT_FDCWD, new, flags, 0o600, lib.RESOLVE_CACHED) == -1
    assert ffi.errno == errno.EAGAIN


def test_preadv2(fd: int) -> None:
    into = ffi.new("char[4]")
    assert lib.aio_preadv2(fd, into, 4, 3, 0) == 4
    assert bytes(ffi.buffer(into)) == b"3456"
    offered("files_nowait")
    reader, writer = os.pipe()
    try:
        assert lib.aio_preadv2(reader, into, 4, -1, lib.RWF_NOWAIT) == -1
        assert ffi.errno in (errno.EAGAIN, errno.EOPNOTSUPP)
    finally:
        os.close(reader)
        os.close(writer)


def request(fd: int, opcode: int, memory: Any, size: int, offset: int, event_fd: int) -> Any:
    made: Any = ffi.new("struct iocb *")
    made.aio_data = 77
    made.aio_lio_opcode = opcode
    made.aio_fildes = fd
    made.aio_buf = int(ffi.cast("uintptr_t", memory))
    made.aio_nbytes = size
    made.aio_offset = offset
    made.aio_flags = lib.IOCB_FLAG_RESFD
    made.aio_resfd = event_fd
    return made


def test_kernel_aio(fd: int) -> None:
    offered("files_libaio")
    context = ffi.new("unsigned long *")
    assert lib.aio_io_setup(4, context) == 0
    event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    events: Any = ffi.new("struct io_event[4]")
    try:
        assert lib.aio_io_getevents(context[0], 0, 4, events, 0) == 0
        into, out = ffi.new("char[4]"), ffi.new("char[]", b"AB")
        both = [
            request(fd, lib.IOCB_CMD_PREAD, into, 4, 2, event_fd),
            request(fd, lib.IOCB_CMD_PWRITE, out, 2, 8, event_fd),
        ]
        assert lib.aio_io_submit(context[0], 2, ffi.new("struct iocb *[2]", both)) == 2
        assert select.select([event_fd], [], [], 60)[0] == [event_fd]
        assert lib.aio_io_getevents(context[0], 2, 4, events, -1) == 2
        assert sorted(int(events[i].res) for i in range(2)) == [2, 4]
        assert {int(events[i].data) for i in range(2)} == {77}
        assert bytes(ffi.buffer(into)) == b"2345"
        assert os.pread(fd, 10, 0) == b"01234567AB"
        assert os.eventfd_read(event_fd) == 2
        # what has ended cannot be cancelled
        assert lib.aio_io_cancel(context[0], both[0], events) == -1
        assert ffi.errno in (errno.EINVAL, errno.EAGAIN)
        both[0].aio_rw_flags = 1 << 30
        assert lib.aio_io_submit(context[0], 1, ffi.new("struct iocb *[1]", both[:1])) == -1
        assert ffi.errno == errno.EOPNOTSUPP
    finally:
        os.close(event_fd)
        assert lib.aio_io_destroy(context[0]) == 0
    assert lib.aio_io_getevents(context[0], 0, 1, events, 0) == -1
    assert ffi.errno == errno.EINVAL


def test_locks_of_an_open_file_description(tmp_path: Path, fd: int) -> None:
    other = os.open(tmp_path / "f", os.O_RDWR)
    try:
        assert lib.aio_ofd_lock(fd, lib.OFD_WRITE, 0, 5) == 0
        assert lib.aio_ofd_lock(other, lib.OFD_WRITE, 5, 5) == 0
        assert lib.aio_ofd_lock(other, lib.OFD_READ, 4, 1) == -1
        assert ffi.errno in (errno.EAGAIN, errno.EACCES)
        assert lib.aio_ofd_lock(fd, lib.OFD_NONE, 0, 5) == 0
        assert lib.aio_ofd_lock(other, lib.OFD_READ, 4, 1) == 0
    finally:
        os.close(other)


def test_what_features_says_of_them() -> None:
    found = _kernel_files_probe.files_offered()
    assert set(found) == {"files_openat2", "files_nowait", "files_libaio", "files_statx"}
    assert all(feature.detail for feature in found.values())
