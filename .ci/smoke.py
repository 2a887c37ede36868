"""What an installed aiounify has to have and to do; run by .ci/smoke."""

import asyncio
import importlib.metadata
import sys
from pathlib import Path

import aiounify
from aiounify.backends import why_not_uring

package = Path(aiounify.__file__).parent
assert package.is_relative_to(sys.prefix), f"imported from {package}"
assert importlib.metadata.version("aiounify") == aiounify.__version__

names = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
assert "py.typed" in names
native = {name.split(".")[0] for name in names if name.endswith(".so")}
stubs = {name.removesuffix(".pyi") for name in names if name.endswith(".pyi")}
assert native, "no native modules"
assert native == stubs, f"native modules {native} and stubs {stubs} differ"
sources = {name for name in names if name.endswith((".c", ".h", ".pyx", ".pxd"))}
assert not sources, f"sources were installed: {sources}"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    message = b"x" * 1_000_000
    writer.write(message)
    assert await reader.readexactly(len(message)) == message
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0


for backend in ("epoll",) if why_not_uring() else ("uring", "epoll"):
    aiounify.run(main(), loop_factory=lambda name=backend: aiounify.new_event_loop(name))
    print(f"{backend}: ok")
