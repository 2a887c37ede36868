"""Process limits of the benchmark's children."""

import resource

__all__ = ["raise_open_files"]


def raise_open_files() -> None:
    """As many open files as the hard limit allows: a row may hold thousands of connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 16 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
