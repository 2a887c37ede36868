"""A copy of a tree that is kept by changes alone, and compared with the real one."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from aiounify.watching import Change, Kind

if TYPE_CHECKING:
    from pathlib import Path

    from aiounify.watching import Watch


def real_tree(root: str) -> dict[str, bool]:
    """Every path below root, and whether it is a directory."""
    found: dict[str, bool] = {}
    for folder, folders, files in os.walk(root):
        found.update((f"{folder}/{name}", True) for name in folders)
        found.update((f"{folder}/{name}", False) for name in files)
    return found


class Shadow:
    """Fails when a change does not fit what was told before: no gaps, no doubles."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.tree = real_tree(self.root)
        self.overflows = 0

    def below(self, path: str) -> list[str]:
        return [p for p in self.tree if p == path or p.startswith(path + "/")]

    def apply(self, change: Change) -> None:
        path, old = change.path, change.old_path
        if change.kind is Kind.OVERFLOW:
            self.overflows += 1
        elif change.kind is Kind.CREATED:
            assert path not in self.tree, f"{change} is told twice"
            parent = path.rpartition("/")[0]
            assert parent == self.root or self.tree[parent], change
            self.tree[path] = change.is_dir
        elif change.kind is Kind.DELETED:
            assert self.tree[path] == change.is_dir, change
            for gone in self.below(path):
                del self.tree[gone]
        elif change.kind is Kind.MOVED:
            assert old is not None
            assert self.tree[old] == change.is_dir, change
            moved = {path + p[len(old) :]: self.tree.pop(p) for p in self.below(old)}
            for replaced in self.below(path):
                del self.tree[replaced]
            self.tree |= moved
        else:
            assert path in self.tree or path == self.root, change

    async def follow(self, watch: Watch) -> list[Change]:
        """Take what there is until this is the real tree; returns what was told."""
        told: list[Change] = []
        real = real_tree(self.root)
        for _ in range(200):
            changes = watch.drain()
            for change in changes:
                self.apply(change)
            told += changes
            if not changes and self.tree == real:
                return told
            await asyncio.sleep(0.002)
        missing = {p for p in real if self.tree.get(p) != real[p]}
        extra = {p for p in self.tree if self.tree[p] != real.get(p)}
        raise AssertionError(f"not told: {missing}; told, but not there: {extra}")
