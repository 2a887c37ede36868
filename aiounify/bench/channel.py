"""How the runner and its child processes talk: one JSON object a line over a socket pair.

Not over stdin and stdout, because rows start children of their own and peers print.  A message is
a flat JSON object; the reply to a command either has the key "failed" (a reason in words) or the
values asked for.
"""

import json
import socket
from collections.abc import Mapping
from typing import TypedDict

__all__ = ["Channel", "ClosedError", "Command", "Measurement", "Reply", "SampleValues"]


class Measurement(TypedDict, total=False):
    """One window.  Times in seconds; a counter that could not be read is None."""

    ops: int
    seconds: float
    cpu: float
    user: float | None
    system: float | None
    instructions_user: int | None
    instructions: int | None
    p50: float
    p99: float
    #: CPU time of the load generator.
    client_cpu: float
    #: Datagrams that were lost.
    resent: int
    lateness_ns: list[int]
    #: What was done beside the timers whose lateness is measured.
    beside: int
    #: Bytes that the connections of an idle row cost: private dirty pages, and resident ones.
    memory: int
    resident: int


class SampleValues(TypedDict):
    """The fields of `counters.Sample`."""

    wall_ns: int
    cpu_ns: int
    user: float
    system: float
    instructions_user: int | None
    instructions: int | None


class Command(TypedDict, total=False):
    """What the runner asks of a child."""

    cmd: str
    seconds: float
    #: How many operations, where it is not for so many seconds.
    count: int
    # for the load generator
    key: str
    address: list[str | int]
    connections: int
    size: int
    kind: str
    request: str


class Reply(TypedDict, total=False):
    """What a child answers."""

    failed: str
    ready: bool
    version: str
    address: list[str | int]
    #: Columns without a value, and why.
    counters: dict[str, str]
    measurement: Measurement
    sample: SampleValues
    #: Bytes of the process: private dirty pages, and resident ones.
    memory: int
    resident: int


class ClosedError(Exception):
    """The other side is gone."""


class Channel:
    """One end of the conversation; blocking, for one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pending = b""

    def send(self, message: Mapping[str, object]) -> None:
        try:
            self._sock.sendall(json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError) as exc:
            raise ClosedError from exc

    def command(self) -> Command:
        """The next command, however long it takes (the child's side)."""
        command: Command = json.loads(self._line(None))
        return command

    def reply(self, timeout: float) -> Reply:
        """The next reply (the runner's side); TimeoutError if it does not come."""
        reply: Reply = json.loads(self._line(timeout))
        return reply

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def _line(self, timeout: float | None) -> bytes:
        self._sock.settimeout(timeout)
        while b"\n" not in self._pending:
            try:
                data = self._sock.recv(1 << 16)
            except ConnectionResetError as exc:
                raise ClosedError from exc
            if not data:
                raise ClosedError
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line
