"""The example `webserver` against nginx: static files, and a page that is built from one.

wrk asks over 100 kept connections.  nginx has one worker, no access log, sendfile and its cache of
open files, and serves the same file in the page's place: what is kept of a page is to cost no more
than a file.  On other loops the same server looks at its files for each request and builds the page
each time, as it has to where file changes cannot be awaited.
"""

import asyncio
import importlib
import socket
import sys
from pathlib import Path
from typing import Any

from aiounify.bench.rows.base import Address, HttpRow, Launch, Program
from aiounify.bench.rows.filefloor import directory_on_disk
from aiounify.bench.rows.ports import free_port
from aiounify.loop import EventLoop

__all__ = ["ROWS"]

_CONNECTIONS = 100
_EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
_TEXT, _LARGE = b"<p>" + b"x" * 1021, 1 << 20
_PAGE = """
async def page(page):
    return await page.file("1k.html")
"""
_NGINX = """
daemon off;
master_process off;
pid {0}/nginx.pid;
error_log {0}/error.log;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    types {{ text/html html; application/octet-stream bin; }}
    default_type text/html;
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    open_file_cache max=1000 inactive=60s;
    client_body_temp_path {0}/body;
    proxy_temp_path {0}/proxy;
    fastcgi_temp_path {0}/fastcgi;
    uwsgi_temp_path {0}/uwsgi;
    scgi_temp_path {0}/scgi;
    server {{ listen 127.0.0.1:{1} backlog=4096; root {0}/site; }}
}}
"""

_kept: list[object] = []


def _site(directory: Path) -> Path:
    """What is served, in a directory of that name."""
    site = directory / "site"
    site.mkdir()
    (site / "1k.html").write_bytes(_TEXT)
    (site / "1m.bin").write_bytes(b"x" * _LARGE)
    return site


async def _serve() -> Address:
    if not (_EXAMPLES / "webserver").is_dir():
        raise FileNotFoundError(f"{_EXAMPLES}/webserver is not there: run this in the source tree")
    sys.path.insert(0, str(_EXAMPLES))
    options_of: Any = importlib.import_module("webserver.options")
    server_of: Any = importlib.import_module("webserver.server")
    own = isinstance(asyncio.get_running_loop(), EventLoop)
    root = _site(directory_on_disk())
    (root / "page.page.py").write_text(_PAGE)
    options = options_of.Options(root=root, loop="aiounify" if own else "uvloop")
    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server = server_of.Server(options)
    await server.start(sock)
    _kept.append(server)
    host, port = sock.getsockname()
    return (str(host), int(port))


def _nginx(directory: Path) -> Launch:
    (_site(directory) / "page").write_bytes(_TEXT)
    port = free_port()
    (directory / "nginx.conf").write_text(_NGINX.format(directory, port))
    argv = ("nginx", "-p", str(directory), "-c", str(directory / "nginx.conf"))
    return Launch(argv, ("127.0.0.1", port))


_PROGRAM = Program(
    "nginx",
    "nginx",
    "nginx is not installed (Debian, Ubuntu: apt-get install nginx-light)",
    ("-v",),
    _nginx,
)


def _row(name: str, path: str, what: str) -> HttpRow:
    return HttpRow(
        f"web-{name}",
        f"The example web server, {what}: {_CONNECTIONS} connections of wrk.",
        ("server", "web"),
        "request",
        _serve,
        connections=_CONNECTIONS,
        request=path,
        programs=(_PROGRAM,),
        base="nginx",
    )


ROWS = (
    _row("1k", "/1k.html", "a file of 1 KiB"),
    _row("1m", "/1m.bin", "a file of 1 MiB"),
    _row("page", "/page", "a page of 1 KiB that is kept"),
)
