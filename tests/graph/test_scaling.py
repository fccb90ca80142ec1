"""The graph as any Ray Serve user handles it: `serve deploy`, replicas that scale, a builder that refuses."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import cloudpickle

from deployments import autoscaling
from deployments.core.errors import StartupError
from deployments.core.settings import ENVIRONMENT_NAMES, Settings
from deployments.graph import build
from tests.graph.rollout import deploy, serve_deploy, wait_until_settled
from tests.service import ROOT, Service, Traffic


def test_changing_num_replicas_and_deploying_again_scales_without_a_failed_request(
    service: Service, config: dict[str, Any], tmp_path: Path
):
    """One more and back, under traffic."""
    more = deepcopy(config)
    scaled = [each for each in more["applications"][0]["deployments"] if each["name"] in ("Ingress", "Cache")]
    shipped = {each["name"]: each["num_replicas"] for each in scaled}
    for each in scaled:
        each["num_replicas"] += 1

    with Traffic(service, threads=2) as traffic:
        serve_deploy(service, tmp_path, more)
        wait_until_settled(service, {name: {count + 1} for name, count in shipped.items()})
        deploy(service, config)
        wait_until_settled(service, {name: {count} for name, count in shipped.items()})

    assert set(traffic.outcomes) == {200}


def test_model_replicas_follow_the_queue_without_a_failed_request(service: Service, config: dict[str, Any]):
    """One; two when texts wait; one again when few come. The shipped policy, with shorter times."""
    (model,) = (each for each in config["applications"][0]["deployments"] if each["name"] == "Model")
    shipped = model["autoscaling_config"]
    model["autoscaling_config"] = shipped | {"look_back_period_s": 2, "upscale_delay_s": 1, "downscale_delay_s": 2}
    deploy(service, config)
    wait_until_settled(service, {"Model": {1}})

    with Traffic(service, texts=100) as rush:  # each waits behind itself alone, so none is refused
        wait_until_settled(service, {"Model": {2}})
    with Traffic(service, pause_s=0.2) as trickle:
        wait_until_settled(service, {"Model": {1}})
    model["autoscaling_config"] = shipped
    deploy(service, config)

    assert set(rush.outcomes) == set(trickle.outcomes) == {200}


def test_the_controller_needs_nothing_of_ours_to_run_the_policy():
    """Serve pickles a policy by value, its own module only; whatever that imports must be there in the controller."""
    cloudpickle.register_pickle_by_value(autoscaling)
    pickled = cloudpickle.dumps(autoscaling.QueueDelayPolicy)
    cloudpickle.unregister_pickle_by_value(autoscaling)
    code = (
        "import sys; from types import SimpleNamespace; from ray import cloudpickle;"
        "sys.modules['deployments'] = None;"  # importing it raises
        f"policy = cloudpickle.loads({pickled!r})(target_delay_ms=50);"
        "print(policy(SimpleNamespace(raw_metrics={}, aggregated_metrics={}, running_replicas=[], current_time=0,"
        "config=SimpleNamespace(look_back_period_s=5), current_num_replicas=1, target_num_replicas=2,"
        "capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=3)))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert result.stdout.strip() == "(2, {})", result.stderr


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
