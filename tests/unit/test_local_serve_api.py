"""Reading what Serve says of a deployment."""

from dataclasses import replace

import pytest

from deployments.local.serve_api import applications, cause

NESTED = """ray::build_serve_application() (pid=9)
RuntimeError: Traceback (most recent call last):
  File "replica.py", line 1, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "model.py", line 2, in __init__
    load(path)
    ^^^^^^^^^^
deployments.core.errors.ArtifactError: /models/mine: cannot be read; name a folder made by `intents train`"""

SEVERAL_LINES = """Traceback (most recent call last):
  File "settings.py", line 1, in <module>
pydantic_core._pydantic_core.ValidationError: 1 validation error for Settings
cache_ttl
  Input should be greater than 0"""


def details(change: dict | None = None) -> dict:
    model = {"status": "HEALTHY", "message": "", "target_num_replicas": 2, "replicas": [{"state": "RUNNING"}] * 2}
    application = {"status": "RUNNING", "message": "", "deployments": {"Model": model | (change or {})}}
    return {"applications": {"intents": application}}


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (NESTED, "ArtifactError: /models/mine: cannot be read; name a folder made by `intents train`"),
        (SEVERAL_LINES, "ValidationError: 1 validation error for Settings cache_ttl Input should be greater than 0"),
        ("Deployment needs 8 CPUs.", "Deployment needs 8 CPUs."),
        ("", "Serve gives no reason"),
    ],
)
def test_a_traceback_comes_down_to_its_cause(message, line):
    """One line: the innermost exception, with all it says."""
    assert cause(message) == line


def test_a_very_long_cause_is_cut():
    """A line, not a page."""
    assert len(cause("ValueError: " + "x" * 10_000)) < 500


def test_an_application_is_healthy_when_all_its_deployments_are():
    """RUNNING alone does not say so."""
    (fine,) = applications(details())
    (updating,) = applications(details({"status": "UPDATING"}))

    assert fine.healthy
    assert fine.deployments[0].replicas == {"RUNNING": 2}
    assert not updating.healthy
    assert updating.failure is None


@pytest.mark.parametrize("status", ["UPSCALING", "DOWNSCALING"])
def test_a_deployment_that_scales_by_itself_is_healthy(status):
    """Serve calls the application RUNNING then, and DEPLOYING when somebody changed the number."""
    (scaling,) = applications(details({"status": status}))

    assert scaling.healthy
    assert not replace(scaling, status="DEPLOYING").healthy


def test_a_deployment_that_fails_names_itself_and_its_cause():
    """Not the application's message, which only says that something failed."""
    failed = {"status": "DEPLOY_FAILED", "message": NESTED}
    (application,) = applications({"applications": {"intents": {
        "status": "DEPLOY_FAILED",
        "message": "Failed to update the deployments ['Model'].",
        "deployments": {"Model": {"target_num_replicas": 1, "replicas": []} | failed},
    }}})  # fmt: skip

    assert application.failure == f"Model: {cause(NESTED)}"


def test_an_application_that_cannot_be_built_says_why():
    """Then there is no deployment yet."""
    message = "Deploying failed\nAttributeError: module 'graph' has no attribute 'nope'"
    building = {"status": "DEPLOY_FAILED", "message": message, "deployments": {}}

    (application,) = applications({"applications": {"intents": building}})

    assert application.failure == "AttributeError: module 'graph' has no attribute 'nope'"
