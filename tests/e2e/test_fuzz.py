"""Bodies by the hundred over HTTP at a real service, through HAProxy and Serve: see `tests.fuzz`.

One at a time, so that no queue is ever full: an answer that says so would be a failure too.
"""

import itertools
from collections import Counter
from contextlib import closing, suppress
from http.client import HTTPConnection

import pytest

from tests.fuzz import Answer, Request, complaints, requests
from tests.service import Service


def answer_over_http(port: int, request: Request) -> Answer:
    """Send a request as it is, over a connection of its own, and take its answer."""
    target = request.path.decode() + ("?" + request.query.decode() if request.query else "")
    names = {name for name, _ in request.headers}
    in_pieces = len(request.chunks) > 1
    length = ("Transfer-Encoding", b"chunked") if in_pieces else ("Content-Length", b"%d" % len(request.chunks[0]))
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.putrequest(request.method, target, skip_host="Host" in names, skip_accept_encoding=True)
        for name, value in (*request.headers, length):
            connection.putheader(name, value)
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent: the answer is there
            connection.endheaders(iter(chunk for chunk in request.chunks if chunk), encode_chunked=in_pieces)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())


OTHERS_WORDS = {
    (400, "text/html"): b"Your browser sent an invalid request",
    (400, "text/plain"): b"Invalid HTTP request received.",
    (408, "text/plain"): b" timed out after ",
}
"""HAProxy's for what is no HTTP, uvicorn's for a method it does not know, Serve's for a caller's own time limit."""


def is_anothers(answer: Answer) -> bool:
    """Whether it was refused on the way to the application, as the README says."""
    words = OTHERS_WORDS.get((answer.status, answer.media_type))
    return words is not None and words in answer.body


def test_whatever_is_sent_is_answered_or_refused_as_documented(service: Service, pytestconfig: pytest.Config):
    """Never 5xx; every refusal a problem of a known type, unless the application never saw it."""
    count = pytestconfig.getoption("fuzz_bodies") // 10
    statuses: Counter[tuple[int, str]] = Counter()
    found: dict[str, object] = {}
    for request in itertools.islice(requests(pytestconfig.getoption("fuzz_seed") + 1), count):
        answer = answer_over_http(service.port, request)
        statuses[answer.status, answer.media_type] += 1
        if not is_anothers(answer):
            found |= dict.fromkeys(complaints(request, answer), (request, answer))

    print(f"{count} bodies: {sorted(statuses.items())}")
    assert not found
