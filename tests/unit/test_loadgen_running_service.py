"""A running service looked at from outside: when Serve has settled."""

from typing import Any

import pytest

from loadgen.running_service import application_of


def details(*ingress: str, status: str = "RUNNING") -> Any:
    """What the dashboard says of two wanted ingress replicas in these states, and of one feedback replica."""
    return {
        "applications": {
            "intents": {
                "status": status,
                "deployments": {
                    "Ingress": {"target_num_replicas": 2, "replicas": [*map(replica, ingress)]},
                    "Feedback": {"target_num_replicas": 1, "replicas": [replica("RUNNING")]},
                },
            }
        }
    }


def replica(state: str) -> dict[str, object]:
    return {"replica_id": "a1", "pid": 7, "state": state}


def test_it_has_settled_when_every_deployment_has_its_replicas_and_they_run():
    assert application_of(details("RUNNING", "RUNNING")).settled


@pytest.mark.parametrize(
    "unsettled",
    [
        details("RUNNING"),
        details("RUNNING", "STARTING"),
        details("RUNNING", "RUNNING", "STOPPING"),
        details("RUNNING", "RUNNING", status="DEPLOYING"),
        {"applications": {}},
    ],
)
def test_whoever_comes_goes_or_is_missing_keeps_it_from_being_settled(unsettled: Any):
    assert not application_of(unsettled).settled
