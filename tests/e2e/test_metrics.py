"""Metrics are the whole cluster's truth, whichever replica answers."""

import uuid

from prometheus_client.parser import text_string_to_metric_families

from deployments.core.metrics import DURATION, FEEDBACK_CORRECTIONS, FEEDBACK_SUBMISSIONS, REQUESTS
from tests.service import API, Service, request, wait_for

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(service: Service) -> Samples:
    exposition = service.get("/metrics").body.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def count(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def settled(service: Service) -> Samples:
    """What the agents show once two scrapes, further apart than their reports, agree."""
    seen: list[Samples] = [scrape(service)]

    def same() -> bool:
        seen.append(scrape(service))
        return seen[-1] == seen[-2]

    wait_for(same, 20, lambda: "the counts never settled", pause_s=2.5)
    return seen[-1]


def test_counts_are_exact_over_both_replicas(service: Service):
    """Each text one increment: hits, misses, corrections, refusals; each feedback record one."""
    before = settled(service)
    text = f"Explain tides {uuid.uuid4()}"
    service.classify(text)
    service.classify_until(text, "hit-redis")
    service.batch([f"{index} {uuid.uuid4()}" for index in range(10)])
    for replica in service.replica_urls():
        service.classify(f"{uuid.uuid4()}", url=replica)
        request(f"{replica}{API}/classify", b"not json")
    service.feedback({"text": text})
    after = settled(service)

    def grown(name: str, **labels: str) -> float:
        return count(after, name, **labels) - count(before, name, **labels)

    misses = 1 + 10 + 2
    assert grown(REQUESTS.name, status="success") == grown(f"{DURATION.name}_count", cache_status="miss") >= misses
    assert grown(REQUESTS.name, status="cache_hit") == grown(f"{DURATION.name}_count", cache_status="hit") == 1
    assert grown(REQUESTS.name, status="success") == misses
    assert grown(REQUESTS.name, status="validation_error") == 2
    assert grown(FEEDBACK_SUBMISSIONS.name, feedback_type="correction", status="recorded") == 1
    assert grown(FEEDBACK_CORRECTIONS.name, original_intent="question_answering", correct_intent="translation") == 1


def test_every_replica_tells_the_same(service: Service):
    """A scraper behind a load balancer must not see counters jump back and forth."""
    settled(service)
    first, second = (request(f"{replica}/metrics").body.decode() for replica in service.replica_urls())
    name = f"{REQUESTS.name}{{"

    assert [line for line in first.splitlines() if line.startswith(name)] == [
        line for line in second.splitlines() if line.startswith(name)
    ]
