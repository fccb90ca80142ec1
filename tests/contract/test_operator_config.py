"""The configuration for operators who hold scaling themselves is the shipped one without its autoscaling."""

from typing import Any

import yaml

from tests.service import ROOT


def read(path: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / path).read_text())


def test_it_differs_from_the_shipped_one_in_who_scales_and_in_nothing_else():
    """Serve refuses autoscaling beside an external scaler, so Model has a number instead."""
    shipped, held = read("serve_config.yaml"), read("cluster/serve_config.operator.yaml")
    (application,) = shipped["applications"]
    (model,) = (each for each in application["deployments"] if each["name"] == "Model")

    application["external_scaler_enabled"] = True
    model["num_replicas"] = model.pop("autoscaling_config")["min_replicas"]

    assert held == shipped


def test_the_cpu_shares_of_everything_at_its_most_add_up_to_one():
    """So that on two cores a rolling update has room for a second replica of each."""
    (application,) = read("serve_config.yaml")["applications"]
    shares = [
        (each.get("autoscaling_config", {}).get("max_replicas") or each["num_replicas"])
        * each["ray_actor_options"]["num_cpus"]
        for each in application["deployments"]
    ]

    assert round(sum(shares), 9) == 1
