"""Look-ups in the cache deployment as an ingress replica makes them: in groups, bounded in time, failing open."""

import asyncio
from collections.abc import Collection, Sequence

from ray.serve.handle import DeploymentHandle

from deployments.core import metrics
from deployments.core.circuit_breaker import CircuitBreaker
from deployments.core.coalesce import Coalescer
from deployments.core.errors import IntentGraphError, Unavailable
from deployments.core.prediction import Prediction, predictions_from_json
from deployments.core.rpc import Address, RpcChannel
from deployments.core.settings import Settings
from deployments.runtime import addresses, ask

CALLS_IN_FLIGHT = 2
"""One on its way and one forming: more would carry less each, and a call costs the same whatever it carries."""
MAX_WAITING = 100_000
"""Look-ups that may wait at a replica: as many as a thousand requests of a hundred texts bring."""
MAX_FAILURES = 3
"""Calls in a row that fail before the cache deployment is left alone: two are under way at once, and a machine that is
held up for a moment fails both."""
PROBE_TIMEOUT_S = 1.0


class Lookups:
    """Asks the cache deployment over a connection to a replica, and by handle while there is none."""

    def __init__(self, settings: Settings, cache: DeploymentHandle, recorder: metrics.Metrics) -> None:
        self._timeout_s = settings.lookup_timeout_ms / 1000
        self._cache = cache
        self._get_by_handle = cache.get_many  # a new handle each time it is named, so name it once
        self._metrics = recorder
        self._channel = RpcChannel(self._find_replicas)
        self._groups: Coalescer[str, Prediction | None] = Coalescer(
            self._get_group,
            max_items=settings.cache_max_group,
            max_waiting=MAX_WAITING,
            max_in_flight=CALLS_IN_FLIGHT,
            cancels_unwaited=False,  # callers in a hurry leave before a replica that hangs has failed
        )
        self._breaker = CircuitBreaker("cache", self._answers, failures=MAX_FAILURES, recorder=recorder)

    async def get_many(self, keys: Sequence[str]) -> list[Prediction | None]:
        """The kept prediction of each key, in order; None for a miss. All are misses when the cache is away."""
        return await self._groups.submit(keys)

    async def _get_group(self, keys: list[str]) -> Sequence[Prediction | None]:
        unique = list(dict.fromkeys(keys))
        found = dict(zip(unique, await self._ask(unique), strict=True))
        return [found[key] for key in keys]

    async def _ask(self, keys: list[str]) -> Sequence[Prediction | None]:
        """The kept predictions. Fails open: the model can still answer."""
        if not self._breaker.is_open:
            try:
                found = await self._call(keys)
            except IntentGraphError as error:
                self._breaker.failed(error.detail)
            else:
                self._breaker.succeeded()
                return found
        self._metrics.record(metrics.CACHE_LOOKUPS, len(keys), result="error")
        return [None] * len(keys)

    async def _call(self, keys: list[str]) -> Sequence[Prediction | None]:
        loop = asyncio.get_running_loop()
        leaves_s = loop.time() + self._timeout_s
        try:
            found = await self._call_directly(keys)
            transport = "direct"
        except ConnectionError:
            found = await ask(lambda: self._get_by_handle.remote(keys), "cache", max(0, leaves_s - loop.time()))
            transport = "handle"
        if len(found) != len(keys):
            raise Unavailable(f"the cache answered {len(keys)} look-ups with {len(found)} predictions")
        self._metrics.record(metrics.CACHE_CALLS, transport=transport)
        return found

    async def _call_directly(self, keys: list[str]) -> Sequence[Prediction | None]:
        """The kept predictions, over the connection. Raises `ConnectionError` or `Unavailable`."""
        connection = self._channel.choose()
        try:
            async with asyncio.timeout(self._timeout_s):
                return predictions_from_json(await connection.call("\n".join(keys).encode()))
        except TimeoutError as error:
            connection.close()  # here and below: the next call may be to another replica
            raise Unavailable(f"the cache did not answer within {self._timeout_s:g} s") from error
        except Unavailable:
            connection.close()
            raise
        except ValueError as error:
            connection.close()
            raise Unavailable("the cache answered what this version does not read") from error

    async def _find_replicas(self) -> Collection[Address]:
        return await addresses(self._cache, "cache")

    async def _answers(self) -> bool:
        """Whether a cache replica answers, and its store too: without it a call would bring nothing."""
        try:
            return await ask(self._cache.ping.remote, "cache", PROBE_TIMEOUT_S)
        except IntentGraphError:
            return False
