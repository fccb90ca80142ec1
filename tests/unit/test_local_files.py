"""The files around a local run say the same as the code."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deployments.core.settings import ENVIRONMENT_NAMES
from deployments.local.stores import configuration

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "cluster" / "compose.yaml").read_text())


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "cluster" / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(each.name): each for each in found}


def test_every_dependency_is_pinned_to_a_version_it_allows():
    """A fresh environment gets what the tests passed with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    requirements = [each for each in map(Requirement, wanted) if each.name != "intentgraph"]

    for requirement in requirements:
        (pin,) = pins()[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


def test_torch_is_pinned_without_its_build():
    """Its CPU index has 2.13.0+cpu and PyPI 2.13.0; a pin with +cpu would fit only one."""
    assert "+" not in str(pins()["torch"].specifier)


@pytest.mark.parametrize("store", ["predictions", "feedback"])
def test_compose_runs_each_store_with_its_shipped_configuration(store):
    """The same file as `intents up` gives its own server."""
    volumes = COMPOSE["services"][store]["volumes"]
    mounted, inside, mode = volumes[0].split(":")

    assert (ROOT / "cluster" / mounted).samefile(configuration(store))
    assert inside in COMPOSE["services"][store]["command"]
    assert mode == "ro"


def test_compose_publishes_the_service_on_loopback_and_nothing_else():
    """Neither store can be reached from outside."""
    published = {name: service.get("ports", []) for name, service in COMPOSE["services"].items()}

    assert published.pop("service") == ["127.0.0.1:8000:8000"]
    assert not any(published.values())


def test_compose_keeps_the_log_and_only_the_log():
    """On a volume, at the folder the server was told."""
    feedback = COMPOSE["services"]["feedback"]

    assert "feedback-log:/data" in feedback["volumes"]
    assert feedback["command"][-2:] == ["--dir", "/data"]
    assert list(COMPOSE["volumes"]) == ["feedback-log"]


def test_compose_limits_memory_above_what_each_store_may_hold():
    """Otherwise the kernel ends a store before its own limit does its work."""
    for name, room in (("predictions", 1.2), ("feedback", 2)):
        limit = int(COMPOSE["services"][name]["mem_limit"].removesuffix("m"))
        (number, unit) = re.search(r"^maxmemory (\d+)(mb|gb)$", configuration(name).read_text(), re.MULTILINE).groups()

        assert limit >= int(number) * {"mb": 1, "gb": 1024}[unit] * room


def test_compose_sets_only_variables_the_service_knows():
    """A misspelt variable would do nothing, silently."""
    assert set(COMPOSE["services"]["service"]["environment"]) <= set(ENVIRONMENT_NAMES)


def test_every_compose_service_has_a_health_check():
    """So that the service starts after its stores."""
    assert all("healthcheck" in service for service in COMPOSE["services"].values())


def test_the_dockerfile_copies_what_the_build_context_lets_in():
    """Its ignore file lets in exactly what is copied."""
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)
    ignore = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text()

    assert {part for line in copied for part in line.split()} == set(re.findall(r"^!(.+)$", ignore, re.MULTILINE))


def test_make_lists_its_targets():
    """`make` alone is the help."""
    listed = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory"], capture_output=True, text=True, check=True
    )

    assert {line.split()[0] for line in listed.stdout.splitlines()} == {
        "help",
        "serve",
        "test",
        "bench",
        "check",
        ".venv",
        "clean",
    }


def test_ci_runs_the_readmes_test_command():
    """What is checked is what users are told to run."""
    script = ROOT / ".ci" / "run"

    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert "make test" in script.read_text()
    assert script.stat().st_mode & 0o111
