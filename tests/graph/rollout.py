"""`serve deploy` against the running service, and whether it has settled."""

import subprocess
import sys
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.service import ROOT, Service, wait_for

SERVE = str(Path(sys.executable).parent / "serve")
SETTLE_TIMEOUT_S = 90


def shipped(service: Service) -> dict[str, Any]:
    """The shipped configuration, on the service's port."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = service.port
    return config


def deploy(service: Service, folder: Path, config: dict[str, Any]) -> None:
    """Deploy a configuration; the rollout goes on after it returns."""
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    serve(service, "deploy", str(path))


def roll_over(service: Service, folder: Path, config: dict[str, Any]) -> None:
    """Deploy a configuration that replaces every replica, and wait until only the new ones run."""
    before = service.replica_pids("Ingress")
    deploy(service, folder, config)
    wait_for(
        lambda: not before & service.replica_pids("Ingress"), SETTLE_TIMEOUT_S, lambda: "the old ingress replicas stay"
    )
    (application,) = config["applications"]
    wait_until_settled(service, {each["name"]: _allowed(each) for each in application["deployments"]})


def _allowed(deployment: dict[str, Any]) -> range:
    """How many replicas a deployment's configuration allows."""
    if bounds := deployment.get("autoscaling_config"):
        return range(bounds["min_replicas"], bounds["max_replicas"] + 1)
    return range(deployment["num_replicas"], deployment["num_replicas"] + 1)


def wait_until_settled(service: Service, replicas: Mapping[str, Container[int]]) -> None:
    """Wait until the application runs with just these replicas, the old ones gone."""
    wait_for(lambda: settled(service, replicas), SETTLE_TIMEOUT_S, lambda: f"never {replicas}")


def settled(service: Service, replicas: Mapping[str, Container[int]]) -> bool:
    """Whether the application runs with just these replicas, the old ones gone."""
    application = yaml.safe_load(serve(service, "status"))["applications"]["intents"]
    states = {name: deployment["replica_states"] for name, deployment in application["deployments"].items()}
    return application["status"] == "RUNNING" and all(
        states[name].keys() == {"RUNNING"} and states[name]["RUNNING"] in counts for name, counts in replicas.items()
    )


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
