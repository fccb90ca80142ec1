"""A prediction store that fails in every way, while the service answers from it."""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from loadgen.faulty_proxy import Mode, ProxyThread
from loadgen.valkey import Valkey
from tests.graph.rollout import roll_over, shipped
from tests.service import Service, Traffic, new_text, wait_for

FAULT_S = 2.5
RESUME_S = 5
KEEP_POLLS = 5
"""A text is asked for again so many polls later: a prediction is kept after its answer."""
HITS = ("hit-local", "hit-redis")
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


@dataclass(frozen=True)
class Store:
    """A server, and the proxy through which the service asks it."""

    server: Valkey
    proxy: ProxyThread


def turned(mode: Mode) -> Callable[[Store], None]:
    return lambda store: store.proxy.turn(mode)


def done(action: Callable[[Valkey], None]) -> Callable[[Store], None]:
    return lambda store: action(store.server)


FAULTS = {
    "killed": (done(Valkey.kill), done(Valkey.start)),
    "frozen": (done(Valkey.freeze), done(Valkey.thaw)),
    "wrong-password": (done(Valkey.change_password), done(Valkey.take_password_back)),
    "memory-full": (done(Valkey.fill), done(Valkey.make_room)),
    "slow": (turned(Mode.DELAY), turned(Mode.PASS)),
    "reset": (turned(Mode.RESET), turned(Mode.PASS)),
    "garbage": (turned(Mode.GARBAGE), turned(Mode.PASS)),
}


@pytest.fixture(scope="module")
def store(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The service on a store of these tests' own, and back on its own afterwards."""
    folder = tmp_path_factory.mktemp("store")
    config = shipped(service)
    with Valkey(folder / "data", folder / "log") as server, ProxyThread(server.port) as proxy:
        config["applications"][0]["args"]["redis_url"] = proxy.url
        roll_over(service, folder, config)
        yield Store(server, proxy)
        roll_over(service, folder, shipped(service))


@pytest.mark.parametrize("fault", FAULTS)
def test_no_request_fails_meanwhile_and_hits_come_back(service: Service, store: Store, fault: str):
    """Kept and new texts: answered, or refused with 429 where the model alone cannot carry them, and never wrong."""
    begin, end = FAULTS[fault]
    wait_for(lambda: all(state(service, text) in HITS for text in KEPT), 10, lambda: "never kept")

    with Traffic(service, threads=2, pause_s=0.03, text=asked) as traffic:
        begin(store)
        try:
            time.sleep(FAULT_S)
        finally:
            end(store)
        wait_until_hits_come_from_the_store(service)

    assert set(traffic.outcomes) <= {200, 429}, traffic.outcomes
    assert traffic.outcomes[200] > 0
    assert {text: service.classify(text).json()["intent"] for text in KEPT} == KEPT
