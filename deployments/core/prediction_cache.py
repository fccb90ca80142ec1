"""The prediction store's policy: what is kept, for how long, and what happens when the store does not answer.

A cache that is away costs a model call, never an error: each failure is a counted miss within its time budget. A purge
alone tells of failure: whoever asks for one must know that it was done.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError

from deployments.core import metrics
from deployments.core.errors import DeadlineExceeded, Unavailable
from deployments.core.prediction import Prediction
from deployments.core.text import PREDICTION_KEYS

if TYPE_CHECKING:
    from redis.asyncio import Redis

PUT_TIMEOUT_S = 1.0
"""Nobody waits for a write, so it may take longer than a look-up before it is given up."""
PURGE_TIMEOUT_S = 20.0
"""Leaves the answer time within a request's 30 s; a million predictions took 5 s, a million other keys 0.4 s."""
PURGE_PAGE = 1000
"""Keys of one step of a purge: the store serves nobody else for 2 ms, far below the 20 ms a look-up has."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A stored value; one of another schema version is a miss."""

    schema: Literal[1]
    prediction: Prediction


_STORED = TypeAdapter(_Stored)


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
        self.available = True

    async def get_many(self, keys: Sequence[str]) -> list[Prediction | None]:
        """The prediction of each key, in order; None for a miss. One round trip, bounded in time."""
        try:
            async with asyncio.timeout(self._timeout_s):
                values = await self._client.mget(keys)
            found = _decode_all(values, len(keys))
        except Exception as error:  # noqa: BLE001 — fail open: whatever the store does, the model can still answer
            self._failed("get", error)
            self._metrics.record(metrics.CACHE_LOOKUPS, len(keys), result="error")
            return [None] * len(keys)
        self._answered()
        hits = sum(prediction is not None for prediction in found)
        self._metrics.record(metrics.CACHE_LOOKUPS, hits, result="hit")
        self._metrics.record(metrics.CACHE_LOOKUPS, len(keys) - hits, result="miss")
        self._metrics.record(metrics.CACHE_GROUP_SIZE, len(keys))
        return found

    async def put_many(self, predictions: Mapping[str, Prediction]) -> None:
        """Keep each prediction under its key for the time to live; one round trip, bounded in time."""
        pipeline = self._client.pipeline(transaction=False)
        for key, prediction in predictions.items():
            pipeline.set(key, _STORED.dump_json(_Stored(1, prediction)), px=self._ttl_ms())
        try:
            async with asyncio.timeout(PUT_TIMEOUT_S):
                await pipeline.execute()
        except Exception as error:  # noqa: BLE001 — fail open: an unkept prediction is computed again
            self._failed("put", error)
            return
        self._answered()

    async def purge(self, keys: Sequence[str]) -> int:
        """Delete the predictions under `keys`; give how many there were. One round trip, bounded in time.

        A prediction computed before may be kept just after, since writes follow answers: a purged text may be a hit
        again, never a wrong one.

        Raises:
            Unavailable: the store did not do it (503).
        """
        async with self._purging():
            return int(await self._client.unlink(*keys))

    async def purge_all(self, *, timeout_s: float = PURGE_TIMEOUT_S) -> int:
        """Delete every prediction of every model version and nothing else, since the store may be shared.

        Gives how many there were. Costs two round trips for each thousand keys of the store, whosever they are. What is
        kept meanwhile may stay, see `purge`.

        Raises:
            Unavailable: the store did not do it, or not all of it (503).
            DeadlineExceeded: the walk took longer than `timeout_s` (503); what was deleted stays so.
        """
        leaves_s = asyncio.get_running_loop().time() + timeout_s
        deleted = cursor = 0
        while True:
            async with self._purging():
                cursor, keys = await self._client.scan(cursor, match=PREDICTION_KEYS, count=PURGE_PAGE)
                deleted += await self._client.unlink(*keys) if keys else 0
            if not cursor:
                return deleted
            if asyncio.get_running_loop().time() >= leaves_s:
                raise DeadlineExceeded(f"{deleted:,} predictions deleted in {timeout_s:g} s, not all; send it again")

    @asynccontextmanager
    async def _purging(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(PUT_TIMEOUT_S):
                yield
        except Exception as error:
            self._failed("purge", error)
            raise Unavailable(f"the prediction store did not purge ({type(error).__name__}); send it again") from error
        self._answered()

    async def ping(self) -> bool:
        """Whether the store gives a sign of life within a second."""
        try:
            async with asyncio.timeout(PUT_TIMEOUT_S):
                await self._client.ping()
        except Exception as error:  # noqa: BLE001 — a question about health is answered, not raised
            self._failed("ping", error)
            return False
        self._answered()
        return True

    def _ttl_ms(self) -> int:
        spread = self._random.uniform(-self._ttl_jitter, self._ttl_jitter)
        return max(1, round(self._ttl_s * (1 + spread) * 1000))

    def _failed(self, operation: str, error: Exception) -> None:
        self._metrics.record(metrics.CACHE_ERRORS, operation=operation)
        if self.available:
            # The type alone: a client's message may carry the URL, and the URL a password.
            logger.warning(
                "prediction store failed to %s (%s); misses until it is back", operation, type(error).__name__
            )
        self.available = False

    def _answered(self) -> None:
        if not self.available:
            logger.warning("prediction store is back")
        self.available = True


def _decode_all(values: object, count: int) -> list[Prediction | None]:
    """The predictions of a reply.

    Raises:
        ValueError: it is no reply to a look-up of `count` keys; the store, or what stands before it, lies.
    """
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"no reply to {count} look-ups")
    return [_decode(value) for value in values]


def _decode(value: object) -> Prediction | None:
    if not isinstance(value, bytes | str):
        return None
    try:
        return _STORED.validate_json(value).prediction
    except ValidationError:
        return None  # foreign or damaged: a miss, overwritten by the fresh prediction
