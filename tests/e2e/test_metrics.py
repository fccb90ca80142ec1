"""Metrics are the whole cluster's truth, whichever replica answers."""

import time
import uuid

from prometheus_client.parser import text_string_to_metric_families

from deployments.core.metrics import DURATION, FEEDBACK_CORRECTIONS, FEEDBACK_SUBMISSIONS, MODEL_INFO, REQUESTS
from tests.service import API, HITS, Service, request, wait_for

QUIET_S = 6
"""Longer than replicas take to report, and Ray to show it."""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(exposition: bytes) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
    }


def count(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def gauge(samples: Samples, name: str) -> Samples:
    return {key: value for key, value in samples.items() if key[0] == name}


def settled(service: Service) -> Samples:
    """What the agents show once nothing has come for longer than replicas take to report."""
    seen, since_s = service.get("/metrics").body, time.monotonic()

    def quiet() -> bool:
        nonlocal seen, since_s
        if seen != (now := service.get("/metrics").body):
            seen, since_s = now, time.monotonic()
        return time.monotonic() - since_s >= QUIET_S

    wait_for(quiet, 30, lambda: "the counts never settled", pause_s=0.5)
    return samples(seen)


def test_counts_are_exact_over_both_replicas(service: Service):
    """Each text one increment: hits, misses, corrections, refusals; each feedback record one."""
    before = settled(service)
    text = f"Explain tides {uuid.uuid4()}"
    answers = [service.classify(text), service.batch([f"{index} {uuid.uuid4()}" for index in range(10)])]
    answers += [service.classify(text) for _ in range(5)]
    for replica in service.replica_urls():
        answers.append(service.classify(f"{uuid.uuid4()}", url=replica))
        request(f"{replica}{API}/classify", b"not json")
    service.feedback({"text": text})
    after = settled(service)

    def grown(name: str, **labels: str) -> float:
        return count(after, name, **labels) - count(before, name, **labels)

    states = [state for answer in answers for state in answer.headers["X-Cache"].split(", ")]
    misses, hits = states.count("miss"), sum(map(states.count, HITS))
    assert misses + hits == len(states) == 18
    assert grown(REQUESTS.name, status="success") == grown(f"{DURATION.name}_count", cache_status="miss") == misses
    assert grown(REQUESTS.name, status="cache_hit") == grown(f"{DURATION.name}_count", cache_status="hit") == hits
    assert grown(REQUESTS.name, status="validation_error") == 2
    assert grown(FEEDBACK_SUBMISSIONS.name, feedback_type="correction", status="recorded") == 1
    assert grown(FEEDBACK_CORRECTIONS.name, original_intent="question_answering", correct_intent="translation") == 1
    assert list(gauge(after, MODEL_INFO.name).values()) == [1]  # however long ago it was set
    # Settled, every replica tells the same: a scraper behind a load balancer sees no counter jump back and forth.
    assert {service.get("/metrics").body for _ in range(4)} == {service.get("/metrics").body}
