"""A tree shaken behind a queue of 16 events; status 77 if the queue cannot be made small."""

import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from shadow import Shadow
from tree_shaker import shake

import aiounify

QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")


def set_queue(length: str) -> None:
    """For the inotify instances that are made from now on, in the whole system."""
    QUEUE.write_text(length)


async def main(folder: Path, rounds: int, before: str) -> None:
    root, outside = folder / "root", folder / "outside"
    root.mkdir()
    outside.mkdir()
    shadow = Shadow(root)
    try:
        set_queue("16")
    except OSError as exc:
        print(exc)
        sys.exit(77)
    watch = aiounify.watch(root, recursive=True)
    try:
        await watch.__aenter__()
    finally:
        set_queue(before)
    with closing(watch):
        for seed in range(rounds):
            shake(seed, 40, root, outside)
            await shadow.follow(watch)
        assert shadow.overflows > rounds // 4, shadow.overflows

        # a file that was only written to while events were lost
        for name in ("quiet", *map(str, range(40))):
            (root / name).touch()
        await shadow.follow(watch)
        for name in (*map(str, range(40)), "quiet"):
            (root / name).write_text("x")
        changed = await shadow.follow(watch)
        assert any(c.found and c.path == str(root / "quiet") for c in changed), changed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        aiounify.run(main(Path(folder), int(os.environ.get("ROUNDS", "40")), QUEUE.read_text()))
