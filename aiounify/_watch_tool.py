"""`python -m aiounify watch`: changes on the terminal, and a command that is run at each.

Why it exists: what `watch()` tells is best seen; and rerunning tests or restarting a server
is what most people want of it.  The command runs from the beginning; when something changed it
is asked to end (SIGTERM, after five seconds SIGKILL) and started again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from aiounify import run
from aiounify.watching import DEFAULT, Change, Kind, ignoring, watch

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What is left out when a command is run, so that running it is no change.
IGNORED = (".git", ".hg", "__pycache__", "*.py[co]", "*~", ".*.sw?", "4913", ".#*")
_PATIENCE = 5.0


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Parse the command line behind `watch`."""
    own = list(given)
    command: list[str] = []
    if "--" in own:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m aiounify watch",
        usage="%(prog)s PATH [OPTION ...] [-- COMMAND [ARG ...]]",
        description="Show what changes in a directory and below it, or run a command again "
        "whenever something has changed.",
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", help="a directory, or a file")
    parser.add_argument("--json", action="store_true", help="a JSON object for each change")
    parser.add_argument("--flat", action="store_true", help="do not look into directories below")
    parser.add_argument(
        "--ignore",
        action="append",
        metavar="PATTERN",
        help="leave out names like this (*.log); with a command, instead of " + " ".join(IGNORED),
    )
    parser.add_argument(
        "--quiet",
        type=float,
        default=None,
        metavar="SECONDS",
        help="wait until nothing changed for so long (default: 0, with a command 0.1)",
    )
    parsed = parser.parse_args(own)
    parsed.command = command
    if parsed.quiet is not None and not 0 <= parsed.quiet < float("inf"):
        parser.error("--quiet must be a number of seconds, 0 or more")
    if "--" in given and not command:
        parser.error("a command is missing behind --")
    return parsed


def line_of(change: Change, as_json: bool) -> str:
    """A change for a person, or for a program."""
    if as_json:
        return json.dumps(
            {
                "kind": change.kind.name.lower(),
                "path": change.path,
                "old_path": change.old_path,
                "directory": change.is_dir,
                "found": change.found,
            }
        )
    name = change.path + ("/" if change.is_dir else "")
    source = f"  from {change.old_path}" if change.old_path is not None else ""
    line = f"{change.kind.name.lower():<10}  {name}{source}"
    # what cannot be printed here (file names need not be text) is escaped
    encoding = sys.stdout.encoding or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


class Command:
    """The command, while it runs."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; what it says goes where ours goes."""
        self._process = await asyncio.create_subprocess_exec(*self._command)

    async def stop(self) -> None:
        """End it, if it still runs."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_PATIENCE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def follow(parsed: argparse.Namespace) -> int:
    """Show changes, or run the command, until the path is gone; the exit status."""
    command = Command(parsed.command) if parsed.command else None
    patterns = parsed.ignore or (IGNORED if command else ())
    quiet = parsed.quiet if parsed.quiet is not None else 0.1 if command else 0
    mask = DEFAULT & ~Kind.ATTRIBUTES if command else DEFAULT
    changes = watch(
        parsed.path,
        recursive=not parsed.flat,
        mask=mask,
        filter=ignoring(*patterns),
        batch=quiet,
    )
    try:
        async with changes:
            if command is None:
                print(f"watching {parsed.path}", file=sys.stderr, flush=True)
            else:
                await command.start()
            async for batch in changes:
                if command is not None:
                    await command.stop()
                    await command.start()
                if command is None or parsed.json:
                    print(*(line_of(c, parsed.json) for c in batch), sep="\n", flush=True)
    finally:
        if command is not None:
            await command.stop()
    print(f"aiounify: {parsed.path}: {changes.reason}", file=sys.stderr)
    return 1


async def _until_told(parsed: argparse.Namespace) -> int:
    """follow(), ended in order by SIGTERM too."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    told: list[int] = []

    def end() -> None:
        told.append(signal.SIGTERM)
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, end)
    try:
        return await follow(parsed)
    except asyncio.CancelledError:
        if not told:
            raise
        return 128 + signal.SIGTERM
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def main(given: Sequence[str]) -> int:
    """The command; returns the exit status: 1 when what was watched is gone, 2 for bad usage."""
    parsed = arguments(given)
    try:
        return run(_until_told(parsed))
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            raise
        where = f"{os.fsdecode(exc.filename)}: " if exc.filename else ""
        print(f"aiounify: {where}{exc.strerror}", file=sys.stderr)
        return 2
