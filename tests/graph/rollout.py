"""New configurations for the running service, by Serve's REST interface or `serve deploy`; whether they serve yet."""

import subprocess
import sys
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deployments.local.serve_api import PATH
from tests.service import ROOT, Service, request, wait_for

SERVE = str(Path(sys.executable).parent / "serve")
SETTLE_TIMEOUT_S = 90
POLL_S = 0.25


def shipped(service: Service) -> dict[str, Any]:
    """The shipped configuration, on the service's port."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = service.port
    return config


def deploy(service: Service, config: dict[str, Any]) -> None:
    """Deploy a configuration by the call that `serve deploy` makes; the rollout goes on after it returns.

    The command's own start would take a core from the replicas for seconds.
    """
    answer = request(service.state["dashboard"] + PATH, config, method="PUT")
    assert answer.status == 200, answer.body


def serve_deploy(service: Service, folder: Path, config: dict[str, Any]) -> None:
    """Deploy a configuration by Ray's own command."""
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    serve(service, "deploy", str(path))


def roll_over(service: Service, config: dict[str, Any]) -> None:
    """Deploy a configuration that replaces every replica, and wait until only new ones run."""
    before = application(service).replica_ids
    (wanted,) = config["applications"]
    deploy(service, config)
    wait_until_settled(service, {each["name"]: _allowed(each) for each in wanted["deployments"]}, gone=before)


def _allowed(deployment: dict[str, Any]) -> range:
    """How many replicas a deployment's configuration allows."""
    if bounds := deployment.get("autoscaling_config"):
        return range(bounds["min_replicas"], bounds["max_replicas"] + 1)
    return range(deployment["num_replicas"], deployment["num_replicas"] + 1)


def wait_until_settled(
    service: Service, replicas: Mapping[str, Container[int]], *, gone: frozenset[str] = frozenset()
) -> None:
    """Wait until the application runs with so many replicas and no others, none of them among those to be gone."""

    def settled() -> bool:
        found = application(service)
        return found.runs_just(replicas) and not gone & found.replica_ids

    wait_for(settled, SETTLE_TIMEOUT_S, lambda: f"never {replicas}, last {application(service)}", pause_s=POLL_S)


@dataclass(frozen=True, slots=True)
class Application:
    """The application as Serve sees it now."""

    status: str
    replicas: Mapping[str, Mapping[str, str]]
    """By deployment, the state of each replica by its id."""

    @property
    def replica_ids(self) -> frozenset[str]:
        """Of every deployment."""
        return frozenset(replica for replicas in self.replicas.values() for replica in replicas)

    def runs_just(self, counts: Mapping[str, Container[int]]) -> bool:
        """Whether it runs with so many replicas of these deployments, the old ones gone."""
        return self.status == "RUNNING" and all(
            set(self.replicas[name].values()) == {"RUNNING"} and len(self.replicas[name]) in allowed
            for name, allowed in counts.items()
        )


def application(service: Service) -> Application:
    """Ask the dashboard, as `serve status` does: its process would take a core that the new replicas start with."""
    found = request(service.state["dashboard"] + PATH).json()["applications"]["intents"]
    replicas = {
        name: {replica["replica_id"]: replica["state"] for replica in deployment["replicas"]}
        for name, deployment in found["deployments"].items()
    }
    return Application(found["status"], replicas)


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
