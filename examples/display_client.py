"""The client's side of examples/display.py: its protocol, surfaces, and something that moves.

A client connects to the display's unix socket (SOCK_STREAM) and sends and receives messages.
Each begins with `kind` and `size`, two unsigned 16-bit numbers, little-endian as everything
here; `size` counts the whole message.  docs/display.md has the table.

A surface is a memfd that the client makes, sealed against shrinking, and sends along with CREATE:

    0      u32   damage: the client adds one when it has drawn, and wakes the word (futex)
    4      u32   shown: the display stores the damage it has composed, and wakes the word
    8      4 u32 what has been drawn: x, y, width, height; a width of 0 means everything
    4096   pixels, row by row without gaps: red, green, blue, alpha (straight), a byte each

A client that waits until `shown` has come up with its `damage` before it draws again is never
seen half drawn, and draws no more often than frames are made.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple, Self

from aiounify import select
from aiounify.events import received, send_fds
from aiounify.futex import Futex

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

VERSION = 1
HEADER = struct.Struct("<HH")
PIXELS = 4096
RECTANGLE = struct.Struct("<4I")
AT_RECTANGLE = 8

# From the client.  CREATE: surface, width, height, x, y, z, flags; its memfd goes with it.
CREATE, PLACE, DESTROY, FOCUS = 1, 2, 3, 4
# From the display.  WELCOME: version, width, height, nanoseconds between frames.
WELCOME, INPUT, FOCUSED, ERROR = 16, 17, 18, 19
BODIES = {
    CREATE: struct.Struct("<IHHiihH"),
    PLACE: struct.Struct("<Iiih"),  # surface, x, y, z
    DESTROY: struct.Struct("<I"),
    FOCUS: struct.Struct("<I"),
    WELCOME: struct.Struct("<HHHQ"),
    INPUT: struct.Struct("<IQHHiii"),  # surface, ns, type, code, value; x, y in the surface
    FOCUSED: struct.Struct("<I?"),  # surface, whether it has the focus now
    ERROR: struct.Struct("<200s"),  # why the display closes the connection, in UTF-8
}
OPAQUE = 1  # flag of CREATE: alpha is not looked at


def message(kind: int, *values: object) -> bytes:
    """A message as it is sent."""
    body = BODIES[kind]
    return HEADER.pack(kind, HEADER.size + body.size) + body.pack(*values)


class Event(NamedTuple):
    """What the display has sent: the kind and the values of its body."""

    kind: int
    values: tuple[int, ...]


class RefusedError(ConnectionError):
    """The display has closed the connection, and said why."""


class Surface:
    """Memory that the display shows; made by Display.surface()."""

    def __init__(self, number: int, width: int, height: int) -> None:
        self.number, self.width, self.height = number, width, height
        size = PIXELS + width * height * 4
        self.fd = os.memfd_create("surface", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.fd, 0, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            self.memory = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.pixels = memoryview(self.memory)[PIXELS:]
        self.damage, self.shown = Futex(self.memory, 0), Futex(self.memory, 4)

    def fill(self, x: int, y: int, width: int, height: int, color: bytes) -> None:
        """A rectangle of one color, four bytes; what is outside is left out."""
        x, right = max(0, x), min(self.width, x + width)
        for row in range(max(0, y), min(self.height, y + height)):
            if right > x:
                at = (row * self.width + x) * 4
                self.pixels[at : at + (right - x) * 4] = color * (right - x)

    def present(self, x: int = 0, y: int = 0, width: int = 0, height: int = 0) -> None:
        """Say that this has been drawn: everything, without a width."""
        RECTANGLE.pack_into(self.memory, AT_RECTANGLE, x, y, width, height)
        self.damage.add(1)
        self.damage.wake()

    async def until_shown(self) -> None:
        """Wait until what was presented is in a frame."""
        while (seen := self.shown.load()) != self.damage.load():
            await self.shown.wait(seen)

    def close(self) -> None:
        """Forget the memory; the display keeps its own until DESTROY or the end."""
        self.pixels.release()
        self.damage.release()
        self.shown.release()
        os.close(self.fd)


class Display:
    """A connection to the display: `async with await Display.connect(path) as display`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""
        self._surfaces: dict[int, Surface] = {}
        self.width = self.height = self.frame_ns = 0

    @classmethod
    async def connect(cls, path: str) -> Self:
        """OSError if there is no display, RefusedError if it does not want this client."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
            sock.setblocking(False)
            self = cls(sock)
            welcome = await anext(self.events())
            if welcome.kind != WELCOME or welcome.values[0] != VERSION:
                raise RefusedError(f"not a display of version {VERSION}: {welcome}")
        except BaseException:
            sock.close()
            raise
        _, self.width, self.height, self.frame_ns = welcome.values
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for surface in self._surfaces.values():
            surface.close()
        self._sock.close()

    async def surface(
        self, width: int, height: int, x: int = 0, y: int = 0, z: int = 0, flags: int = 0
    ) -> Surface:
        """A new surface; higher z is nearer, and of the same z the one that came later."""
        surface = Surface(len(self._surfaces) + 1, width, height)
        self._surfaces[surface.number] = surface
        created = message(CREATE, surface.number, width, height, x, y, z, flags)
        await send_fds(self._sock, [created], [surface.fd])
        return surface

    def place(self, surface: Surface, x: int, y: int, z: int = 0) -> None:
        """Move it; coordinates may be outside of the screen."""
        self._sock.sendall(message(PLACE, surface.number, x, y, z))

    def take_focus(self, surface: Surface) -> None:
        """Ask for the keys."""
        self._sock.sendall(message(FOCUS, surface.number))

    async def events(self) -> AsyncIterator[Event]:
        """What the display sends, until it ends; RefusedError if it says why."""
        while True:
            while len(self._rest) >= HEADER.size:
                kind, size = HEADER.unpack_from(self._rest)
                if len(self._rest) < size:
                    break
                body, self._rest = self._rest[HEADER.size : size], self._rest[size:]
                values = BODIES[kind].unpack(body)
                if kind == ERROR:
                    raise RefusedError(values[0].rstrip(b"\0").decode())
                yield Event(kind, values)
            data = await received(self._sock)
            if not data:
                return
            self._rest += data

    async def until_end(self) -> None:
        """Read and forget what the display sends, as long as it is there."""
        async for _ in self.events():
            pass


async def demo(path: str, number: int = 0, steps: int = 0) -> None:
    """A half transparent disc that wanders over the screen; `steps` of 0 is for ever."""
    colors = (b"\xff\x50\x30", b"\x30\xa0\xff", b"\x60\xd0\x40", b"\xff\xc0\x20")
    size = 96
    async with await Display.connect(path) as display:
        disc = await display.surface(size, size, z=number)
        for row in range(size):
            half = round(math.sqrt((size / 2) ** 2 - (row + 0.5 - size / 2) ** 2))
            disc.fill(size // 2 - half, row, 2 * half, 1, colors[number % 4] + b"\xa0")
        dot, at = size // 8, size * 7 // 16

        async def draw() -> None:
            step = number * 7
            end = step + steps
            while not steps or step < end:
                x = (display.width - size) * (1 + math.sin(step * 0.13 + number)) / 2
                y = (display.height - size) * (1 + math.cos(step * 0.17 + number)) / 2
                display.place(disc, round(x), round(y), number)
                disc.fill(at, at, dot, dot, (b"\xff" if step % 2 else b"\x80") * 3 + b"\xff")
                disc.present(at, at, dot, dot)
                await disc.until_shown()
                step += 1

        drawing = asyncio.create_task(draw())
        reading = asyncio.create_task(display.until_end())
        try:
            await select(drawing, reading)  # what fails first is raised here
        finally:
            drawing.cancel()
            reading.cancel()
            await asyncio.wait([drawing, reading])
