"""The graph as any Ray Serve user handles it: `serve deploy`, a changed `num_replicas`, a builder that refuses."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.core.errors import StartupError
from deployments.core.settings import ENVIRONMENT_NAMES, Settings
from deployments.graph import build
from tests.graph.rollout import deploy, wait_until_settled
from tests.service import ROOT, Service, Traffic


def test_changing_num_replicas_and_deploying_again_scales_without_a_failed_request(
    service: Service, config: dict[str, Any], tmp_path: Path
):
    """One more of each and back, under traffic."""
    more = {"Ingress": 3, "Cache": 2, "Model": 2}
    shipped = {each["name"]: each["num_replicas"] for each in config["applications"][0]["deployments"]}

    with Traffic(service, threads=2) as traffic:
        for wanted in (more, {name: shipped[name] for name in more}):
            for each in config["applications"][0]["deployments"]:
                each["num_replicas"] = wanted.get(each["name"], each["num_replicas"])
            deploy(service, tmp_path, config)
            wait_until_settled(service, wanted)

    assert set(traffic.outcomes) == {200}


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
