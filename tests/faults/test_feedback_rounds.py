"""Ten rounds of `python -m loadgen.feedback_faults`; the whole command takes most of an hour."""

from typing import Any

import pytest

from loadgen.feedback_faults import Kind, Plan, Subject, outcomes, run_plan
from loadgen.local_service import one_model_replica
from loadgen.running_service import RunningService
from tests.graph.rollout import shipped
from tests.service import Service

KINDS = (Kind.UPGRADE, *(Kind.STORE, Kind.FEEDBACK, Kind.STORE, Kind.INGRESS) * 2, Kind.STORE)


@pytest.mark.timeout(300)
def test_ten_rounds_under_concurrent_feedback_lose_and_double_nothing(service: Service):
    """Nor does a counter differ from a recount, or a replica leave a correction out; upgrading fails no request."""
    config = quick_to_notice(one_model_replica(shipped(service)))
    subject = Subject(RunningService(service.url, service.folder), config, service.start)

    found = run_plan(Plan(seed=7), KINDS, subject, print)

    assert [each.line for each in outcomes(found) if not each.held] == []
    assert found.findings.found == found.told.acknowledged > 500
    assert min(found.told.sent_again, found.findings.corrections, found.told.retried) > 0


def quick_to_notice(config: dict[str, Any]) -> dict[str, Any]:
    """From the upgrade on, Serve notices within a second that a replica is gone; by default it takes up to ten."""
    for deployment in config["applications"][0]["deployments"]:
        deployment["health_check_period_s"] = 1
    return config
