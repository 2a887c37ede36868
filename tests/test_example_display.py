"""examples/display.py with real clients: what is in the PNG, who gets input, who is dropped."""

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import ClassVar

import program_output
import pytest
from hypothesis import given
from hypothesis import strategies as st
from program_output import PATIENCE

EXAMPLES = Path(__file__).parents[1] / "examples"
CLIENT = Path(__file__).parent / "programs" / "display_client.py"
WIDTH, HEIGHT = 48, 32
BACKGROUND = (0x20, 0x28, 0x38)
EVENT = struct.Struct("@llHHi")
EV_SYN, EV_KEY, EV_REL, EV_ABS = range(4)

sys.path.insert(0, str(EXAMPLES))
try:
    import display_client as wire
    import display_screen
finally:
    sys.path.remove(str(EXAMPLES))


def read_png(data):
    """(width, height, rows of pixels) of an RGB PNG without filters; each checksum is looked at."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, []
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size)[0] == zlib.crc32(kind + body)
        chunks.append((kind, body))
        at += size + 12
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *how = struct.unpack(">2I5B", chunks[0][1])
    assert how == [8, 2, 0, 0, 0]
    raw = zlib.decompress(chunks[1][1])
    assert len(raw) == height * (1 + width * 3)
    rows = []
    for y in range(height):
        line = raw[y * (1 + width * 3) : (y + 1) * (1 + width * 3)]
        assert line[0] == 0
        rows.append([tuple(line[1 + 3 * x : 4 + 3 * x]) for x in range(width)])
    return rows


def expected(*surfaces):
    """The frame of surfaces "x y width height z RRGGBBAA [opaque]", a pixel at a time."""
    rows = [[BACKGROUND] * WIDTH for _ in range(HEIGHT)]
    layers = [(int(s.split()[4]), i, s.split()) for i, s in enumerate(surfaces)]
    for _, _, (left, top, width, height, _, color, *flags) in sorted(layers):
        red, green, blue, alpha = bytes.fromhex(color)
        if flags:
            alpha = 255
        for y in range(max(0, int(top)), min(HEIGHT, int(top) + int(height))):
            for x in range(max(0, int(left)), min(WIDTH, int(left) + int(width))):
                rows[y][x] = tuple(
                    (over * alpha + under * (255 - alpha) + 127) // 255
                    for over, under in zip((red, green, blue), rows[y][x], strict=True)
                )
    return rows


class Process(program_output.Program):
    """A program and the lines that it says; killed after the test, whatever happens."""

    running: ClassVar[list] = []

    def __init__(self, backend, *command, **how):
        super().__init__(backend, *command, options=("-X", "dev", "-W", "error"), **how)
        self.running.append(self)

    def says(self, text, times=1):
        """Wait until it has said this that many times; everything it has said."""
        self.until(re.escape(text), times)
        return self.text

    def kill(self):
        super().kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Display:
    """A display server of its own, and the clients started for it."""

    def __init__(self, backend, folder, *more, **how):
        self.backend = backend
        self.socket, self.picture = folder / "socket", folder / "screen.png"
        self.server = Process(
            backend,
            EXAMPLES / "display.py",
            *("serve", self.socket, "--output", self.picture),
            *("--size", f"{WIDTH}x{HEIGHT}", "--rate", "100", *more),
            **how,
        )
        self.server.says("display at")

    def client(self, mode, ready=True):
        client = Process(self.backend, CLIENT, self.socket, mode)
        if ready:
            client.says("ready")
        return client

    def until_shows(self, *surfaces):
        """Wait until the PNG is exactly this."""
        wanted, deadline, found = expected(*surfaces), time.monotonic() + PATIENCE, None
        while found != wanted:
            assert time.monotonic() < deadline, f"not {surfaces}: {self.server.text}\n{found}"
            time.sleep(0.01)
            if self.picture.exists():
                found = read_png(self.picture.read_bytes())

    def descriptors(self):
        """What it has open, but for frames and the counter of a thread that waits for futexes."""
        folder, found = Path(f"/proc/{self.server.process.pid}/fd"), []
        for each in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(str(each.readlink()))
        own = ("anon_inode:[eventfd]", str(self.picture.parent))
        return sorted(link for link in found if not link.startswith(own))

    def end(self):
        """SIGTERM; status 0, nothing on stderr, and no socket left."""
        self.server.process.send_signal(signal.SIGTERM)
        said = self.server.says("SIGTERM: ending")
        assert self.server.process.wait(PATIENCE) == 0
        assert "Traceback" not in said
        assert not self.socket.exists()


@pytest.fixture(autouse=True)
def nothing_runs():
    yield
    while Process.running:
        Process.running.pop().kill()


@pytest.fixture
def display(backend, tmp_path):
    return Display(backend, tmp_path)


# -- pictures ---------------------------------------------------------------------


@given(st.binary(min_size=4, max_size=64), st.integers(0, 255), st.randoms())
def test_blend(pixels, alpha, random):
    pixels = pixels[: len(pixels) // 4 * 4]
    under = random.randbytes(len(pixels))
    assert display_screen.blend(pixels, under, alpha) == bytes(
        (a * alpha + b * (255 - alpha) + 127) // 255 for a, b in zip(pixels, under, strict=True)
    )


@given(st.integers(1, 9), st.integers(1, 9), st.randoms())
def test_png(width, height, random):
    pixels = random.randbytes(width * height * 4)
    rows = read_png(display_screen.png(pixels, width, height))
    assert rows == [
        [tuple(pixels[(y * width + x) * 4 :][:3]) for x in range(width)] for y in range(height)
    ]


def test_stacking_clipping_and_alpha(display):
    one = "2 2 20 12 1 ff000080", "10 6 30 20 0 00ff00ff"
    two = "-5 -4 18 10 5 0000ff40", "40 20 30 30 2 ffffff7f", "8 8 4 4 3 12345600 opaque"
    display.until_shows()
    display.client(",".join(one))
    display.until_shows(*one)
    again = display.client(",".join(two))
    display.until_shows(*one, *two)
    again.kill()
    display.until_shows(*one)
    display.end()


def test_surfaces_that_are_not_on_the_screen(display):
    display.client("100 0 8 8 0 ffffffff,0 -50 8 8 0 ffffffff,3 3 2 2 0 ffffffff")
    display.until_shows("3 3 2 2 0 ffffffff")
    display.end()


async def test_place_and_damage(backend, tmp_path):
    display = Display(backend, tmp_path)
    async with await wire.Display.connect(str(display.socket)) as client:
        assert (client.width, client.height) == (WIDTH, HEIGHT)
        surface = await client.surface(10, 10, 4, 4)
        surface.fill(0, 0, 10, 10, b"\xff\x00\x00\xff")
        surface.present()
        await surface.until_shown()
        display.until_shows("4 4 10 10 0 ff0000ff")
        # drawn in two places, and told of one: the other is not shown
        surface.fill(0, 0, 3, 3, b"\x00\x00\xff\xff")
        surface.fill(5, 5, 3, 3, b"\x00\x00\xff\xff")
        surface.present(5, 5, 3, 3)
        await surface.until_shown()
        display.until_shows("4 4 10 10 0 ff0000ff", "9 9 3 3 1 0000ffff")
        client.place(surface, 20, 10)
        display.until_shows(
            "20 10 10 10 0 ff0000ff", "20 10 3 3 0 0000ffff", "25 15 3 3 0 0000ffff"
        )
    display.until_shows()
    display.end()


# -- clients that go, hang or lie ---------------------------------------------------


def test_a_killed_client(display):
    stays = display.client("0 0 8 8 0 ff0000ff")
    killed = display.client("4 4 8 8 1 00ff0080")
    busy = display.client("busy")
    killed.kill()
    busy.kill()
    display.until_shows("0 0 8 8 0 ff0000ff")
    display.client("4 4 8 8 1 00ff0080").kill()
    display.until_shows("0 0 8 8 0 ff0000ff")
    assert stays.process.poll() is None
    display.end()


def test_a_stopped_client(display):
    hangs = display.client("4 4 8 8 1 00ff00ff")
    hangs.process.send_signal(signal.SIGSTOP)
    display.client("0 0 8 8 2 ff0000ff")
    display.until_shows("4 4 8 8 1 00ff00ff", "0 0 8 8 2 ff0000ff")
    hangs.process.send_signal(signal.SIGCONT)
    display.end()


@pytest.mark.parametrize("kind", ["lies", "descriptors", "messages"])
def test_wrong_clients_are_dropped(display, kind):
    wrong = {
        "lies": ["small", "unsealed", "sealed-write", "flat", "huge", "twice", "too-many"],
        "descriptors": ["read-only", "pipe", "file", "directory", "path-only", "socket", "many"],
        "messages": ["none", "kind", "size", "zero", "noise", "another's", "half", "half-header"],
    }[kind]
    display.until_shows()
    open_before = display.descriptors()
    stays = display.client("0 0 8 8 0 ff0000ff")
    display.client(" ".join(wrong), ready=False).says("dropped: ", times=len(wrong))
    said = display.server.says(": dropped: ", times=len(wrong))
    assert "Traceback" not in said
    display.until_shows("0 0 8 8 0 ff0000ff")
    assert stays.process.poll() is None
    stays.kill()
    display.until_shows()
    # a mapping of a client's surface has a descriptor too
    deadline = time.monotonic() + PATIENCE
    while (now := display.descriptors()) != open_before:
        assert time.monotonic() < deadline, f"{now} instead of {open_before}"
        time.sleep(0.01)
    display.end()


def test_a_client_that_truncates(display):
    takes = display.client("truncating")
    display.until_shows("0 0 8 8 0 ffffffff")
    takes.kill()
    display.until_shows()
    display.end()


# -- input --------------------------------------------------------------------------


def event(kind, code, value, when=(7, 5)):
    return EVENT.pack(*when, kind, code, value)


def test_input(backend, tmp_path):
    fifo = tmp_path / "input"
    os.mkfifo(fifo)
    display = Display(backend, tmp_path, "--input", fifo)
    left = display.client("0 0 20 20 0 ff0000ff")
    right = display.client("20 0 20 20 0 00ff00ff")
    with open(fifo, "wb", buffering=0) as device:
        # the first has the focus until the pointer presses into the other
        device.write(event(EV_KEY, 30, 1) + event(EV_SYN, 0, 0))
        stamp = 7 * 10**9 + 5000
        left.says(f"{wire.INPUT} 1 {stamp} {EV_KEY} 30 1")
        motion = event(EV_ABS, 0, 25) + event(EV_ABS, 1, 9) + event(EV_REL, 0, -2)
        for byte in motion:  # records come in any pieces
            device.write(bytes([byte]))
        right.says(f"{wire.INPUT} 1 {stamp} {EV_REL} 0 -2 3 9")
        device.write(event(EV_KEY, 0x110, 1) + event(EV_KEY, 31, 1))
        right.says(f"{wire.FOCUSED} 1 True")
        right.says(f"{wire.INPUT} 1 {stamp} {EV_KEY} 31 1 3 9")
        left.says(f"{wire.FOCUSED} 1 False")
    with open(fifo, "wb", buffering=0) as device:
        # what follows SYN_DROPPED is incomplete, up to the report
        device.write(event(EV_SYN, 3, 0) + event(EV_KEY, 32, 1) + event(EV_SYN, 0, 0))
        device.write(event(EV_KEY, 33, 1))
        assert " 32 1 " not in right.says(f"{EV_KEY} 33 1")
    right.kill()  # the focus goes back
    left.says(f"{wire.FOCUSED} 1 True", times=2)
    display.end()


def test_a_client_that_does_not_read_its_input(backend, tmp_path):
    display = Display(backend, tmp_path, "--input", "-", stdin=subprocess.PIPE)
    deaf = display.client("0 0 20 20 0 ff0000ff")
    other = display.client("20 0 20 20 0 00ff00ff")
    deaf.process.send_signal(signal.SIGSTOP)
    device = display.server.process.stdin
    sent = 0
    while "does not read" not in display.server.so_far():
        device.write(event(EV_KEY, 30, 1) * 100)
        device.flush()
        sent += 100
        assert sent < 1_000_000, "it is never dropped"
    device.write(event(EV_KEY, 40, 1))
    device.close()
    other.says(f"{EV_KEY} 40 1")
    display.server.says("input has ended")
    display.until_shows("20 0 20 20 0 00ff00ff")
    display.end()


# -- the command ----------------------------------------------------------------------


def test_demo(backend, tmp_path):
    done = Process(backend, EXAMPLES / "display.py", "--steps", "2")
    said = done.says("frames in ")
    folder = Path(said.rpartition("frames in ")[2].strip())
    frames = sorted(folder.glob("frame-*.png"))
    assert done.process.wait(PATIENCE) == 0
    assert len(frames) == int(said.rpartition(" frames in ")[0].rpartition("\n")[2])
    assert len(read_png(frames[-1].read_bytes())) == 320
    assert len({frame.read_bytes() for frame in frames}) > 1
    for frame in frames:
        frame.unlink()
    folder.rmdir()  # nothing else is left there


def test_frames_and_a_socket_that_was_left(backend, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    numbered = ("serve", path, "--frames", "1", "--output", tmp_path / "f-%03d.png")
    done = Process(backend, EXAMPLES / "display.py", *numbered)
    assert done.process.wait(PATIENCE) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["f-001.png"]


def test_refusals(backend, tmp_path, display):
    taken = Process(backend, EXAMPLES / "display.py", "serve", display.socket)
    nowhere = Process(backend, EXAMPLES / "display.py", "demo", tmp_path / "none")
    taken.says(f"display: there is one at {display.socket} already")
    nowhere.says(f"display: {tmp_path / 'none'}: [Errno 2]")
    assert taken.process.wait(PATIENCE) == nowhere.process.wait(PATIENCE) == 1
    display.end()
