"""Bodies by the thousand at the application in this process, a graph of a few lines behind it: see `tests.fuzz`."""

import asyncio
import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from requests import Request as HttpRequest
from schemathesis.generation import GenerationMode
from starlette.types import ASGIApp, Message

from deployments.http import front
from tests.fuzz import DOCUMENT, Answer, Request, complaints, requests
from tests.unit.test_front import Replica

FROM_DOCUMENT = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture
def app() -> Iterator[ASGIApp]:
    """What an ingress replica's HTTP server runs."""
    yield Replica().stacked()
    front._fronts.clear()


async def answer_of(app: ASGIApp, request: Request) -> Answer:
    """Hand a request to the application as an HTTP server does, and take its answer."""
    headers = [(name.lower().encode(), value) for name, value in request.headers]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "server": ("a", 80),
        "client": ("127.0.0.1", 1), "method": request.method, "root_path": "", "raw_path": request.path,
        "path": request.unquoted, "query_string": request.query,
        "headers": headers, "state": {},
    }  # fmt: skip
    last = len(request.chunks) - 1
    coming = iter(
        {"type": "http.request", "body": chunk, "more_body": n < last} for n, chunk in enumerate(request.chunks)
    )
    sent: list[Message] = []

    async def receive() -> Message:
        return next(coming)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    status, answered = sent[0]["status"], {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Answer(status, answered, b"".join(message.get("body", b"") for message in sent[1:]))


async def test_whatever_is_sent_is_answered_or_refused_as_documented(
    app: ASGIApp, pytestconfig: pytest.Config, caplog: pytest.LogCaptureFixture
):
    """Never 5xx, every refusal a problem of a known type, every answer as the document has it, no stack in the log."""
    count = pytestconfig.getoption("fuzz_bodies") * 7 // 10
    caplog.set_level(logging.WARNING)
    statuses: Counter[int] = Counter()
    found: dict[str, object] = {}
    for request in itertools.islice(requests(pytestconfig.getoption("fuzz_seed")), count):
        answer = await answer_of(app, request)
        statuses[answer.status] += 1
        found |= dict.fromkeys(complaints(request, answer), (request, answer))

    print(f"{count} bodies: {sorted(statuses.items())}")
    assert not found
    assert not caplog.records


def as_sent(case: schemathesis.Case) -> Request:
    """The request that a case is on the wire."""
    sent = HttpRequest(**case.as_transport_kwargs(base_url="http://a")).prepare()
    path, _, query = sent.path_url.partition("?")
    body = sent.body.encode() if isinstance(sent.body, str) else sent.body or b""
    headers = tuple(
        (name, value.encode("latin-1") if isinstance(value, str) else value) for name, value in sent.headers.items()
    )
    return Request(case.method, path.encode(), query.encode(), headers, (body,))


def made_from_document() -> Iterator[Any]:
    """Each call that takes anything with what it should be, and with what it should not where that can be."""
    for result in FROM_DOCUMENT.get_all_operations():
        operation = result.ok()
        violable = operation.body or operation.query or operation.headers
        if violable or operation.path_parameters:
            yield pytest.param(operation, GenerationMode.POSITIVE, id=operation.label)
        if violable:
            yield pytest.param(operation, GenerationMode.NEGATIVE, id=f"{operation.label} violated")


CASES = list(made_from_document())


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_whatever_is_made_from_the_document_is_too(
    app: ASGIApp, pytestconfig: pytest.Config, operation: Any, mode: GenerationMode
):
    """By schemathesis: what the document allows, and what it does not."""
    statuses: Counter[int] = Counter()

    @hypothesis.seed(pytestconfig.getoption("fuzz_seed"))
    @hypothesis.settings(
        max_examples=math.ceil(pytestconfig.getoption("fuzz_bodies") / 5 / len(CASES)),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        request = as_sent(case)
        answer = asyncio.run(answer_of(app, request))
        statuses[answer.status] += 1
        assert not list(complaints(request, answer)), answer

    send()
    print(f"{operation.label} {mode.value}: {sorted(statuses.items())}")
