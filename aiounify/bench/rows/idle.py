"""Memory of connections that were used once and then stay open."""

from functools import partial

from aiounify.bench.rows.base import IdleRow
from aiounify.bench.rows.servers import SERVERS, TCP

__all__ = ["ROWS"]

_CONNECTIONS = 5000

ROWS = tuple(
    IdleRow(
        f"idle-{name}",
        f"Memory of an idle TCP connection, {title}: {_CONNECTIONS} after one echo each.",
        ("net", "idle"),
        "connection",
        partial(SERVERS[api], TCP),
        connections=_CONNECTIONS,
    )
    for name, api, title in (
        ("protocol", "", "protocol"),
        ("streams", "streams", "streams API"),
    )
)
