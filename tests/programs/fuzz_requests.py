"""Streams of requests for a web server, as long as wanted; see tests/request_fuzz.py.

    fuzz_requests.py SECONDS [BACKEND] [SERVER OPTIONS]

A stream for which the server does what it may not is made as short as possible, shown, and the
program ends with status 1.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hypothesis import HealthCheck, Phase, given, seed, settings
from request_fuzz import Server, bad, check, check_pieces, cuts, good

ROUND = settings(
    max_examples=2000,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


def main(seconds, backend="auto", *options):
    end = time.monotonic() + seconds
    counts = {"good": 0, "bad": 0, "answers": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), *options, backend=backend)
        try:
            number = time.time_ns() % 10**9
            while time.monotonic() < end:
                number += 1

                @seed(number)
                @ROUND
                @given(bad, cuts)
                def wrong(stream, where):
                    if time.monotonic() < end:
                        counts["bad"] += 1
                        found = check_pieces(server, stream, where)
                        counts["answers"] += len(found)
                        counts["refused"] += any(one.status >= 400 for one in found)

                @seed(number)
                @settings(ROUND, max_examples=500)
                @given(good, cuts)
                def right(stream, where):
                    if time.monotonic() < end:
                        counts["good"] += 1
                        counts["answers"] += len(check(server, stream, where, valid=True))

                wrong()
                right()
        finally:
            print(counts, flush=True)
            server.close()


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
