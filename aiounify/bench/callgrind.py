"""User-space instructions for one operation, without a hardware counter: the work under valgrind.

Valgrind's callgrind counts the instructions that it executes, so the same work gives the same count
on any machine, however busy.  What happens in the kernel is not seen.

A loop does N operations and then 3 N, for both of which the total is read within the process; the
difference of the two divided by 2 N is what one operation costs.  Whatever happens once for each
reading - the answer to the runner, the load generator's first and last rounds - cancels out.
"""

import contextlib
import shutil
import statistics
import tempfile
from pathlib import Path

from aiounify.bench.channel import Command, Measurement
from aiounify.bench.child import Child, ChildError
from aiounify.bench.rows import LoopRow, Row, ServerRow

__all__ = ["INSTALL", "available", "count", "sizes"]

INSTALL = "valgrind is not installed (Debian, Ubuntu: apt-get install valgrind)"

_PAIRS = 3
# Seconds; a process under valgrind runs fifty times slower.
_START = 120.0
_PATIENCE = 90.0


def available() -> bool:
    return shutil.which("valgrind") is not None


def sizes(row: Row) -> tuple[int, int]:
    """N and 3 N of a row; (0, 0) if there is nothing to count."""
    if isinstance(row, LoopRow):
        n = -(-row.counted // row.batch) * row.batch
    elif isinstance(row, ServerRow):
        # Each connection several times, as in a window.
        n = max(row.counted, 3 * row.connections) if row.counted else 0
    else:
        n = 0
    return n, 3 * n


def count(row: Row, loop: str, server_cpu: int, client_cpu: int) -> float:
    """Instructions for one operation; raises ChildError with the reason if there is no number."""
    less, more = sizes(row)
    if less == 0:
        raise ChildError("callgrind cannot count this row", "")
    with contextlib.ExitStack() as stack:
        target = Path(stack.enter_context(tempfile.TemporaryDirectory()), "counts")
        worker = stack.enter_context(
            Child(
                "aiounify.bench.worker",
                *("--cpu", str(server_cpu), "--loop", loop, "--row", row.name),
                *("--callgrind", str(target)),
                under=[
                    "valgrind",
                    "--quiet",
                    "--tool=callgrind",
                    "--instr-atstart=no",
                    f"--callgrind-out-file={target}",
                ],
            )
        )
        reply = worker.wait_ready(_START)
        client: Child | None = None
        if isinstance(row, ServerRow):
            address = reply["address"]
            if len(address) == 1:
                directory = Path(str(address[0])).parent
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
            client = stack.enter_context(Child("aiounify.bench.client", "--cpu", str(client_cpu)))
            client.wait_ready(_START)
            client.ask(
                Command(
                    cmd="open",
                    key=loop,
                    address=address,
                    connections=row.connections,
                    size=row.size,
                    kind=row.kind,
                ),
                _PATIENCE,
            )

        def instructions(n: int) -> int:
            return _served(worker, client, loop, n) if client else _driven(worker, n)

        instructions(less)
        # Some work comes in lumps, such as a collection of garbage: the median leaves it out where
        # it is rare, and has it where it is the rule.
        return statistics.median(
            (-instructions(less) + instructions(more)) / (more - less) for _ in range(_PAIRS)
        )


def _driven(worker: Child, n: int) -> int:
    measurement: Measurement = worker.ask(Command(cmd="count", count=n), _PATIENCE)["measurement"]
    return measurement["instructions_user"] or 0


def _served(worker: Child, client: Child, key: str, n: int) -> int:
    worker.ask(Command(cmd="collect"), _PATIENCE)
    before = worker.ask(Command(cmd="sample"), _PATIENCE)["sample"]["instructions_user"]
    client.ask(Command(cmd="count", key=key, count=n), _PATIENCE)
    after = worker.ask(Command(cmd="sample"), _PATIENCE)["sample"]["instructions_user"]
    return (after or 0) - (before or 0)
