"""What every shell takes from Ray: metrics, calls to other deployments. Its log is `logs`.

Nothing here knows what is being served.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.core.errors import IntentGraphError, Internal, Unavailable
from deployments.core.metrics import Metric
from deployments.core.rpc import Address, RpcServer

R = TypeVar("R")

REPORT_PERIOD_S = 1.0
FIND_TIMEOUT_S = 1.0
RETRY_PAUSE_S = 0.1
"""Serve's router hears of a death by the failed call itself; a second call at once might meet the same replica."""

_Series = tuple[Metric, tuple[tuple[str, str], ...]]  # a metric with its labels

logger = logging.getLogger(__name__)


class RayMetrics:
    """Records through Ray, which adds application, deployment and replica and exposes `ray_<name>` on each node.

    Counts are exact, a histogram's buckets too; its `_sum` is Ray's estimate from them. Counters and gauges are handed
    to Ray once a second, as often as it reports them: each time costs, and its agent forgets a gauge that is not set
    again. Make it in a coroutine of the replica: a task here does so.
    """

    def __init__(self) -> None:
        self._instruments: dict[str, Any] = {}
        self._gauges: dict[_Series, float] = {}
        self._counts: dict[_Series, float] = {}
        self._reporting = asyncio.create_task(self._report())

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Record one value. See `core.metrics.Metrics`."""
        series = metric, tuple(labels.items())
        match metric.kind:
            case "counter":
                self._counts[series] = self._counts.get(series, 0.0) + value
            case "gauge":
                self._gauges[series] = value
            case "histogram":
                self._instrument(metric).observe(value, tags=labels)

    def _instrument(self, metric: Metric) -> Any:
        if metric.name not in self._instruments:
            self._instruments[metric.name] = _instrument(metric)
        return self._instruments[metric.name]

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_PERIOD_S)
            try:
                self._hand_over()
            except Exception:  # a metric that Ray refuses must not end all the others
                logger.exception("metrics were not reported")

    def _hand_over(self) -> None:
        counts, self._counts = self._counts, {}
        for (metric, labels), value in counts.items():
            if value > 0:  # Ray refuses to add nothing
                self._instrument(metric).inc(value, tags=dict(labels))
        for (metric, labels), value in self._gauges.items():
            self._instrument(metric).set(value, tags=dict(labels))


def _instrument(metric: Metric) -> Any:
    from ray.serve import metrics

    if metric.kind == "histogram":
        return metrics.Histogram(metric.name, metric.help, boundaries=list(metric.buckets), tag_keys=metric.labels)
    kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return kind(metric.name, metric.help, tag_keys=metric.labels)


async def ask(call: Callable[[], Awaitable[R]], part: str, timeout_s: float, *, retries: int = 1) -> R:
    """Await a handle call of at most `timeout_s`; one that met a dying replica is made again, `retries` times.

    Only for calls that may run twice. Our own errors cross as they are; whatever else goes wrong on the way is told in
    their terms, because callers decide by them.

    Raises:
        IntentGraphError: as raised by the part.
        Unavailable: the part did not answer.
        Internal: the part failed; the log has the stack.
    """
    try:
        async with asyncio.timeout(timeout_s):
            for _ in range(retries):
                try:
                    return await call()
                except RayActorError:
                    await asyncio.sleep(RETRY_PAUSE_S)
            return await call()
    except IntentGraphError:
        raise
    except TimeoutError as error:
        raise Unavailable(f"the {part} did not answer within {timeout_s:g} s") from error
    except asyncio.CancelledError as error:
        if _is_this_task_cancelled():
            raise
        raise Unavailable(f"the {part} gave the call up") from error
    except Exception as error:
        raise _told(error, part) from error


def _is_this_task_cancelled() -> bool:
    """Whether it is this task that was cancelled, and not the call it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _told(error: Exception, part: str) -> IntentGraphError:
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, IntentGraphError):
        return cause
    if isinstance(cause, RayError | RayServeException | grpc.RpcError):
        return Unavailable(f"the {part} is away")
    logger.error("the %s failed", part, exc_info=error)
    return Internal(f"the {part} failed")


async def addresses(deployment: DeploymentHandle, part: str) -> list[Address]:
    """Where the replicas of a deployment take direct calls, by their `address`.

    Serve gives all answers to a broadcast or none. So while a replica hangs, it is where one of those is that do not.

    Raises:
        Unavailable: there is no replica.
    """
    try:
        replies = await ask(
            lambda: deployment.broadcast("address").results_async(return_exceptions=True), part, FIND_TIMEOUT_S
        )
    except Unavailable:
        replies = [await ask(deployment.address.remote, part, FIND_TIMEOUT_S)]
    return [reply for reply in replies if isinstance(reply, Address)]


async def listen(server: RpcServer) -> Address | None:
    """Have a server take calls from other replicas; give where, or None where they can only come by handle."""
    host = host_for_replicas()
    try:
        return await server.start(host) if host else None
    except OSError as error:  # the node is known by an address that is not its own, or has no port left
        logger.warning("calls come by handle alone: no port at %s (%s)", host, error)
        return None


def host_for_replicas() -> str | None:
    """Where other replicas reach this one; None where Ray's TLS is on, for only Serve's own calls have that."""
    uses_tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    return None if uses_tls else ray.util.get_node_ip_address()
