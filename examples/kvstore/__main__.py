"""The command line: `python examples/kvstore --help`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import aiounify
from kvstore.commit import POLICIES
from kvstore.log import CorruptError
from kvstore.resp import Limits
from kvstore.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _size(text: str) -> int:
    digits = text.lower().removesuffix("b")
    unit = digits.lstrip("0123456789")
    number = digits[: len(digits) - len(unit)]
    if unit not in _UNITS or not number:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: bytes, or with k, m or g")
    return int(number) * _UNITS[unit]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kvstore", description="A durable key-value database that speaks Redis's protocol."
    )
    add = parser.add_argument
    add("--dir", type=Path, default=Path("kvstore-data"), help="of the log (default: %(default)s)")
    add("--host", default="127.0.0.1", help="default: %(default)s; there is no password")
    add("--port", type=int, default=6379, help="0: a free one; default: %(default)s")
    add("--unix", metavar="PATH", help="also a unix socket")
    add("--fsync", choices=POLICIES, default="always", help="default: %(default)s")
    add("--maxclients", type=int, default=10000, help="default: %(default)s")
    add("--maxmemory", type=_size, default=0, help="of keys and values, 0: no limit")
    add("--max-value", type=_size, default=64 << 20, help="of a key or value; default: 64m")
    add("--rewrite-percent", type=int, default=100, help="growth after which the log is rewritten")
    add("--rewrite-least", type=_size, default=64 << 20, help="not before this size; default: 64m")
    add("--lossy", action="store_true", help="start although data are lost; see docs/kvstore.md")
    add("--loop", choices=("auto", "uring", "epoll", "asyncio", "uvloop"), default="auto")
    return parser.parse_args()


def _factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name == "asyncio":
        return None
    if name == "uvloop":
        try:
            import uvloop
        except ImportError:
            raise SystemExit("kvstore: uvloop is not installed: pip install uvloop") from None
        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return factory
    if name == "auto":
        return aiounify.new_event_loop
    return lambda: aiounify.new_event_loop(name)


async def _serve(options: argparse.Namespace) -> None:
    server = Server(
        options.dir,
        policy=options.fsync,
        limits=Limits(bulk=options.max_value, request=max(1 << 20, 4 * options.max_value)),
        max_clients=options.maxclients,
        max_memory=options.maxmemory,
        rewrite_percent=options.rewrite_percent,
        rewrite_least=options.rewrite_least,
        lossy=options.lossy,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    try:
        host, port = await server.listen(options.host, options.port)
        if options.unix:
            await server.listen_unix(options.unix)
    except BaseException:
        await server.close()
        raise
    if server.torn:
        print(f"kvstore: cut {server.torn} bytes that were not written to their end", flush=True)
    print(f"kvstore: {len(server.store.data)} keys, listening on {host}:{port}", flush=True)
    await server.run()


def main() -> int:
    """Serve until SIGTERM; the exit status."""
    options = _arguments()
    logging.basicConfig(format="kvstore: %(message)s", level=logging.INFO)
    try:
        with asyncio.Runner(loop_factory=_factory(options.loop)) as runner:
            runner.run(_serve(options))
    except CorruptError as exc:
        print(
            f"kvstore: {options.dir}/kvstore.log: {exc}.\n"
            "Restore it from a copy; or start with --lossy, which ends the log there and keeps the "
            "rest in a file beside it.",
            file=sys.stderr,
        )
        return 1
    except OSError as exc:
        print(f"kvstore: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
