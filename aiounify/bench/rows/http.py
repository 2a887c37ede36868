"""Two HTTP servers that people run, each with a page of two words."""

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from typing import Any

from aiounify.bench.rows.base import Address, HttpRow

__all__ = ["ROWS"]

_CONNECTIONS = 100
_BACKLOG = 4096
_BODY = b"Hello, world"

_kept: list[object] = []


def _module(name: str, packages: str) -> Any:
    """Import a server, which the type checker need not have; or say how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(f"{exc.name} is not installed: pip install {packages}") from None


_Event = dict[str, object]


async def _application(
    scope: _Event,
    receive: Callable[[], Awaitable[_Event]],
    send: Callable[[_Event], Awaitable[None]],
) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(_BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _BODY})


async def _uvicorn() -> Address:
    uvicorn = _module("uvicorn", "uvicorn httptools")
    _module("httptools", "uvicorn httptools")
    config = uvicorn.Config(
        _application,
        http="httptools",
        ws="none",
        lifespan="off",
        loop="none",
        port=0,
        backlog=_BACKLOG,
        access_log=False,
        log_level="critical",
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    _kept.append(task)
    while not server.started:
        if task.done():
            task.result()
            raise RuntimeError("uvicorn ended")
        await asyncio.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    return (str(host), int(port))


async def _aiohttp() -> Address:
    web = _module("aiohttp.web", "aiohttp")

    async def hello(request: object) -> object:
        return web.Response(body=_BODY, content_type="text/plain")

    application = web.Application()
    application.router.add_get("/", hello)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=_BACKLOG).start()
    _kept.append(runner)
    host, port = runner.addresses[0]
    return (str(host), int(port))


ROWS = (
    HttpRow(
        "uvicorn",
        f"uvicorn with httptools, an ASGI hello: {_CONNECTIONS} connections of wrk.",
        ("net", "http"),
        "request",
        _uvicorn,
        connections=_CONNECTIONS,
    ),
    HttpRow(
        "aiohttp",
        f"aiohttp's web server, a hello: {_CONNECTIONS} connections of wrk.",
        ("net", "http"),
        "request",
        _aiohttp,
        connections=_CONNECTIONS,
    ),
)
