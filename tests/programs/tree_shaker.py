"""Random operations on a directory tree: each line of input is `SEED COUNT`, answered by a line.

`python tree_shaker.py ROOT OUTSIDE`; things are moved in from OUTSIDE and out to it.
"""

import contextlib
import os
import random
import shutil
import sys

NAMES = "abcd"


def somewhere(rng: random.Random, root: str) -> str:
    """The path of something below root, which may exist or not."""
    return os.path.join(root, *(rng.choice(NAMES) for _ in range(rng.randint(1, 4))))


def step(rng: random.Random, root: str, outside: str) -> None:
    path = somewhere(rng, root)
    action = rng.randrange(9)
    with contextlib.suppress(OSError, shutil.Error):
        if action <= 1:
            os.makedirs(path)
        elif action <= 3:
            with open(path, "a") as f:
                f.write("x")
        elif action == 4:
            os.unlink(path)
        elif action == 5:
            shutil.rmtree(path)
        elif action == 6:
            os.rename(path, somewhere(rng, root))
        elif action == 7:
            os.rename(path, somewhere(rng, outside))
        else:
            os.rename(somewhere(rng, outside), path)


def shake(seed: int, count: int, root: str, outside: str) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        step(rng, root, outside)


def main() -> None:
    root, outside = sys.argv[1:]
    for line in sys.stdin:
        seed, count = map(int, line.split())
        shake(seed, count, root, outside)
        print("done", flush=True)


if __name__ == "__main__":
    main()
