"""Random operations on a directory tree: each line of input is `SEED COUNT`, answered by a line.

`python tree_shaker.py ROOT OUTSIDE`; things are moved in from OUTSIDE and out to it.
"""

import contextlib
import random
import shutil
import sys
from pathlib import Path

NAMES = "abcd"


def somewhere(rng: random.Random, root: Path) -> Path:
    """The path of something below root, which may exist or not."""
    return root.joinpath(*(rng.choice(NAMES) for _ in range(rng.randint(1, 4))))


def step(rng: random.Random, root: Path, outside: Path) -> None:
    path = somewhere(rng, root)
    action = rng.randrange(9)
    with contextlib.suppress(OSError, shutil.Error):
        if action <= 1:
            path.mkdir(parents=True)
        elif action <= 3:
            with path.open("a") as f:
                f.write("x")
        elif action == 4:
            path.unlink()
        elif action == 5:
            shutil.rmtree(path)
        elif action == 6:
            path.rename(somewhere(rng, root))
        elif action == 7:
            path.rename(somewhere(rng, outside))
        else:
            somewhere(rng, outside).rename(path)


def shake(seed: int, count: int, root: Path, outside: Path) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        step(rng, root, outside)


def main() -> None:
    root, outside = map(Path, sys.argv[1:])
    for line in sys.stdin:
        seed, count = map(int, line.split())
        shake(seed, count, root, outside)
        print("done", flush=True)


if __name__ == "__main__":
    main()
