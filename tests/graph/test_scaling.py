"""The graph as any Ray Serve user handles it: `serve deploy`, a changed `num_replicas`, a builder that refuses."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import yaml

from deployments.core.errors import StartupError
from deployments.core.settings import ENVIRONMENT_NAMES, Settings
from deployments.graph import build
from tests.service import ROOT, Service, wait_for

SERVE = str(Path(sys.executable).parent / "serve")


def serve(service: Service, *arguments: str) -> str:
    """Run Ray's own `serve` command against the service's cluster."""
    environment = service.environment | {
        "RAY_DASHBOARD_ADDRESS": service.state["dashboard"],
        "RAY_AUTH_MODE": "disabled",
    }
    result = subprocess.run(
        [SERVE, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def running(service: Service, deployment: str) -> int:
    application = yaml.safe_load(serve(service, "status"))["applications"]["intents"]
    return application["deployments"][deployment]["replica_states"].get("RUNNING", 0)


def test_changing_num_replicas_and_deploying_again_scales_without_a_failed_request(service: Service, tmp_path: Path):
    """Two cache replicas, then one again, under requests."""
    shipped = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    shipped["http_options"]["port"] = service.port
    path = tmp_path / "serve_config.yaml"
    statuses = set()

    for wanted in (2, 1):
        (cache,) = [each for each in shipped["applications"][0]["deployments"] if each["name"] == "Cache"]
        cache["num_replicas"] = wanted
        path.write_text(yaml.safe_dump(shipped))
        serve(service, "deploy", str(path))

        def scaled(wanted: int = wanted) -> bool:
            statuses.add(service.classify(f"Scaling {uuid.uuid4()}").status)
            return running(service, "Cache") == wanted

        wait_for(scaled, 60, lambda wanted=wanted: f"never {wanted} replicas")
    wait_for(lambda: "RUNNING" in serve(service, "status"), 30, lambda: "never running again")

    assert statuses == {200}


def test_the_builder_refuses_to_start_without_stores(monkeypatch: pytest.MonkeyPatch):
    """Plain `serve run` without a URL fails at start and says what to set."""
    for name in ENVIRONMENT_NAMES:
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(StartupError, match="REDIS_URL"):
        build(Settings())


def test_the_graph_has_the_four_deployments_the_configuration_counts(monkeypatch: pytest.MonkeyPatch):
    """A name that differs would leave that deployment on Serve's defaults, silently."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    shipped = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    configured = {deployment["name"] for deployment in shipped["applications"][0]["deployments"]}
    application = build(Settings())
    arguments = application._bound_deployment.init_kwargs.values()
    bound = {application._bound_deployment.name} | {argument._bound_deployment.name for argument in arguments}

    assert bound == configured
