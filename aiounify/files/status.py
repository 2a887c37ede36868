"""What the kernel knows about a file: statx(2), and os.stat_result made of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from aiounify._core.file_op import statx_op
from aiounify._kernel_files import ffi, lib
from aiounify.files.operation import checked, encoded

if TYPE_CHECKING:
    from aiounify._core.file_service import FileService

_AT_FDCWD = -100


class Statx(NamedTuple):
    """statx(2): times in nanoseconds since 1970; None for what the file system does not tell."""

    mode: int
    ino: int
    dev: int
    rdev: int
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    blksize: int
    attributes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int | None
    mount_id: int | None
    direct_memory_align: int | None
    direct_offset_align: int | None


def _ns(time: Any) -> int:
    return int(time.tv_sec) * 1_000_000_000 + int(time.tv_nsec)


def _statx(space: bytearray) -> Statx:
    x: Any = ffi.cast("struct statx *", ffi.from_buffer(space))
    has = x.stx_mask
    direct = has & lib.STATX_DIOALIGN and x.stx_dio_offset_align
    return Statx(
        x.stx_mode,
        x.stx_ino,
        os.makedev(x.stx_dev_major, x.stx_dev_minor),
        os.makedev(x.stx_rdev_major, x.stx_rdev_minor),
        x.stx_nlink,
        x.stx_uid,
        x.stx_gid,
        x.stx_size,
        x.stx_blocks,
        x.stx_blksize,
        x.stx_attributes,
        _ns(x.stx_atime),
        _ns(x.stx_mtime),
        _ns(x.stx_ctime),
        _ns(x.stx_btime) if has & lib.STATX_BTIME else None,
        x.stx_mnt_id if has & lib.STATX_MNT_ID else None,
        x.stx_dio_mem_align if direct else None,
        x.stx_dio_offset_align if direct else None,
    )


async def statx_path(
    files: FileService, path: Any, *, dir_fd: int | None = None, follow: bool = True
) -> Statx:
    """statx(2) of a path."""
    space = bytearray(256)
    mask = lib.STATX_BASIC | lib.STATX_BTIME | lib.STATX_MNT_ID | lib.STATX_DIOALIGN
    op = statx_op(
        _AT_FDCWD if dir_fd is None else dir_fd,
        encoded(path),
        0 if follow else lib.AT_SYMLINK_NOFOLLOW,
        mask,
        space,
    )
    await checked(files, op, path)
    return _statx(space)


async def statx_of(files: FileService, fd: int) -> Statx:
    """statx(2) of an open file."""
    space = bytearray(256)
    mask = lib.STATX_BASIC | lib.STATX_BTIME | lib.STATX_MNT_ID | lib.STATX_DIOALIGN
    await checked(files, statx_op(fd, b"", lib.AT_EMPTY_PATH, mask, space))
    return _statx(space)


def as_stat_result(x: Statx) -> os.stat_result:
    """The same as os.stat() makes it."""
    times = (x.atime_ns, x.mtime_ns, x.ctime_ns)
    return os.stat_result(
        (
            x.mode,
            x.ino,
            x.dev,
            x.nlink,
            x.uid,
            x.gid,
            x.size,
            *(t // 1_000_000_000 for t in times),
            # in floats as os.stat() rounds them
            *(t // 1_000_000_000 + 1e-9 * (t % 1_000_000_000) for t in times),
            *times,
            x.blksize,
            x.blocks,
            x.rdev,
        )
    )
