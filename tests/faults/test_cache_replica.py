"""A cache replica that is killed, and one that hangs, while others are being answered."""

import os
import signal

import psutil

from tests.service import Service, Traffic, wait_for


def calls(service: Service, transport: str) -> float:
    """Calls with look-ups so far."""
    return service.metric("intent_cache_calls_total", transport=transport)


def answers_go_on(service: Service, traffic: Traffic, *, direct: bool) -> None:
    """Wait for more answers; with `direct`, until look-ups go over a connection again."""
    answered, before = traffic.outcomes[200], calls(service, "direct")
    wait_for(lambda: traffic.outcomes[200] > answered + 20, 30, lambda: f"no answers: {traffic.outcomes}")
    if direct:
        wait_for(lambda: calls(service, "direct") > before, 30, lambda: "look-ups go by handle for good", pause_s=0.5)


def test_killing_the_cache_replica_fails_no_request(service: Service):
    """They are misses until there is another one, which the ingress replicas find by themselves."""
    with Traffic(service, threads=4) as traffic:
        answers_go_on(service, traffic, direct=True)
        killed = service.replica_pids("Cache")
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: service.replica_pids("Cache") - killed, 30, lambda: "no other replica")
        answers_go_on(service, traffic, direct=True)

    assert set(traffic.outcomes) == {200}


def test_a_cache_replica_that_hangs_fails_no_request(service: Service):
    """Nobody waits longer than a look-up's budget, and hits are back when it goes on."""
    (cache,) = (psutil.Process(pid) for pid in service.replica_pids("Cache"))
    with Traffic(service, threads=4) as traffic:
        answers_go_on(service, traffic, direct=True)
        cache.suspend()
        try:
            answers_go_on(service, traffic, direct=False)
        finally:
            cache.resume()
        answers_go_on(service, traffic, direct=True)

    assert set(traffic.outcomes) == {200}
    text = "What is kept when the cache hangs?"
    service.warm([text])
    service.classify_until(text, "hit-redis", timeout_s=10)
