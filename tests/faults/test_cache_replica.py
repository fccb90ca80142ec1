"""A cache replica that is killed, and one that hangs, while others are being answered."""

import os
import signal
import time

import psutil

from tests.service import Service, Traffic, short_text, wait_for

METRICS_LAG_S = 2.5
"""Replicas report once a second, and so does Ray: what `/metrics` says by then was counted before."""
MAX_ANSWER_S = 5.0
"""A pass takes 30 ms and a look-up of a hanging replica twice a quarter of a second; the rest is the machine's."""


def look_ups_go_directly(service: Service) -> None:
    """Wait until they do at every ingress replica: of what is counted in a while, none goes by handle."""

    def all_do() -> bool:
        before = direct(service), by_handle(service)
        time.sleep(METRICS_LAG_S)
        return direct(service) > before[0] and by_handle(service) == before[1]

    time.sleep(METRICS_LAG_S)
    wait_for(all_do, 60, lambda: "some go by handle for good")


def by_handle(service: Service) -> float:
    """Calls by handle so far."""
    return service.metric("intent_cache_calls_total", transport="handle")


def direct(service: Service) -> float:
    """Calls over a connection so far."""
    return service.metric("intent_cache_calls_total", transport="direct")


def answers_go_on(traffic: Traffic) -> None:
    """Wait for some more."""
    answered = traffic.outcomes[200]
    wait_for(lambda: traffic.outcomes[200] > answered + 20, 30, lambda: f"no answers: {traffic.outcomes}")


def test_killing_the_cache_replica_fails_no_request(service: Service):
    """They are misses until there is another one, which the ingress replicas find by themselves."""
    with Traffic(service, threads=4, texts=2, text=short_text) as traffic:
        look_ups_go_directly(service)
        killed = service.replica_pids("Cache")
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        answers_go_on(traffic)
        wait_for(lambda: service.replica_pids("Cache") - killed, 30, lambda: "no other replica")
        look_ups_go_directly(service)

    assert set(traffic.outcomes) == {200}
    assert traffic.longest_s < MAX_ANSWER_S


def test_a_cache_replica_that_hangs_fails_no_request(service: Service):
    """Nobody waits much longer than a look-up's budget, and look-ups are direct again when it goes on."""
    (cache,) = (psutil.Process(pid) for pid in service.replica_pids("Cache"))
    with Traffic(service, threads=4, texts=2, text=short_text) as traffic:
        look_ups_go_directly(service)
        cache.suspend()
        try:
            answers_go_on(traffic)
            time.sleep(METRICS_LAG_S)
            before = direct(service)
            answers_go_on(traffic)
            time.sleep(METRICS_LAG_S)
            assert direct(service) == before
            assert service.metric("intent_cache_breaker_open", part="cache") == 1
        finally:
            cache.resume()
        look_ups_go_directly(service)

    assert set(traffic.outcomes) == {200}
    assert traffic.longest_s < MAX_ANSWER_S
