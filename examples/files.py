"""Compare two directory trees by what is in their files, many files in flight at a time.

    python examples/files.py LEFT RIGHT [--jobs N] [--quiet]

Prints what is on one side only and what differs, as diff -rq does, and ends with status 0 if the
trees are the same, 1 if not, 2 if something could not be read.  Files of different sizes are not
read.  A bar on standard error shows how far it is, if that is a terminal.

One task for each of N jobs takes the next pair of files, reads both sides at once and hashes them;
the walk through both trees, the reading and the output are all awaited in one loop.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import stat
import sys
import time
from collections import deque
from dataclasses import dataclass, field

import aiounify
from aiounify import files

PIECE = 256 * 1024
BAR = 30


@dataclass(frozen=True)
class Entry:
    """What is compared before anything is read."""

    kind: int
    size: int
    target: str = ""


@dataclass
class Tree:
    """One side: what is below its top, by relative name."""

    top: files.Path
    found: dict[str, Entry] = field(default_factory=dict)


@dataclass
class Progress:
    """What has been done of what there is to do, and the bar that shows it."""

    files: int = 0
    of_files: int = 0
    bytes: int = 0
    of_bytes: int = 0
    began: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        share = self.bytes / self.of_bytes if self.of_bytes else 1.0
        bar = "#" * round(share * BAR)
        rate = self.bytes / 1e6 / max(time.monotonic() - self.began, 1e-9)
        return (
            f"[{bar:<{BAR}}] {share:4.0%}  {self.files}/{self.of_files} files  "
            f"{self.bytes / 1e6:.1f} MB  {rate:.0f} MB/s"
        )

    async def show(self) -> None:
        """Draw it ten times a second, until cancelled."""
        try:
            while True:
                await files.stderr.write(f"\r{self.line()}\x1b[K")
                await asyncio.sleep(0.1)
        finally:
            # the last state stays to be read
            await files.stderr.write(f"\r{self.line()}\x1b[K\n")


async def describe(path: files.Path) -> Entry:
    """Type, size and, of a link, where it points."""
    found = await path.lstat()
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFLNK:
        return Entry(kind, 0, str(await path.readlink()))
    return Entry(kind, found.st_size if kind == stat.S_IFREG else 0)


async def survey(tree: Tree) -> None:
    """Find everything in the tree; OSError for a directory that cannot be read."""

    def fail(exc: OSError) -> None:
        raise exc

    async for directory, directories, others in tree.top.walk(on_error=fail):
        paths = [directory / name for name in [*directories, *others]]
        described = await asyncio.gather(*map(describe, paths))
        for path, about in zip(paths, described, strict=True):
            tree.found[str(path.relative_to(tree.top))] = about


async def digest(path: files.Path, progress: Progress) -> bytes:
    """The hash of a file's content."""
    state = hashlib.blake2b()
    async with files.open(path, "rb") as file:
        while data := await file.read(PIECE):
            state.update(data)
            progress.bytes += len(data)
    return state.digest()


async def same_content(name: str, left: Tree, right: Tree, progress: Progress) -> bool:
    """Whether both sides of a pair hash to the same."""
    async with asyncio.TaskGroup() as both:
        one = both.create_task(digest(left.top / name, progress))
        other = both.create_task(digest(right.top / name, progress))
    progress.files += 2
    return one.result() == other.result()


async def compare(left: Tree, right: Tree, jobs: int, progress: Progress) -> list[str]:
    """Lines that tell each difference, sorted by name."""
    async with asyncio.TaskGroup() as both:
        both.create_task(survey(left))
        both.create_task(survey(right))
    differences: dict[str, str] = {}
    pairs: deque[str] = deque()
    for name in left.found.keys() | right.found.keys():
        if name not in right.found:
            differences[name] = f"only in {left.top}: {name}"
        elif name not in left.found:
            differences[name] = f"only in {right.top}: {name}"
        elif left.found[name] != right.found[name]:
            differences[name] = f"differs: {name}"
        elif left.found[name].kind == stat.S_IFREG and left.found[name].size:
            pairs.append(name)
            progress.of_files += 2
            progress.of_bytes += 2 * left.found[name].size

    async def job() -> None:
        while pairs:
            name = pairs.popleft()
            if not await same_content(name, left, right, progress):
                differences[name] = f"differs: {name}"

    async with asyncio.TaskGroup() as group:
        for _ in range(min(jobs, len(pairs))):
            group.create_task(job())
    return [differences[name] for name in sorted(differences)]


def reasons(exc: BaseException) -> list[str]:
    """What went wrong, of the exceptions in a group one by one."""
    if isinstance(exc, BaseExceptionGroup):
        return [reason for each in exc.exceptions for reason in reasons(each)]
    return [str(exc)]


async def main(left: str, right: str, jobs: int, quiet: bool) -> int:
    progress = Progress()
    drawing = None
    if not quiet and await files.stderr.isatty():
        drawing = asyncio.create_task(progress.show())
    lines, failures = [], []
    try:
        lines = await compare(Tree(files.Path(left)), Tree(files.Path(right)), jobs, progress)
    except* OSError as failed:
        failures = reasons(failed)
    finally:
        if drawing is not None:
            drawing.cancel()
            await asyncio.wait([drawing])
    if failures:
        await files.stderr.writelines([f"{line}\n" for line in failures])
        return 2
    await files.stdout.writelines([f"{line}\n" for line in lines])
    await files.stdout.write(
        f"{progress.files} files read, {progress.bytes} bytes, {len(lines)} differences\n"
    )
    return 1 if lines else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare two directory trees.")
    parser.add_argument("left")
    parser.add_argument("right")
    parser.add_argument("--jobs", type=int, default=64, help="pairs of files in flight (64)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    sys.exit(aiounify.run(main(options.left, options.right, max(1, options.jobs), options.quiet)))
