"""Too many watches, in a user namespace with a limit of its own; status 77 if there is none."""

import ctypes
import errno
import os
import sys
import tempfile
from pathlib import Path

import aiounify

CLONE_NEWUSER = 0x10000000
# that of the namespace; the one of fs.inotify is everybody's
LIMIT = Path("/proc/sys/user/max_inotify_watches")


async def main(root: Path) -> None:
    for i in range(20):
        (root / "many" / str(i)).mkdir(parents=True)
    (root / "few").mkdir()
    try:
        async with aiounify.watch(root / "many", recursive=True):
            raise AssertionError("more watches than the limit")
    except OSError as exc:
        assert exc.errno == errno.ENOSPC, exc
        assert "user.max_inotify_watches is 10" in str(exc), exc
        assert exc.filename, exc
    # what failed has left nothing
    async with aiounify.watch(root / "few", recursive=True) as watch:
        for i in range(20):
            (root / "few" / str(i)).mkdir()
        try:
            async for _ in watch:
                pass
        except OSError as exc:
            assert exc.errno == errno.ENOSPC, exc
            assert "user.max_inotify_watches is 10" in str(exc), exc
        else:
            raise AssertionError(f"no error, but {watch.reason}")
        assert watch.reason == "failed"


if __name__ == "__main__":
    uid, gid = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER):
        print(os.strerror(ctypes.get_errno()))
        sys.exit(77)
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        LIMIT.write_text("10")
        if LIMIT.read_text().strip() != "10":
            raise OSError("the limit stays")
    except OSError as exc:
        print(exc)
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        aiounify.run(main(Path(folder)))
