"""A tree of dependencies as a drawing: what a page was made of, from left to right."""

from __future__ import annotations

import html
from dataclasses import dataclass, field

__all__ = ["Node", "drawing"]

_WIDTH, _HEIGHT = 230, 30  # of a place in the drawing
_BOX = 200
_LETTERS = 30


@dataclass
class Node:
    """One thing: `kind` is page, file, or what else it depends on."""

    name: str
    kind: str
    children: list[Node] = field(default_factory=list)


def _rows(node: Node) -> int:
    return max(1, sum(map(_rows, node.children)))


def _depth(node: Node) -> int:
    return 1 + max(map(_depth, node.children), default=0)


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else "\u2026" + name[1 - _LETTERS :]


def drawing(root: Node, title: str) -> str:
    """The tree as an <svg> element, to be put into HTML."""
    width, height = _depth(root) * _WIDTH, _rows(root) * _HEIGHT + 6
    lines: list[str] = []
    boxes: list[str] = []

    def draw(node: Node, x: int, y: int) -> float:
        rows = _rows(node)
        middle = y + rows * _HEIGHT / 2
        name = html.escape(node.name.encode("utf-8", "replace").decode())
        text = html.escape(_short(node.name).encode("utf-8", "replace").decode())
        boxes.append(
            f'<g class="{html.escape(node.kind)}"><title>{html.escape(node.kind)}: {name}</title>'
            f'<rect x="{x + 2}" y="{middle - 11:g}" width="{_BOX}" height="22" rx="4"/>'
            f'<text x="{x + 9}" y="{middle + 4:g}">{text}</text></g>'
        )
        at = y
        for child in node.children:
            end = draw(child, x + _WIDTH, at)
            a, b = x + 2 + _BOX, x + _WIDTH + 2
            half = (a + b) / 2
            lines.append(
                f'<path d="M{a} {middle:g}C{half:g} {middle:g} {half:g} {end:g} {b} {end:g}"/>'
            )
            at += _rows(child) * _HEIGHT
        return middle

    draw(root, 0, 3)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" aria-label="{html.escape(title)}">'
        + "".join(lines)
        + "".join(boxes)
        + "</svg>"
    )
