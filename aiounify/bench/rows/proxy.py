"""The example `proxy` against haproxy: bytes for each CPU second of the process between.

wrk asks through the proxy for bodies of one size, so the CPU time of a request is that of so many
bytes.  On aiounify the proxy is examples/proxy.py, which splices; on other loops it is one of
asyncio's streams, as people write it; haproxy forwards TCP with splicing on; and a proxy of 200
lines of C, built when it is measured, does nothing but splice.
"""

import asyncio
import contextlib
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from aiounify.bench.rows.base import Address, HttpRow, Launch, Program
from aiounify.bench.rows.ports import free_port
from aiounify.bench.upstream import started
from aiounify.loop import EventLoop

__all__ = ["ROWS"]

_CONNECTIONS = 16
_EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
_SOURCE = Path(__file__).resolve().parents[1] / "c" / "splice_proxy.c"

_kept: list[object] = []


async def _splicing(to: Address) -> Address:
    if not (_EXAMPLES / "proxy.py").is_file():
        raise FileNotFoundError(f"{_EXAMPLES}/proxy.py is not there: run this in the source tree")
    sys.path.insert(0, str(_EXAMPLES))
    module: Any = importlib.import_module("proxy")
    proxy = module.Proxy(to=(to[0], to[1]))
    _kept.append(proxy)
    host, port = await proxy.listen("127.0.0.1", 0)
    return (str(host), int(port))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def _copying(to: Address) -> Address:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection(str(to[0]), int(to[1]))
        await asyncio.gather(_copy(reader, other_writer), _copy(other_reader, writer))
        writer.close()
        other_writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    _kept.append(server)
    host, port = server.sockets[0].getsockname()
    return (str(host), int(port))


def _row(name: str, size: int) -> HttpRow:
    async def serve() -> Address:
        to = started(size)
        if isinstance(asyncio.get_running_loop(), EventLoop):
            return await _splicing(to)
        return await _copying(to)

    def launch(directory: Path) -> Launch:
        host, port = started(size)
        mine = free_port()
        (directory / "haproxy.cfg").write_text(
            "global\n nbthread 1\n maxconn 1000\n"
            "defaults\n mode tcp\n option splice-request\n option splice-response\n"
            " timeout connect 10s\n timeout client 300s\n timeout server 300s\n"
            f"listen proxy\n bind 127.0.0.1:{mine}\n server up {host}:{port}\n"
        )
        return Launch(("haproxy", "-db", "-f", str(directory / "haproxy.cfg")), ("127.0.0.1", mine))

    def build(directory: Path) -> Launch:
        if not _SOURCE.is_file():
            raise FileNotFoundError(f"{_SOURCE} is not there: run this in the source tree")
        made = directory / "splice_proxy"
        done = subprocess.run(
            ["cc", "-O2", "-Wall", "-o", made, _SOURCE],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OSError(f"cc failed: {done.stderr}")
        mine, to = free_port(), started(size)[1]
        return Launch((str(made), str(mine), str(to)), ("127.0.0.1", mine), built=True)

    return HttpRow(
        f"proxy-{name}",
        f"A TCP proxy, bodies of {name.upper()}iB through it: {_CONNECTIONS} connections of wrk.",
        ("server", "proxy"),
        "request",
        serve,
        connections=_CONNECTIONS,
        programs=(
            Program(
                "haproxy",
                "haproxy",
                "haproxy is not installed (Debian, Ubuntu: apt-get install haproxy)",
                ("-v",),
                launch,
            ),
            Program(
                "splice-c",
                "cc",
                "no C compiler is installed (Debian, Ubuntu: apt-get install gcc)",
                ("--version",),
                build,
            ),
        ),
        base="haproxy",
    )


ROWS = (_row("1m", 1 << 20), _row("16k", 1 << 14))
