"""What can be set, with the defaults that are used when nothing is.

Everything has a default, so that a directory is all that a user has to name.  Sizes are in bytes,
times in seconds.  The defaults of the limits are those at which a browser notices nothing and one
client cannot take the server away from the others.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Options", "parse"]


@dataclass(frozen=True)
class Options:
    """One server's settings."""

    root: Path = Path()
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    backend: str = "auto"
    #: "aiounify", or "uvloop" or "asyncio" for comparison: without file changes and pages
    loop: str = "aiounify"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    #: a file, or "-" for the standard output; None: no access log
    access_log: str | None = None
    #: list directories that have no index
    listing: bool = True
    #: /_status and /_metrics
    status: bool = True

    #: the request line and the header lines together
    head_limit: int = 16 * 1024
    target_limit: int = 8 * 1024
    header_count: int = 100
    body_limit: int = 1024 * 1024
    connections_per_client: int = 512
    #: from the first byte of a request to the end of its header, and again to the end of its body
    request_timeout: float = 15.0
    #: between two requests
    idle_timeout: float = 75.0
    #: without a byte taken by the client
    send_timeout: float = 60.0
    #: a page that is being built
    build_timeout: float = 30.0
    #: a sub-request, from the name look-up to the last byte
    fetch_timeout: float = 10.0
    fetch_limit: int = 16 * 1024 * 1024
    #: what is in flight when the server is told to stop
    stop_timeout: float = 10.0
    #: of the store of built pages that the workers share
    store_size: int = 64 * 1024 * 1024


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError
    return value


# what argparse puts into "invalid ... value"
_positive.__name__ = "number of seconds"
_count.__name__ = "number"
_port.__name__ = "port"


def parse(arguments: list[str], site: Path) -> Options:
    """The command line; exits with status 2 and a message where it makes no sense."""
    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m aiounify serve",
        description="Serve a directory of static files and page modules over HTTP.",
    )
    add = parser.add_argument
    add("root", nargs="?", type=Path, metavar="DIR", help="the directory (default: a small demo)")
    add("--host", default=default.host, help="address to listen on (default: %(default)s)")
    add("--port", type=_port, default=default.port, help="default: %(default)s; 0: a free one")
    add("--workers", type=_count, default=default.workers, metavar="N", help="processes")
    add("--backend", choices=("auto", "uring", "epoll"), default=default.backend)
    add(
        "--loop",
        choices=("aiounify", "uvloop", "asyncio"),
        default=default.loop,
        help="another loop, for comparison: static files only, looked at for each request",
    )
    add("--tls-cert", type=Path, metavar="PEM", help="certificate chain: serves HTTPS")
    add("--tls-key", type=Path, metavar="PEM", help="its private key, if not in the same file")
    add("--access-log", metavar="FILE", help="- for the standard output")
    add("--no-listing", dest="listing", action="store_false", help="directories need an index")
    add("--no-status", dest="status", action="store_false", help="no /_status and /_metrics")
    for name, kind, text in (
        ("head-limit", _count, "bytes of a request's header"),
        ("body-limit", _count, "bytes of a request's body"),
        ("connections-per-client", _count, "connections from one address"),
        ("request-timeout", _positive, "seconds to send a request"),
        ("idle-timeout", _positive, "seconds between two requests"),
        ("send-timeout", _positive, "seconds in which the client takes nothing"),
        ("build-timeout", _positive, "seconds to build a page"),
        ("fetch-timeout", _positive, "seconds for a sub-request"),
        ("stop-timeout", _positive, "seconds for what is in flight when stopped"),
        ("store-size", _count, "bytes of the store of built pages"),
    ):
        value = getattr(default, name.replace("-", "_"))
        add(
            f"--{name}",
            type=kind,
            default=value,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    found = parser.parse_args(arguments)
    if found.root is None:
        found.root = site
    if not found.root.is_dir():
        parser.error(f"{str(found.root)!r} is not a directory")
    found.root = found.root.resolve()
    if found.tls_key is not None and found.tls_cert is None:
        parser.error("--tls-key needs --tls-cert")
    if found.loop != "aiounify" and found.workers > 1:
        parser.error("--workers needs aiounify's own loop")
    return Options(**vars(found))
