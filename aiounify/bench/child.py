"""The runner's side of a child process: start it, ask it, and say in words why it failed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType

from aiounify.bench.channel import Channel, ClosedError, Command, Reply

__all__ = ["Child", "ChildError"]

# Conditions that must be the same for every loop.  Hash seeds move dictionary layouts; the asyncio
# switches turn on debugging.  Without cached bytecode a package in a checkout would be compiled at
# each import, and one that pip installed would not.
_SET = {"PYTHONHASHSEED": "0"}
_DROP = (
    "PYTHONASYNCIODEBUG",
    "PYTHONDEVMODE",
    "PYTHONTRACEMALLOC",
    "PYTHONFAULTHANDLER",
    "PYTHONDONTWRITEBYTECODE",
)
_GRACE = 2.0


class ChildError(Exception):
    """A child could not do what it was asked; the text goes into the table.

    `output` is what the child had printed until then, with its traceback if there was one.
    """

    def __init__(self, reason: str, output: str) -> None:
        super().__init__(reason)
        self.output = output


class Child:
    """A worker or a load generator, from its start to its end."""

    def __init__(
        self, module: str, *arguments: str, under: Sequence[str] = (), directory: str | None = None
    ) -> None:
        # `under`: a program that runs the child, such as valgrind; `directory`: for its files.
        ours, theirs = socket.socketpair()
        environment = {k: v for k, v in os.environ.items() if k not in _DROP} | _SET
        if directory is not None:
            environment["TMPDIR"] = directory
        self._output = os.memfd_create("bench-output")
        with theirs:
            self._process = subprocess.Popen(
                [*under, sys.executable, "-m", module, "--fd", str(theirs.fileno()), *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=environment,
                start_new_session=True,
            )
        self._channel = Channel(ours)

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def wait_ready(self, timeout: float) -> Reply:
        """The reply that a child sends by itself once it can be used."""
        try:
            reply = self._channel.reply(timeout)
        except TimeoutError:
            # Its answer may still come, and would be taken for the answer to the next command.
            self._process.kill()
            raise self._error(f"no answer within {timeout:g} s") from None
        except ClosedError:
            raise self._error(self._death()) from None
        if "failed" in reply:
            raise self._error(reply["failed"])
        return reply

    def ask(self, command: Command, timeout: float) -> Reply:
        try:
            self._channel.send(command)
        except ClosedError:
            raise self._error(self._death()) from None
        return self.wait_ready(timeout)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let a process that rest() stopped run for a while."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.rest()

    def rest(self) -> None:
        """Stop the process until it is needed: some loops spin while they have nothing to do."""
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the process: closing the channel tells it to, a signal if it does not."""
        self._channel.close()
        self._signal(signal.SIGCONT)
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        os.close(self._output)

    def _signal(self, number: signal.Signals) -> None:
        """To the process and to those it started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _error(self, reason: str) -> ChildError:
        return ChildError(reason, self._printed())

    def _printed(self) -> str:
        # Not read(): the child writes at the offset that both share.
        size = os.fstat(self._output).st_size
        return os.pread(self._output, size, 0).decode(errors="replace")

    def _death(self) -> str:
        try:
            status = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return "closed its channel"
        lines = self._printed().strip().splitlines()
        last = f" ({lines[-1].strip()})" if lines else ""
        if status < 0:
            return f"died of {signal.Signals(-status).name}{last}"
        return f"exited with status {status}{last}"
