"""The web server and requests that nobody should send: the corpus, and some new ones each time.

tests/programs/fuzz_requests.py does the same for as long as wanted.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from request_fuzz import Server, bad, check, check_pieces, cuts, good

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
    """NAME.STATUS-STATUS.http: a stream, and how it has to be answered."""
    assert len(CORPUS) > 40
    for path in CORPUS:
        stream, wanted = path.read_bytes(), path.name.split(".")[-2].split("-")
        for where in ((), range(1, 2000, 11), range(3, 2000, 97)):
            found = [str(one.status) for one in check(server, stream, where)]
            assert found == wanted, (path.name, where)


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
        check_pieces(server, stream, where)

    run()
