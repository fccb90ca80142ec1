"""The Ray node of a local run: `ray start --head --block` as a child, an ordinary cluster on loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from deployments.core.errors import StartupError
from deployments.local import processes
from deployments.local.plan import DASHBOARD_PORT
from deployments.local.ports import LOOPBACK

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

    from deployments.local.serve_api import ServeApi

READY_S = 90.0
OBJECT_STORE_BYTES = 256 * 1024**2
POLL_S = 0.2

DASHBOARD = f"http://{LOOPBACK}:{DASHBOARD_PORT}"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class NodePorts:
    """Ports chosen per run, none of them a default: 6379 is Redis's, 10001 and 52365 may be another Ray's."""

    gcs: int
    client_server: int
    dashboard_agent: int
    fallback_proxy: int

    COUNT: ClassVar[int] = 4


def command(ports: NodePorts) -> list[str]:
    """The command line that starts the node, each option with its reason."""
    return [
        sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block",
        f"--node-ip-address={LOOPBACK}",  # without authentication nobody else may reach the GCS
        f"--port={ports.gcs}",
        f"--ray-client-server-port={ports.client_server}",
        f"--dashboard-agent-listen-port={ports.dashboard_agent}",
        "--include-dashboard=true",  # `serve deploy` and `serve status` go through it
        f"--dashboard-host={LOOPBACK}",
        f"--dashboard-port={DASHBOARD_PORT}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",  # calls carry 1 MiB at most; default: 30 % of memory
        "--disable-usage-stats",
    ]  # fmt: skip


class RayNode:
    """One node, started and stopped by the event loop that owns it."""

    def __init__(self, ports: NodePorts, *, environment: Mapping[str, str], log: Path) -> None:
        self.ports = ports
        self.log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def gcs(self) -> str:
        """What `ray.init(address=…)` takes."""
        return f"{LOOPBACK}:{self.ports.gcs}"

    @property
    def session(self) -> processes.Identity | None:
        """The leader of the session the node's processes live in."""
        return processes.Identity.of(self._process.pid) if self._process else None

    @property
    def pid(self) -> int | None:
        """The process that `ray start` is."""
        return self._process.pid if self._process else None

    @property
    def ended(self) -> bool:
        """Whether the node's head process is gone."""
        return self._process is not None and self._process.poll() is not None

    def start(self) -> None:
        """Start the node; `ready` says when it can be used."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = processes.spawn(command(self.ports), environment=self._environment, log=log)

    async def ready(self, api: ServeApi) -> None:
        """Wait until Serve's interface at the dashboard answers.

        Raises:
            StartupError: the node ended, or does not answer within `READY_S`.
        """
        deadline = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(OSError):
                await api.applications()
                return
            if self.ended or time.monotonic() > deadline:
                raise StartupError(f"Ray does not start: {last_words(self.log)} (all of it: {self.log})")
            await asyncio.sleep(POLL_S)

    async def watch(self) -> None:
        """Return when the node has ended by itself."""
        assert self._process is not None, "watched before its start"
        await processes.exited(self._process)

    async def stop(self, *, grace_s: float) -> None:
        """Ask the node to end and wait; who is left after `grace_s` is for the caller to find."""
        if self._process is None:
            return
        self._process.terminate()
        await processes.exited_within(self._process, grace_s)


def forget_cluster(gcs: str) -> None:
    """Remove Ray's note of its latest cluster if it names this one: `ray.init()` would wait for it."""
    note = _ray_folder() / "ray_current_cluster"
    with contextlib.suppress(OSError):
        if note.read_text().strip() == gcs:
            note.unlink()


def ray_logs() -> Path:
    """Where the latest Ray session on this machine writes its logs; Serve's are in `serve/` below."""
    return _ray_folder() / "session_latest" / "logs"


def _ray_folder() -> Path:
    # As `ray._common.utils.get_default_ray_temp_dir` has it, without the half second of importing Ray.
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"  # noqa: S108


def last_words(log: Path) -> str:
    """The last line a program wrote, without colours; it names the error when it ended with one."""
    with contextlib.suppress(OSError):
        lines = [
            line.strip() for line in _ESCAPES.sub("", log.read_text(errors="replace")).splitlines() if line.strip()
        ]
        return lines[-1] if lines else "it said nothing"
    return "it said nothing"
