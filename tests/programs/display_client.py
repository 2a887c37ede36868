"""A client of examples/display.py that does one thing, for test_example_display.py.

    display_client.py SOCKET MODE

Says `ready` when what it does has been done, then follows what the display sends until it ends.
"""

import asyncio
import fcntl
import mmap
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import display_client as wire

import aiounify


async def good(display, mode):
    """x y width height z RRGGBBAA [opaque], and then the same for further surfaces."""
    for words in (each.split() for each in mode.split(",")):
        x, y, width, height, z = map(int, words[:5])
        flags = wire.OPAQUE if words[6:] else 0
        surface = await display.surface(width, height, x, y, z, flags)
        surface.fill(0, 0, width, height, bytes.fromhex(words[5]))
        surface.present()
        await surface.until_shown()
    print("ready", flush=True)
    async for event in display.events():
        print(event.kind, *event.values, flush=True)


async def busy(display, mode):
    """Draws without end, and never reads."""
    surface = await display.surface(64, 64, 0, 0, 9)
    for step in range(10**9):
        surface.fill(0, 0, 64, 64, bytes([step & 255] * 4))
        surface.present()
        if step == 3:
            await surface.until_shown()
            print("ready", flush=True)
        if step % 50 == 0:
            await asyncio.sleep(0)


def memfd(size, seals=fcntl.F_SEAL_SHRINK):
    fd = os.memfd_create("bad", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def create(width=8, height=8, number=1):
    return wire.message(wire.CREATE, number, width, height, 0, 0, 100, 0)


ENOUGH = wire.PIXELS + 8 * 8 * 4
# What is sent, and the descriptors with it.
WRONG = {
    "small": lambda: (create(), [memfd(ENOUGH - 1)]),
    "unsealed": lambda: (create(), [memfd(ENOUGH, 0)]),
    "sealed-write": lambda: (create(), [memfd(ENOUGH, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)]),
    "read-only": lambda: (create(), [os.open(f"/proc/self/fd/{memfd(ENOUGH)}", os.O_RDONLY)]),
    "pipe": lambda: (create(), [os.pipe()[0]]),
    "file": lambda: (create(), [os.open(__file__, os.O_RDONLY)]),
    "directory": lambda: (create(), [os.open("/", os.O_RDONLY)]),
    "path-only": lambda: (create(), [os.open("/", os.O_PATH)]),
    "socket": lambda: (create(), [socket.socket(socket.AF_UNIX).detach()]),
    "none": lambda: (create(), []),
    "many": lambda: (create(), [memfd(ENOUGH) for _ in range(40)]),
    "flat": lambda: (create(height=0), [memfd(ENOUGH)]),
    "huge": lambda: (create(65535, 65535), [memfd(ENOUGH)]),
    "twice": lambda: (create() + create(), [memfd(ENOUGH), memfd(ENOUGH)]),
    "too-many": lambda: (
        b"".join(create(number=n) for n in range(3)),
        [memfd(ENOUGH) for _ in range(2)],
    ),
    "kind": lambda: (wire.HEADER.pack(99, 8) + bytes(4), []),
    "size": lambda: (wire.HEADER.pack(wire.PLACE, 5) + bytes(1), []),
    "zero": lambda: (bytes(64), []),
    "noise": lambda: (os.urandom(2) + b"\xff\xff" + os.urandom(3000), []),
    "another's": lambda: (wire.message(wire.DESTROY, 77), []),
    "half": lambda: (create()[:7], [memfd(ENOUGH)]),
    "half-header": lambda: (create()[:1], []),
}


def wrong(path, modes):
    """A connection for each, which the display has to end."""
    socks = []
    for mode in modes:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        data, fds = WRONG[mode]()
        socket.send_fds(sock, [data], fds)
        socks.append(sock)
    for mode, sock in zip(modes, socks, strict=True):
        while sock.recv(4096):
            pass
        print("dropped:", mode, flush=True)


def truncating(path):
    """A sealed surface whose memory the client tries to take away, and punches a hole into."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    fd = memfd(ENOUGH)
    memory = mmap.mmap(fd, ENOUGH)
    memory[wire.PIXELS :] = b"\xff" * 256
    socket.send_fds(sock, [create()], [fd])
    try:
        os.ftruncate(fd, 0)
    except PermissionError:
        print("ready", flush=True)
    for _ in range(1000):
        memory[0] = (memory[0] + 1) & 255
        memory[8:24] = os.urandom(16)
    while sock.recv(4096):
        pass


async def main(path, mode):
    async with await wire.Display.connect(path) as display:
        await (busy(display, mode) if mode == "busy" else good(display, mode))


if __name__ == "__main__":
    path, mode = sys.argv[1:]
    if mode == "truncating":
        truncating(path)
    elif mode.split()[0] in WRONG:
        wrong(path, mode.split())
    else:
        aiounify.run(main(path, mode))
