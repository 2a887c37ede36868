"""The benchmark command: aiounify, asyncio, uvloop and the peers, interleaved in one run.

Rules of this package:

* It measures loops from outside.  Nothing here may import the engine's internals; a loop is
  whatever `registry` can make a factory for.
* Every loop of a row runs in its own process, pinned to one CPU; windows alternate between the
  loops, so that a machine that changes its speed changes it for all of them.
* A value that could not be measured is shown as "n/a" with the reason, never as zero.

The parts: `registry` (the loops), `rows` (what is measured), `worker` and `client` (the two kinds
of process), `runner` (interleaving), `counters` (CPU time and instructions), `stats` and `report`
(numbers and text), `cli` (arguments).  This module stays free of imports because every worker
imports it too.
"""

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run the command with these arguments (without the program's name); return the exit code."""
    from aiounify.bench.cli import run

    return run(argv)
