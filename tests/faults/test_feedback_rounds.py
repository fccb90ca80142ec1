"""Four rounds of `python -m loadgen.feedback_faults`; the whole command takes most of an hour."""

import pytest

from loadgen.feedback_faults import Kind, Plan, Subject, outcomes, run_plan
from loadgen.running_service import RunningService
from tests.graph.rollout import shipped
from tests.service import Service

KINDS = (Kind.STORE, Kind.FEEDBACK, Kind.INGRESS, Kind.STORE)


@pytest.mark.timeout(300)
def test_four_rounds_under_concurrent_feedback_lose_and_double_nothing(service: Service):
    """Nor does a counter differ from a recount, or a replica leave a correction out."""
    subject = Subject(RunningService(service.url, service.folder), shipped(service), service.start)

    found = run_plan(Plan(seed=7), KINDS, subject, print)

    assert [each.line for each in outcomes(found) if not each.held] == []
    assert found.findings.found == found.told.acknowledged > 250
    assert min(found.told.sent_again, found.findings.corrections, found.told.retried) > 0
