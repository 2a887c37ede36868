"""The example `kvstore` against redis-server: both write a log and sync it before they answer.

The database is in examples/kvstore of the source tree, which an installed package does not have.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

from aiounify.bench.rows.base import Address, Launch, Program, ToolRow
from aiounify.bench.rows.filefloor import directory_on_disk
from aiounify.bench.rows.ports import free_port

__all__ = ["ROWS"]

_CONNECTIONS = 50
_EXAMPLES = Path(__file__).resolve().parents[3] / "examples"

_kept: list[object] = []


async def _kvstore() -> Address:
    if not (_EXAMPLES / "kvstore").is_dir():
        raise FileNotFoundError(f"{_EXAMPLES}/kvstore is not there: run this in the source tree")
    sys.path.insert(0, str(_EXAMPLES))
    module: Any = importlib.import_module("kvstore.server")
    server = module.Server(directory_on_disk(), policy="always")
    _kept.append(server)
    host, port = await server.listen("127.0.0.1", 0)
    return (str(host), int(port))


def _redis(directory: Path) -> Launch:
    port = free_port()
    disk = directory_on_disk()
    arguments = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
    where = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(disk), "--daemonize", "no")
    return Launch(("redis-server", *where, *arguments), ("127.0.0.1", port))


_REDIS = Program(
    "redis-server",
    "redis-server",
    "redis-server is not installed (Debian, Ubuntu: apt-get install redis-server)",
    ("--version",),
    _redis,
)


def _row(command: str, what: str) -> ToolRow:
    return ToolRow(
        f"kvstore-{command}",
        f"{what} of 64 bytes, appendfsync always: {_CONNECTIONS} connections of redis-benchmark.",
        ("server", "kvstore"),
        "request",
        _kvstore,
        connections=_CONNECTIONS,
        tool="redis-benchmark",
        request=command,
        programs=(_REDIS,),
        base="redis-server",
    )


ROWS = (_row("set", "SET"), _row("get", "GET"))
