"""The HTTP face, with a graph of a few lines behind it."""

import json
import logging

import pytest
from starlette.testclient import TestClient

from deployments.core.access import Callers, WithoutKeys
from deployments.core.contract import HealthResponse
from deployments.core.errors import Overloaded, Unavailable
from deployments.core.feedback import FeedbackService
from deployments.core.service import IntentService
from deployments.core.settings import Settings
from deployments.http.admission import Admission
from deployments.http.app import API, CALLS, build_app
from deployments.http.request_log import LoggedLines, RequestLog
from tests.unit.fakes import CountingMetrics, FakeLog, FakeParts, artifact

CLASSIFY = f"{API}/classify"
BATCH = f"{API}/classify/batch"
FEEDBACK = f"{API}/feedback"
PURGE = f"{API}/cache/purge"
WARM = f"{API}/cache/warm"


class FakeProbes:
    def __init__(self) -> None:
        self.answer = HealthResponse(status="ok", parts={"model": "ok"}, details={"corrections_held": 0})

    async def health(self) -> HealthResponse:
        return self.answer

    async def metrics(self) -> bytes:
        return b"# nothing\n"


@pytest.fixture
def parts() -> FakeParts:
    return FakeParts()


@pytest.fixture
def probes() -> FakeProbes:
    return FakeProbes()


@pytest.fixture
def counted() -> CountingMetrics:
    return CountingMetrics()


def client_of(
    settings: Settings,
    parts: FakeParts,
    probes: FakeProbes,
    counted: CountingMetrics,
    callers: Callers | None = None,
    feedback_log: FakeLog | None = None,
) -> TestClient:
    """The application of those settings, for those callers."""
    admission = Admission(callers or WithoutKeys(settings.keyless_caller))
    service = IntentService(settings, artifact(), parts, counted)
    feedback = FeedbackService(settings, artifact(), feedback_log or FakeLog(), counted)
    log = RequestLog(LoggedLines(), log_texts=settings.log_texts)
    return TestClient(build_app(settings, service, feedback, probes, log, admission))


@pytest.fixture
def client(parts: FakeParts, probes: FakeProbes, counted: CountingMetrics) -> TestClient:
    return client_of(Settings(), parts, probes, counted)


def test_a_hits_body_is_the_misses_byte_for_byte(client: TestClient):
    """Only the headers tell them apart."""
    miss, hit = (client.post(CLASSIFY, json={"text": "hé"}) for _ in range(2))

    assert (miss.headers["X-Cache"], hit.headers["X-Cache"]) == ("miss", "hit-redis")
    assert miss.content == hit.content
    assert "model;dur=" in miss.headers["Server-Timing"]


def test_cache_control_may_come_in_several_lines(client: TestClient):
    """They count as one list (RFC 9110, section 5.3)."""
    headers = [("Cache-Control", "max-age=0"), ("Cache-Control", "no-store")]
    states = [client.post(CLASSIFY, json={"text": "a"}, headers=headers).headers["X-Cache"] for _ in range(2)]

    assert [*states, client.post(CLASSIFY, json={"text": "a"}).headers["X-Cache"]] == ["bypass", "bypass", "miss"]


def test_a_batch_carries_one_cache_state_a_text(client: TestClient):
    """In the order of the texts."""
    client.post(CLASSIFY, json={"text": "b"})
    answer = client.post(BATCH, json={"texts": ["a", "b"]})

    assert answer.headers["X-Cache"] == "miss, hit-redis"
    assert answer.json()["count"] == 2


def test_json_is_accepted_whatever_the_content_type(client: TestClient):
    """And unknown fields are ignored."""
    answer = client.post(CLASSIFY, content=b'{"text":"a","mood":"happy"}', headers={"Content-Type": "text/plain"})

    assert answer.status_code == 200


BAD_TEXTS = {
    "empty": (b'{"text":""}', 422),
    "zero width": (b'{"text":"\\u200b\\ufeff"}', 422),
    "blank": ('{"text":" \\n\u3000"}'.encode(), 422),
    "too long": (json.dumps({"text": "x" * 5001}).encode(), 422),
    "no text": (b"{}", 422),
    "number": (b'{"text":5}', 422),
    "null": (b'{"text":null}', 422),
    "array": (b'["a"]', 422),
    "NUL": (b'{"text":"a\\u0000b"}', 422),
    "lone surrogate": (b'{"text":"a\\ud800b"}', 422),
    "long user": (json.dumps({"text": "a", "user_id": "u" * 129}).encode(), 422),
    "raw NUL": (b'{"text":"a\0b"}', 400),
    "not JSON": (b"hello", 400),
    "no body": (b"", 400),
    "NaN": (b"NaN", 422),
    "invalid UTF-8": (b'{"text":"\xff\xfe"}', 400),
    "20,000 brackets": (b"[" * 20_000, 400),
    "nested to the end": (b"[" * 20_000 + b"]" * 20_000, 400),
    "3 MiB": (b'{"text":"' + b"x" * 3 * 1024 * 1024 + b'"}', 413),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_a_bad_body_is_a_clear_4xx(client: TestClient, counted: CountingMetrics, name: str):
    """Always problem+json, counted once."""
    body, status = BAD_TEXTS[name]
    answer = client.post(CLASSIFY, content=body)

    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    assert list(counted.totals.values()) == [1.0]


@pytest.mark.parametrize("texts", [[], ["a"] * 101, ["a", ""], ["a", 5], "a"])
def test_a_bad_batch_is_422(client: TestClient, texts: object):
    """None, too many, or one that is not a text."""
    assert client.post(BATCH, json={"texts": texts}).status_code == 422


def test_messages_name_the_value_the_limit_and_the_remedy(client: TestClient):
    """So that the caller need not read the documentation."""
    problem = client.post(CLASSIFY, json={"text": "x" * 7204}).json()

    assert problem["detail"] == "text: has 7,204 characters; the limit is 5,000; split or shorten it"
    assert problem["errors"] == [
        {"loc": ["body", "text"], "msg": "has 7,204 characters; the limit is 5,000; split or shorten it"}
    ]


def test_a_batch_of_a_million_wrong_items_is_refused_at_the_first(client: TestClient):
    """Explaining each of them would take seconds and a gigabyte."""
    problem = client.post(BATCH, content=b'{"texts":[' + b"1," * 1_000_000 + b"1]}").json()

    assert len(problem["errors"]) <= 2


def test_limits_count_code_points(client: TestClient):
    """5,000 characters beyond the basic plane are 20,000 bytes and still 5,000."""
    assert client.post(CLASSIFY, json={"text": "𝄞" * 5000}).status_code == 200


def test_a_queue_that_is_full_is_429_and_says_when_to_come_back(client: TestClient, parts: FakeParts):
    """Seconds, rounded up."""
    parts.outcomes["a"] = Overloaded("queue full", retry_after_s=2.4)
    answer = client.post(CLASSIFY, json={"text": "a"})

    assert (answer.status_code, answer.headers["Retry-After"], answer.json()["type"]) == (429, "3", "overloaded")


def test_a_defect_is_a_500_that_tells_nothing_and_a_stack_in_the_log(
    client: TestClient, parts: FakeParts, caplog: pytest.LogCaptureFixture
):
    """No answer is ever a stack trace."""
    parts.correction = None  # type: ignore[assignment]
    answer = client.post(CLASSIFY, json={"text": "a"})

    assert answer.status_code == 500
    assert "NoneType" not in answer.text
    assert "TypeError" in caplog.text


def test_unknown_paths_and_methods_are_problems(client: TestClient):
    """And 405 names what the path takes (RFC 9110, section 15.5.6)."""
    missing, wrong = client.post(f"{CLASSIFY}/", follow_redirects=False), client.get(CLASSIFY)

    assert (missing.status_code, missing.json()["type"]) == (404, "not-found")
    assert (wrong.status_code, wrong.json()["type"], wrong.headers["Allow"]) == (405, "method-not-allowed", "POST")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_senseless_timeout_is_refused(client: TestClient, value: str):
    """Rather than silently taken for none."""
    answer = client.post(CLASSIFY, json={"text": "a"}, headers={"X-Request-Timeout-Seconds": value})

    assert answer.status_code == 422


async def test_an_upload_its_client_gave_up_is_no_defect_and_not_counted(
    client: TestClient, counted: CountingMetrics, caplog: pytest.LogCaptureFixture
):
    """499 in the log, no stack."""
    caplog.set_level(logging.INFO)
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    scope = {"type": "http", "method": "POST", "path": CLASSIFY, "headers": [], "query_string": b""}

    async def receive() -> dict[str, object]:
        return next(messages)

    async def send(_message: object) -> None:
        return

    await client.app(scope, receive, send)

    (line,) = [record for record in caplog.records if record.name == "deployments.http.request_log"]
    assert line.status == 499
    assert counted.totals == {}


@pytest.mark.parametrize(
    ("body", "deleted"),
    [({"texts": ["a"]}, 1), ({"texts": ["a", "A", "x"] * 333, "all": False}, 1), ({"all": True}, 2)],
)
def test_a_purge_says_how_many_predictions_it_deleted(client: TestClient, body: dict[str, object], deleted: int):
    """Of some texts, or all; the same text twice is deleted once."""
    client.post(BATCH, json={"texts": ["a", "b"]})
    answer = client.post(PURGE, json=body)

    assert (answer.status_code, answer.json()) == (200, {"deleted": deleted})
    assert client.post(CLASSIFY, json={"text": "a"}).headers["X-Cache"] == "miss"


BAD_PURGES = {
    "neither": (b"{}", 422),
    "both": (b'{"texts":["a"],"all":true}', 422),
    "not all": (b'{"all":false}', 422),
    "a number for all": (b'{"all":1}', 422),
    "a word for all": (b'{"all":"true"}', 422),
    "no texts": (b'{"texts":[]}', 422),
    "null": (b'{"texts":null}', 422),
    "one text, bare": (b'{"texts":"a"}', 422),
    "1,001 texts": (json.dumps({"texts": ["a"] * 1001}).encode(), 422),
    "a blank text": (b'{"texts":["a"," "]}', 422),
    "too long a text": (json.dumps({"texts": ["x" * 5001]}).encode(), 422),
    "a number for a text": (b'{"texts":[1]}', 422),
    "NUL": (b'{"texts":["a\\u0000"]}', 422),
    "lone surrogate": (b'{"texts":["\\ud800"]}', 422),
    "an array": (b'["a"]', 422),
    "no body": (b"", 400),
    "not JSON": (b"all", 400),
    "3 MiB": (b'{"texts":["' + b"x" * 3 * 1024 * 1024 + b'"]}', 413),
}


@pytest.mark.parametrize("name", BAD_PURGES)
def test_a_bad_purge_is_a_4xx_and_deletes_nothing(client: TestClient, parts: FakeParts, name: str):
    """Above all an empty body is not everything."""
    client.post(CLASSIFY, json={"text": "a"})
    body, status = BAD_PURGES[name]
    answer = client.post(PURGE, content=body)

    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.json()["detail"]
    assert len(parts.kept) == 1


def test_a_purge_that_names_neither_is_told_what_to_send(client: TestClient):
    """The message is the remedy."""
    assert client.post(PURGE, json={}).json()["detail"] == 'body: send either "texts" or "all": true'


def test_a_purge_while_the_store_is_away_is_503(client: TestClient, parts: FakeParts):
    """Unlike a look-up it does not pretend."""
    client.post(CLASSIFY, json={"text": "a"})
    parts.purge_error = Unavailable("the prediction store is away")
    answer = client.post(PURGE, json={"all": True})

    assert (answer.status_code, answer.json()["type"], answer.headers["Retry-After"]) == (503, "unavailable", "1")


@pytest.mark.parametrize("apply_untrusted", [False, True])
@pytest.mark.parametrize("path", [PURGE, WARM])
def test_anybody_neither_empties_nor_fills_the_cache(
    parts: FakeParts, probes: FakeProbes, counted: CountingMetrics, path: str, apply_untrusted: bool
):
    """Not even where strangers are believed: to correct a text is not to operate the service."""
    settings = Settings(auth="open", apply_untrusted=apply_untrusted)
    client = client_of(settings, parts, probes, counted)
    client.post(CLASSIFY, json={"text": "a"})
    answer = client.post(path, json={"texts": ["a", "b"]})

    assert (answer.status_code, answer.json()["type"]) == (403, "forbidden")
    assert "Retry-After" not in answer.headers
    assert len(parts.kept) == 1
    assert parts.predicted == ["a"]


@pytest.mark.parametrize("log_texts", [False, True])
def test_the_log_line_of_a_purge_has_its_count_and_never_its_texts(
    parts: FakeParts, probes: FakeProbes, counted: CountingMetrics, caplog: pytest.LogCaptureFixture, log_texts: bool
):
    """A thousand texts, or their lengths, would bury the line."""
    caplog.set_level(logging.INFO)
    settings = Settings(log_texts=log_texts)
    client = client_of(settings, parts, probes, counted)
    client.post(PURGE, json={"texts": ["secret"]})
    (line,) = [record for record in caplog.records if record.name == "deployments.http.request_log"]

    assert (line.status, line.deleted) == (200, 0)
    assert "secret" not in str(vars(line))


def test_a_warming_counts_what_was_sent_kept_and_computed(client: TestClient):
    """And then its texts are hits, with the same body as ever."""
    miss = client.post(CLASSIFY, json={"text": "a"})
    answer = client.post(WARM, json={"texts": ["a", "b", " B", "c"]})
    hit = client.post(CLASSIFY, json={"text": "a"})

    assert (answer.status_code, answer.json()) == (200, {"requested": 4, "already_cached": 1, "computed": 2})
    assert client.post(BATCH, json={"texts": ["b", "c"]}).headers["X-Cache"] == "hit-redis, hit-redis"
    assert hit.content == miss.content


def test_a_thousand_texts_of_2000_characters_are_warmed_at_once(client: TestClient):
    """Six megabytes, three times what other calls take."""
    body = json.dumps({"texts": [f"{number} " + "語" * 1990 for number in range(1000)]}, ensure_ascii=False).encode()

    assert len(body) > 5 * 1024 * 1024
    assert client.post(WARM, content=body).json() == {"requested": 1000, "already_cached": 0, "computed": 1000}


BAD_WARMINGS = {
    "nothing": (b"{}", 422),
    "all": (b'{"all":true}', 422),
    "no texts": (b'{"texts":[]}', 422),
    "one text, bare": (b'{"texts":"a"}', 422),
    "1,001 texts": (json.dumps({"texts": ["a"] * 1001}).encode(), 422),
    "a blank text": (b'{"texts":["a"," "]}', 422),
    "too long a text": (json.dumps({"texts": ["x" * 5001]}).encode(), 422),
    "lone surrogate": (b'{"texts":["\\ud800"]}', 422),
    "no body": (b"", 400),
    "not JSON": (b"all", 400),
    "9 MiB": (b'{"texts":["' + b"x" * 9 * 1024 * 1024 + b'"]}', 413),
}


@pytest.mark.parametrize("name", BAD_WARMINGS)
def test_a_bad_warming_is_a_4xx_and_computes_nothing(
    client: TestClient, parts: FakeParts, counted: CountingMetrics, name: str
):
    """Nor is it a classification request that was refused."""
    body, status = BAD_WARMINGS[name]
    answer = client.post(WARM, content=body)

    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.json()["detail"]
    assert parts.predicted == []
    assert counted.totals == {}


def test_a_warming_while_the_store_is_away_is_503(client: TestClient, parts: FakeParts):
    """It does not pretend, and says when to come back."""
    parts.keep_error = Unavailable("the prediction store is away", retry_after_s=2.0)
    answer = client.post(WARM, json={"texts": ["a"]})

    assert (answer.status_code, answer.json()["type"], answer.headers["Retry-After"]) == (503, "unavailable", "2")


def test_a_warming_in_more_time_than_its_caller_has_is_503_with_the_counts(client: TestClient, parts: FakeParts):
    """The header shortens the time as for any other call."""
    parts.outcomes["b"] = Overloaded("queue full", retry_after_s=60.0)
    client.post(WARM, json={"texts": ["a"]})
    answer = client.post(WARM, json={"texts": ["a", "b"]}, headers={"X-Request-Timeout-Seconds": "0.1"})

    assert (answer.status_code, answer.json()["type"]) == (503, "deadline-exceeded")
    assert "within 0.08 s; 1 cached already, 0 computed and kept; sent again" in answer.json()["detail"]
    assert client.post(WARM, json={"texts": ["a"]}, headers={"X-Request-Timeout-Seconds": "soon"}).status_code == 422


def test_a_warming_with_caching_off_is_403(parts: FakeParts, probes: FakeProbes, counted: CountingMetrics):
    """The detail names the setting, since only that can change it."""
    client = client_of(Settings(enable_caching=False), parts, probes, counted)
    answer = client.post(WARM, json={"texts": ["a"]})

    assert (answer.status_code, answer.json()["type"]) == (403, "forbidden")
    assert "enable_caching" in answer.json()["detail"]
    assert "Retry-After" not in answer.headers


def test_the_log_line_of_a_warming_has_its_counts_and_never_its_texts(
    parts: FakeParts, probes: FakeProbes, counted: CountingMetrics, caplog: pytest.LogCaptureFixture
):
    """A thousand texts would bury the line, also where texts are logged."""
    caplog.set_level(logging.INFO)
    settings = Settings(log_texts=True)
    client = client_of(settings, parts, probes, counted)
    client.post(WARM, json={"texts": ["secret"]})
    (line,) = [record for record in caplog.records if record.name == "deployments.http.request_log"]

    assert (line.status, line.requested, line.already_cached, line.computed) == (200, 1, 0, 1)
    assert "secret" not in str(vars(line))


@pytest.mark.parametrize(("status", "code"), [("ok", 200), ("degraded", 200), ("unavailable", 503)])
def test_ready_is_503_only_when_nothing_can_answer(client: TestClient, probes: FakeProbes, status: str, code: int):
    """A store that is away degrades the service, it does not end it."""
    probes.answer = HealthResponse(status=status, parts={"model": "ok"}, details={"corrections_held": 1})
    ready, health = client.get("/health/ready"), client.get("/health")

    assert (ready.status_code, ready.json()) == (code, {"status": status, "parts": {"model": "ok"}})
    assert health.json()["details"] == {"corrections_held": 1}


def test_the_log_has_one_line_a_request_without_the_text(client: TestClient, caplog: pytest.LogCaptureFixture):
    """Lengths, states and timings, never what people wrote."""
    caplog.set_level(logging.INFO)
    client.post(BATCH, json={"texts": ["secret", "b"]}, headers={"X-Request-ID": "r-1"})
    (line,) = [record for record in caplog.records if record.name == "deployments.http.request_log"]

    assert (line.http_request_id, line.status, line.text_lengths, line.cache) == ("r-1", 200, [6, 1], ["miss", "miss"])
    assert "secret" not in str(vars(line))


def test_a_request_id_that_could_forge_a_log_line_is_not_repeated(client: TestClient, caplog: pytest.LogCaptureFixture):
    """Serve's middleware does not validate the caller's."""
    caplog.set_level(logging.INFO)
    client.get("/health/live", headers={"X-Request-ID": "x} {"})

    (line,) = [record for record in caplog.records if record.name == "deployments.http.request_log"]

    assert line.http_request_id == "unsafe"


def test_the_openapi_document_names_every_call_and_resolves(client: TestClient):
    """Each path of the table is there, and no reference leads nowhere."""
    document = client.get("/openapi.json").json()
    references = {part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}

    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {call.path for call in CALLS}
    assert references <= set(document["components"]["schemas"])


def test_the_docs_work_offline(client: TestClient):
    """The page loads nothing from another host."""
    page = client.get("/docs").text

    assert "http" not in page
    assert client.get("/docs/swagger-ui-bundle.js").status_code == 200
    assert client.get("/docs/swagger-ui.css").headers["Content-Type"].startswith("text/css")
