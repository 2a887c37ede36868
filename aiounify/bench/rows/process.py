"""Child processes."""

import asyncio
import shutil
from itertools import repeat

from aiounify.bench.rows.base import LoopRow, Run

__all__ = ["ROWS"]


def _true(loop: asyncio.AbstractEventLoop) -> Run:
    program = shutil.which("true")
    if program is None:
        raise FileNotFoundError("no program called true")
    path: str = program

    async def children(n: int) -> None:
        for _ in repeat(None, n):
            child = await asyncio.create_subprocess_exec(path)
            status = await child.wait()
            if status != 0:
                raise RuntimeError(f"true ended with status {status}")

    return lambda n: loop.run_until_complete(children(n))


ROWS = (
    LoopRow(
        "subprocess",
        "create_subprocess_exec('true') and wait for its end.",
        ("process",),
        "child",
        _true,
        counted=20,
    ),
)
