"""A model that is killed, one that fails for good, and a text at which it raises, while others are being answered."""

import os
import signal
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from tests.faults.broken import BREAKING
from tests.faults.poison import POISON, poisoned_artifact
from tests.graph.rollout import deploy, serve, shipped
from tests.service import ROOT, Service, Traffic, request, wait_for

CALLERS = 8


def test_killing_the_model_in_mid_batch_fails_no_request(service: Service):
    """`kill -9` of every replica there is: what they had is sent again and waits, like what comes, for the next."""
    with Traffic(service, threads=CALLERS) as traffic:
        wait_for(lambda: traffic.outcomes[200] > 3 * CALLERS, 30, lambda: f"no traffic: {traffic.outcomes}")
        killed = service.replica_pids("Model")
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: service.replica_pids("Model") - killed, 30, lambda: "no other replica")
        answered = traffic.outcomes[200]
        wait_for(lambda: traffic.outcomes[200] > answered + 3 * CALLERS, 30, lambda: f"no answers: {traffic.outcomes}")

    assert set(traffic.outcomes) == {200}


def test_a_text_at_which_the_model_raises_fails_alone(service: Service, tmp_path: Path):
    """Beside it, in the same passes, others are answered; it is a 500 without a word of why, counted as failed."""
    # Looking for the text at fault slows its neighbours; none is to be refused.
    args = {"model_artifact": str(poisoned_artifact(tmp_path)), "max_queue_ms": 10_000}
    with second_application(service, "poisoned", args=args) as url:
        failed = service.metric("intent_model_dropped_total", reason="failed")
        texts = [f"What is {POISON if n % 8 == 3 else 'sugar'} {uuid.uuid4()}?" for n in range(64)]
        with ThreadPoolExecutor(16) as callers:
            answers = list(callers.map(lambda text: service.classify(text, url=url), texts))
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


def test_a_model_that_fails_for_good_is_replaced(service: Service):
    """Its process lives and answers everything with a 500: the health check finds it out, and Serve starts another."""
    changes = {"import_path": "tests.faults.broken:build", "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}}
    with second_application(service, "broken", **changes) as url:
        assert service.classify("sound", url=url).status == 200
        assert service.classify(BREAKING, url=url).status == 500
        assert service.classify("not sound any more", url=url).status == 500
        wait_for(
            lambda: service.classify(f"What is {uuid.uuid4()}?", url=url).status == 200,
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
        wait_for(lambda: request(f"{url}/health/ready").status == 200, 60, lambda: serve(service, "status"))
        yield url
    finally:
        deploy(service, config)
