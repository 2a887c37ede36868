"""A port for a server that cannot choose one itself."""

import socket

__all__ = ["free_port"]


def free_port() -> int:
    """One on loopback that nobody listens at now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
