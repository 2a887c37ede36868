"""Directories that have no index: a page with the names in them.

It is built and kept like a page: which names there are, their sizes and dates are what it rests on.
Names that are not served are not shown.
"""

from __future__ import annotations

import errno
import hashlib
import html
import os
import posixpath
import stat
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .answers import Answer
from .static import PAGE, is_private

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .request import Request
    from .server import Server

__all__ = ["listing"]

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>:root {{ color-scheme: light dark }}
body {{ font: 16px/1.6 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
padding: 0 1rem }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere }} a {{ text-decoration: none }}
a:hover {{ text-decoration: underline }} table {{ border-collapse: collapse; width: 100% }}
td {{ border-top: 1px solid #8883; padding: .1rem 0; overflow-wrap: anywhere }}
td + td {{ color: #777; font-variant-numeric: tabular-nums; padding-left: 2rem;
text-align: right; white-space: nowrap }} td:first-child {{ width: 100% }}</style>
<h1>{title}</h1>
<table>
{rows}
</table>
</html>
"""


def _row(name: str, found: os.stat_result) -> str:
    text = html.escape(name.encode("utf-8", "replace").decode())
    link = quote(name.encode("utf-8", "surrogateescape"))
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.st_mtime))
    size = "" if stat.S_ISDIR(found.st_mode) else f"{found.st_size:,}"
    return f'<tr><td><a href="./{link}">{text}</a><td>{size}<td>{date}'


async def _build(building: Any, place: str, path: str) -> tuple[bytes, dict[str, str]]:
    rows = [] if path == "/" else ['<tr><td><a href="../">../</a><td><td>']
    for name in sorted(await building.listdir(place)):
        if name.endswith(PAGE) and not name.startswith((".", "_")):
            shown = name.removesuffix(PAGE)
        elif is_private(name):
            continue
        else:
            shown = name
        found = await building.stat(posixpath.join(place, name))
        if found is not None:
            rows.append(_row(shown + "/" * stat.S_ISDIR(found.st_mode), found))
    title = html.escape(path.encode("utf-8", "replace").decode())
    body = _PAGE.format(title=title, rows="\n".join(rows)).encode()
    return body, {
        "Content-Type": "text/html; charset=utf-8",
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.blake2b(body, digest_size=15).hexdigest()}"',
    }


async def listing(
    server: Server, request: Request, name: str, *, absent: tuple[str, ...]
) -> Answer:
    """The answer for a directory; OSError if it is none, or not to be read."""
    pages = server.pages
    place = posixpath.join(pages.root, name).rstrip("/")
    # a link may lead out of what is served
    real = os.path.realpath(place)  # noqa: ASYNC240 - a look at what is in memory
    if real != pages.root and not real.startswith(pages.root.rstrip("/") + "/"):
        raise PermissionError(f"{place} leads out of {pages.root}")
    if not os.path.isdir(place):  # noqa: PTH112, ASYNC240 - text, and no disk
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)

    async def build(building: Any) -> tuple[bytes, Mapping[str, str]]:
        return await _build(building, place, "/" + name)

    return await pages.kept_answer(request, f"list\n{name}", build, absent)
