"""Logs that never hold the loop up: lines are collected in memory, a thread writes them.

A log file may be on a disk that hangs, and standard output may be a pipe that nobody reads.  So the
loop only appends to a list, and hands it to the thread once a second or when it is long.  If the
thread does not get rid of its lines they are thrown away from a size on, and the number of lost
lines is written when there is room again.

The access log has the combined format of Apache and nginx.  The file is opened anew on SIGHUP,
for programs that rename logs.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Known
    from .request import Request

__all__ = ["AccessLog", "ErrorHandler", "Writer", "said"]

_HAND_OVER = 512  # lines
_AT_MOST = 64 * 1024  # lines that wait for the thread


class Writer:
    """A file that is written to by a thread; `path` "-" is the standard output."""

    def __init__(self, path: str | None, fd: int = -1) -> None:
        self._path = path
        self._fd = fd if path is None else self._opened()
        self._lines: list[str] = []
        self._waiting = threading.Condition()
        self._ending = False
        self._again = False
        self.lost = 0
        # a daemon: a pipe that nobody reads does not keep the process from ending
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def _opened(self) -> int:
        assert self._path is not None
        if self._path == "-":
            return sys.stdout.fileno()
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def put(self, lines: list[str]) -> None:
        """Hand lines over; they are dropped if too many wait."""
        with self._waiting:
            if len(self._lines) > _AT_MOST:
                self.lost += len(lines)
                return
            self._lines += lines
            self._waiting.notify()

    def reopen(self) -> None:
        """Go on in the file that has the name now."""
        with self._waiting:
            self._again = self._path not in (None, "-")
            self._waiting.notify()

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most so many seconds."""
        with self._waiting:
            self._ending = True
            self._waiting.notify()
        self._thread.join(timeout)

    def _write(self) -> None:
        told = 0
        while True:
            with self._waiting:
                while not self._lines and not self._ending and not self._again:
                    self._waiting.wait()
                lines, self._lines = self._lines, []
                again, self._again = self._again, False
                ending, lost = self._ending, self.lost
            if lost > told:
                lines.append(f"({lost - told} lines were lost: writing did not keep up)\n")
                told = lost
            data = "".join(lines).encode("utf-8", "backslashreplace")
            try:
                if again:
                    fd = self._opened()
                    os.dup2(fd, self._fd, inheritable=False)
                    os.close(fd)
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:  # a full disk, a reader that is gone
                with self._waiting:
                    self.lost += len(lines)
            if ending and not self._lines:
                break
        if self._path not in (None, "-"):
            os.close(self._fd)


def _quoted(text: str) -> str:
    """For between quotes in a line: nobody outside writes lines of his own into the log."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(c if c.isprintable() and c not in '"\\' else f"\\x{ord(c):02x}" for c in text)


def said(request: Request) -> tuple[str, str]:
    """What a line says of a request: the request line, and who sent it from where."""
    target = request.target.decode("latin-1")
    line = f'"{request.method} {_quoted(target)} HTTP/{request.version}"'
    referer = _quoted(request.header("referer")) or "-"
    agent = _quoted(request.header("user-agent")) or "-"
    return line, f'"{referer}" "{agent}"'


class AccessLog:
    """A line for each answer."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._lines: list[str] = []
        self._time = ""
        self.tick()

    def tick(self) -> None:
        """Once a second: the time in the lines, and what has to be written."""
        now = time.localtime()
        self._time = time.strftime("[%d/%b/%Y:%H:%M:%S %z]", now)
        self._hand_over()

    def _hand_over(self) -> None:
        if self._lines:
            lines, self._lines = self._lines, []
            self.writer.put(lines)

    def _line(self, line: str) -> None:
        self._lines.append(line)
        if len(self._lines) >= _HAND_OVER:
            self._hand_over()

    def hit(self, client: str, known: Known) -> None:
        """An answer that was given again."""
        line, who = known.said
        answer = known.ready.answer
        size = answer.length if known.request.method != "HEAD" else 0
        self._line(f"{client} - - {self._time} {line} {answer.status} {size} {who}\n")

    def add(self, client: str, request: Request, status: int, size: int) -> None:
        """Any other answer."""
        line, who = said(request)
        self._line(f"{client} - - {self._time} {line} {status} {size} {who}\n")

    def refused(self, client: str, status: int, size: int) -> None:
        """What was no request."""
        self._line(f'{client} - - {self._time} "-" {status} {size} "-" "-"\n')

    def close(self) -> None:
        """Write what there is."""
        self._hand_over()
        self.writer.close()


class ErrorHandler(logging.Handler):
    """logging's records, by a Writer, to the standard error."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = Writer(None, sys.stderr.fileno())
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record over."""
        try:
            self.writer.put([self.format(record) + "\n"])
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Write what there is."""
        self.writer.close()
        super().close()
