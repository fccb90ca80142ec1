"""Deleting predictions over real HTTP, from the real store."""

import uuid

from tests.service import HITS, Service, wait_for


def is_cold(service: Service, texts: list[str]) -> bool:
    """Purge and ask again: a prediction still on its way into the store may arrive after the first purge."""
    assert service.purge({"texts": texts}).status == 200
    return service.batch(texts).headers["X-Cache"] == ", ".join(["miss"] * len(texts))


def test_a_purged_text_is_a_miss_again_and_others_stay_hits(service: Service):
    """On whichever replica it is asked for, however it is written."""
    purged, kept = f"Purge me {uuid.uuid4()}", f"Keep me {uuid.uuid4()}"
    service.warm([purged, kept])
    for replica in service.replica_urls():
        service.classify(purged, url=replica)
    answer = service.purge({"texts": [f" {purged.upper()}", f"never seen {uuid.uuid4()}"]})

    assert (answer.status, answer.json()) == (200, {"deleted": 1})
    wait_for(lambda: is_cold(service, [purged]), 5, lambda: "the purged text stayed a hit")
    assert service.classify(kept).headers["X-Cache"] in HITS


def test_a_purge_of_all_leaves_corrections_and_the_log(service: Service):
    """Every text is a miss again, except those that people have corrected."""
    texts = [f"{index} {uuid.uuid4()}" for index in range(100)]
    corrected = f"Correct me {uuid.uuid4()}"
    service.warm(texts)
    service.batch(texts)
    service.feedback({"text": corrected})
    for replica in service.replica_urls():
        wait_for(
            lambda url=replica: service.classify(corrected, url=url).headers["X-Cache"] == "correction",
            5,
            lambda: "the correction never showed",
        )
    total = service.stats()["total"]
    answer = service.purge({"all": True})
    states = service.batch(texts).headers["X-Cache"].split(", ")

    assert answer.status == 200
    assert answer.json()["deleted"] >= len(texts)
    assert set(states) == {"miss"}
    assert service.classify(corrected).json()["metadata"]["source"] == "correction"
    assert service.stats()["total"] == total


def test_a_purge_of_1000_texts_is_taken_and_of_1001_refused(service: Service):
    """The message says how many there were and how many there may be."""
    texts = [f"{uuid.uuid4()}" for _ in range(1001)]
    refusal = service.purge({"texts": texts})

    assert service.purge({"texts": texts[:1000]}).json() == {"deleted": 0}
    assert refusal.status == 422
    assert "1,001 items; the limit is 1,000" in refusal.json()["detail"]


def test_the_command_purges_the_running_service(service: Service):
    """By text, and all."""
    text = f"Purge me from the shell {uuid.uuid4()}"
    service.warm([text])
    one, everything = service.intents("purge", text), service.intents("purge", "--all")

    assert (one.returncode, one.stdout) == (0, "1 prediction deleted\n")
    assert everything.returncode == 0
    assert everything.stdout.endswith("deleted\n")
