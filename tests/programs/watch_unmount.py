"""Watch a tmpfs that is unmounted, as root and below one; status 77 if mounting is not allowed."""

import asyncio
import ctypes
import os
import sys
import tempfile
from pathlib import Path

import aiounify
from aiounify.watching import Kind

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x20000
MS_PRIVATE, MS_REC = 1 << 18, 1 << 14


def need(result: int) -> None:
    if result:
        print(os.strerror(ctypes.get_errno()))
        sys.exit(77)


async def main(folder: Path) -> None:
    mount = folder / "mount"
    mount.mkdir()
    (mount / "under").touch()

    need(libc.mount(b"none", os.fsencode(mount), b"tmpfs", 0, None))
    (mount / "over").touch()
    async with aiounify.watch(mount, recursive=True) as watch:
        (mount / "more").touch()
        need(libc.umount(os.fsencode(mount)))
        async with asyncio.timeout(20):
            names = [Path(c.path).name async for c in watch if c.kind is Kind.CREATED]
        assert names == ["more"], names
        assert watch.reason == "unmounted", watch.reason

    need(libc.mount(b"none", os.fsencode(mount), b"tmpfs", 0, None))
    (mount / "over").touch()
    async with aiounify.watch(folder, recursive=True) as watch:
        need(libc.umount(os.fsencode(mount)))
        seen = set()
        async with asyncio.timeout(20):
            async for change in watch:
                seen.add((change.kind, Path(change.path).name))
                if {(Kind.DELETED, "over"), (Kind.CREATED, "under")} <= seen:
                    break
        (mount / "later").touch()
        async with asyncio.timeout(20):
            async for change in watch:
                if Path(change.path).name == "later":
                    break
        assert watch.reason is None


if __name__ == "__main__":
    need(libc.unshare(CLONE_NEWNS))
    need(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    with tempfile.TemporaryDirectory() as folder:
        aiounify.run(main(Path(folder)))
