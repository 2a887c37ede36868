"""A directory that bind mounts show twice in a tree; status 77 if mounting is not allowed."""

import ctypes
import os
import sys
import tempfile
from pathlib import Path

from shadow import Shadow

import aiounify
from aiounify.watching import Kind

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x20000
MS_BIND, MS_PRIVATE, MS_REC = 1 << 12, 1 << 18, 1 << 14


def need(result: int) -> None:
    if result:
        print(os.strerror(ctypes.get_errno()))
        sys.exit(77)


def kernel_watches() -> int:
    for fd in Path("/proc/self/fd").iterdir():
        if "inotify" in os.readlink(fd):  # noqa: PTH115
            return Path(f"/proc/self/fdinfo/{fd.name}").read_text().count("inotify wd:")
    return 0


async def main(folder: Path) -> None:
    real, shown = folder / "real", folder / "shown"
    (real / "sub").mkdir(parents=True)
    shown.mkdir()
    need(libc.mount(os.fsencode(real), os.fsencode(shown), None, MS_BIND, None))
    shadow = Shadow(folder)
    async with aiounify.watch(folder, recursive=True) as watch:
        # the root, and the two directories once each, by whatever path
        assert watch._directories == 5
        assert kernel_watches() == 3
        (real / "file").touch()
        (shown / "sub" / "inner").touch()
        (real / "new").mkdir()
        (shown / "new" / "x").touch()
        told = await shadow.follow(watch)
        created = {c.path.removeprefix(f"{folder}/") for c in told if c.kind is Kind.CREATED}
        assert created == {
            f"{top}/{name}"
            for top in ("real", "shown")
            for name in ("file", "sub/inner", "new", "new/x")
        }, created
        (shown / "sub").rename(shown / "moved")
        (real / "moved" / "inner").unlink()
        told = await shadow.follow(watch)
        moved = {c.path.removeprefix(f"{folder}/") for c in told if c.kind is Kind.MOVED}
        assert moved, told
    need(libc.umount(os.fsencode(shown)))


if __name__ == "__main__":
    need(libc.unshare(CLONE_NEWNS))
    need(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    with tempfile.TemporaryDirectory() as folder:
        aiounify.run(main(Path(folder)))
