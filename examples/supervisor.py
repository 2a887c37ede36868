"""A supervisor: keeps the processes of a configuration file running.

    python examples/supervisor.py CONFIG SOCKET

CONFIG has a name and a shell command on each line: `web: exec python -m http.server`.  When the
file changes, what is new is started, what is gone is ended, and what has changed is replaced.  A
process that ends is started again, at once the first time, later each time after.  SIGHUP reads
the file anew, SIGTERM and Ctrl-C end everything.  The unix socket SOCKET answers each connection
with the state of the processes, one a line.

Children, signals, the socket, the times to start again and the changes of the file are awaited by
one select(), without a task or a thread for any of them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiounify
from aiounify import process
from aiounify.events import readable
from aiounify.signals import signals
from aiounify.timers import Alarm, after

_DELAYS = (0.0, 0.1, 0.5, 2.0, 10.0)


class Service:
    """One line of the configuration and, while it runs, its process."""

    def __init__(self, name: str, command: str) -> None:
        self.name, self.command = name, command
        self.child: process.Child | None = None
        self.again: Alarm | None = None
        self.starts = 0
        self.wanted = True

    def start(self) -> process.Child:
        argv = ["sh", "-c", self.command]
        pid = os.posix_spawn("/bin/sh", argv, os.environ, setpgroup=0)
        self.child, self.again = process.wait(pid), None
        self.starts += 1
        return self.child

    def end(self) -> None:
        self.wanted = False
        if self.child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid or 0, signal.SIGTERM)

    def delay(self) -> float:
        return _DELAYS[min(self.starts - 1, len(_DELAYS) - 1)]

    def __str__(self) -> str:
        state = f"pid {self.child.pid}" if self.child is not None else "waiting"
        return f"{self.name} {state} starts {self.starts}"


def read_config(path: Path) -> dict[str, str]:
    """Name -> command.  A file that is not there is an empty one."""
    with suppress(FileNotFoundError):
        lines = [line.partition(":") for line in path.read_text().splitlines() if ":" in line]
        return {name.strip(): command.strip() for name, _, command in lines}
    return {}


class Supervisor:
    def __init__(self, config: Path, listener: socket.socket) -> None:
        self.config = config
        self.listener = listener
        self.services: dict[str, Service] = {}
        self.ending = False
        # what to do about each thing that is awaited, with what it gave
        self.acts: dict[Awaitable[object], Callable[[object], None]] = {}

    def say(self, text: str) -> None:
        print(text, flush=True)

    def expect(self, source: Awaitable[object], act: Callable[[object], None]) -> None:
        self.acts[source] = act
        self.events.add(source)

    # -- services -------------------------------------------------------------

    def start(self, service: Service) -> None:
        child = service.start()
        self.say(f"started {service}")
        self.expect(child, lambda ended: self.child_ended(service, ended))

    def child_ended(self, service: Service, ended: object) -> None:
        self.say(f"ended {service.name}: {ended}")
        service.child = None
        if service.wanted:
            service.again = after(service.delay())
            self.expect(service.again, lambda _: self.start(service) if service.wanted else None)

    def configure(self) -> None:
        wanted = {} if self.ending else read_config(self.config)
        for name, service in list(self.services.items()):
            if wanted.get(name) != service.command:
                service.end()
                del self.services[name]
                if service.again is not None and service.again in self.events:
                    self.events.remove(service.again)
        for name, command in wanted.items():
            if name not in self.services:
                self.services[name] = Service(name, command)
                self.start(self.services[name])

    # -- what happens -----------------------------------------------------------

    def signalled(self, info: object) -> None:
        name = info.signal.name  # type: ignore[attr-defined]
        self.say(f"{name} from process {info.sender_pid}")  # type: ignore[attr-defined]
        self.ending = name != "SIGHUP"
        self.configure()

    def file_changed(self, _: object) -> None:
        # Editors write, move and delete for one change: what counts is what is in it now.
        if not self.ending and read_config(self.config) != self.commands():
            self.say("the configuration has changed")
            self.configure()

    def commands(self) -> dict[str, str]:
        return {name: service.command for name, service in self.services.items()}

    def asked(self, _: object) -> None:
        with suppress(BlockingIOError):
            connection, _ = self.listener.accept()
            with connection, suppress(OSError):
                connection.setblocking(False)
                connection.send("".join(f"{s}\n" for s in self.services.values()).encode())

    def busy(self) -> bool:
        return any(isinstance(source, process.Child) for source in self.events.sources)

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            wanted = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
            arriving = await stack.enter_async_context(signals(*wanted))
            self.events = await stack.enter_async_context(aiounify.select())
            self.expect(arriving, self.signalled)
            self.expect(readable(self.listener), self.asked)
            # Its directory is watched: editors put a new file in the place of the old one.
            name = self.config.name
            changes = await stack.enter_async_context(
                aiounify.watch(
                    self.config.parent,
                    filter=lambda path, is_dir: os.path.basename(path) == name,  # noqa: PTH119 - text, and often
                )
            )
            self.expect(changes, self.file_changed)
            self.configure()
            while self.busy() or not self.ending:
                source, value = await self.events
                self.acts[source](value)
                if source not in self.events:  # it had one value
                    del self.acts[source]
        self.say("all have ended")


def main(config: str, address: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        Path(address).unlink(missing_ok=True)
        listener.bind(address)
        listener.listen()
        listener.setblocking(False)
        try:
            aiounify.run(Supervisor(Path(config), listener).run())
        finally:
            Path(address).unlink(missing_ok=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
