"""From a running Ray node to a graph that answers: deploy it, tell how each deployment comes up, wait for an answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from deployments.core.errors import StartupError
from deployments.local.node import ray_logs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deployments.local.progress import Progress
    from deployments.local.serve_api import Application, ServeApi

HEALTHY_S = 600.0
"""A graph that is not healthy by then never will be; a big encoder on a slow disk takes minutes."""
ANSWER_S = 30.0
POLL_S = 0.2


async def deploy(api: ServeApi, config: Mapping[str, Any], progress: Progress) -> None:
    """Deploy the configuration and wait until every deployment in it is healthy.

    Raises:
        StartupError: a deployment failed, with its cause in one line, or is not healthy within `HEALTHY_S`.
    """
    progress.waiting("deploying the graph")
    try:
        await api.deploy(config)
    except OSError as error:
        raise StartupError(f"Ray's dashboard does not take the graph: {error}{_logs()}") from None
    told: dict[str, str] = {}
    deadline = time.monotonic() + HEALTHY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            applications = await api.applications()
            for application in applications:
                tell(application, told, progress)
            if applications and all(application.healthy for application in applications):
                return
        await asyncio.sleep(POLL_S)
    raise StartupError(f"the graph is not healthy after {HEALTHY_S:.0f} s{_logs()}")


def tell(application: Application, told: dict[str, str], progress: Progress) -> None:
    """Tell what changed since the last time; `told` has each deployment's status then.

    Raises:
        StartupError: the application will not come up.
    """
    if application.failure:
        raise StartupError(f"the application {application.name} does not start: {application.failure}{_logs()}")
    for deployment in application.deployments:
        if told.get(deployment.name) != deployment.status:
            told[deployment.name] = deployment.status
            progress.done(f"{deployment.name} is {deployment.status}")
    missing = [deployment.name for deployment in application.deployments if not deployment.healthy]
    progress.waiting(f"waiting for {', '.join(missing) or application.name}")


async def first_answer(address: str, progress: Progress) -> None:
    """Wait until a request comes through the proxy: HAProxy takes a replica up a moment after Serve does.

    Raises:
        StartupError: none does within `ANSWER_S`.
    """
    deadline = time.monotonic() + ANSWER_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while time.monotonic() < deadline:
            progress.waiting("waiting for the first answer")
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{address}/health/live") as response:
                    if response.ok:
                        return
            await asyncio.sleep(POLL_S / 2)
    raise StartupError(f"the graph is healthy but {address}/health/live does not answer{_logs()}")


async def health(address: str) -> str:
    """What the service says of itself: `ok`, or each part that is not, in one line."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(f"{address}/health/ready") as response,
        ):
            parts = (await response.json(content_type=None))["parts"]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        return f"{address}/health/ready does not answer"
    return "; ".join(f"{part}: {word}" for part, word in parts.items() if word != "ok") or "ok"


def _logs() -> str:
    return f" (logs: {ray_logs() / 'serve'})"
