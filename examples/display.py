"""A display server in the place of X: it shows what its clients draw, as PNG files.

    python examples/display.py                              # frames of three clients
    python examples/display.py serve SOCKET --output screen.png --input /dev/input/event3
    python examples/display.py demo SOCKET                  # a client that moves something

`serve` shows the surfaces of all clients of a unix socket, with stacking, clipping and alpha, and
writes a frame whenever something has changed: to one file that is replaced whole each time, or to
numbered ones if the name has a %d in it, as in frame-%04d.png.  Keys, buttons and movements are
`struct input_event` records, read from an evdev device, a FIFO or (with -) standard input.

Clients, their damage, input, the frame timer, the file that is written and signals are awaited in
one select().  docs/display.md has the protocol, examples/display_client.py the client's side.

Rules:

* Pixels are in memory that the client shares.  A memfd is taken only if it is sealed against
  shrinking (F_SEAL_SHRINK) and as large as it was said to be: reading a mapping beyond the end of
  its file would be SIGBUS here.  A row is copied once, and judged by the copy.
* What a client has drawn is learnt by a futex in its memory.  It is waited for again only when a
  frame has been made, so a client that does nothing but wake costs one wake in each frame.
* Nothing waits for a client.  One that breaks the protocol, or does not read what it is sent, is
  told why if it still can be, and dropped with its surfaces; the others see the next frame.
* A surface that goes while a frame is composed stays mapped until that frame is done.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import mmap
import os
import signal
import socket
import stat
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import display_client as wire
from display_screen import NOTHING, Layer, Rect, Screen, png

import aiounify
from aiounify import files
from aiounify.events import readable, recv_fds, writable
from aiounify.futex import Futex
from aiounify.signals import signals
from aiounify.timers import every

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

MAX_CLIENTS = 64
MAX_SURFACES = 16  # of a client
MAX_SIDE = 4096
MAX_UNSENT = 256 * 1024  # bytes for a client that does not read: some 6000 events
HALF_MESSAGE = 2.0  # seconds in which the rest of a message has to come
# struct input_event of linux/input.h: struct timeval, type, code, value.
INPUT_EVENT = struct.Struct("@llHHi")
EV_SYN, EV_KEY, EV_REL, EV_ABS = range(4)
SYN_REPORT, SYN_DROPPED = 0, 3
BUTTONS = range(0x110, 0x118)  # BTN_LEFT to BTN_TASK


class ClientError(Exception):
    """What a client has done wrong."""


class Surface:
    """A client's memory, and where it is shown."""

    def __init__(
        self, client: Client, fd: int, number: int, width: int, height: int, opaque: bool
    ) -> None:
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise ClientError(f"a surface of {width}x{height} pixels")
        size = wire.PIXELS + width * height * 4
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            raise ClientError("a descriptor that is no memfd") from None
        if not seals & fcntl.F_SEAL_SHRINK:
            raise ClientError("a memfd that is not sealed against shrinking")
        # sealed first, looked at then: the other way round it could shrink in between
        if os.fstat(fd).st_size < size:
            raise ClientError(f"a memfd of {os.fstat(fd).st_size} bytes where {size} are needed")
        try:
            self.memory = mmap.mmap(fd, size)
        except (OSError, ValueError) as exc:
            raise ClientError(f"a memfd that cannot be mapped: {exc}") from None
        self.client, self.number, self.opaque = client, number, opaque
        self.width, self.height = width, height
        self.damage, self.shown = Futex(self.memory, 0), Futex(self.memory, 4)
        self.seen = self.shown.load()
        self.x = self.y = self.z = 0
        self.waiting: Coroutine[Any, Any, bool] | None = None

    @property
    def place(self) -> Rect:
        return Rect(self.x, self.y, self.x + self.width, self.y + self.height)

    @property
    def layer(self) -> Layer:
        return Layer(self.place, self.memory, wire.PIXELS, self.opaque)

    def drawn(self) -> Rect:
        """What the client says it has drawn, on the screen."""
        x, y, width, height = wire.RECTANGLE.unpack_from(self.memory, wire.AT_RECTANGLE)
        if not width:
            return self.place
        x, y = x + self.x, y + self.y
        return Rect(x, y, x + width, y + height) & self.place


# -- the server -------------------------------------------------------------------


class Client:
    """A connection."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.name = f"client {number} (pid {struct.unpack('3i', credentials)[0]})"
        self.sock = sock
        self.arriving, self.room = readable(sock), writable(sock)
        self.unsent = bytearray()
        self.buffer = b""
        self.fds: list[int] = []
        self.half_since = 0.0
        self.surfaces: dict[int, Surface] = {}

    def send(self, data: bytes) -> None:
        """Without waiting: what the socket does not take is kept, up to a limit, for flush()."""
        self.unsent += data
        if len(self.unsent) == len(data):
            self.flush()
        if len(self.unsent) > MAX_UNSENT:
            raise ClientError("it does not read what it is sent")

    def flush(self) -> None:
        try:
            sent = self.sock.send(self.unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError as exc:
            raise ClientError(str(exc)) from None
        del self.unsent[:sent]

    def messages(self) -> Iterable[tuple[int, tuple[Any, ...]]]:
        """What has come whole."""
        while len(self.buffer) >= wire.HEADER.size:
            kind, size = wire.HEADER.unpack_from(self.buffer)
            if kind not in (wire.CREATE, wire.PLACE, wire.DESTROY, wire.FOCUS):
                raise ClientError(f"a message of kind {kind}")
            body = wire.BODIES[kind]
            if size != wire.HEADER.size + body.size:
                raise ClientError(f"a message of kind {kind} with {size} bytes")
            if len(self.buffer) < size:
                break
            values = body.unpack_from(self.buffer, wire.HEADER.size)
            self.buffer = self.buffer[size:]
            yield kind, values
        self.half_since = time.monotonic() if self.buffer else 0.0


class Server:
    """The display: its clients, what they show, and the one selection that awaits everything."""

    def __init__(self, screen: Screen, output: str, interval: float, frames: int) -> None:
        self.screen, self.output, self.interval, self.frames = screen, output, interval, frames
        self.handlers: dict[Any, Callable[[Any], Any]] = {}
        self.clients: list[Client] = []
        self.accepted = 0
        self.stack: list[Surface] = []  # from far to near
        self.focus: Surface | None = None
        self.pointer = (screen.width // 2, screen.height // 2)
        self.dirty = screen.whole
        self.composed: list[Surface] = []  # drawn since the last frame
        self.picture: asyncio.Task[None] | None = None
        self.written = 0
        self.trouble = ""  # why the last frame could not be written
        self.rest = b""
        self.input_lost = False
        self.ending = False

    def await_(self, source: Any, handler: Callable[[Any], Any]) -> None:
        self.handlers[source] = handler
        self.events.add(source)

    def forget(self, source: Any) -> None:
        del self.handlers[source]
        if source in self.events:
            self.events.remove(source)

    async def run(self, listener: socket.socket, input_fd: int | None) -> None:
        """Until a signal comes, or as many frames as wanted are written."""
        self.events: aiounify.Selection[Any] = aiounify.select(return_exceptions=True)
        async with signals(signal.SIGTERM, signal.SIGINT) as stop, self.events:
            self.await_(stop, self.stop)
            self.await_(every(self.interval), lambda tick: self.tick(listener))
            self.accepting = readable(listener)
            self.await_(self.accepting, lambda _: self.accept(listener))
            if input_fd is not None:
                arriving = readable(input_fd)
                self.await_(arriving, lambda _: self.read_input(arriving, input_fd))
            while not self.ending:
                source, value = await self.events
                handler = self.handlers[source]
                if source not in self.events:
                    del self.handlers[source]  # a single value, and this was it
                if asyncio.iscoroutine(result := handler(value)):
                    await result
            for client in list(self.clients):
                self.drop(client, "the display ends")
            if self.picture is not None:
                await self.picture

    def stop(self, info: Any) -> None:
        say(f"{signal.Signals(info.signal).name}: ending")
        self.ending = True

    # clients

    def accept(self, listener: socket.socket) -> None:
        try:
            sock = listener.accept()[0]
        except BlockingIOError:
            return
        except OSError as exc:  # EMFILE: it is asked again with the next frame
            say(f"cannot accept: {exc.strerror}")
            self.forget(self.accepting)
            return
        sock.setblocking(False)
        self.accepted += 1
        client = Client(self.accepted, sock)
        self.clients.append(client)
        self.await_(client.arriving, lambda _: self.receive(client))
        say(f"{client.name}: connected")
        if len(self.clients) > MAX_CLIENTS:
            self.drop(client, f"there are {MAX_CLIENTS} clients already")
        else:
            size = self.screen.width, self.screen.height
            frame_ns = int(self.interval * 1e9)
            self.tell(client, wire.message(wire.WELCOME, wire.VERSION, *size, frame_ns))

    async def receive(self, client: Client) -> None:
        try:
            received = await recv_fds(client.sock, 4096, 4)
            client.fds += received.fds
            if received.truncated or len(client.fds) > 4:
                raise ClientError("more descriptors than were asked for")
            if not received.data:
                raise ClientError("its connection has ended")
            client.buffer += received.data
            for kind, values in client.messages():
                self.obey(client, kind, values)
        except ClientError as exc:
            self.drop(client, str(exc))
        except OSError as exc:
            self.drop(client, str(exc))

    def obey(self, client: Client, kind: int, values: tuple[Any, ...]) -> None:
        """One message.  The descriptor of a CREATE has come with its first byte, or before."""
        number, *more = values
        if kind == wire.CREATE:
            if not client.fds:
                raise ClientError("a surface without a descriptor")
            fd = client.fds.pop(0)
            try:
                if number in client.surfaces or len(client.surfaces) >= MAX_SURFACES:
                    raise ClientError(f"surface {number} is there, or one too many")
                width, height, x, y, z, flags = more
                opaque = bool(flags & wire.OPAQUE)
                surface = Surface(client, fd, number, width, height, opaque)
            finally:
                os.close(fd)
            client.surfaces[number] = surface
            self.put(surface, x, y, z)
            self.watch(surface)
            if self.focus is None:
                self.give_focus(surface)
            return
        found = client.surfaces.get(number)
        if found is None:
            raise ClientError(f"surface {number} is not there")
        if kind == wire.PLACE:
            self.put(found, *more)
        elif kind == wire.FOCUS:
            self.give_focus(found)
        else:
            self.take_away(found)

    def drop(self, client: Client, reason: str) -> None:
        """Everything of this client, and nothing of another."""
        if client not in self.clients:
            return
        self.clients.remove(client)
        say(f"{client.name}: dropped: {reason}")
        if not client.unsent:
            with contextlib.suppress(ClientError):
                client.send(wire.message(wire.ERROR, reason.encode()[:200]))
        self.forget(client.arriving)
        if client.room in self.handlers:
            self.forget(client.room)
        client.sock.close()
        for fd in client.fds:
            os.close(fd)
        client.fds.clear()
        for surface in list(client.surfaces.values()):
            self.take_away(surface)

    def tell(self, client: Client, data: bytes) -> None:
        """Send to whom it concerns, who need not be the one that is being served."""
        try:
            client.send(data)
            if client.unsent and client.room not in self.handlers:
                self.await_(client.room, lambda _: self.flush(client))
        except ClientError as exc:
            self.drop(client, str(exc))

    def flush(self, client: Client) -> None:
        try:
            client.flush()
        except ClientError as exc:
            self.drop(client, str(exc))
        else:
            if not client.unsent:
                self.forget(client.room)

    # surfaces

    def put(self, surface: Surface, x: int, y: int, z: int) -> None:
        if surface in self.stack:
            self.dirty |= surface.place & self.screen.whole
            if z != surface.z:
                self.stack.remove(surface)
        surface.x, surface.y, surface.z = x, y, z
        if surface not in self.stack:
            self.stack.append(surface)
            self.stack.sort(key=lambda each: each.z)
        self.dirty |= surface.place & self.screen.whole

    def take_away(self, surface: Surface) -> None:
        del surface.client.surfaces[surface.number]
        self.stack.remove(surface)
        self.dirty |= surface.place & self.screen.whole
        if surface.waiting is not None:
            self.forget(surface.waiting)
            surface.waiting = None
        if surface in self.composed:
            self.composed.remove(surface)
        if self.focus is surface:
            self.focus = None
            if self.stack:
                self.give_focus(self.stack[-1])

    def watch(self, surface: Surface) -> None:
        """Wait until its client has drawn."""
        surface.waiting = surface.damage.wait(surface.seen)
        self.await_(surface.waiting, lambda _: self.drawn(surface))

    def drawn(self, surface: Surface) -> None:
        surface.waiting = None
        seen = surface.damage.load()
        if seen == surface.seen:
            self.watch(surface)
            return
        surface.seen = seen
        self.dirty |= surface.drawn() & self.screen.whole
        self.composed.append(surface)

    def give_focus(self, surface: Surface) -> None:
        before, self.focus = self.focus, surface
        if before is surface:
            return
        self.tell(surface.client, wire.message(wire.FOCUSED, surface.number, True))
        if before is not None:
            self.tell(before.client, wire.message(wire.FOCUSED, before.number, False))

    # frames

    def tick(self, listener: socket.socket) -> None:
        if self.accepting not in self.events:
            self.await_(self.accepting, lambda _: self.accept(listener))
        now = time.monotonic()
        for client in list(self.clients):
            if client.half_since and now - client.half_since > HALF_MESSAGE:
                self.drop(client, f"half a message for {HALF_MESSAGE} s")
        if self.picture is None and (self.dirty.area or self.composed):
            self.picture = asyncio.create_task(self.make_picture())
            self.await_(self.picture, self.picture_done)

    async def make_picture(self) -> None:
        area, self.dirty = self.dirty, NOTHING
        drawn, self.composed = self.composed, []
        if area.area:
            await self.screen.compose(area, [s.layer for s in self.stack])
        for surface in drawn:
            surface.shown.store(surface.seen)
            surface.shown.wake(2**31 - 1)
            if surface.client.surfaces.get(surface.number) is surface:
                self.watch(surface)
        if not area.area:
            return
        path = self.output % (self.written + 1) if "%" in self.output else self.output
        pixels, size = bytes(self.screen.pixels), (self.screen.width, self.screen.height)
        encoded = await asyncio.to_thread(png, pixels, *size)
        await files.write_bytes(path, encoded, atomic=True)
        self.written += 1

    def picture_done(self, result: Any) -> None:
        self.picture = None
        if isinstance(result, OSError):
            if str(result) != self.trouble:
                say(f"cannot write the frame: {result}")
            self.trouble = str(result)
            self.dirty = self.screen.whole
            return
        if isinstance(result, BaseException):
            raise result
        self.trouble = ""
        self.ending = self.ending or 0 < self.frames <= self.written

    # input

    def read_input(self, arriving: Any, fd: int) -> None:
        try:
            data = os.read(fd, 64 * INPUT_EVENT.size)
        except BlockingIOError:
            return
        except OSError as exc:  # ENODEV: it was pulled out
            data = b""
            say(f"input: {exc.strerror}")
        if not data:
            say("input has ended")
            self.forget(arriving)
            return
        self.rest += data
        whole = len(self.rest) // INPUT_EVENT.size * INPUT_EVENT.size
        records, self.rest = self.rest[:whole], self.rest[whole:]
        for seconds, micro, kind, code, value in INPUT_EVENT.iter_unpack(records):
            if kind == EV_SYN:
                # the device's queue ran over: what follows up to the report is incomplete
                self.input_lost = code == SYN_DROPPED or (self.input_lost and code != SYN_REPORT)
            elif not self.input_lost:
                self.deliver(seconds * 10**9 + micro * 1000, kind, code, value)

    def deliver(self, when_ns: int, kind: int, code: int, value: int) -> None:
        """Movements to what is under the pointer; keys and buttons to who has the focus."""
        x, y = self.pointer
        if kind in (EV_REL, EV_ABS) and code in (0, 1):
            new = value if kind == EV_ABS else value + (x, y)[code]
            limit = (self.screen.width, self.screen.height)[code]
            new = max(0, min(limit - 1, new))
            x, y = self.pointer = (new, y) if code == 0 else (x, new)
        pressed = kind == EV_KEY and code in BUTTONS and value == 1
        found = self.focus
        if kind != EV_KEY or pressed:
            here = Rect(x, y, x + 1, y + 1)
            under = (each for each in reversed(self.stack) if (each.place & here).area)
            found = next(under, None)
        if found is None:
            return
        if pressed:
            self.give_focus(found)
        position = (x - found.x, y - found.y)
        data = wire.message(wire.INPUT, found.number, when_ns % 2**64, kind, code, value, *position)
        self.tell(found.client, data)


def say(text: str) -> None:
    print(text, flush=True)


def listen(path: str) -> socket.socket:
    """A listening socket there, in place of one that a killed display has left."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        if stat.S_ISSOCK(Path(path).stat().st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(path)
            sock.close()
            sys.exit(f"display: there is one at {path} already")
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(Path(path).stat().st_mode):
            Path(path).unlink()
    before = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(before)
    sock.listen(MAX_CLIENTS)
    return sock


def open_input(path: str) -> int:
    """A FIFO is opened for both, so that it does not end with each writer."""
    if path == "-":
        os.set_blocking(0, False)
        return os.dup(0)
    both = os.O_RDWR if stat.S_ISFIFO(Path(path).stat().st_mode) else os.O_RDONLY
    return os.open(path, both | os.O_NONBLOCK | os.O_CLOEXEC)


async def serve(server: Server, path: str, source: str | None) -> None:
    with listen(path) as listener:
        fd = None
        try:
            fd = None if source is None else open_input(source)
            say(f"display at {path}, frames to {server.output}")
            await server.run(listener, fd)
        finally:
            if fd is not None:
                os.close(fd)
            await files.Path(path).unlink()


async def show(steps: int) -> None:
    """Three clients, each a process that moves so many times, on a display of its own."""
    folder = tempfile.mkdtemp(prefix="display-")
    path = f"{folder}/socket"
    server = Server(Screen(480, 320), f"{folder}/frame-%04d.png", 1 / 30, 0)
    serving = asyncio.create_task(serve(server, path, None))
    await asyncio.sleep(0)
    me = (sys.executable, __file__, "demo", path, "--steps", str(steps), "--number")
    clients = [await asyncio.create_subprocess_exec(*me, str(number)) for number in range(3)]
    for client in clients:
        await client.wait()
    server.ending = True  # it looks at this at the next tick
    await serving
    say(f"{server.written} frames in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command")
    parser.add_argument("--steps", type=int, default=6, help="without a command: how far (6)")
    serving = commands.add_parser("serve", help="show what clients draw")
    serving.add_argument("socket")
    serving.add_argument("--output", default="screen.png", help="where frames go (screen.png)")
    serving.add_argument("--input", help="an evdev device, a FIFO, or - for standard input")
    serving.add_argument("--size", default="640x480")
    serving.add_argument("--rate", type=float, default=30.0, help="frames a second at most (30)")
    serving.add_argument("--frames", type=int, default=0, help="end after so many (never)")
    moving = commands.add_parser("demo", help="a client that moves something")
    moving.add_argument("socket")
    moving.add_argument("--number", type=int, default=0, help="which color and place")
    moving.add_argument("--steps", type=int, default=0, help="end after so many (never)")
    options = parser.parse_args()
    if options.command == "demo":
        try:
            aiounify.run(wire.demo(options.socket, options.number, options.steps))
        except OSError as exc:
            sys.exit(f"display: {options.socket}: {exc}")
    elif options.command == "serve":
        width, _, height = options.size.partition("x")
        size = (int(width), int(height))
        if not all(0 < side <= MAX_SIDE for side in size):
            sys.exit(f"display: a size of at most {MAX_SIDE}x{MAX_SIDE}")
        server = Server(Screen(*size), options.output, 1 / options.rate, options.frames)
        try:
            aiounify.run(serve(server, options.socket, options.input))
        except OSError as exc:
            sys.exit(f"display: {exc}")
    else:
        aiounify.run(show(options.steps))


if __name__ == "__main__":
    main()
