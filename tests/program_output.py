"""What the tests of programs share: a program in a process of its own, and what it has said."""

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import aiounify

ROOT = Path(aiounify.__file__).parents[1]
PATIENCE = 40  # seconds in which a line comes, or a program ends, on a slow machine


def environment(backend="auto", **more):
    """This package, and no other, on that backend."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "AIOUNIFY_BACKEND": backend, **more}


class Program:
    """A program that runs: `with Program(backend, "x.py", "--option") as program`.

    `text` is what it has said so far, on both of its outputs, as far as it was read.
    """

    def __init__(self, backend, *command, before=(), options=("-W", "error"), **how):
        self.process = subprocess.Popen(
            [*before, sys.executable, *options, *map(str, command)],
            env=environment(backend),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **how,
        )
        self.text = ""
        self._taken = 0  # what next() has given, as a place in the text

    def read(self, seconds, why):
        """Read what comes within so many seconds; None at the end of its output."""
        fd = self.process.stdout.fileno()
        assert select.select([fd], [], [], max(0, seconds))[0], f"{why}: {self.text}"
        data = os.read(fd, 65536)
        self.text += data.decode()
        return data or None

    def _more(self, deadline, pattern):
        why = f"{pattern!r} did not come"
        assert self.read(deadline - time.monotonic(), why), f"{why}: {self.text}"

    def until(self, pattern, times=1):
        """Read until that many places match; all that do, as re.findall() gives them."""
        deadline = time.monotonic() + PATIENCE
        while len(found := re.findall(pattern, self.text, re.MULTILINE)) < times:
            self._more(deadline, pattern)
        return found

    def next(self, pattern, times=1):
        """Read on, from behind the line this gave before, until so many lines match; the last."""
        deadline = time.monotonic() + PATIENCE
        while True:
            while (end := self.text.find("\n", self._taken)) >= 0:
                found = re.search(pattern, self.text[self._taken : end])
                self._taken = end + 1
                times -= found is not None
                if found and not times:
                    return found
            self._more(deadline, pattern)

    def so_far(self):
        """All that it has said until now."""
        fd = self.process.stdout.fileno()
        while select.select([fd], [], [], 0)[0] and self.read(0, "it is there"):
            pass
        return self.text

    def ended(self):
        """Read to its end; its exit status."""
        deadline = time.monotonic() + PATIENCE
        while self.read(deadline - time.monotonic(), "it does not end"):
            pass
        return self.process.wait(PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process.stdout.close()

    def kill(self):
        """End it at once."""
        self.process.kill()
        self.process.wait()
