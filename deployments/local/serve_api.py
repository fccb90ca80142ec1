"""Serve's REST interface at the Ray dashboard: deploy, ask how it goes, shut down.

The same calls as `serve deploy`, `serve status` and `serve shutdown` make. Reference: docs.ray.io, "Serve REST API".
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from deployments.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

PATH = "/api/serve/applications/"
FAILED = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})
SERVING = frozenset({"HEALTHY", "UPSCALING", "DOWNSCALING"})
"""While a deployment scales by itself it serves; an application that scales because it was told to is not RUNNING."""

_EXCEPTION = re.compile(r"^(?!Traceback)([A-Za-z_][\w.]*): \S")
_MODULE = re.compile(r"^[\w.]+\.(?=\w+: )")
_LONGEST = 400


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment as Serve sees it now."""

    name: str
    status: str
    message: str
    target: int
    replicas: dict[str, int]
    """Replicas by state, for example {"RUNNING": 2}."""

    @property
    def healthy(self) -> bool:
        """Whether it serves as configured, with as many replicas as there are so far."""
        return self.status in SERVING


@dataclass(frozen=True, slots=True)
class Application:
    """One application as Serve sees it now."""

    name: str
    status: str
    message: str
    deployments: tuple[Deployment, ...]

    @property
    def healthy(self) -> bool:
        """Whether it and all its deployments serve as configured."""
        return self.status == "RUNNING" and all(deployment.healthy for deployment in self.deployments)

    @property
    def failure(self) -> str | None:
        """Why it does not come up, in one line; None while it may still."""
        for deployment in self.deployments:
            if deployment.status in FAILED:
                return f"{deployment.name}: {cause(deployment.message)}"
        return cause(self.message) if self.status in FAILED else None


class ServeApi:
    """The REST interface at one dashboard address, such as `http://127.0.0.1:8265`."""

    def __init__(self, dashboard: str) -> None:
        self._url = dashboard + PATH

    async def applications(self, *, timeout_s: float = 10.0) -> tuple[Application, ...]:
        """Every application and its deployments.

        Raises:
            OSError: the dashboard does not answer (yet).
        """
        async with _answer("GET", self._url, timeout_s) as response:
            if response.status != 200:  # noqa: PLR2004
                raise OSError(f"{self._url} answers {response.status}")
            return applications(await response.json())

    async def deploy(self, config: Mapping[str, Any], *, timeout_s: float = 120.0) -> None:
        """Make Serve's goal the given configuration; returns before the goal is reached.

        Raises:
            StartupError: Serve refuses the configuration.
            OSError: the dashboard is not there, or it took longer (TimeoutError is one).
        """
        async with _answer("PUT", self._url, timeout_s, json=config) as response:
            if response.status != 200:  # noqa: PLR2004
                raise StartupError(f"Serve refuses the configuration: {cause(await response.text())}")

    async def shut_down(self, *, timeout_s: float) -> None:
        """Drain and end every replica and proxy, HAProxy too.

        Raises:
            OSError: the dashboard is not there, or it took longer (TimeoutError is one).
        """
        async with _answer("DELETE", self._url, timeout_s) as response:
            await response.read()


@contextlib.asynccontextmanager
async def _answer(method: str, url: str, timeout_s: float, **content: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to one call; whatever keeps it from coming is an OSError."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, **content) as response,
        ):
            yield response
    except aiohttp.ClientError as error:
        raise OSError(str(error) or type(error).__name__) from error


def applications(details: Mapping[str, Any]) -> tuple[Application, ...]:
    """The applications in an answer of `GET /api/serve/applications/`."""
    return tuple(
        Application(
            name=name,
            status=application["status"],
            message=application["message"],
            deployments=tuple(_deployment(*item) for item in application["deployments"].items()),
        )
        for name, application in details["applications"].items()
    )


def _deployment(name: str, details: Mapping[str, Any]) -> Deployment:
    return Deployment(
        name=name,
        status=details["status"],
        message=details["message"],
        target=details["target_num_replicas"],
        replicas=dict(Counter(replica["state"] for replica in details["replicas"])),
    )


def cause(message: str) -> str:
    """What a nested traceback comes down to: its last exception with the lines after it, in one line.

    Serve hands on the whole text of a replica's traceback, wrapped in those of its own tasks.
    """
    lines = [line.rstrip() for line in message.strip().splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if _EXCEPTION.match(line)]
    kept = lines[starts[-1] :] if starts else lines[-1:]
    text = _MODULE.sub("", " ".join(line.strip() for line in kept)) or "Serve gives no reason"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
