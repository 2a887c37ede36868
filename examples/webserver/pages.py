"""Dynamic pages: coroutines in NAME.page.py that build a body, and are called as rarely as
possible.

    # hello.page.py, served as /hello
    QUERY = ("name",)

    async def page(page):
        template = await page.text("_hello.html")
        return template.format(name=html.escape(page.query.get("name", "world")))

Rules:

* Whatever a page uses through its `page` argument is a dependency of what it returns.  The body is
  kept until one of them changes; a request before that does not call the page.
* What of the request a page may look at is declared by the module: QUERY and HEADERS are names of
  parameters and headers.  Their values are the key under which the body is kept; others cannot
  be read, so a body cannot depend on what is not in its key.
* A page that fails gives 500 to those who wait for it and leaves nothing behind.
* `async def post(page)` answers POST.  It is called for each request, and nothing of it is kept.
* The module is a dependency like any other: after a change it is executed anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import posixpath
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import answers, conditions
from .answers import Answer
from .fetch import Client, Fetched
from .request import BadRequest
from .static import NOT_THERE, PAGE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .request import Request
    from .server import Server

__all__ = ["Page", "PageError", "Pages"]

_STATUS = ":status"  # among the headers of a kept page
_DEPTH = 32  # pages in pages
_HTML = "text/html; charset=utf-8"


class PageError(Exception):
    """An answer that a page gives instead of a body; it is not kept."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class _ChangedError(Exception):
    """The module is another one than the one whose declarations made the key."""


class _Declared(Mapping[str, str]):
    """What a module declared to depend on, of what a request has."""

    def __init__(self, kind: str, names: tuple[str, ...], values: Mapping[str, str]) -> None:
        self._kind = kind
        self._names = names
        self._values = {name: values[name] for name in names if name in values}

    def __getitem__(self, name: str) -> str:
        if name not in self._names:
            raise LookupError(f"{name!r} is not in the page's {self._kind}: declare it there")
        return self._values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or the default if the request has none."""
        try:
            return self[name]
        except KeyError:
            return default

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Page:
    """What a page's coroutine is given."""

    def __init__(
        self,
        pages: Pages,
        building: Any,
        name: str,
        query: _Declared,
        headers: _Declared,
        depth: int,
    ) -> None:
        self._pages = pages
        self._building = building
        self._depth = depth
        self._folder = posixpath.dirname(name)
        #: the path of the page, as in its address
        self.path = _address(name)
        #: the parameters of the address that the module declares in QUERY
        self.query = query
        #: the headers of the request that the module declares in HEADERS, in lower case
        self.headers = headers
        #: what was posted; empty for GET
        self.body = b""

    def _place(self, path: str) -> str:
        """A path in the file system: from the root with "/" in front, else from the page."""
        names: list[str] = []
        for part in posixpath.join("/", self._folder, path).split("/"):
            if part == "..":
                if not names:
                    raise PermissionError(f"{path!r} leads out of what is served")
                names.pop()
            elif part not in ("", "."):
                names.append(part)
        return posixpath.join(self._pages.root, *names)

    async def file(self, path: str) -> bytes:
        """The content of a file."""
        data: bytes = await self._building.file(self._place(path))
        return data

    async def text(self, path: str) -> str:
        """The content of a file in UTF-8."""
        return (await self.file(path)).decode()

    async def stat(self, path: str) -> os.stat_result | None:
        """What a file is; None if there is none, which is a dependency too."""
        found: os.stat_result | None = await self._building.stat(self._place(path))
        return found

    async def listdir(self, path: str = ".") -> list[str]:
        """The names in a directory, sorted; which there are is the dependency."""
        return sorted(await self._building.listdir(self._place(path)))

    async def page(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """The body of another page, by its address without a query."""
        name = posixpath.normpath(posixpath.join(self.path.rpartition("/")[0], path)).lstrip("/")
        if path.endswith("/") or not name:
            name = posixpath.join(name, "index")
        if self._depth >= _DEPTH:
            raise RecursionError(f"pages that contain each other: {self.path} and {path}")
        return await self._pages.inner(self._building, name + PAGE, query, self._depth + 1)

    async def module(self, path: str) -> types.ModuleType:
        """A module of Python, executed anew after it was changed; name it `_NAME.py`."""
        place = self._place(path)
        return self._pages.load(await self._building.file(place), place)

    async def fetch(
        self, url: str, headers: Mapping[str, str] | None = None, ttl: float | None = None
    ) -> Fetched:
        """The answer of another server, kept for as long as its headers allow.

        The page is built anew when it expires; at once if it must not be kept.  `ttl` is for
        servers that say nothing of it.  OSError, TimeoutError or FetchError if there is no
        answer; one with another status than 200 is an answer.
        """
        found = await self._pages.client.get(url, headers or {}, ttl)
        self._building.expires_in(found.fresh_for())
        return found

    async def value(self, name: str, ttl: float, make: Callable[[], Any | Awaitable[Any]]) -> Any:
        """A value that is made when it is older than `ttl` seconds; shared by all pages."""
        value, left = await self._pages.value(name, ttl, make)
        self._building.expires_in(left)
        return value

    async def run_blocking(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that takes long in a thread; what it reads is no dependency."""
        return await asyncio.get_running_loop().run_in_executor(None, function, *args)

    def expires_in(self, seconds: float) -> None:
        """Keep the page for at most so long; 0 for not at all."""
        self._building.expires_in(seconds)

    def error(self, status: int, text: str) -> PageError:
        """To be raised: answer with a status and a line of text."""
        return PageError(status, text)


class _Unrecorded:
    """In place of `Building` where nothing is kept: POST, and loops without file changes."""

    def __init__(self, pages: Pages) -> None:
        self._loop = pages.server.loop

    async def file(self, path: str) -> bytes:
        def read() -> bytes:
            with open(path, "rb") as file:
                return file.read()

        return await self._loop.run_in_executor(None, read)

    async def stat(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(path)  # noqa: PTH116 - hot
        except FileNotFoundError:
            return None

    async def listdir(self, path: str) -> list[str]:
        return os.listdir(path)  # noqa: PTH208 - names

    def expires_in(self, seconds: float) -> None:
        """Nothing is kept anyway."""


def _address(name: str) -> str:
    stem = name.removesuffix(PAGE)
    return "/" + (stem[: -len("index")] if posixpath.basename(stem) == "index" else stem)


def _names(module: types.ModuleType, kind: str) -> tuple[str, ...]:
    declared = getattr(module, kind, ())
    if isinstance(declared, str):
        raise TypeError(f"{kind} has to be a tuple of names, not {declared!r}")
    return tuple(declared)


class Pages:
    """All pages below the root; `cache` is a PageCache, or None where nothing can be kept."""

    def __init__(self, server: Server, files: Any, cache: Any) -> None:
        self.server = server
        self.root = str(server.options.root)
        self.cache = cache
        self.client = Client(server.options)
        self._files = files
        self._modules: dict[str, tuple[bytes, types.ModuleType]] = {}
        self._values: dict[str, tuple[float, Any]] = {}
        self._making: dict[str, asyncio.Task[tuple[float, Any]]] = {}

    async def close(self) -> None:
        """End the connections to other servers."""
        for task in list(self._making.values()):
            task.cancel()
        await self.client.close()

    def kept(self) -> int:
        """How many built pages there are."""
        return int(self.cache.stats().get("entries", 0)) if self.cache is not None else 0

    # -- modules -----------------------------------------------------------------------

    def load(self, source: bytes, place: str) -> types.ModuleType:
        """The module made of a source, once for each source."""
        known = self._modules.get(place)
        if known is not None and known[0] == source:
            return known[1]
        module = types.ModuleType(posixpath.basename(place).partition(".")[0])
        module.__file__ = place
        exec(compile(source, place, "exec", dont_inherit=True), vars(module))
        self._modules[place] = source, module
        return module

    async def _source(self, name: str) -> bytes | None:
        """The source of a page, or None if there is no such page."""
        try:
            file = self._files.hit(name) or await self._files.open(name)
        except OSError as exc:
            if exc.errno in NOT_THERE or isinstance(exc, IsADirectoryError):
                return None
            raise
        return bytes(file.body) if file.body is not None else os.pread(file.fd, file.size, 0)

    # -- answering ---------------------------------------------------------------------

    async def answer(
        self, request: Request, name: str, *, absent: tuple[str, ...]
    ) -> Answer | None:
        """The answer of a page, None if there is none of that name.

        `absent` are names that would have been taken instead, had they been there.
        """
        for _ in range(3):
            source = await self._source(name)
            if source is None:
                return None
            try:
                module = self.load(source, posixpath.join(self.root, name))
                async with asyncio.timeout(self.server.options.build_timeout):
                    if request.method == "POST":
                        return await self._post(request, name, module)
                    return await self._get(request, name, module, absent)
            except _ChangedError:
                continue
            except PageError as exc:
                return answers.error(exc.status, exc.text)
            except TimeoutError:
                self.server.errors.error("%s took too long to build", _address(name))
                return answers.error(504, "the page took too long")
            except (BadRequest, asyncio.CancelledError):
                raise
            except Exception:
                self.server.errors.exception("%s could not be built", _address(name))
                return answers.error(500, "the page could not be built")
        return answers.error(503, "the page changes faster than it is built")

    async def _post(self, request: Request, name: str, module: types.ModuleType) -> Answer:
        post = getattr(module, "post", None)
        if post is None:
            return answers.error(405, "this page takes no POST", [("Allow", "GET, HEAD")])
        page = self._page(_Unrecorded(self), name, module, request, 0)
        page.body = request.body
        body, headers = _result(await post(page))
        return Answer(int(headers.pop(_STATUS, "200")), headers.items(), body)

    def _page(
        self, building: Any, name: str, module: types.ModuleType, request: Request, depth: int
    ) -> Page:
        query = _Declared("QUERY", _names(module, "QUERY"), request.parameters())
        names = tuple(n.lower() for n in _names(module, "HEADERS"))
        headers = _Declared(
            "HEADERS", names, {n: request.header(n) for n in names if request.all(n)}
        )
        return Page(self, building, name, query, headers, depth)

    async def _get(
        self, request: Request, name: str, module: types.ModuleType, absent: tuple[str, ...]
    ) -> Answer:
        page = self._page(None, name, module, request, 0)

        async def build(building: Any) -> tuple[bytes, Mapping[str, str]]:
            return await self._build(building, name, module, page)

        return await self.kept_answer(request, _key(name, page), build, absent)

    async def kept_answer(
        self,
        request: Request,
        key: str,
        build: Callable[[Any], Awaitable[tuple[bytes, Mapping[str, str]]]],
        absent: tuple[str, ...],
    ) -> Answer:
        """The answer that is kept under a key; built if it is not there or not true any more."""
        if self.cache is None:
            body, given = await build(_Unrecorded(self))
            headers = dict(given)
            return Answer(int(headers.pop(_STATUS, "200")), headers.items(), body)
        entry = self.cache.hit(key)
        if entry is None:
            entry = await self.cache.get(key, build)
        return self._from(entry, request, absent)

    async def _build(
        self, building: Any, name: str, module: types.ModuleType, page: Page
    ) -> tuple[bytes, dict[str, str]]:
        """Call the page; what it is given now belongs to this building."""
        self.server.counts.built += 1
        place = posixpath.join(self.root, name)
        source = await building.file(place)
        now = self.load(source, place)
        if now is not module and (_names(now, "QUERY"), _names(now, "HEADERS")) != (
            _names(module, "QUERY"),
            _names(module, "HEADERS"),
        ):
            raise _ChangedError
        own = Page(self, building, name, page.query, page.headers, page._depth)
        body, headers = _result(await now.page(own))
        headers.setdefault("ETag", f'"{hashlib.blake2b(body, digest_size=15).hexdigest()}"')
        headers.setdefault("Cache-Control", "no-cache")
        names = _names(now, "HEADERS")
        if names:
            headers.setdefault("Vary", ", ".join(names))
        return body, headers

    async def inner(
        self, building: Any, name: str, query: Mapping[str, str] | None, depth: int
    ) -> bytes:
        """The body of a page for another page."""
        source = await self._source(name)
        if source is None:
            # its appearance is what the other page waits for
            await building.stat(posixpath.join(self.root, name))
            raise FileNotFoundError(f"no page {_address(name)}")
        module = self.load(source, posixpath.join(self.root, name))
        declared = _Declared("QUERY", _names(module, "QUERY"), query or {})
        headers = _Declared("HEADERS", _names(module, "HEADERS"), {})
        page = Page(self, None, name, declared, headers, depth)
        if isinstance(building, _Unrecorded):
            return (await self._build(building, name, module, page))[0]

        async def build(own: Any) -> tuple[bytes, Mapping[str, str]]:
            return await self._build(own, name, module, page)

        entry = await building.page(_key(name, page), build)
        return _body(entry)

    def _from(self, entry: Any, request: Request, absent: tuple[str, ...]) -> Answer:
        """The answer that an entry of the cache is."""
        headers = dict(entry.headers)
        status = int(headers.pop(_STATUS, "200"))
        names = tuple(posixpath.join(self.root, name) for name in absent)
        lasting = not any(map(os.path.lexists, names))
        etag = headers["ETag"]
        if status == 200 and conditions.not_modified(request, etag, None):
            kept = {k: v for k, v in headers.items() if k not in ("Content-Type",)}
            answer = Answer(304, kept.items(), basis=(entry,), absent=names)
        elif (ready := entry.ready.get(names)) is not None:
            answer = ready
        else:
            if entry.body is not None:
                answer = Answer(
                    status, headers.items(), bytes(entry.body), basis=(entry,), absent=names
                )
            else:
                answer = Answer(
                    status, headers.items(), length=entry.size, basis=(entry,), absent=names
                )
                answer.from_file(entry, entry.fd, [(entry.offset, entry.offset + entry.size)])
            entry.ready[names] = answer
        answer.lasting = lasting
        return answer

    # -- values ------------------------------------------------------------------------

    async def value(
        self, name: str, ttl: float, make: Callable[[], Any | Awaitable[Any]]
    ) -> tuple[Any, float]:
        """The value and the seconds for which it is good; made once for all who wait."""
        now = self.server.loop.time()
        known = self._values.get(name)
        if known is not None and known[0] > now:
            return known[1], known[0] - now

        async def made() -> tuple[float, Any]:
            value = make()
            if asyncio.iscoroutine(value):
                value = await value
            end = self.server.loop.time() + ttl
            self._values[name] = end, value
            return end, value

        task = self._making.get(name)
        if task is None:
            task = self._making[name] = self.server.loop.create_task(made())
            task.add_done_callback(lambda task: self._made(name, task))
        end, value = await asyncio.shield(task)
        return value, end - self.server.loop.time()

    def _made(self, name: str, task: asyncio.Task[Any]) -> None:
        self._making.pop(name, None)
        if not task.cancelled():
            task.exception()  # told to those who wait, if there still are any


def _key(name: str, page: Page) -> str:
    parts = [name, *(f"?{k}={v}" for k, v in sorted(page.query.items()))]
    parts += [f"{k}: {v}" for k, v in sorted(page.headers.items()) if v]
    return "\n".join(part.replace("\\", "\\\\").replace("\n", "\\n") for part in parts)


def _body(entry: Any) -> bytes:
    if entry.body is not None:
        return bytes(entry.body)
    return os.pread(entry.fd, entry.size, entry.offset)


def _result(result: Any) -> tuple[bytes, dict[str, str]]:
    """What a page returned: a body; body and headers; or status, body and headers."""
    status = 200
    headers: Mapping[str, object] = {}
    if isinstance(result, tuple):
        if len(result) == 3:
            status, result, headers = result
        elif len(result) == 2:
            result, headers = result
    if isinstance(result, str):
        result = result.encode()
    if not isinstance(result, (bytes, bytearray, memoryview)):
        raise TypeError(
            "a page returns a body (str or bytes), (body, headers) or (status, body, headers), "
            f"not {type(result).__name__}"
        )
    found = {"Content-Type": _HTML}
    for name, value in dict(headers).items():
        name = "-".join(part.capitalize() for part in name.split("-"))
        name = {"Etag": "ETag"}.get(name, name)
        if "\r" in f"{name}{value}" or "\n" in f"{name}{value}":
            raise ValueError(f"a header with a line end: {name}: {value!r}")
        found[name] = str(value)
    if status != 200:
        found[_STATUS] = str(int(status))
    return bytes(result), found
