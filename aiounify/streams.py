"""The Python side of socket transports: what they show to isinstance(), and servers."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

from aiounify._core import socket_transport


def is_stream_socket(sock: Any) -> bool:
    """True for what the native transport serves; anything else is asyncio's to serve."""
    return (
        issubclass(type(sock), socket.socket)
        and sock.type == socket.SOCK_STREAM
        and sock.fileno() >= 0
        and sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    )


def is_datagram_socket(sock: Any) -> bool:
    """True for what the native datagram transport serves: UDP."""
    return (
        issubclass(type(sock), socket.socket)
        and sock.type == socket.SOCK_DGRAM
        and sock.fileno() >= 0
        and sock.family in (socket.AF_INET, socket.AF_INET6)
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


class DatagramTransport(asyncio.transports._FlowControlMixin, asyncio.DatagramTransport):
    """What type an aiounify datagram transport shows; never instantiated."""


socket_transport.configure(
    {socket.SOCK_STREAM: SocketTransport, socket.SOCK_DGRAM: DatagramTransport},
    _attach,
    _detach,
)
