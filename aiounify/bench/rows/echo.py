"""Echo servers over TCP and unix sockets: every size with every number of connections."""

from functools import partial

from aiounify.bench.rows.base import ServerRow
from aiounify.bench.rows.servers import PLACES, SERVERS, UNIX, Place

__all__ = ["ROWS"]

_SIZES = (64, 1 << 10, 1 << 14, 1 << 16)
_CONNECTIONS = (1, 10, 100, 1000)
_MEANS = {
    "": "protocol",
    "buffered": "buffered protocol",
    "streams": "streams API",
    "sock": "sock_recv and sock_sendall",
}


def _name(size: int) -> str:
    return f"{size >> 10}k" if size >= 1024 else str(size)


def _rows(api: str, place: Place) -> tuple[ServerRow, ...]:
    # "tcp-" and "buffered-" for TCP, "unix-" and "unix-buffered-" for unix sockets.
    words = ([place] if place == UNIX else []) + ([api] if api else [])
    prefix = "-".join(words) or place
    title = "Unix socket" if place == UNIX else "TCP"
    return tuple(
        ServerRow(
            f"{prefix}-{_name(size)}-x{connections}",
            f"{title} echo, {_MEANS[api]}: {size} bytes, {connections} connection(s).",
            ("net", "echo", place, api or "protocol"),
            "request",
            partial(SERVERS[api], place),
            connections=connections,
            size=size,
        )
        for size in _SIZES
        for connections in _CONNECTIONS
    )


ROWS = tuple(row for place in PLACES for api in SERVERS for row in _rows(api, place))
