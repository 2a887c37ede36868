"""The web server and requests that nobody should send: the corpus, and some new ones each time.

tests/programs/fuzz_requests.py does the same for as long as wanted.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from request_fuzz import Server, bad, check, cuts, good

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.http"))
few = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def server(backend, tmp_path):
    server = Server(tmp_path, backend=backend)
    yield server
    server.close()


def test_corpus(server):
    assert CORPUS
    for path in CORPUS:
        stream = path.read_bytes()
        whole = check(server, stream)
        assert whole == []
        assert check(server, stream, range(1, 2000, 7))


def test_good_streams(server):
    @few
    @given(good, cuts)
    def run(stream, where):
        check(server, stream, where, valid=True)

    run()


def test_bad_streams(server):
    @few
    @given(bad, cuts)
    def run(stream, where):
        check(server, stream, where)

    run()
