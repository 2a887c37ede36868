"""One worker: what its connections share, and the way from a request to an answer.

The worker has one `Changes`, which watches the directory, and two caches on top of it.  `known`
maps the bytes of requests to answers that were given; it is a shortcut and decides nothing.  An
answer is given again only if the generation of the changes is the one at which it was known to be
true, or if, after a change, everything it rests on is still valid and the names that were absent
still are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import ssl
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from . import answers, status
from .connection import Connection, Known
from .counts import Counts
from .listing import listing
from .logs import AccessLog, Writer, said
from .pages import Pages
from .statfiles import StatFiles
from .static import NOT_THERE, PAGE, StaticFiles, is_private

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from .answers import Answer, Ready
    from .options import Options
    from .request import Request

__all__ = ["Server"]

_KNOWN = 4096  # requests that are remembered
_KNOWN_HEAD = 2048  # bytes of one
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class Server:
    """One worker of the server.  `store` is what workers share, None if there is only one."""

    def __init__(
        self,
        options: Options,
        *,
        counts: Counts | None = None,
        store: Any = None,
        worker: int = 0,
    ) -> None:
        self.options = options
        self.worker = worker
        self.counts = counts or Counts()
        self.store = store
        self.errors = logging.getLogger("aiounify.webserver")
        self.loop = asyncio.get_running_loop()
        self.sends_files = options.loop == "aiounify" and options.tls_cert is None
        self.connections: set[Connection] = set()
        self.clients: dict[str, int] = {}  # connections by address
        self.known: dict[bytes, Known] = {}
        self.stopping = False
        #: seconds between two looks at the clock, the logs and the connections
        self.tick = 1.0
        self.log: AccessLog | None = None
        self.now = self.idle_deadline = 0.0
        self.date = b""
        self.changes: Any = None
        #: the generation of the changes: `Changes.drain`, or where there are none, 0
        self.drain: Callable[[], int] = int
        self.pages: Pages
        self.static: StaticFiles
        self._files: Any = None
        self._server: asyncio.Server | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._told: dict[int, float] = {}  # errno: when it was logged
        self._stops = asyncio.Event()
        self._last: asyncio.Event | None = None

    # -- life --------------------------------------------------------------------------

    async def start(self, sock: socket.socket) -> None:
        """Begin to watch, then to listen."""
        options = self.options
        root = str(options.root)
        if options.loop == "aiounify":
            from aiounify.cache import Changes, FileCache, PageCache

            self.changes = Changes([root], shared=self.store)
            await self.changes.__aenter__()
            self.drain = self.changes.drain
            self._files = FileCache(self.changes, root)
            cache = PageCache(self.changes, store=self.store)
        else:
            self._files = StatFiles(options.root)
            cache = None
        self.static = StaticFiles(root, self._files)
        self.pages = Pages(self, self._files, cache)
        if options.access_log is not None:
            self.log = AccessLog(Writer(options.access_log))
        self._tick()
        self._server = await self.loop.create_server(
            lambda: Connection(self), sock=sock, ssl=self._tls(), backlog=4096
        )

    def _tls(self) -> ssl.SSLContext | None:
        if self.options.tls_cert is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.options.tls_cert, self.options.tls_key)
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def stop(self, patience: float) -> None:
        """Stop listening, let what is in flight end within `patience` seconds, close all."""
        self.stopping = True
        self._stops.set()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.stop()
        await self._gone(patience)
        for connection in list(self.connections):
            connection.abort()
        await self._gone(1.0)
        if self._files is None:
            return  # it never started
        await self.pages.close()
        if self._ticking is not None:
            self._ticking.cancel()
        self.publish()
        if self.log is not None:
            self.log.close()
        self._files.close()
        if self.changes is not None:
            await self.changes.__aexit__(None, None, None)

    async def pause(self) -> None:
        """Wait for a tick, or for the server to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stops.wait(), self.tick)

    async def _gone(self, timeout: float) -> None:
        """Wait until the last connection is gone."""
        if self.connections:
            self._last = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._last.wait(), timeout)

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        if self._last is not None and not self.connections:
            self._last.set()

    def _tick(self) -> None:
        self.now = self.loop.time()
        self.idle_deadline = self.now + self.options.idle_timeout
        self.date = formatdate(usegmt=True).encode()
        for connection in list(self.connections):
            connection.check(self.now)
        if self.log is not None:
            self.log.tick()
        self.publish()
        self._ticking = self.loop.call_later(self.tick, self._tick)

    def publish(self) -> None:
        """Let the other workers see the numbers."""
        self.counts.publish(len(self.connections), self.pages.kept())

    def reopen(self) -> None:
        """Go on in the log file that has the name now."""
        if self.log is not None:
            self.log.writer.reopen()

    # -- what is remembered ------------------------------------------------------------

    def remember(self, request: Request, ready: Ready) -> None:
        """Answer the same request by the same bytes, as long as they are true."""
        if len(request.raw) > _KNOWN_HEAD or request.chunked or request.length:
            return
        generation = self.drain()
        answer = ready.answer
        if not answer.valid:
            return
        ready.generation = generation
        ready.check = None if answer.watched else answer
        if len(self.known) >= _KNOWN:
            del self.known[next(iter(self.known))]
        said_of_it = said(request) if self.log is not None else ("", "")
        self.known[request.raw] = Known(request, ready, said_of_it)

    def still(self, ready: Ready) -> bool:
        """Whether an answer is still true, now that changes were looked for."""
        generation = self.drain()
        if generation == ready.generation:
            return ready.check is None or ready.check.valid
        answer = ready.answer
        if not answer.valid:
            return False
        ready.generation = generation
        ready.check = None if answer.watched else answer
        return True

    def forget(self, raw: bytes) -> None:
        """It was answered otherwise than it has to be now."""
        self.known.pop(raw, None)

    # -- answering ---------------------------------------------------------------------

    def takes_body(self, request: Request) -> bool:
        """Whether a request with a body may send it."""
        return request.method in ("GET", "HEAD", "OPTIONS", "POST")

    async def answer(self, request: Request) -> Answer:
        """The answer to a request; BadRequest for one that has none."""
        method, path = request.method, request.path
        if method not in ("GET", "HEAD", "POST"):
            allow = [("Allow", "GET, HEAD, OPTIONS, POST")]
            if method == "OPTIONS":
                return answers.empty(204, allow)
            return answers.error(405, "this method is not for what is here", allow)
        self.drain()
        try:
            if path.startswith("/_") and self.options.status:
                answer = await status.answer(self, request)
                if answer is not None:
                    return answer
            name = path[1:]
            if "//" in path or not path.startswith("/") or is_private(name):
                raise FileNotFoundError(errno.ENOENT, "not to be served", path)
            return await self._find(request, name)
        except OSError as exc:
            return self._refused(request, exc)

    async def _find(self, request: Request, name: str) -> Answer:
        """A file; or the page of that name; or a directory."""
        if name.endswith("/") or not name:
            return await self._directory(request, name)
        problem: OSError
        if request.method != "POST":
            try:
                return await self.static.answer(request, name)
            except OSError as exc:
                problem = exc
        else:
            problem = FileNotFoundError(errno.ENOENT, "not there", name)
        if isinstance(problem, IsADirectoryError) or problem.errno in NOT_THERE:
            page = await self.pages.answer(request, name + PAGE, absent=(name,))
            if page is not None:
                return page
            if request.method == "POST":
                return await self._no_post(name)
        if isinstance(problem, IsADirectoryError):
            from urllib.parse import quote

            location = quote(request.path.encode("utf-8", "surrogateescape")) + "/"
            return answers.redirect(location + "?" * bool(request.query) + request.query)
        raise problem

    async def _directory(self, request: Request, name: str) -> Answer:
        index = name + "index.html"
        if request.method != "POST":
            try:
                return await self.static.answer(request, index)
            except (FileNotFoundError, IsADirectoryError):
                pass
        page = await self.pages.answer(request, name + "index" + PAGE, absent=(index,))
        if page is not None:
            return page
        if request.method == "POST":
            return await self._no_post(name)
        if not self.options.listing:
            raise FileNotFoundError(errno.ENOENT, "no index", name)
        return await listing(self, request, name, absent=(index, name + "index" + PAGE))

    async def _no_post(self, name: str) -> Answer:
        return answers.error(405, "only pages with post() take a body", [("Allow", "GET, HEAD")])

    def _refused(self, request: Request, exc: OSError) -> Answer:
        """An error of the file system as an answer."""
        code = exc.errno or 0
        if code in NOT_THERE:
            return answers.error(404, "there is nothing here")
        if isinstance(exc, PermissionError):
            return answers.error(403, "this is not to be read")
        if self.now - self._told.get(code, -60.0) >= 60.0:  # once a minute, not for each request
            self._told[code] = self.now
            self.errors.error("%s %r: %s", request.method, request.path, exc)
        if code in _FULL:
            return answers.error(503, "the server has too much to do", [("Retry-After", "1")])
        return answers.error(500, "the server could not read it")
