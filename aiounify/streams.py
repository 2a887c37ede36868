"""The Python side of stream transports: what they show to isinstance(), and servers."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

from aiounify._core import stream


def is_stream_socket(sock: Any) -> bool:
    """True for what the native transport serves; anything else is asyncio's to serve."""
    return (
        issubclass(type(sock), socket.socket)
        and sock.type == socket.SOCK_STREAM
        and sock.fileno() >= 0
        and sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    )


if sys.version_info >= (3, 13):

    def _attach(server: Any, transport: Any) -> None:
        server._attach(transport)

    def _detach(server: Any, transport: Any) -> None:
        server._detach(transport)

else:

    def _attach(server: Any, transport: Any) -> None:
        server._attach()

    def _detach(server: Any, transport: Any) -> None:
        server._detach()


class SocketTransport(asyncio.transports._FlowControlMixin):
    """What type an aiounify stream transport shows; never instantiated."""


stream.configure(SocketTransport, _attach, _detach)
