"""A prediction store that fails, while the service answers from it.

What needs something between the two (slow, reset, garbage) is in the tests of the prediction cache, and `python -m
loadgen.cache_faults` does all of it to a whole service.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import pytest
from redis import Redis

from tests.service import Service, Traffic, new_text, wait_for

FAULT_S = 2.0
RESUME_S = 5
KEEP_POLLS = 5
"""A text is asked for again so many polls later: a prediction is kept after its answer."""
KEPT = {
    "Translate to French: the weather is nice today": "translation",
    "Write a haiku about autumn leaves": "creative_writing",
    "Write a Python function that reverses a string": "code_generation",
    "Summarize this article in three sentences": "summarization",
}


def asked() -> str:
    """A kept text or a new one, as often."""
    return random.choice((random.choice(list(KEPT)), new_text()))


def state(service: Service, text: str, url: str | None = None) -> str | None:
    return service.classify(text, url=url).headers["X-Cache"]


def wait_until_hits_come_from_the_store(service: Service) -> None:
    """A text asked at one replica is a hit at the other: only the store can have brought it there."""
    here, there = service.replica_urls()
    asked_here = deque([new_text()], maxlen=KEEP_POLLS)
    came: list[str | None] = []

    def found() -> bool:
        came.append(state(service, asked_here[0], there))
        asked_here.append(new_text())
        state(service, asked_here[-1], here)
        return came[-1] == "hit-redis"

    wait_for(found, RESUME_S, lambda: f"no hits within {RESUME_S} s: {came}")


def operator(service: Service, password: str | None = None) -> Redis:
    return Redis.from_url(service.state["stores"]["predictions"], password=password, socket_timeout=5)


def frozen(service: Service) -> AbstractContextManager[None]:
    return service.frozen("predictions")


@contextmanager
def wrong_password(service: Service) -> Iterator[None]:
    """One that nobody was told; everybody has to log in again."""
    with closing(operator(service)) as client:
        client.config_set("requirepass", "changed")
        client.client_kill_filter(_type="normal", skipme=True)
    try:
        yield
    finally:
        with closing(operator(service, "changed")) as client:
            client.config_set("requirepass", "")


@contextmanager
def memory_full(service: Service) -> Iterator[None]:
    """Empty, and nothing more is taken."""
    with closing(operator(service)) as client:
        client.flushall()
        before = {name: client.config_get(name)[name] for name in ("maxmemory", "maxmemory-policy")}
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


@pytest.mark.parametrize("fault", [frozen, wrong_password, memory_full])
def test_no_request_fails_meanwhile_and_hits_come_back(
    service: Service, fault: Callable[[Service], AbstractContextManager[None]]
):
    """Kept and new texts: answered, or refused with 429 where the model alone cannot carry them, and never wrong."""
    service.warm(list(KEPT))

    with Traffic(service, threads=2, pause_s=0.03, text=asked) as traffic:
        with fault(service):
            time.sleep(FAULT_S)
        wait_until_hits_come_from_the_store(service)

    assert set(traffic.outcomes) <= {200, 429}, traffic.outcomes
    assert traffic.outcomes[200] > 0
    assert {text: service.classify(text).json()["intent"] for text in KEPT} == KEPT
