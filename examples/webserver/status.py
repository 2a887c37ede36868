"""/_status and /_metrics: what the server does, for people and for Prometheus.

The page is whole without JavaScript; with it, the parts that change are replaced once a second by
what /_status/events sends.  Whichever worker a request falls to answers with the sums of all;
what only one worker knows (its loop, its pages) says whose it is.

The two names begin with "_", as no static file that is served does.
"""

from __future__ import annotations

import html
import json
import os
import time
from typing import TYPE_CHECKING, Any

from . import answers, counts
from .answers import Answer
from .static import PAGE
from .svg import Node, drawing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .request import Request
    from .server import Server

__all__ = ["answer"]

_NO_STORE = ("Cache-Control", "no-store")
_HTML = ("Content-Type", "text/html; charset=utf-8")
_GRAPHS = 20  # that are drawn

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>aiounify: status</title>
<style>
:root { color-scheme: light dark; --line: #8886; --page: #2f6fde;
  --file: #3b8f4a; --other: #b4721c }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .15rem 1.5rem .15rem 0; text-align: left }
th { font-weight: normal; color: #777 }
td:last-child { text-align: right; font-variant-numeric: tabular-nums }
.bar { display: inline-block; height: .7em; background: var(--page); min-width: 1px }
.sides { display: flex; flex-wrap: wrap; gap: 0 4rem }
svg { display: block; max-width: 100%; margin: .5rem 0 }
svg path { fill: none; stroke: var(--line) } svg rect { fill: none; stroke: var(--other) }
svg .page rect { stroke: var(--page) } svg .file rect { stroke: var(--file) }
svg text { font: 12px ui-monospace, monospace; fill: currentColor }
#live { color: #888 }
</style>
<h1>aiounify <small id="live">at @when@</small></h1>
<div id="parts">@parts@</div>
<h2>Pages of worker @worker@</h2>
<div id="graphs">@graphs@</div>
<script>
const source = new EventSource("/_status/events");
source.onmessage = (event) => {
  const told = JSON.parse(event.data);
  document.getElementById("live").textContent = "live, " + told.when;
  document.getElementById("parts").innerHTML = told.parts;
  if (told.graphs !== undefined) document.getElementById("graphs").innerHTML = told.graphs;
};
source.onerror = () => { document.getElementById("live").textContent = "not connected"; };
</script>
</html>
"""


async def answer(server: Server, request: Request) -> Answer | None:
    """The answer for a path of this module, None for any other."""
    path = request.path
    if path not in ("/_status", "/_status/events", "/_metrics"):
        return None
    if request.method == "POST":
        return answers.error(405, "this is only for looking", [("Allow", "GET, HEAD")])
    server.publish()
    if path == "/_status":
        text = _PAGE
        for name, part in (
            ("when", _when()),
            ("worker", str(server.worker)),
            ("parts", _parts(server)),
            ("graphs", _graphs(server)),
        ):
            text = text.replace(f"@{name}@", part, 1)
        return Answer(200, [_HTML, _NO_STORE], text.encode("utf-8", "replace"))
    if path == "/_metrics":
        text = counts.text(
            server.counts.total(), _loop(server), f'{{worker="{server.worker}"}}', server.drain()
        )
        kind = ("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        return Answer(200, [kind, _NO_STORE], text.encode())
    kind = ("Content-Type", "text/event-stream; charset=utf-8")
    streaming = Answer(200, [kind, _NO_STORE], length=-1)
    streaming.stream = _events(server)
    return streaming


async def _events(server: Server) -> AsyncGenerator[bytes, None]:
    """What has changed, with each tick, until the server stops or the client goes."""
    graphs = ""
    while not server.stopping:
        server.publish()
        told = {"when": _when(), "parts": _parts(server)}
        now = _graphs(server)
        if now != graphs:
            told["graphs"] = graphs = now
        yield f"data: {json.dumps(told)}\n\n".encode()
        await server.pause()


def _when() -> str:
    return time.strftime("%H:%M:%S")


def _loop(server: Server) -> dict[str, Any]:
    stats = getattr(server.loop, "stats", None)
    found: dict[str, Any] = stats() if stats is not None else {}
    return found


def _table(title: str, rows: list[tuple[str, object]]) -> str:
    cells = "".join(
        f"<tr><th scope=row>{html.escape(str(name))}<td>"
        + (f"{value:,}" if isinstance(value, int) else html.escape(str(value)))
        for name, value in rows
    )
    return f"<div><h2>{html.escape(title)}</h2><table>{cells}</table></div>"


def _parts(server: Server) -> str:
    total = server.counts.total()
    loop = _loop(server)
    asked = total["hits"] + total["misses"]
    rate = f"{100 * total['hits'] / asked:.2f} %" if asked else "-"
    tables = [
        _table(
            f"All workers ({server.counts.workers})",
            [
                ("answers from memory", total["hits"]),
                ("other answers", total["misses"]),
                ("from memory", rate),
                ("pages built", total["built"]),
                ("pages kept", total["pages"]),
                ("connections open", total["open"]),
                ("connections", total["connections"]),
                ("clients that left early", total["aborted"]),
                ("refused", total["refused"]),
                ("too late", total["timeouts"]),
                *((f"status {i}xx", n) for i, n in enumerate(total["classes"]) if i > 1),
            ],
        ),
        _table(
            f"Worker {server.worker}",
            [
                ("process", str(os.getpid())),
                ("backend", loop.get("backend", server.options.loop)),
                ("changes seen", server.drain()),
                *(
                    (name.replace("_", " "), round(value, 3) if value % 1 else int(value))
                    for name, value in loop.items()
                    if isinstance(value, (int, float))
                ),
                *(
                    (f"operation {kind}", n)
                    for kind, n in sorted(loop.get("operations", {}).items())
                ),
            ],
        ),
    ]
    if server.pages.cache is not None:
        stats = server.pages.cache.stats()
        tables.append(
            _table(
                f"Cache of worker {server.worker}",
                [(name.replace("_", " "), value) for name, value in stats.items()],
            )
        )
    return f'<div class="sides">{"".join(tables)}</div>{_histogram(total)}'


def _time(seconds: float) -> str:
    """As people say it: 0.1 ms, 30 s, 2 h."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:g} ms"


def _histogram(total: dict[str, Any]) -> str:
    most = max(total["histogram"]) or 1
    rows = []
    for end, n in zip((*counts.BUCKETS, None), total["histogram"], strict=True):
        name = "longer" if end is None else f"up to {_time(end)}"
        bar = f'<span class="bar" style="width:{20 * n / most:.2f}rem"></span>' if n else ""
        rows.append(f"<tr><th scope=row>{name}<td>{bar}<td>{n:,}")
    return f"<h2>From request to answer</h2><table>{''.join(rows)}</table>"


# -- what pages are made of ----------------------------------------------------------


def _graphs(server: Server) -> str:
    cache = server.pages.cache
    if cache is None:
        return "<p>Nothing is kept on this loop."
    drawn = []
    for key in list(cache.keys())[-_GRAPHS:]:
        node = _node(cache.graph(key), server.pages.root)
        if node is not None:
            drawn.append(drawing(node, f"what {node.name} depends on"))
    return "".join(drawn) or "<p>None was asked for yet."


def _node(found: Any, root: str) -> Node | None:
    if found is None:
        return None
    kind, name = str(found.kind), str(found.name)
    if kind == "time":
        name = _time(float(name.removesuffix(" s")))
    elif kind == "page":
        what, *more = name.split("\n")
        if what == "list":
            name = f"/{more[0]}"
        else:
            name = " ".join([f"/{what.removesuffix(PAGE)}", *filter(None, more)])
    else:
        name = name.replace(root + "/", "")
    children = [_node(child, root) for child in found.children]
    return Node(name, kind, [child for child in children if child is not None])
