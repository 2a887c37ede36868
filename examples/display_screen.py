"""Pictures of examples/display.py: rectangles, composition and PNG files.

Everything here is arithmetic on bytes, without a library for images.  Composition takes each
row of a client's memory as one copy, and looks at nothing but the copy: the client may be drawing
at the same time, and what it draws is not believed to be anything but bytes.
"""

from __future__ import annotations

import asyncio
import re
import struct
import time
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable

BACKGROUND = b"\x20\x28\x38\xff"


class Rect(NamedTuple):
    """Left and top, which are inside, right and bottom, which are not."""

    left: int
    top: int
    right: int
    bottom: int

    def __and__(self, other: Rect) -> Rect:
        """What is in both; without an area if nothing is."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        return Rect(
            left, top, max(left, min(self.right, other.right)), max(top, min(self.bottom, other[3]))
        )

    def __or__(self, other: Rect) -> Rect:  # type: ignore[override]
        """The smallest around both."""
        if not self.area or not other.area:
            return self if self.area else other
        (a, b, c, d), (e, f, g, h) = self, other
        return Rect(min(a, e), min(b, f), max(c, g), max(d, h))

    @property
    def area(self) -> int:
        return (self.right - self.left) * (self.bottom - self.top)


NOTHING = Rect(0, 0, 0, 0)


def png(pixels: bytes, width: int, height: int) -> bytes:
    """A PNG file of RGBX pixels (the fourth byte is left out)."""
    rgb = bytearray(width * height * 3)
    for color in range(3):
        rgb[color::3] = pixels[color::4]
    rows = b"".join(b"\0" + rgb[at : at + width * 3] for at in range(0, len(rgb), width * 3))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )


def blend(over: bytes, under: bytes, alpha: int) -> bytes:
    """Each byte (over * alpha + under * (255 - alpha)) / 255, rounded.

    All bytes at once, in the even and odd 16-bit lanes of two large integers; no lane overflows,
    whatever the bytes are.
    """
    size = len(over)
    mask = int.from_bytes(b"\xff\x00" * (size // 2), "little")
    half = mask // 255 * 128
    one, other = int.from_bytes(over, "little"), int.from_bytes(under, "little")
    result = 0
    for shift in (0, 8):
        lanes = (one >> shift & mask) * alpha + (other >> shift & mask) * (255 - alpha) + half
        result |= (lanes + (lanes >> 8 & mask) >> 8 & mask) << shift
    return result.to_bytes(size, "little")


_RUNS = re.compile(rb"(.)\1*", re.DOTALL)


def lay_over(row: bytearray, at: int, pixels: bytes) -> None:
    """Put RGBA pixels on a row that has RGBX ones, beginning at that byte."""
    alphas = pixels[3::4]
    for run in _RUNS.finditer(alphas):
        begin, end = run.start() * 4, run.end() * 4
        alpha, piece = run[1][0], pixels[begin:end]
        if alpha == 255:
            row[at + begin : at + end] = piece
        elif alpha:
            row[at + begin : at + end] = blend(piece, row[at + begin : at + end], alpha)


class Layer(NamedTuple):
    """A surface as it is when a frame begins: it may move or go while the frame is made.

    The mapping lives as long as somebody has it; nobody closes it.
    """

    place: Rect
    memory: mmap.mmap
    first: int  #: where its pixels begin
    opaque: bool


class Screen:
    """The frame: RGBX pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.whole = Rect(0, 0, width, height)
        self.width, self.height = width, height
        self.pixels = bytearray(BACKGROUND * (width * height))

    async def compose(self, area: Rect, layers: Iterable[Layer]) -> None:
        """Make this part anew, the layers from far to near; the loop runs in between."""
        stack = [(layer, found) for layer in layers if (found := layer.place & area).area]
        began = time.monotonic()
        for y in range(area.top, area.bottom):
            row = bytearray(BACKGROUND * (area.right - area.left))
            for (place, memory, first, opaque), part in stack:
                if part.top <= y < part.bottom:
                    width = place.right - place.left
                    begin = first + ((y - place.top) * width + part.left - place.left) * 4
                    length = (part.right - part.left) * 4
                    pixels = memory[begin : begin + length]
                    at = (part.left - area.left) * 4
                    if opaque:
                        row[at : at + length] = pixels
                    else:
                        lay_over(row, at, pixels)
            at = (y * self.width + area.left) * 4
            self.pixels[at : at + len(row)] = row
            if time.monotonic() - began > 0.002:
                await asyncio.sleep(0)
                began = time.monotonic()
