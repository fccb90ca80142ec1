"""A service that `intents up` runs on this machine, looked at from outside: its processes, ports and replicas.

What it tells other commands is read from its state file, replicas are asked of Serve's dashboard, and a new
configuration is deployed with Ray's own `serve deploy`. Nothing of the service is imported.
"""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from loadgen.load import LoadError

INGRESS = "ray::ServeReplica:intents:Ingress"
REPLICA_PORTS = range(30_000, 31_001)
"""Serve's for requests; a replica's other ports are not HTTP."""
STEERING = ("RAY_", "REDIS_", "FEEDBACK_REDIS_", "CACHE_", "ENABLE_CACHING", "MODEL_ARTIFACT", "LOG_LEVEL")
STORE = "valkey-server"
APPLICATIONS = "/api/serve/applications/"
ANSWER_S = 5.0
DEPLOY_S = 60.0


class Replica(NamedTuple):
    """One replica as Serve sees it now."""

    deployment: str
    id: str
    pid: int | None
    state: str


class Application(NamedTuple):
    """The application as Serve sees it now; `wanted` has how many replicas each deployment is to have."""

    status: str
    wanted: Mapping[str, int]
    replicas: tuple[Replica, ...]

    @property
    def settled(self) -> bool:
        """Whether every deployment has the replicas it is to have, and nobody comes or goes."""
        running = {name: sum(each.deployment == name for each in self.replicas) for name in self.wanted}
        return self.status == "RUNNING" and running == self.wanted and {"RUNNING"} == {r.state for r in self.replicas}


class RunningService:
    """The service at `url` whose `intents up` has its folders `state` and `data` in `folder`."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._folder = folder

    @property
    def state(self) -> dict[str, Any]:
        """What `intents up` tells other commands."""
        path = self._folder / "state" / "intentgraph" / "state.json"
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def processes(self) -> list[psutil.Process]:
        """Every process of the running service: its supervisor and what descends from it."""
        supervisor = psutil.Process(self.state["supervisor"]["pid"])
        return [supervisor, *supervisor.children(recursive=True)]

    def ingress_urls(self) -> list[str]:
        """Where each ingress replica listens itself, behind HAProxy."""
        ports: set[int] = set()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if INGRESS in "".join(process.cmdline()[:1]):
                    listening = process.net_connections("tcp4")
                    ports |= {each.laddr.port for each in listening if each.status == psutil.CONN_LISTEN}
        return [f"http://127.0.0.1:{port}" for port in sorted(ports) if port in REPLICA_PORTS]

    def store(self, name: str) -> psutil.Process | None:
        """The server of the store `predictions` or `feedback`; None while there is none."""
        port = self.state["stores"][name].rpartition(":")[2].partition("/")[0]
        return next((each for each, command in self._servers() if port in command), None)

    def _servers(self) -> list[tuple[psutil.Process, str]]:
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if process.name() == STORE:
                    found.append((process, " ".join(process.cmdline())))
        return found

    def kill_ray(self) -> None:
        """End every process of Ray at once, as `kill -9` does: node, controller, replicas, HAProxy; the stores stay."""
        stores = {server for server, _ in self._servers()}
        for process in self.processes()[1:]:
            if process not in stores:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def application(self) -> Application:
        """What Serve's dashboard says of the application.

        Raises:
            OSError: it does not answer.
        """
        with urllib.request.urlopen(self.state["dashboard"] + APPLICATIONS, timeout=ANSWER_S) as answer:  # noqa: S310
            return application_of(json.load(answer))

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Have Serve go over to a configuration; it goes on after this has returned.

        Raises:
            LoadError: Serve does not take it.
        """
        path = self._folder / "deployed.yaml"
        path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        dashboard = {"RAY_DASHBOARD_ADDRESS": self.state["dashboard"], "RAY_AUTH_MODE": "disabled"}
        try:
            subprocess.run(  # noqa: S603 — Ray's own command
                [Path(sys.executable).parent / "serve", "deploy", path],
                env=plain_environment() | dashboard,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=DEPLOY_S,
                check=True,
            )
        except subprocess.SubprocessError as error:
            said = (getattr(error, "output", None) or b"").decode(errors="replace").strip()
            raise LoadError(f"`serve deploy` failed: {error} {said[-300:]}") from None


def application_of(details: Any) -> Application:
    """The application in an answer of Serve's dashboard; one without deployments when it knows none."""
    found = details["applications"].get("intents") or {"status": "NOT_STARTED", "deployments": {}}
    return Application(
        found["status"],
        {name: deployment["target_num_replicas"] for name, deployment in found["deployments"].items()},
        tuple(
            Replica(name, replica["replica_id"], replica["pid"], replica["state"])
            for name, deployment in found["deployments"].items()
            for replica in deployment["replicas"]
        ),
    )


def plain_environment() -> dict[str, str]:
    """The user's environment without what would steer the service: it is measured as it comes."""
    return {name: value for name, value in os.environ.items() if not name.startswith(STEERING)}
