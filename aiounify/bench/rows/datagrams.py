"""UDP: a server socket that answers whoever asks."""

import asyncio

from aiounify.bench.rows.base import Address, ServerRow

__all__ = ["ROWS"]

_CLIENTS = 50


class _Echo(asyncio.DatagramProtocol):
    __slots__ = ("_sendto",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._sendto = transport.sendto  # type: ignore[attr-defined]

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        self._sendto(data, addr)


_kept: list[asyncio.BaseTransport] = []


async def _serve() -> Address:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_Echo, local_addr=("127.0.0.1", 0))
    _kept.append(transport)
    name = transport.get_extra_info("sockname")
    return (str(name[0]), int(name[1]))


ROWS = tuple(
    ServerRow(
        f"udp-{size}",
        f"UDP echo, datagram protocol: {size} bytes, {_CLIENTS} clients.",
        ("net", "udp"),
        "request",
        _serve,
        connections=_CLIENTS,
        size=size,
        kind="datagram",
    )
    for size in (64, 1400)
)
