"""The prediction store's policy: what is kept, for how long, and what happens when the store does not answer.

A cache that is away costs a model call, never an error: each failure is a counted miss within its time budget.
"""

import asyncio
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from deployments.core import metrics
from deployments.core.prediction import Prediction

if TYPE_CHECKING:
    from redis.asyncio import Redis

SCHEMA_VERSION = 1
"""Version of a stored value; a value of any other version is a miss."""

logger = logging.getLogger(__name__)


class PredictionCache:
    """Predictions in Redis or Valkey, with a time to live; every failure is a miss."""

    def __init__(
        self,
        client: "Redis",
        *,
        ttl_s: float,
        ttl_jitter: float,
        timeout_s: float,
        recorder: metrics.Metrics,
        random_source: random.Random | None = None,
    ) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._ttl_jitter = ttl_jitter
        self._timeout_s = timeout_s
        self._metrics = recorder
        self._random = random_source or random.Random()  # noqa: S311 — spreads expiry times, guards nothing
        self.store_available = True

    async def get_many(self, keys: Sequence[str]) -> list[Prediction | None]:
        """The prediction of each key, in order; None for a miss. One round trip of at most `timeout_s`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                values = await self._client.mget(keys)
        except Exception as error:  # noqa: BLE001 — fail open: whatever the store does, the model can still answer
            self._store_failed("get", error)
            self._metrics.record(metrics.CACHE_LOOKUPS, len(keys), result="error")
            return [None] * len(keys)
        self._store_answered()
        found = [_decode(value) for value in values]
        hits = sum(prediction is not None for prediction in found)
        self._metrics.record(metrics.CACHE_LOOKUPS, hits, result="hit")
        self._metrics.record(metrics.CACHE_LOOKUPS, len(keys) - hits, result="miss")
        self._metrics.record(metrics.CACHE_GROUP_SIZE, len(keys))
        return found

    async def put_many(self, predictions: Mapping[str, Prediction]) -> None:
        """Keep each prediction under its key for the time to live; one round trip of at most `timeout_s`."""
        pipeline = self._client.pipeline(transaction=False)
        for key, prediction in predictions.items():
            pipeline.set(key, _encode(prediction), px=self._ttl_ms())
        try:
            async with asyncio.timeout(self._timeout_s):
                await pipeline.execute()
        except Exception as error:  # noqa: BLE001 — fail open: an unkept prediction is computed again
            self._store_failed("put", error)
            return
        self._store_answered()

    async def ping(self) -> None:
        """Ask the store for a sign of life and remember the outcome in `store_available`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.ping()
        except Exception as error:  # noqa: BLE001 — a health question is answered, not raised
            self._store_failed("ping", error)
            return
        self._store_answered()

    def _ttl_ms(self) -> int:
        spread = self._random.uniform(-self._ttl_jitter, self._ttl_jitter)
        return max(1, round(self._ttl_s * (1 + spread) * 1000))

    def _store_failed(self, operation: str, error: Exception) -> None:
        self._metrics.record(metrics.CACHE_ERRORS, operation=operation)
        if self.store_available:
            # The type alone: a client's message may carry the URL, and the URL a password.
            logger.warning("prediction store is away (%s during %s); misses until it is back", type(error).__name__, operation)
        self.store_available = False

    def _store_answered(self) -> None:
        if not self.store_available:
            logger.info("prediction store is back")
        self.store_available = True


def _encode(prediction: Prediction) -> bytes:
    return json.dumps({"v": SCHEMA_VERSION, **asdict(prediction)}, ensure_ascii=False, separators=(",", ":")).encode()


def _decode(value: bytes | None) -> Prediction | None:
    if value is None:
        return None
    try:
        fields = json.loads(value)
        if fields.pop("v") != SCHEMA_VERSION:
            return None
        return Prediction(**{**fields, "techniques": tuple(fields["techniques"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # foreign or damaged: a miss, overwritten by the fresh prediction
