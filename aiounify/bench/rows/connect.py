"""A new TCP connection for each request, as without keep-alive: accept, one echo, close."""

from functools import partial

from aiounify.bench.rows.base import ServerRow
from aiounify.bench.rows.servers import SERVERS, TCP

__all__ = ["ROWS"]

_CLIENTS = 50
_SIZE = 64

ROWS = tuple(
    ServerRow(
        f"conn-{name}",
        f"One TCP connection for each request of {_SIZE} bytes, {title}: {_CLIENTS} at a time.",
        ("net", "connect"),
        "connection",
        partial(SERVERS[api], TCP),
        connections=_CLIENTS,
        size=_SIZE,
        kind="reconnect",
    )
    for name, api, title in (
        ("protocol", "", "protocol"),
        ("streams", "streams", "streams API"),
    )
)
