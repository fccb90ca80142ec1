"""The HTTP face of feedback, with a log of a few lines behind it."""

import json

import pytest
from starlette.testclient import TestClient

from deployments.core.errors import Conflict, Gone, IntentGraphError, NotFound, Overloaded, Unavailable
from deployments.core.feedback_log import Receipt
from deployments.core.feedback_reader import StoredRecord
from deployments.core.log_layout import LogEntry
from deployments.core.settings import Settings
from deployments.http.app import API
from tests.unit.fakes import CountingMetrics, FakeLog, FakeParts
from tests.unit.test_http import FakeProbes, client_of

FEEDBACK = f"{API}/feedback"
RECORD = {"text": "a", "original_intent": "reasoning", "correct_intent": "translation", "original_confidence": 0.5}


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


@pytest.fixture
def client(log: FakeLog) -> TestClient:
    return client_of(Settings(), FakeParts(), FakeProbes(), CountingMetrics(), feedback_log=log)


def test_feedback_is_created_once_and_then_a_duplicate(client: TestClient, log: FakeLog):
    """201, then 200 with the same id."""
    first = client.post(FEEDBACK, json=RECORD, headers={"Idempotency-Key": "k"})
    log.receipt = Receipt("1-0", duplicate=True, state="applied")
    again = client.post(FEEDBACK, json=RECORD, headers={"Idempotency-Key": "k"})

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["feedback_id"] == again.json()["feedback_id"]
    assert log.submissions[0].idempotency_key == "k"


BAD_FEEDBACK = {
    "confidence over 1": {"original_confidence": 1.1},
    "confidence as text": {"original_confidence": "0.5"},
    "unknown intent": {"correct_intent": "poetry"},
    "unknown technique": {"correct_techniques": ["magic"]},
    "too many techniques": {"correct_techniques": ["zero_shot"] * 17},
    "unknown complexity": {"correct_complexity": "trivial"},
    "a correction that changes nothing": {"correct_intent": "reasoning"},
    "a confirmation that changes something": {"feedback_type": "confirmation"},
    "unknown type": {"feedback_type": "praise"},
    "no time": {"timestamp": "yesterday"},
    "surrogate user": {"user_id": "\ud800"},
}


@pytest.mark.parametrize("name", BAD_FEEDBACK)
def test_bad_feedback_is_422_and_reaches_no_log(client: TestClient, log: FakeLog, name: str):
    """What is wrong is named."""
    answer = client.post(FEEDBACK, content=json.dumps(RECORD | BAD_FEEDBACK[name]))

    assert answer.status_code == 422
    assert answer.json()["detail"]
    assert log.submissions == []


def test_feedback_while_the_log_is_away_is_503(client: TestClient, log: FakeLog):
    """And worth a retry with the same key."""
    log.receipt = Unavailable("the feedback log is away")
    answer = client.post(FEEDBACK, json=RECORD)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [(Gone("deleted"), 410, "gone"), (Overloaded("too many", retry_after_s=3), 429, "overloaded")],
)
def test_what_the_log_refuses_is_said(
    client: TestClient, log: FakeLog, error: IntentGraphError, status: int, kind: str
):
    """With the type that tells what to do."""
    log.receipt = error
    answer = client.post(FEEDBACK, json=RECORD)

    assert (answer.status_code, answer.json()["type"]) == (status, kind)
    assert answer.headers.get("Retry-After") == ("3" if status == 429 else None)


def test_records_are_listed_as_they_were_sent_with_what_is_known_of_them(client: TestClient, log: FakeLog):
    """In the order of the log, after a cursor."""
    counter = '["correction","reasoning","translation","v1"]'
    entry = LogEntry("1767225600123-4", "feedback", by="bob", trusted=True, counter=counter)
    log.records = [StoredRecord(entry, json.dumps(RECORD | {"feedback_type": "correction"}), "approved")]
    answer = client.get(FEEDBACK, params={"after": "1-0", "limit": 7, "state": "approved"})

    assert log.asked == [("page", "1-0", 7, "approved")]
    assert answer.json()["next"] is None
    [item] = answer.json()["items"]
    assert {name: value for name, value in item.items() if value is not None} == {
        **RECORD,
        "feedback_type": "correction",
        "feedback_id": "1767225600123-4",
        "accepted_at": "2026-01-01T00:00:00.123Z",
        "state": "approved",
        "trusted": True,
        "by": "bob",
        "model_version": "v1",
    }


def test_the_first_page_needs_no_parameters(client: TestClient, log: FakeLog):
    """It is a hundred records from the beginning."""
    client.get(FEEDBACK)

    assert log.asked == [("page", "0-0", 100, None)]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=ten",
        "limit=-1",
        "limit=1.5",
        "limit=",
        "state=sad",
        "state=",
        f"limit={'9' * 5000}",
    ],
)
def test_a_bad_query_is_422_and_asks_no_log(client: TestClient, log: FakeLog, query: str):
    """The message says what it takes."""
    answer = client.get(f"{FEEDBACK}?{query}")

    assert (answer.status_code, answer.json()["type"]) == (422, "invalid-input")
    assert "send" in answer.json()["detail"]
    assert log.asked == []


def test_what_an_operator_does_reaches_the_log(client: TestClient, log: FakeLog):
    """Each call is one of the log's."""
    approved = client.post(f"{FEEDBACK}/1-0/approve")
    rejected = client.post(f"{FEEDBACK}/2-0/reject")
    deleted = client.delete(f"{FEEDBACK}/3-0")
    erased = client.post(f"{FEEDBACK}/erase", json={"user_id": "u"})
    acknowledged = client.post(f"{FEEDBACK}/ack", json={"feedback_id": "4-0"})

    assert approved.json() == {"feedback_id": "1-0", "state": "approved"}
    assert rejected.json() == {"feedback_id": "2-0", "state": "rejected"}
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (erased.json(), acknowledged.json()) == ({"deleted": 3}, {"total_pending_feedback": 0})
    assert [call[:2] for call in log.asked] == [
        ("review", "1-0"),
        ("review", "2-0"),
        ("delete", "3-0"),
        ("erase", "u"),
        ("acknowledge", "4-0"),
    ]


@pytest.mark.parametrize(
    ("error", "status"), [(NotFound("no such"), 404), (Conflict("decided"), 409), (Unavailable("away"), 503)]
)
def test_a_review_that_cannot_be_is_refused(client: TestClient, log: FakeLog, error: IntentGraphError, status: int):
    """With the log's own words."""
    log.error = error
    answer = client.post(f"{FEEDBACK}/1-0/approve")

    assert (answer.status_code, answer.json()["type"], answer.json()["detail"]) == (status, error.slug, error.detail)


def test_patterns_take_a_number_of_days(client: TestClient):
    """A week unless asked otherwise."""
    assert client.get(f"{FEEDBACK}/patterns").json()["days"] == 7
    assert client.get(f"{FEEDBACK}/patterns?days=30").json()["days"] == 30
    assert client.get(f"{FEEDBACK}/patterns?days=366").status_code == 422


def test_a_method_that_a_path_does_not_take_is_told_of_all_it_takes(client: TestClient):
    """Also of a path with several calls, and of one with an id in it."""
    several = client.put(FEEDBACK)
    one = client.get(f"{FEEDBACK}/1-0/approve")

    assert (several.status_code, one.status_code) == (405, 405)
    assert {"GET", "POST"} <= set(several.headers["Allow"].split(", "))
    assert one.headers["Allow"] == "POST"


@pytest.mark.parametrize("action", ["", "/approve", "/reject"])
def test_the_name_of_a_parameter_is_an_id_like_any_other(client: TestClient, log: FakeLog, action: str):
    """The path as the document writes it is a path too."""
    log.error = NotFound("no such")
    method = "POST" if action else "DELETE"
    answer = client.request(method, f"{FEEDBACK}/%7Bfeedback_id%7D{action}")

    assert (answer.status_code, answer.json()["type"]) == (404, "not-found")
    assert log.asked[0][1] == "{feedback_id}"
