"""Connections: requests in, replies out in their order, and the limits of what a client may take.

A session is an asyncio.Protocol.  What it received is parsed and executed at once; the replies of
one chunk go out together, at once or when their group of changes is on the disk.

Rules:

* A reply about data waits for the group that makes it true, also that of a GET of a key which
  somebody else has just set.  The replies behind it on the same connection wait with it.
* Nobody is read from whose replies the network does not take, or who has more work waiting: a
  session that produced `_OUT` bytes stops (`backlog`) until they are gone.
* While a group has `_GROUP` bytes, whoever adds to it is not read from until it is written.
* Memory (`--maxmemory`) is counted by keys and values: over it, commands that need more are
  refused.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import time
from typing import TYPE_CHECKING, Any, cast

import aiounify
from kvstore.commands import COMMANDS, GROWS, KEY, WRITE, CommandError, unknown
from kvstore.commit import Committer
from kvstore.disk import lock
from kvstore.resp import Limits, Partial, ProtocolError, error, parse
from kvstore.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from kvstore.store import Group

__all__ = ["Server", "Session"]

_OUT = 1 << 20
_GROUP = 32 << 20
_SCANS = 8
_SPARE_FILES = 64  # descriptors that are not clients

_OOM = error("OOM command not allowed when used memory > 'maxmemory'.")

_logger = logging.getLogger("kvstore")


class _NoRequest(list[bytes]):
    """Stands behind the last request for bytes that are none; its item says why."""


class Session(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "backlog",
        "began",
        "ending",
        "eof",
        "group",
        "held",
        "id",
        "name",
        "need",
        "partial",
        "paused",
        "rest",
        "rest_size",
        "scans",
        "server",
        "stopped",
        "store",
        "transport",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.store = server.store
        self.transport: asyncio.Transport | None = None
        self.id = server.next_id()
        self.name = b""
        self.began = time.monotonic()
        #: Part of a request, in pieces, and how many bytes it needs to be looked at again.
        self.rest: list[bytes] = []
        self.rest_size = self.need = 0
        self.partial: Partial | None = None
        #: Requests that wait until replies are gone.
        self.backlog: list[list[bytes]] = []
        #: How many times replies of this session stand in a group, and the last such group.
        self.held = 0
        self.group: Group | None = None
        #: The transport has enough to send; nothing is read.
        self.paused = self.stopped = False
        #: Take no further request, and close when all replies are sent.
        self.ending = False
        #: The client sends no more: the same, after what it has sent.
        self.eof = False
        self.scans: dict[int, list[bytes]] = {}

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        server = self.server
        if len(server.sessions) >= server.max_clients:
            server.rejected += 1
            self.transport.write(error("ERR max number of clients reached"))
            self.ending = True
            self.transport.close()
            return
        server.sessions[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.backlog = []
        self.rest = []
        self.server.gone(self)

    def eof_received(self) -> bool:
        self.eof = True
        return bool(self.held or self.backlog)

    def pause_writing(self) -> None:
        self.paused = True
        self._stop_reading()

    def resume_writing(self) -> None:
        self.paused = False
        self.go_on()

    def data_received(self, data: bytes) -> None:
        if self.ending:
            return
        if self.rest:
            self.rest.append(data)
            self.rest_size += len(data)
            if self.rest_size < self.need:
                return
            data = b"".join(self.rest)
            self.rest = []
        try:
            requests, used, self.need, self.partial = parse(data, self.server.limits, self.partial)
        except ProtocolError as exc:
            requests, used = exc.done, len(data)
            requests.append(_NoRequest([str(exc).encode()]))
        if used < len(data):
            self.rest = [data[used:] if used else data]
            self.rest_size = len(self.rest[0])
        if self.backlog:
            self.backlog += requests
        elif requests:
            self.execute(requests)

    # -- requests

    def execute(self, requests: list[list[bytes]]) -> None:
        """Execute them in their order, until there are too many bytes of replies."""
        store, server = self.store, self.server
        committer = server.committer
        replies: list[bytes] = []
        about_data: list[int] = []
        wait: Group | None = None
        size = 0
        for args in requests:
            entry = COMMANDS.get(args[0]) or COMMANDS.get(args[0].upper())
            if entry is None:
                reply = self._no_command(args)
            else:
                function, least, most, touches = entry
                count = len(args)
                if count < least or (count > most >= 0):
                    name = args[0].decode("ascii", "replace").lower()
                    reply = error(f"ERR wrong number of arguments for '{name}' command")
                elif touches >= WRITE and committer.trouble and committer.refusal():
                    reply = error(f"MISCONF {committer.trouble}; the data were not changed")
                elif touches == GROWS and store.used >= server.max_memory > 0:
                    reply = _OOM
                else:
                    try:
                        reply = function(self, args)
                    except CommandError as exc:
                        reply = error(str(exc))
                    if touches:
                        group = self._needed(touches, args)
                        if group is not None:
                            about_data.append(len(replies))
                            if wait is None or group.number > wait.number:
                                wait = group
            replies.append(reply)
            size += len(reply)
            if size > _OUT or self.ending:
                self.backlog = [] if self.ending else requests[len(replies) :]
                break
        server.commands += len(replies)
        if wait is not None or self.held:
            self._hold(wait, replies, about_data)
        elif self.transport is not None:
            self.transport.write(replies[0] if len(replies) == 1 else b"".join(replies))
            if self.backlog and not self.paused:
                self._stop_reading()
                server.loop.call_soon(self.go_on)
            elif self.ending or self.eof:
                self._close_if_done()

    def _needed(self, touches: int, args: list[bytes]) -> Group | None:
        """The group that has to be written before a reply is true."""
        group = self.store.group
        flying = self.server.committer.flying
        if touches == KEY:
            key = args[1]
            if key in group.before or group.layers:
                return group
            if flying is not None and (key in flying.before or flying.layers):
                return flying
            return None
        return group if group.records else flying

    def _hold(self, wait: Group | None, replies: list[bytes], about_data: list[int]) -> None:
        group = self.group if self.held else None
        if wait is not None and (group is None or wait.number > group.number):
            group = wait
        assert group is not None
        self.group = group
        self.held += 1
        group.waiters.append((self, replies, about_data))
        self.server.committer.wake()
        if self.backlog or group.size > _GROUP:
            self._stop_reading()

    def _no_command(self, args: list[bytes]) -> bytes:
        if isinstance(args, _NoRequest):
            self.ending = True
            return error(f"ERR Protocol error: {args[0].decode()}")
        return unknown(args)

    # -- replies that waited

    def released(self, replies: list[bytes]) -> None:
        """What they tell of is on the disk."""
        self.held -= 1
        transport = self.transport
        if transport is None:
            return
        transport.write(replies[0] if len(replies) == 1 else b"".join(replies))
        if not self.held:
            self.group = None
            if self.stopped:
                self.go_on()
            elif self.ending or self.eof:
                self._close_if_done()

    def _close_if_done(self) -> None:
        if self.transport is not None and not self.held and not self.backlog:
            self.transport.close()

    def refused(self, replies: list[bytes], about_data: list[int], why: str) -> None:
        """What they tell of was taken back."""
        text = error(f"MISCONF {why}; the data were not changed")
        for i in about_data:
            replies[i] = text
        self.released(replies)

    # -- back-pressure

    def _stop_reading(self) -> None:
        if not self.stopped and self.transport is not None:
            self.stopped = True
            self.transport.pause_reading()

    def finish(self) -> None:
        """The server ends: take no further request."""
        self.ending = True
        self.backlog = []
        self._stop_reading()
        self._close_if_done()

    def go_on(self) -> None:
        """Work on what waits, then read again; as far as nothing holds this session up."""
        if self.paused or self.transport is None or (self.held and self.stopped):
            return
        if self.backlog:
            requests, self.backlog = self.backlog, []
            self.execute(requests)
            if self.backlog or self.held or self.paused or self.transport is None:
                return
        if self.ending or self.eof:
            self._close_if_done()
        elif self.stopped:
            self.stopped = False
            self.transport.resume_reading()

    # -- for commands

    def scan_from(self, cursor: int) -> list[bytes] | None:
        """The keys that are left of a scan, the next ones last."""
        return self.store.all_keys() if cursor == 0 else self.scans.pop(cursor, None)

    def scan_on(self, cursor: int, rest: list[bytes]) -> int:
        """Keep what is left of a scan; its next cursor, 0 at the end."""
        if not rest:
            return 0
        while len(self.scans) >= _SCANS:
            del self.scans[next(iter(self.scans))]
        cursor = cursor or self.server.next_id()
        self.scans[cursor] = rest
        return cursor

    def describe(self) -> bytes:
        """A line of CLIENT LIST."""
        peer = self.transport.get_extra_info("peername") if self.transport else None
        address = f"{peer[0]}:{peer[1]}" if peer else "?"
        age = int(time.monotonic() - self.began)
        return b"id=%d addr=%b name=%b age=%d db=0\n" % (self.id, address.encode(), self.name, age)


class Server:
    """The database, its log and its listening sockets."""

    def __init__(
        self,
        directory: Path,
        *,
        policy: str = "always",
        limits: Limits | None = None,
        max_clients: int = 10000,
        max_memory: int = 0,
        rewrite_percent: int = 100,
        rewrite_least: int = 64 << 20,
        lossy: bool = False,
    ) -> None:
        self.directory = directory
        self.limits = limits or Limits()
        self.max_memory = max_memory
        self.rewrite_percent = rewrite_percent
        self.rewrite_least = rewrite_least
        self.store = Store()
        self.sessions: dict[Session, None] = {}
        self.commands = self.accepted = self.rejected = 0
        self.loop = asyncio.get_running_loop()
        self.began = time.time()
        self.max_clients = _enough_files(max_clients)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = lock(directory / "kvstore.lock")
        except BlockingIOError:
            raise BlockingIOError(
                errno.EWOULDBLOCK, "another server uses this directory", str(directory)
            ) from None
        try:
            self.committer = Committer(self.store, directory, policy)
            self.torn = self.committer.open(lossy=lossy)
        except BaseException:
            os.close(self._lock)
            raise
        self._servers: list[asyncio.Server] = []
        self._ids = 0
        self._stop = asyncio.Event()
        self._empty: asyncio.Future[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self.committer.start()
        self._ticker = asyncio.create_task(self._tick())

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Serve at an address; the address it became."""
        server = await self.loop.create_server(lambda: Session(self), host, port, backlog=1024)
        self._servers.append(server)
        name = server.sockets[0].getsockname()
        return str(name[0]), int(name[1])

    async def listen_unix(self, path: str) -> None:
        """Serve at a unix socket."""
        self._servers.append(await self.loop.create_unix_server(lambda: Session(self), path))

    def stop(self) -> None:
        """Ask run() to end."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until stop() is called, or the committer fails; then close()."""
        stopped = asyncio.ensure_future(self._stop.wait())
        task = self.committer.task
        try:
            await asyncio.wait([stopped, task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            await self.close()

    async def close(self, patience: float = 5.0) -> None:
        """Accept nobody, execute nothing more, write and answer what was executed, close."""
        for server in self._servers:
            server.close()
        if self._ticker is not None:
            self._ticker.cancel()
        for session in list(self.sessions):
            session.finish()
        await self.committer.close()
        for session in list(self.sessions):
            if session.transport is not None:
                session.transport.close()
        if self.sessions:
            self._empty = self.loop.create_future()
            await asyncio.wait([self._empty], timeout=patience)
            for session in list(self.sessions):
                if session.transport is not None:
                    session.transport.abort()
        os.close(self._lock)

    def gone(self, session: Session) -> None:
        """A connection ended."""
        self.sessions.pop(session, None)
        if not self.sessions and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    async def _tick(self) -> None:
        """Now and then: free what has expired, begin a rewrite."""
        while True:
            full = self.store.sweep() >= 1000
            await asyncio.sleep(0.001 if full else 0.1)
            committer = self.committer
            if (
                self.rewrite_percent
                and not committer.rewriting
                and not committer.trouble
                and committer.end >= self.rewrite_least
                and committer.end >= committer.base_size * (100 + self.rewrite_percent) // 100
            ):
                committer.rewrite()

    # -- for commands

    def settings(self) -> dict[bytes, bytes]:
        """What CONFIG GET shows, under the names that Redis has for it."""
        found: dict[str, Any] = {
            "appendfsync": self.committer.policy,
            "appendonly": "yes",
            "auto-aof-rewrite-min-size": self.rewrite_least,
            "auto-aof-rewrite-percentage": self.rewrite_percent,
            "databases": 1,
            "dir": self.directory.absolute(),
            "maxclients": self.max_clients,
            "maxmemory": self.max_memory,
            "maxmemory-policy": "noeviction",
            "proto-max-bulk-len": self.limits.bulk,
            "save": "",
        }
        return {key.encode(): os.fsencode(str(value)) for key, value in found.items()}

    def info(self) -> str:
        """What INFO shows."""
        committer, store = self.committer, self.store
        backend = getattr(self.loop, "backend", type(self.loop).__module__)
        lines = [
            "# Server",
            "redis_version:7.0.0",
            f"aiounify_version:{aiounify.__version__}",
            f"event_loop:{backend}",
            f"process_id:{os.getpid()}",
            f"uptime_in_seconds:{int(time.time() - self.began)}",
            "# Clients",
            f"connected_clients:{len(self.sessions)}",
            f"maxclients:{self.max_clients}",
            "# Memory",
            f"used_memory:{store.used}",
            f"maxmemory:{self.max_memory}",
            "# Persistence",
            "aof_enabled:1",
            f"aof_fsync:{committer.policy}",
            f"aof_current_size:{committer.end}",
            f"aof_synced_size:{committer.synced}",
            f"aof_base_size:{committer.base_size}",
            f"aof_rewrite_in_progress:{int(committer.rewriting)}",
            f"aof_last_bgrewrite_status:{committer.last_rewrite}",
            f"aof_last_write_status:{committer.trouble or 'ok'}",
            f"aof_groups:{committer.groups}",
            "# Stats",
            f"total_commands_processed:{self.commands}",
            f"rejected_connections:{self.rejected}",
            "# Keyspace",
            f"db0:keys={len(store.data)},expires={len(store.expires)},avg_ttl=0",
        ]
        return "\r\n".join(lines) + "\r\n"


def _enough_files(clients: int) -> int:
    """How many clients the limit of open files allows, once it is as high as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        if limit < wanted:
            clients = max(1, limit - _SPARE_FILES)
            _logger.warning(
                "at most %d clients: the limit of open files is %d (ulimit -n)", clients, limit
            )
    return clients
