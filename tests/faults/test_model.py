"""A model that is killed, hangs or fails for good, and a text at which it raises, while others are being answered."""

import os
import signal
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import psutil
import pytest

from deployments.core.rpc import MAX_SILENCE_S
from tests.faults.broken import BREAKING
from tests.faults.poison import POISON, poisoned_artifact
from tests.graph.rollout import deploy, serve, shipped, wait_until_settled
from tests.service import ROOT, Service, Traffic, request, short_text, wait_for

CALLERS = 8
"""Their texts, if short, fit into one batch: none is refused, however slow the machine."""
GIVEN_UP_S = MAX_SILENCE_S + 8.0
"""So long at most, look-up and answer included: a channel looks at its connections every three seconds, after asking
whom to call, which a replica that hangs makes two seconds longer."""


def test_killing_the_model_in_mid_batch_fails_no_request(service: Service):
    """`kill -9` of every replica there is: what they had is sent again and waits, like what comes, for the next."""
    with Traffic(service, threads=CALLERS, text=short_text) as traffic:
        calls_go_directly(service)
        killed = service.replica_pids("Model")
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: service.replica_pids("Model") - killed, 30, lambda: "no other replica")
        answered = traffic.outcomes[200]
        wait_for(lambda: traffic.outcomes[200] > answered + 3 * CALLERS, 30, lambda: f"no answers: {traffic.outcomes}")

    assert set(traffic.outcomes) == {200}


def calls_go_directly(service: Service) -> None:
    """Wait until many of them do that are counted from now."""

    def direct() -> float:
        return service.metric("intent_model_calls_total", transport="direct")

    before = direct()
    wait_for(lambda: direct() > before + 3 * CALLERS, 30, lambda: "they go by handle for good", pause_s=0.5)


def test_a_model_replica_that_hangs_fails_no_request(service: Service):
    """One of two: what it has waits until it is given up, and the other answers what comes meanwhile."""
    config = shipped(service)
    fixed = deepcopy(config)
    (model,) = (each for each in fixed["applications"][0]["deployments"] if each["name"] == "Model")
    del model["autoscaling_config"]
    model["num_replicas"] = 2
    deploy(service, fixed)
    wait_until_settled(service, {"Model": {2}})
    try:
        with Traffic(service, threads=CALLERS, text=short_text) as traffic:
            calls_go_directly(service)
            hanging = psutil.Process(min(service.replica_pids("Model")))
            hanging.suspend()
            try:
                wait_for(lambda: traffic.longest_s > MAX_SILENCE_S, GIVEN_UP_S, lambda: f"{traffic.longest_s:.1f} s")
                answered = traffic.outcomes[200]
                wait_for(lambda: traffic.outcomes[200] > answered + 10 * CALLERS, 30, lambda: f"{traffic.outcomes}")
            finally:
                hanging.resume()
    finally:
        model["num_replicas"] = 1
        deploy(service, fixed)
        wait_until_settled(service, {"Model": {1}})
        deploy(service, config)

    assert set(traffic.outcomes) == {200}
    assert MAX_SILENCE_S < traffic.longest_s < GIVEN_UP_S


@pytest.fixture(scope="module")
def faulty(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a second application, whose model raises at one word and is broken for good by one text."""
    args = {
        "model_artifact": str(poisoned_artifact(tmp_path_factory.mktemp("poisoned"))),
        "max_queue_ms": 10_000,  # looking for the text at fault slows its neighbours; none is to be refused
    }
    changes = {"import_path": "tests.faults.broken:build", "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}}
    with second_application(service, "faulty", args=args, **changes) as url:
        yield url


def test_a_text_at_which_the_model_raises_fails_alone(service: Service, faulty: str):
    """Beside it, in the same passes, others are answered; it is a 500 without a word of why, counted as failed."""
    failed = service.metric("intent_model_dropped_total", reason="failed")
    texts = [f"What is {POISON if n % 8 == 3 else 'sugar'} {uuid.uuid4()}?" for n in range(64)]

    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(lambda text: service.classify(text, url=faulty), texts))
    wait_for(
        lambda: service.metric("intent_model_dropped_total", reason="failed") >= failed + 8,
        5,
        lambda: "failures are not counted",
    )

    assert [answer.status for answer in answers] == [500 if POISON in text else 200 for text in texts]
    problem = next(answer for answer in answers if answer.status == 500)
    assert problem.json()["type"] == "internal"
    assert POISON not in problem.body.decode()
    assert service.metric("intent_model_dropped_total", reason="failed") == failed + 8


def test_a_model_that_fails_for_good_is_replaced(service: Service, faulty: str):
    """Its process lives and answers everything with a 500: the health check finds it out, and Serve starts another."""
    assert service.classify("sound", url=faulty).status == 200
    assert service.classify(BREAKING, url=faulty).status == 500
    assert service.classify("not sound any more", url=faulty).status == 500
    wait_for(
        lambda: service.classify(f"What is {uuid.uuid4()}?", url=faulty).status == 200,
        60,
        lambda: "it is not replaced",
    )


@contextmanager
def second_application(service: Service, name: str, *, args: Mapping[str, Any] = {}, **changes: Any) -> Iterator[str]:
    """The URL of an application beside the shipped one, with one replica of each deployment; gone at the end."""
    config = shipped(service)
    both = deepcopy(config)
    (application,) = deepcopy(config["applications"])
    application |= {"name": name, "route_prefix": f"/{name}"} | changes
    application["args"] |= args
    for deployment in application["deployments"]:
        deployment.pop("autoscaling_config", None)
        deployment["num_replicas"] = 1
    both["applications"].append(application)
    url = f"{service.url}/{name}"

    deploy(service, both)
    try:
        wait_for(lambda: is_ready(url), 60, lambda: serve(service, "status"))
        yield url
    finally:
        deploy(service, config)


def is_ready(url: str) -> bool:
    """Whether an application answers; HAProxy, told of it just now, may hang up."""
    try:
        return request(f"{url}/health/ready").status == 200
    except OSError:
        return False
