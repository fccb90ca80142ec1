"""Classification over real HTTP, through HAProxy, two ingress replicas, real Valkey and the real model."""

import json
import uuid

import pytest

from tests.service import API, HITS, Service, request


def test_a_real_prompt_is_classified_by_a_real_transformer(service: Service):
    """The answer has every field of the contract, the intent is right, and the scores are the artifact's."""
    answer = service.classify("Write a haiku about autumn", query="?scores=true", Cache_Control="no-cache")
    body = answer.json()

    assert answer.status == 200
    assert answer.headers["X-Cache"] == "bypass"
    assert body["intent"] == "creative_writing"
    assert body["confidence"] == max(body["scores"].values())
    assert sum(body["scores"].values()) == pytest.approx(1, abs=1e-4)
    assert body["complexity"] in ("simple", "moderate", "complex")
    assert body["metadata"]["source"] == "model"
    assert body["metadata"]["truncated"] is False


def test_a_hits_body_is_the_misses_byte_for_byte(service: Service):
    """Whichever replica answers; only headers tell them apart."""
    text = f"Translate 'good morning' to Finnish {uuid.uuid4()}"
    miss = service.classify(text)
    hit = service.classify_until(text, *HITS)

    assert miss.headers["X-Cache"] == "miss"
    assert hit.body == miss.body


def test_case_and_blanks_share_a_prediction(service: Service):
    """The model cannot tell them apart, so neither does the cache."""
    text = f"Summarise this article {uuid.uuid4()}"
    service.classify(text)
    service.classify_until(text, *HITS)

    assert service.classify(f"  {text.upper()}\n").headers["X-Cache"] in HITS


def test_no_store_leaves_nothing_behind(service: Service):
    """The next ordinary request is a miss."""
    text = f"How tall is Mont Blanc? {uuid.uuid4()}"
    bypass = service.classify(text, Cache_Control="no-store")

    assert bypass.headers["X-Cache"] == "bypass"
    assert service.classify(text).headers["X-Cache"] == "miss"


def test_a_batch_answers_in_order_with_one_cache_state_a_text(service: Service):
    """Each result equals the single answer for that text."""
    known = f"Plan a week in Rome {uuid.uuid4()}"
    service.classify(known)
    service.classify_until(known, *HITS)
    texts = [f"Fix this stack trace {uuid.uuid4()}", known, "Write a haiku about autumn"]
    answer = service.batch(texts)

    first, second, _ = answer.headers["X-Cache"].split(", ")
    assert first == "miss"
    assert second in HITS
    assert answer.json()["count"] == 3
    assert answer.json()["results"] == [service.classify_until(text, *HITS).json() for text in texts]


def test_a_batch_of_100_texts_of_5000_cjk_characters_is_served(service: Service):
    """1.5 MB of UTF-8: beyond one inter-replica message, within one body."""
    body = json.dumps({"texts": [f"{index:04d}" + "翻" * 4996 for index in range(100)]}, ensure_ascii=False).encode()
    answer = request(f"{service.url}{API}/classify/batch", body)

    assert answer.status == 200, answer.body
    assert all(result["metadata"]["truncated"] for result in answer.json()["results"])


def test_the_request_id_is_answered_once(service: Service):
    """The caller's own is repeated, not joined by another; without one there is a new one."""
    given, drawn = service.classify("hello", X_Request_ID="mine-1"), service.classify("hello")

    assert given.headers.get_all("X-Request-ID") == ["mine-1"]
    assert len(drawn.headers.get_all("X-Request-ID")) == 1


def test_a_callers_own_time_limit_is_a_503_problem(service: Service):
    """In the contract's form, before Serve's plain 408 for the same header."""
    answer = request(
        f"{service.url}{API}/classify/batch",
        {"texts": [f"{uuid.uuid4()} word " * 100 for _ in range(100)]},
        headers={"X-Request-Timeout-Seconds": "0.3"},
    )

    assert (answer.status, answer.json()["type"]) == (503, "deadline-exceeded")


def test_server_timing_names_the_stages(service: Service):
    """A miss has looked at hand, looked up and computed."""
    answer = service.classify(f"What is 2+2? {uuid.uuid4()}")

    assert [stage.split(";")[0] for stage in answer.headers["Server-Timing"].split(", ")] == ["local", "cache", "model"]


BAD_BODIES = {
    "empty text": (b'{"text":""}', 422),
    "blank text": (b'{"text":" \\n\\t "}', 422),
    "5,001 characters": (json.dumps({"text": "x" * 5001}).encode(), 422),
    "a number": (b'{"text":5}', 422),
    "an array": (b'["a"]', 422),
    "lone surrogate": (b'{"text":"a\\ud800"}', 422),
    "NUL": (b'{"text":"a\\u0000"}', 422),
    "not JSON": (b"hello", 400),
    "invalid UTF-8": (b'{"text":"\xff"}', 400),
    "NaN": (b'{"text":NaN}', 422),
    "20,000 brackets": (b"[" * 20_000 + b"]" * 20_000, 400),
    "3 MiB": (b'{"text":"' + b"x" * 3 * 1024 * 1024 + b'"}', 413),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_a_4xx_problem(service: Service, name: str):
    """Through the whole stack, proxies included."""
    body, status = BAD_BODIES[name]
    answer = request(f"{service.url}{API}/classify", body)

    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")


def test_101_texts_are_refused(service: Service):
    """The message says how many there were and how many there may be."""
    answer = service.batch(["a"] * 101)

    assert answer.status == 422
    assert "101 items; the limit is 100" in answer.json()["detail"]


def test_types_lists_the_labels_of_the_model(service: Service):
    """Ten intents, each with techniques at every level."""
    types = service.get(f"{API}/types").json()

    assert len(types["intents"]) == 10
    assert types["complexity_levels"] == ["simple", "moderate", "complex"]
    assert all(set(intent["techniques"]) == set(types["complexity_levels"]) for intent in types["intents"])


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/health", "/openapi.json", "/docs", "/metrics"])
def test_the_operating_paths_answer(service: Service, path: str):
    """Each is 200 on a healthy service."""
    assert service.get(path).status == 200


def test_unknown_paths_and_methods_are_problems(service: Service):
    """404 and 405 are problem+json too."""
    missing, wrong = service.get("/nothing"), service.get(f"{API}/classify")

    assert (missing.status, wrong.status) == (404, 405)
    assert missing.headers["Content-Type"] == wrong.headers["Content-Type"] == "application/problem+json"
