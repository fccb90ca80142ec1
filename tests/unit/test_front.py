"""Hits in front of Serve: the same answers, and nothing else is touched."""

import json
import logging
from collections.abc import Callable, Iterator

import pytest
from starlette import types
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Send

from deployments.core import metrics
from deployments.core.access import LOCAL, Caller, Callers, Scope, WithoutKeys
from deployments.core.corrections import Correction
from deployments.core.errors import Unauthorized
from deployments.core.feedback import FeedbackService
from deployments.core.service import IntentService
from deployments.core.settings import Settings
from deployments.core.text import correction_key
from deployments.http import front
from deployments.http.admission import Admission
from deployments.http.app import API, build_app
from deployments.http.front import Front, middlewares
from deployments.http.request_log import LoggedLines, RequestLog
from tests.unit.fakes import CountingMetrics, FakeLog, FakeParts, artifact
from tests.unit.test_http import FakeProbes

PATH = f"{API}/classify"
FEEDBACK = f"{API}/feedback"
LOCALS = WithoutKeys(LOCAL)


class Replica:
    """An ingress replica's application behind the middleware, as Serve stacks them; `reached` counts requests to it."""

    def __init__(self, callers: Callers = LOCALS) -> None:
        self.reached = 0
        self.parts, self.counted = FakeParts(), CountingMetrics()
        self.admission = Admission(callers)
        settings = Settings()
        self.service = IntentService(settings, artifact(), self.parts, self.counted)
        self.log = RequestLog(LoggedLines(), log_texts=False)
        self.records = FakeLog()
        self.feedback = FeedbackService(settings, artifact(), self.records, self.counted)
        self._app = build_app(settings, self.service, self.feedback, FakeProbes(), self.log, self.admission)

    async def app(self, scope: types.Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.reached += 1
        await self._app(scope, receive, send)

    def stacked(self, *, looks_up: bool = True) -> ASGIApp:
        """What its HTTP server runs; the service starts with the first message, in the server's own event loop."""
        (middleware,) = middlewares()
        behind = middleware.cls(self.app)

        async def server(scope: types.Scope, receive: Receive, send: Send) -> None:
            if not front._fronts:
                self.service.local_tier.open()
                front.install(Front(self.service, self._app, self.log, self.admission, looks_up=looks_up))
            await behind(scope, receive, send)

        return server


@pytest.fixture
def replica() -> Iterator[Replica]:
    yield Replica()
    front._fronts.clear()


@pytest.fixture
def client(replica: Replica) -> Iterator[TestClient]:
    with TestClient(replica.stacked()) as client:  # one event loop for all of its requests
        yield client


def test_the_second_call_is_answered_in_front_and_equals_the_first(client: TestClient, replica: Replica):
    """Byte for byte; only headers tell where it came from."""
    miss, hit = (client.post(PATH, json={"text": "hé"}, headers={"X-Request-ID": "r-1"}) for _ in range(2))

    assert (miss.headers["X-Cache"], hit.headers["X-Cache"]) == ("miss", "hit-local")
    assert (hit.status_code, hit.content) == (200, miss.content)
    assert (hit.headers["Content-Type"], hit.headers["X-Request-ID"]) == ("application/json", "r-1")
    assert hit.headers["Server-Timing"].startswith("local;dur=")
    assert replica.reached == 1


def test_each_text_counts_once_wherever_it_was_answered(client: TestClient, replica: Replica):
    """One miss and two hits; the look in front that found nothing is not a second miss."""
    for _ in range(3):
        client.post(PATH, json={"text": "a"})
    counted = replica.counted

    assert counted.total(metrics.REQUESTS, status="success") == 1
    assert counted.total(metrics.REQUESTS, status="cache_hit") == 2
    assert counted.observations(metrics.DURATION, cache_status="hit") == 2
    assert counted.total(metrics.LOCAL_LOOKUPS, result="hit") == 2
    assert counted.total(metrics.LOCAL_LOOKUPS, result="miss") == 1


def test_a_correction_is_answered_in_front_as_one(client: TestClient, replica: Replica):
    """From the first request after it came."""
    client.post(PATH, json={"text": "a"})
    replica.parts.corrections[correction_key("a")] = Correction("1-0", "translation", None, None, 0.0)
    first, second = (client.post(PATH, json={"text": "a"}) for _ in range(2))

    assert (first.headers["X-Cache"], second.headers["X-Cache"]) == ("correction", "correction")
    assert first.content == second.content
    assert replica.reached == 1


def test_a_kept_prediction_is_answered_in_front(client: TestClient, replica: Replica):
    """For a text that was written otherwise before, so that it is not at hand; then it is."""
    client.post(PATH, json={"text": "a"})
    answers = [client.post(PATH, json={"text": " A "}) for _ in range(2)]

    assert [answer.headers["X-Cache"] for answer in answers] == ["hit-redis", "hit-local"]
    assert answers[0].headers["Server-Timing"].startswith("cache;dur=")
    assert replica.reached == 1
    assert replica.counted.total(metrics.REQUESTS, status="cache_hit") == 2
    assert replica.counted.total(metrics.LOCAL_LOOKUPS, result="miss") == 2


def test_a_text_that_is_not_kept_is_looked_up_once(client: TestClient, replica: Replica):
    """The application knows that it was, and how long that took."""
    answer = client.post(PATH, json={"text": "a"})

    assert replica.parts.looked_up == 1
    assert [stage.split(";")[0] for stage in answer.headers["Server-Timing"].split(", ")] == ["local", "cache", "model"]


def test_a_failure_in_front_is_the_applications_affair(
    client: TestClient, replica: Replica, caplog: pytest.LogCaptureFixture
):
    """It is asked as if nobody stood before it."""
    client.get("/health/live")  # the front is there

    async def fail(_text: str) -> None:
        raise RuntimeError("defect")

    replica.service.look_up = fail
    answer = client.post(PATH, json={"text": "a"})

    assert (answer.status_code, answer.headers["X-Cache"]) == (200, "miss")
    assert "defect" in caplog.text


def test_with_caching_off_nothing_is_looked_up_in_front(replica: Replica):
    """Every answer is the application's `bypass`."""
    replica.service.local_tier.close()
    with TestClient(replica.stacked(looks_up=False)) as client:
        client.post(PATH, json={"text": "a"})

    assert replica.reached == 1


def test_a_request_id_is_drawn_for_a_caller_without_one(client: TestClient):
    """Serve's own middleware comes after this one."""
    client.post(PATH, json={"text": "a"})
    ids = {client.post(PATH, json={"text": "a"}).headers["X-Request-ID"] for _ in range(2)}

    assert len(ids) == 2


OTHERS: dict[str, Callable[[TestClient], object]] = {
    "another path": lambda client: client.post(f"{API}/classify/batch", json={"texts": ["a"]}),
    "another method": lambda client: client.get(PATH),
    "with scores": lambda client: client.post(f"{PATH}?scores=true", json={"text": "a"}),
    "no-cache": lambda client: client.post(PATH, json={"text": "a"}, headers={"Cache-Control": "no-cache"}),
    "a wrong time limit": lambda client: client.post(
        PATH, json={"text": "a"}, headers={"X-Request-Timeout-Seconds": "x"}
    ),
    "an invalid body": lambda client: client.post(PATH, content=b'{"text":5}'),
    "no body": lambda client: client.post(PATH),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_reaches_the_application_as_it_came(client: TestClient, replica: Replica, name: str):
    """The answer is the application's own, body and all."""
    client.post(PATH, json={"text": "a"})
    behind = OTHERS[name](client)
    with TestClient(replica.app) as direct:
        straight = OTHERS[name](direct)

    assert replica.reached == 3
    assert (behind.status_code, behind.content) == (straight.status_code, straight.content)


@pytest.mark.parametrize(
    ("first", "second", "status"), [(b'{"text":', b'"a"}', 200), (b'{"text":"a"}', b"and more", 400)]
)
async def test_a_body_in_parts_reaches_the_application_whole(
    replica: Replica, first: bytes, second: bytes, status: int
):
    """The first part was read in front, and is not taken for everything."""
    messages = iter(
        [
            {"type": "http.request", "body": first, "more_body": True},
            {"type": "http.request", "body": second, "more_body": False},
        ]
    )
    scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": []}
    sent = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    await replica.stacked()(scope, receive, send)

    assert sent[0]["status"] == status


@pytest.mark.parametrize(
    ("sent", "read"), [(b"r-1", b"r-1"), ("\N{SNOWMAN}".encode(), "\N{SNOWMAN}".encode()), (b"\xe9", "é".encode())]
)
async def test_every_header_that_reaches_serve_is_utf8(sent: bytes, read: bytes):
    """Serve's own reading of them fails on anything else, with a 500 that nobody of ours sees."""
    reached: list[types.Scope] = []

    async def serve(scope: types.Scope, _receive: Receive, _send: Send) -> None:
        reached.append(scope)

    (middleware,) = middlewares()
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [(b"x-request-id", sent)]}
    await middleware.cls(serve)(scope, None, None)

    assert reached[0]["headers"] == [(b"x-request-id", read)]


RECORD = {"text": "a", "original_intent": "reasoning", "correct_intent": "translation", "original_confidence": 0.5}


def test_feedback_is_answered_in_front_as_the_application_answers_it(
    client: TestClient, replica: Replica, caplog: pytest.LogCaptureFixture
):
    """Refusals too; with one request id, the caller's own or a new one, in the answer and in the log."""
    caplog.set_level(logging.INFO)
    client.get("/health/live")  # the front is there
    before = replica.reached
    own = client.post(FEEDBACK, json=RECORD, headers={"X-Request-ID": "r-1"})
    drawn = client.post(FEEDBACK, json=RECORD)
    bad = client.post(FEEDBACK, json={})
    other = client.get(f"{FEEDBACK}/stats")

    assert [each.status_code for each in (own, drawn, bad, other)] == [201, 201, 422, 200]
    assert (replica.reached - before, len(replica.records.submissions)) == (1, 2)
    ids = [each.headers.get_list("x-request-id") for each in (own, drawn, bad)]
    assert ids[0] == ["r-1"]
    assert [len(each) for each in ids] == [1, 1, 1]
    logged = [line.http_request_id for line in caplog.records if getattr(line, "route", "") == FEEDBACK]
    assert logged == [each for (each,) in ids]


def test_feedback_in_front_needs_its_scope():
    """The application behind is asked as ever."""
    replica = Replica(OneKey("classify"))
    try:
        with TestClient(replica.stacked()) as client:
            client.get("/health/live")
            without, other = client.post(FEEDBACK, json=RECORD), client.post(FEEDBACK, json=RECORD, headers=GOOD)
    finally:
        front._fronts.clear()

    assert (without.status_code, other.status_code) == (401, 403)
    assert replica.records.submissions == []


class OneKey:
    """Knows one key, `good`, whose caller has the scopes given."""

    def __init__(self, *scopes: Scope) -> None:
        self.asked = 0
        self._scopes = frozenset(scopes)

    def of(self, authorization: bytes | None) -> Caller:
        self.asked += 1
        if authorization != b"Bearer good":
            raise Unauthorized("no key")
        return Caller("app", self._scopes)


GOOD = {"Authorization": "Bearer good"}


@pytest.mark.parametrize(
    ("scopes", "headers", "status"),
    [(["classify"], {}, 401), (["classify"], {"Authorization": "Bearer bad"}, 401), (["correct"], GOOD, 403)],
)
def test_who_may_not_classify_is_never_answered_in_front(scopes: list[Scope], headers: dict[str, str], status: int):
    """Nor is anything looked up for him; the refusal is the application's, and counted once."""
    replica = Replica(OneKey(*scopes))
    try:
        with TestClient(replica.stacked()) as client:
            client.get("/health/live")  # the front is there
            admits = Admission(LOCALS)
            kept = build_app(Settings(), replica.service, replica.feedback, FakeProbes(), replica.log, admits)
            TestClient(kept).post(PATH, json={"text": "a"})
            looked_up, hits = replica.parts.looked_up, replica.counted.total(metrics.REQUESTS, status="cache_hit")
            answer = client.post(PATH, json={"text": "a"}, headers=headers)
    finally:
        front._fronts.clear()

    assert (answer.status_code, replica.reached) == (status, 2)
    assert "X-Cache" not in answer.headers
    assert replica.parts.looked_up == looked_up
    assert replica.counted.total(metrics.REQUESTS, status="cache_hit") == hits
    assert replica.counted.total(metrics.REQUESTS, status="validation_error") == 1


def test_a_key_is_looked_up_once_a_request_and_named_in_its_line(caplog: pytest.LogCaptureFixture):
    """Also where the front asks and the application answers."""
    caplog.set_level(logging.INFO)
    callers = OneKey("classify")
    replica = Replica(callers)
    try:
        with TestClient(replica.stacked(), headers=GOOD) as client:
            states = [client.post(PATH, json={"text": "a"}).headers["X-Cache"] for _ in range(2)]
    finally:
        front._fronts.clear()
    lines = [record for record in caplog.records if record.name == "deployments.http.request_log"]

    assert states == ["miss", "hit-local"]
    assert callers.asked == 2
    assert [line.caller for line in lines] == ["app", "app"]
    assert "good" not in str([vars(line) for line in lines])


def test_a_process_without_an_ingress_replica_answers_as_ever(replica: Replica):
    """Such as the one of a proxy, or of another application's replica."""
    (middleware,) = middlewares()
    with TestClient(middleware.cls(replica.app)) as client:
        answers = [client.post(PATH, json={"text": "a"}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert replica.reached == 2


def test_another_event_loop_does_not_touch_the_services_memory(replica: Replica):
    """Serve may run its server in one thread and the service in another."""
    with TestClient(replica.stacked()) as client:
        client.post(PATH, json={"text": "a"})
    with TestClient(replica.stacked()) as client:
        answer = client.post(PATH, json={"text": "a"})

    assert json.loads(answer.content)["intent"] == "reasoning"
    assert replica.reached == 2
