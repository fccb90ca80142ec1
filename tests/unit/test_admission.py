"""Who may make which call over HTTP: every one of the table, with every key and none."""

import logging
import re
from pathlib import Path

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from deployments.core import metrics
from deployments.core.access import SCOPES, Caller, Scope
from deployments.core.errors import Unauthorized
from deployments.core.settings import Settings
from deployments.http.app import API, CALLS, Call, calls_of
from tests.unit.fakes import CountingMetrics, FakeLog, FakeParts
from tests.unit.test_http import BATCH, CLASSIFY, FEEDBACK, FakeProbes, client_of
from tests.unit.test_http_feedback import RECORD

GUARDED = [call for call in CALLS if call.path.startswith(API)]
OPEN = [call for call in CALLS if not call.path.startswith(API)]
WITH_KEYS = Settings(api_keys_file=Path("keys.json"))


class NamedByScope:
    """A key is the name of the one scope it has."""

    def of(self, authorization: bytes | None) -> Caller:
        token = (authorization or b"").removeprefix(b"Bearer ").decode()
        if token not in SCOPES:
            raise Unauthorized("no key", sent=authorization is not None)
        return Caller(f"the-{token}", frozenset({token}))


@pytest.fixture
def parts() -> FakeParts:
    return FakeParts()


@pytest.fixture
def counted() -> CountingMetrics:
    return CountingMetrics()


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


@pytest.fixture
def client(parts: FakeParts, counted: CountingMetrics, log: FakeLog) -> TestClient:
    """A service with keys."""
    return client_of(WITH_KEYS, parts, FakeProbes(), counted, NamedByScope(), log)


def send(client: TestClient, call: Call, key: str | None) -> Response:
    """Make a call of the table with a body that no handler takes."""
    path = re.sub(r"\{\w+\}", "1-0", call.path)
    return client.request(call.method, path, content=b"{", headers={"Authorization": f"Bearer {key}"} if key else {})


def named(call: Call) -> str:
    return f"{call.method} {call.path}"


def test_every_call_under_the_api_needs_a_scope_and_every_other_none():
    """A new row of the table cannot be open by mistake."""
    assert [named(call) for call in GUARDED if call.scope not in SCOPES] == []
    assert [named(call) for call in OPEN if call.scope is not None] == []


@pytest.mark.parametrize("call", GUARDED, ids=named)
def test_without_a_key_a_call_is_401_and_told_how(client: TestClient, call: Call):
    """The challenge has no error code where nothing was sent (RFC 6750, section 3.1)."""
    answer = send(client, call, None)

    assert (answer.status_code, answer.json()["type"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="intents"'


@pytest.mark.parametrize("call", GUARDED, ids=named)
def test_with_a_wrong_key_a_call_is_401_and_says_that_the_key_is_wrong(client: TestClient, call: Call):
    """And repeats nothing of it."""
    answer = send(client, call, "s3cret")

    assert (answer.status_code, answer.json()["type"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="intents", error="invalid_token"'
    assert "s3cret" not in answer.text


@pytest.mark.parametrize("call", GUARDED, ids=named)
@pytest.mark.parametrize("held", SCOPES)
def test_a_key_makes_the_calls_of_its_scope_and_no_others(client: TestClient, call: Call, held: Scope):
    """403 names the scope that is missing; beyond it, the body that no handler takes is judged."""
    answer = send(client, call, held)

    if Caller("", frozenset({held})).may(call.scope):
        assert answer.status_code not in (401, 403)
    else:
        assert (answer.status_code, answer.json()["type"]) == (403, "forbidden")
        assert f"needs the scope `{call.scope}`" in answer.json()["detail"]
        assert "WWW-Authenticate" not in answer.headers


@pytest.mark.parametrize("call", OPEN, ids=named)
def test_the_other_paths_need_no_key(client: TestClient, call: Call):
    """Who probes or scrapes has none; a wrong one does no harm there."""
    assert send(client, call, None).status_code == 200
    assert send(client, call, "s3cret").status_code == 200


def test_metrics_need_an_admin_where_a_setting_says_so(parts: FakeParts, counted: CountingMetrics):
    """They say how much the service is used, and for what."""
    settings = WITH_KEYS.model_copy(update={"metrics_open": False})
    client = client_of(settings, parts, FakeProbes(), counted, NamedByScope())
    (call,) = (call for call in calls_of(settings) if call.path == "/metrics")

    assert [send(client, call, key).status_code for key in (None, "classify", "admin")] == [401, 403, 200]
    assert client.get("/health/live").status_code == 200


def test_a_head_request_needs_the_key_of_its_get(client: TestClient):
    """Starlette answers it where GET is asked for."""
    assert client.head(f"{API}/types").status_code == 401
    assert client.head(f"{API}/types", headers={"Authorization": "Bearer classify"}).status_code == 200


async def test_a_refused_callers_body_is_not_read(client: TestClient):
    """However large it is, or however slowly it comes."""
    scope = {"type": "http", "method": "POST", "path": CLASSIFY, "headers": [], "query_string": b""}
    sent = []

    async def receive() -> dict[str, object]:
        raise AssertionError("the body was read")

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await client.app(scope, receive, send)

    assert sent[0]["status"] == 401


@pytest.mark.parametrize("path", [CLASSIFY, BATCH])
@pytest.mark.parametrize("key", ["s3cret", "feedback"])
def test_a_refused_classification_counts_as_any_other_4xx(
    client: TestClient, counted: CountingMetrics, path: str, key: str
):
    """Once, whatever texts it had."""
    client.post(path, json={"text": "a", "texts": ["a", "b"]}, headers={"Authorization": f"Bearer {key}"})

    assert counted.total(metrics.REQUESTS, status="validation_error") == 1
    assert sum(counted.totals.values()) == 1


def test_refused_feedback_counts_once_and_reaches_no_log(client: TestClient, log: FakeLog, counted: CountingMetrics):
    """Of unknown type: its body was not read."""
    client.post(FEEDBACK, json=RECORD, headers={"Authorization": "Bearer classify"})

    assert counted.total(metrics.FEEDBACK_SUBMISSIONS, feedback_type="unknown", status="rejected") == 1
    assert log.submissions == []


@pytest.mark.parametrize(
    ("key", "state", "trusted"),
    [("feedback", "pending", False), ("correct", "applied", True), ("admin", "applied", True)],
)
def test_whose_corrections_hold_at_once_and_whose_wait_is_the_keys_scope(
    client: TestClient, log: FakeLog, key: str, state: str, trusted: bool
):
    """The log has the key's name, never the key."""
    client.post(FEEDBACK, json=RECORD, headers={"Authorization": f"Bearer {key}"})
    (submission,) = log.submissions

    assert (submission.by, submission.state, submission.trusted) == (f"the-{key}", state, trusted)


@pytest.mark.parametrize("path", ["1-0/approve", "1-0/reject", "erase"])
def test_what_an_admin_does_to_the_log_is_done_in_the_name_of_the_key(client: TestClient, log: FakeLog, path: str):
    """The log's own entry says who it was."""
    client.post(f"{FEEDBACK}/{path}", json={"user_id": "u"}, headers={"Authorization": "Bearer admin"})
    client.delete(f"{FEEDBACK}/1-0", headers={"Authorization": "Bearer admin"})

    assert [call[-1] for call in log.asked] == ["the-admin", "the-admin"]


def test_the_log_line_names_the_caller_and_never_the_key(client: TestClient, caplog: pytest.LogCaptureFixture):
    """Also of one who was known and refused; nobody is named where nobody is known."""
    caplog.set_level(logging.INFO)
    for key in ("classify", "feedback", "s3cret"):
        client.post(CLASSIFY, json={"text": "a"}, headers={"Authorization": f"Bearer {key}"})
    lines = [record for record in caplog.records if record.name == "deployments.http.request_log"]

    assert [getattr(line, "caller", None) for line in lines] == ["the-classify", "the-feedback", None]
    assert [line.status for line in lines] == [200, 403, 401]
    assert "s3cret" not in str([vars(line) for line in lines])


def test_the_log_of_a_service_without_keys_names_nobody(
    parts: FakeParts, counted: CountingMetrics, caplog: pytest.LogCaptureFixture
):
    """All its callers are the same."""
    caplog.set_level(logging.INFO)
    client_of(Settings(), parts, FakeProbes(), counted).post(CLASSIFY, json={"text": "a"})
    (line,) = [record for record in caplog.records if record.name == "deployments.http.request_log"]

    assert not hasattr(line, "caller")


def test_the_openapi_document_says_what_each_call_needs(client: TestClient):
    """A bearer token, with the scope of the table; the refusals are among the responses."""
    document = client.get("/openapi.json").json()
    operations = {named(call): document["paths"][call.path][call.method.lower()] for call in CALLS}

    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert [operations[named(call)]["security"] for call in OPEN] == [[]] * len(OPEN)
    assert all(operations[named(call)]["security"] == [{"key": [call.scope]}] for call in GUARDED)
    assert all({"401", "403"} <= set(operations[named(call)]["responses"]) for call in GUARDED)


def test_the_document_of_a_service_without_keys_asks_for_none(parts: FakeParts, counted: CountingMetrics):
    """A program made from it would ask its user for a key that nobody has."""
    document = client_of(Settings(), parts, FakeProbes(), counted).get("/openapi.json").json()

    assert "securitySchemes" not in document["components"]
    assert not any("security" in each for path in document["paths"].values() for each in path.values())
