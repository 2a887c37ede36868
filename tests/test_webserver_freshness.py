"""No stale answer, whatever changes and whoever asks: tests/programs/web_freshness.py.

test_webserver_fresh.py asks from threads about one file; here separate processes change and ask
about several, their directory and its listing, and send several requests at once.
"""

import os

import pytest

STRESS = os.environ.get("AIOUNIFY_STRESS") == "1"
REQUESTS, CHANGES = (100_000, 1000) if STRESS else (1000, 60)


@pytest.mark.timeout(3000 if STRESS else 100)
@pytest.mark.parametrize("workers", [1, 2])
def test_no_stale_answer(backend, run_program, workers):
    limit = 2900 if STRESS else 90
    done = run_program("web_freshness", backend, workers, REQUESTS, CHANGES, timeout=limit)
    asked, made, stale = [int(word) for word in done.stdout.split() if word.isdigit()][:3]
    assert asked >= REQUESTS
    assert made >= CHANGES
    assert stale == 0
