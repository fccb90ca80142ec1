"""The Serve configurations mean what they say: Serve itself takes unknown keys in silence."""

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from deployments.core.settings import Settings
from deployments.graph import build
from tests.service import ROOT

GPU = ROOT / "cluster" / "serve_config.gpu.yaml"
CONFIGS = [ROOT / "serve_config.yaml", GPU]
PARTS: Mapping[type[BaseModel], Mapping[str, type[BaseModel]]] = {
    ServeDeploySchema: {
        "http_options": HTTPOptionsSchema,
        "logging_config": LoggingConfig,
        "applications": ServeApplicationSchema,
    },
    ServeApplicationSchema: {"deployments": DeploymentSchema, "logging_config": LoggingConfig},
    DeploymentSchema: {"ray_actor_options": RayActorOptionsSchema, "autoscaling_config": AutoscalingConfig},
    AutoscalingConfig: {"policy": AutoscalingPolicy},
}

every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def unknown_keys(found: Any, schema: type[BaseModel], place: str = "") -> Iterator[str]:
    """Keys that the schema does not have, here and in the parts that have a schema of their own."""
    if isinstance(found, list):
        for each in found:
            yield from unknown_keys(each, schema, place)
        return
    for key, value in found.items():
        if key not in schema.model_fields:
            yield f"{place}{key}"
        elif part := PARTS.get(schema, {}).get(key):
            yield from unknown_keys(value, part, f"{place}{key}.")


@every_config
def test_serve_knows_every_key_and_takes_every_value(path: Path):
    config = read(path)

    assert list(unknown_keys(config, ServeDeploySchema)) == []
    assert ServeDeploySchema.model_validate(config)


def test_a_key_that_serve_does_not_know_is_found():
    """Or the test above tests nothing."""
    config = read(GPU)
    model = next(each for each in config["applications"][0]["deployments"] if each["name"] == "Model")
    model["ray_actor_options"]["num_gpu"] = 1
    model["autoscaling_config"]["max_replica"] = 2

    assert list(unknown_keys(config, ServeDeploySchema)) == [
        "applications.deployments.ray_actor_options.num_gpu",
        "applications.deployments.autoscaling_config.max_replica",
    ]


@every_config
def test_the_arguments_are_settings(path: Path):
    assert Settings(**read(path)["applications"][0]["args"])


@every_config
def test_the_deployments_are_those_of_the_graph(path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that is left out would have Serve's defaults, silently."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    graph = build(Settings())
    parts = [each._bound_deployment for each in (graph, *graph._bound_deployment.init_kwargs.values())]

    assert {each["name"] for each in read(path)["applications"][0]["deployments"]} == {each.name for each in parts}


@every_config
def test_a_model_replica_and_its_successor_fit_beside_each_other(path: Path):
    """A rolling update starts the new ones first."""
    (model,) = (each for each in read(path)["applications"][0]["deployments"] if each["name"] == "Model")
    most = model.get("autoscaling_config", {}).get("max_replicas") or model["num_replicas"]
    gpus = model["ray_actor_options"].get("num_gpus", 0)

    assert model["max_surge_percent"] == 100
    assert 2 * most * gpus <= 1


@every_config
def test_the_autoscaling_policy_takes_its_arguments(path: Path):
    """Serve finds out in its controller."""
    (model,) = (each for each in read(path)["applications"][0]["deployments"] if each["name"] == "Model")
    if scaling := model.get("autoscaling_config"):
        policy = AutoscalingPolicy(**scaling["policy"])
        module, _, name = policy.policy_function.partition(":")
        made = getattr(importlib.import_module(module), name)(**policy.policy_kwargs)

        assert callable(made)


def test_every_number_of_the_gpu_configuration_has_its_reason_on_its_line():
    knobs = [line for line in GPU.read_text().splitlines() if re.search(r"\w: (\d|true|false)", line.partition("#")[0])]

    assert len(knobs) > 20
    assert [line for line in knobs if "#" not in line] == []
