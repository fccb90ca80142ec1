"""Stores that die while the service answers."""

import time
import uuid

from tests.service import HITS, Service, Traffic, wait_for


def kill(service: Service, store: str) -> int:
    process = service.store(store)
    assert process
    process.kill()
    return process.pid


def wait_until_back(service: Service, store: str, old_pid: int) -> None:
    def back() -> bool:
        process = service.store(store)
        return process is not None and process.pid != old_pid

    wait_for(back, 5, lambda: f"the {store} store was not restarted within 5 s")


def corrected(service: Service, text: str, url: str) -> bool:
    return service.classify(text, url=url).headers["X-Cache"] == "correction"


def test_killing_the_prediction_store_fails_no_request_and_hits_come_back(service: Service):
    """`kill -9`: misses while it is away, and nobody restarts anything by hand."""
    with Traffic(service) as traffic:
        time.sleep(0.3)
        wait_until_back(service, "predictions", kill(service, "predictions"))
        time.sleep(1)
    text = f"Back again {uuid.uuid4()}"
    service.classify(text)

    assert set(traffic.outcomes) == {200}
    assert service.classify_until(text, *HITS, timeout_s=10).status == 200


def test_feedback_is_503_while_the_log_is_away_and_none_acknowledged_is_lost(service: Service):
    """Frozen, then `kill -9`: classification goes on, and every acknowledged record is counted afterwards."""
    total_before = service.stats()["total"]
    acknowledged, refused = 0, 0
    with Traffic(service) as traffic:
        for _ in range(5):
            acknowledged += service.feedback({"text": f"{uuid.uuid4()}"}).status == 201
        store = service.store("feedback")
        assert store
        store.suspend()
        away = service.feedback({"text": f"{uuid.uuid4()}"})
        refused += 1
        old = kill(service, "feedback")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and acknowledged < 20:
            answer = service.feedback({"text": f"{uuid.uuid4()}"})
            assert answer.status in (201, 503), answer.body
            acknowledged += answer.status == 201
            refused += answer.status == 503
            time.sleep(0.02)
        wait_until_back(service, "feedback", old)

    assert (away.status, away.json()["type"], away.headers["Retry-After"]) == (503, "unavailable", "1")
    assert acknowledged == 20
    assert set(traffic.outcomes) == {200}
    # A refused record may have reached the disk before the answer was lost; an acknowledged one must have.
    assert total_before + acknowledged <= service.stats()["total"] <= total_before + acknowledged + refused


def test_corrections_go_on_while_the_log_is_away_and_after(service: Service):
    """The overlay answers from memory, is folded again from the log, and new entries reach it."""
    text = f"Remember me {uuid.uuid4()}"
    service.feedback({"text": text})
    for replica in service.replica_urls():
        wait_for(lambda url=replica: corrected(service, text, url), 5, lambda: "the correction never showed")
    old = kill(service, "feedback")
    during = service.classify(text)
    wait_until_back(service, "feedback", old)
    after = f"Remember me too {uuid.uuid4()}"
    wait_for(lambda: service.feedback({"text": after}).status == 201, 10, lambda: "feedback never recovered")

    assert during.headers["X-Cache"] == "correction"
    assert service.classify_until(after, "correction").status == 200
    assert service.classify(text).headers["X-Cache"] == "correction"


def test_a_purge_while_the_store_is_away_is_503(service: Service):
    """Look-ups are misses meanwhile; an operator's explicit act is told that it was not done."""
    with service.frozen("predictions"):
        away = service.purge({"all": True})
        meanwhile = service.classify(f"{uuid.uuid4()}")

    assert (away.status, away.json()["type"], away.headers["Retry-After"]) == (503, "unavailable", "1")
    assert (meanwhile.status, meanwhile.headers["X-Cache"]) == (200, "miss")
    wait_for(lambda: service.purge({"all": True}).status == 200, 10, lambda: "purging never worked again")


def test_health_names_the_part_that_is_away_and_stays_200(service: Service):
    """Degraded, not unavailable: the model can still answer."""
    with service.frozen("predictions"):
        ready = service.get("/health/ready")
        status = service.intents("status")

    assert (ready.status, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["parts"]["cache"] != "ok"
    assert status.returncode == 1
    assert "prediction store" in status.stdout
    wait_for(lambda: service.get("/health/ready").json()["status"] == "ok", 10, lambda: "never healthy again")
