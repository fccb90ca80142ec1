"""Feedback over real HTTP: on disk, counted once, and shown at once."""

import time
import uuid

import pytest

from tests.service import RECORD, Service, wait_for


def test_a_correction_shows_on_every_ingress_replica_within_250_ms(service: Service):
    """Asked at their own ports, past the proxy."""
    replicas = service.replica_urls()
    text = f"Render this in Dutch: goedemorgen {uuid.uuid4()}"
    service.classify(text)
    receipt = service.feedback({"text": text})
    accepted = time.monotonic()
    for replica in replicas:
        wait_for(
            lambda url=replica: service.classify(text, url=url).headers["X-Cache"] == "correction",
            5,
            lambda url=replica: f"{url} never showed it",
            pause_s=0,
        )
    shown_s = time.monotonic() - accepted

    assert len(replicas) == 2
    assert (receipt.status, receipt.json()["cache_updated"]) == (201, True)
    assert shown_s < 0.25
    assert service.classify(text).json() | {"complexity": "", "suggested_techniques": [], "metadata": {}} == {
        "intent": "translation",
        "confidence": 1.0,
        "complexity": "",
        "suggested_techniques": [],
        "metadata": {},
    }


def test_a_correction_wins_over_a_later_model_answer(service: Service):
    """A fresh prediction is kept beside it, and the correction is served all the same."""
    text = f"Is this a question {uuid.uuid4()}"
    service.feedback({"text": text})
    service.classify_until(text, "correction")
    fresh = service.classify(text, Cache_Control="no-cache")

    assert (fresh.headers["X-Cache"], fresh.json()["metadata"]["source"]) == ("bypass", "model")
    assert service.classify(text).json()["metadata"]["source"] == "correction"


def test_the_same_key_and_record_is_the_same_receipt(service: Service):
    """201, then 200 `duplicate` with the same id; counted once."""
    record, key = {"text": f"Count me once {uuid.uuid4()}"}, uuid.uuid4().hex
    before = service.stats()["total"]
    first = service.feedback(record, Idempotency_Key=key)
    again = service.feedback(record, Idempotency_Key=key)

    assert (first.status, again.status) == (201, 200)
    assert again.json()["status"] == "duplicate"
    assert again.json()["feedback_id"] == first.json()["feedback_id"]
    assert service.stats()["total"] == before + 1


def test_the_same_key_with_another_record_is_refused(service: Service):
    """A key names one submission."""
    key = uuid.uuid4().hex
    service.feedback({"text": "one"}, Idempotency_Key=key)
    conflict = service.feedback({"text": "two"}, Idempotency_Key=key)

    assert (conflict.status, conflict.json()["type"]) == (422, "idempotency-key-conflict")


@pytest.mark.parametrize("change", [{"correct_intent": "poetry"}, {"text": ""}, {"original_confidence": 2}])
def test_bad_feedback_is_refused_and_not_counted(service: Service, change: dict[str, object]):
    """Unknown labels, blank texts, impossible confidences."""
    before = service.stats()["total"]
    refusal = service.feedback({"text": "a"} | change)

    assert (refusal.status, refusal.headers["Content-Type"]) == (422, "application/problem+json")
    assert service.stats()["total"] == before


def test_statistics_count_both_kinds(service: Service):
    """A confirmation raises agreement, a correction names its pair."""
    before = service.stats()
    service.feedback(
        {"text": f"right {uuid.uuid4()}", "correct_intent": "question_answering", "feedback_type": "confirmation"}
    )
    service.feedback({"text": f"wrong {uuid.uuid4()}"})
    after = service.stats()

    assert after["feedback_types"]["confirmations"] == before["feedback_types"]["confirmations"] + 1
    assert after["feedback_types"]["corrections"] == before["feedback_types"]["corrections"] + 1
    assert after["agreement_rate"] == after["feedback_types"]["confirmations"] / after["total"]
    pairs = {(pair["original_intent"], pair["correct_intent"]) for pair in after["corrections"]}
    assert (RECORD["original_intent"], RECORD["correct_intent"]) in pairs
