"""A web server: static files, and pages that are rebuilt exactly when something they used changed.

    python -m aiounify serve DIR

One idea a file.  From the outside in: `options` the command line, `workers` the processes,
`server` what one of them has, `connection` a client, `parsing` and `request` what it sends,
`static`, `pages`, `listing` and `status` where answers come from, `answers` what they are,
`conditions` and `mime` details of HTTP, `fetch` and `freshness` other servers, `logs` and
`counts` what is written down. The caches are `aiounify.cache`.  docs/server.md tells how to use
it and why it is as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["main"]

_SITE = Path(__file__).parent / "site"


def main(arguments: list[str]) -> int:
    """The command with its arguments; the exit status."""
    from . import options, workers

    if len(arguments) == 2 and arguments[0] == "--worker":
        return workers.worker_main(arguments[1])
    found = options.parse(arguments, _SITE)
    try:
        return workers.run(found)
    except OSError as exc:
        print(f"aiounify serve: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
