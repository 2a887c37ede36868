"""Asks the kernel for the system calls of files, by making them with harmless arguments."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

from aiounify._kernel_files import ffi, lib
from aiounify.features import Feature

__all__ = ["files_offered"]

_AT_FDCWD = -100


def _why(since: str) -> str:
    code = ffi.errno
    name = errno.errorcode.get(code, str(code))
    return f"needs Linux {since} ({name})" if code == errno.ENOSYS else os.strerror(code)


def _openat2() -> Feature:
    # Not in the cache is an answer, too: EAGAIN.
    fd = lib.aio_openat2(_AT_FDCWD, b"/", os.O_RDONLY | os.O_CLOEXEC, 0, lib.RESOLVE_CACHED)
    if fd < 0 and ffi.errno != errno.EAGAIN:
        return Feature(False, f"{_why('5.12')}; instead: every open() and stat() is waited for")
    if fd >= 0:
        os.close(fd)
    return Feature(True, "openat2(RESOLVE_CACHED): what is cached is opened at once")


def _nowait(path: str) -> Feature:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        return Feature(False, f"not asked: {exc}")
    try:
        got = lib.aio_preadv2(fd, ffi.new("char[1]"), 1, 0, lib.RWF_NOWAIT)
        if got < 0 and ffi.errno != errno.EAGAIN:
            return Feature(False, f"{_why('4.14')}, where {path} is; instead: reads are waited for")
    finally:
        os.close(fd)
    return Feature(True, f"preadv2(RWF_NOWAIT), where {path} is: what is cached is read at once")


def _libaio() -> Feature:
    context = ffi.new("unsigned long *")
    if lib.aio_io_setup(1, context) < 0:
        return Feature(False, f"{_why('2.6')}; instead, on epoll: threads for O_DIRECT")
    try:
        if _read_by_aio(context[0]) != 1:
            return Feature(False, f"{_why('2.6')}; instead, on epoll: threads for O_DIRECT")
    finally:
        lib.aio_io_destroy(context[0])
    return Feature(True, "io_submit: O_DIRECT on epoll")


def _read_by_aio(context: int) -> int:
    """Read a byte by a real request: how many came, or a negative number."""
    fd = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        into = ffi.new("char[1]")
        request: Any = ffi.new("struct iocb *")
        request.aio_lio_opcode = lib.IOCB_CMD_PREAD
        request.aio_fildes = fd
        request.aio_buf = int(ffi.cast("uintptr_t", into))
        request.aio_nbytes = 1
        event: Any = ffi.new("struct io_event *")
        if lib.aio_io_submit(context, 1, ffi.new("struct iocb *[1]", [request])) != 1:
            return -1
        if lib.aio_io_getevents(context, 1, 1, event, -1) != 1:
            return -1
        return int(event.res)
    finally:
        os.close(fd)


def _statx() -> Feature:
    found: Any = ffi.new("struct statx *")
    mask = lib.STATX_BASIC | lib.STATX_BTIME | lib.STATX_MNT_ID | lib.STATX_DIOALIGN
    if lib.aio_statx(_AT_FDCWD, b"/", 0, mask, found) < 0:
        return Feature(False, _why("4.11"))
    names = {"btime": lib.STATX_BTIME, "mount_id": lib.STATX_MNT_ID}
    told = [name for name, bit in names.items() if found.stx_mask & bit]
    return Feature(True, f"statx, of / also: {', '.join(told) or 'nothing more than stat'}")


def files_offered() -> dict[str, Feature]:
    """By the keys of features()."""
    return {
        "files_openat2": _openat2(),
        "files_nowait": _nowait(sys.executable or "/proc/self/exe"),
        "files_libaio": _libaio(),
        "files_statx": _statx(),
    }
