"""The prediction store's policy: what is kept, for how long, and what happens when the store does not answer.

A cache that is away costs a model call, never an error: each failure is a counted miss within its time budget, and
after some in a row the store is left alone until it answers a probe. A purge alone tells of failure, as does
`put_many`: whoever asks for one must know that it was done.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from deployments.core import metrics
from deployments.core.circuit_breaker import CircuitBreaker
from deployments.core.errors import DeadlineExceeded, Unavailable
from deployments.core.prediction import Prediction
from deployments.core.prediction_store import PredictionStore
from deployments.core.purges import CHANNEL, PURGED, PURGING_ON
from deployments.core.text import PREDICTION_KEYS
from deployments.core.write_behind import WriteBehind

PUT_TIMEOUT_S = 1.0
"""Nobody waits for a write, so it may take longer than a look-up before it is given up."""
PURGE_TIMEOUT_S = 20.0
"""Leaves the answer time within a request's 30 s; a million predictions took 5 s, a million other keys 0.4 s."""
MAX_FAILURES = 3
"""Look-ups in a row that fail before the store is left alone: a machine held up for a moment fails one or two."""
MAX_CORRUPT_GROUP = 512
"""Unreadable values deleted in one round trip."""
MAX_CORRUPT = 8 * MAX_CORRUPT_GROUP
"""Unreadable values that may wait to be deleted; beyond it they stay until they are looked up again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A stored value; one of another schema version is a miss."""

    schema: Literal[1]
    prediction: Prediction


_STORED = TypeAdapter(_Stored)


class PredictionCache:
    """Predictions in a store, with a time to live; every failure is a miss, and so is what cannot be read."""

    def __init__(
        self,
        store: PredictionStore,
        *,
        ttl_s: float,
        ttl_jitter: float,
        timeout_s: float,
        recorder: metrics.Metrics,
        random_source: random.Random | None = None,
    ) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._ttl_jitter = ttl_jitter
        self._timeout_s = timeout_s
        self._metrics = recorder
        self._random = random_source or random.Random()  # noqa: S311 — spreads expiry times, guards nothing
        self._corrupt: WriteBehind[str, None] = WriteBehind(
            self._delete, pause_s=0, max_items=MAX_CORRUPT_GROUP, max_waiting=MAX_CORRUPT
        )
        self._breaker = CircuitBreaker("prediction store", self._is_back, failures=MAX_FAILURES, recorder=recorder)
        self._failing: set[str] = set()

    @property
    def is_left_alone(self) -> bool:
        """Whether the store is not asked at present, because it did not answer."""
        return self._breaker.is_open

    async def get_many(self, keys: Sequence[str]) -> list[Prediction | None]:
        """The prediction of each key, in order; None for a miss. One round trip at most, bounded in time."""
        values = None if self._breaker.is_open else await self._get_many(keys)
        if values is None:
            self._metrics.record(metrics.CACHE_LOOKUPS, len(keys), result="error")
            return [None] * len(keys)
        found = [None if value is None else _decode(value) for value in values]
        hits = sum(prediction is not None for prediction in found)
        self._metrics.record(metrics.CACHE_LOOKUPS, hits, result="hit")
        self._metrics.record(metrics.CACHE_LOOKUPS, len(keys) - hits, result="miss")
        self._metrics.record(metrics.CACHE_GROUP_SIZE, len(keys))
        self._discard(
            key for key, value, kept in zip(keys, values, found, strict=True) if kept is None and value is not None
        )
        return found

    async def _get_many(self, keys: Sequence[str]) -> Sequence[bytes | None] | None:
        """The value of each key; None when the store does not give them in time."""
        try:
            async with asyncio.timeout(self._timeout_s):
                values = _require_reply(await self._store.get_many(keys), len(keys))
        except Exception as error:  # noqa: BLE001 — fail open: whatever the store does, the model can still answer
            self._failed("get", error)
            self._breaker.failed(type(error).__name__)
            return None
        self._answered("get")
        self._breaker.succeeded()
        return values

    def _discard(self, keys: Iterable[str]) -> None:
        """Have what cannot be read deleted; nobody waits for it.

        A fresh prediction kept in the same moment may go with it, and is computed again.
        """
        corrupt = dict.fromkeys(keys)
        if corrupt:
            self._metrics.record(metrics.CACHE_CORRUPT, len(corrupt))
            self._corrupt.put(corrupt)

    async def _delete(self, keys: Mapping[str, None]) -> bool:
        try:
            async with asyncio.timeout(PUT_TIMEOUT_S):
                await self._store.delete_many(list(keys))
        except Exception as error:  # noqa: BLE001 — best effort: it is a miss again, and tried again, at its next look-up
            self._failed("delete", error)
            return False
        self._answered("delete")
        return True

    async def put_many(self, predictions: Mapping[str, Prediction]) -> bool:
        """Keep each prediction under its key for the time to live; one round trip at most, bounded in time.

        Gives whether the store says that it has all of them.
        """
        if self._breaker.is_open:
            self._metrics.record(metrics.CACHE_ERRORS, operation="put")
            return False
        values = {
            key: (_STORED.dump_json(_Stored(1, prediction)), self._ttl_ms()) for key, prediction in predictions.items()
        }
        try:
            async with asyncio.timeout(PUT_TIMEOUT_S):
                await self._store.put_many(values)
        except Exception as error:  # noqa: BLE001 — fail open: an unkept prediction is computed again
            self._failed("put", error)
            return False
        self._answered("put")
        return True

    async def purge(self, keys: Sequence[str]) -> int:
        """Delete the predictions under `keys`; give how many there were. One round trip, bounded in time.

        A prediction computed before may be kept just after, since writes follow answers: a purged text may be a hit
        again, never a wrong one.

        Raises:
            Unavailable: the store did not do it (503).
        """
        async with self._purging():
            deleted = await self._store.delete_many(keys)
            await self._store.publish(CHANNEL, PURGED)
            return deleted

    async def purge_all(self, *, timeout_s: float = PURGE_TIMEOUT_S) -> int:
        """Delete every prediction of every model version and nothing else, since the store may be shared.

        Gives how many there were. Costs two round trips for each thousand keys of the store, whosever they are. What is
        kept meanwhile may stay, see `purge`.

        Raises:
            Unavailable: the store did not do it, or not all of it (503).
            DeadlineExceeded: the walk took longer than `timeout_s` (503); what was deleted stays so.
        """
        leaves_s = asyncio.get_running_loop().time() + timeout_s
        deleted, message = 0, PURGED
        async with aclosing(self._store.delete_matching(PREDICTION_KEYS)) as pages:
            while True:
                async with self._purging():
                    page = await anext(pages, None)
                    await self._store.publish(CHANNEL, message)
                message = PURGING_ON
                if page is None:
                    return deleted
                deleted += page
                if asyncio.get_running_loop().time() >= leaves_s:
                    raise DeadlineExceeded(
                        f"{deleted:,} predictions deleted in {timeout_s:g} s, perhaps not all; send it again"
                    )

    @asynccontextmanager
    async def _purging(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(PUT_TIMEOUT_S):
                yield
        except Exception as error:
            self._failed("purge", error)
            raise Unavailable(f"the prediction store did not purge ({type(error).__name__}); send it again") from error
        self._answered("purge")

    async def ping(self) -> bool:
        """Whether the store gives a sign of life within a second; at once, when it has not for a while."""
        return not self._breaker.is_open and await self._answers_within(PUT_TIMEOUT_S)

    async def _is_back(self) -> bool:
        # Twice: a connection may take longer to make than a look-up has time, and then is there for the look-ups.
        return await self._answers_within(PUT_TIMEOUT_S) and await self._answers_within(self._timeout_s)

    async def _answers_within(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                await self._store.ping()
        except Exception as error:  # noqa: BLE001 — a question about health is answered, not raised
            self._failed("ping", error)
            return False
        self._answered("ping")
        return True

    def _ttl_ms(self) -> int:
        spread = self._random.uniform(-self._ttl_jitter, self._ttl_jitter)
        return max(1, round(self._ttl_s * (1 + spread) * 1000))

    def _failed(self, operation: str, error: Exception) -> None:
        self._metrics.record(metrics.CACHE_ERRORS, operation=operation)
        if operation not in self._failing:  # once, not at every attempt
            # The type alone: a client's message may carry the URL, and the URL a password.
            logger.warning("the prediction store fails to %s (%s)", operation, type(error).__name__)
        self._failing.add(operation)

    def _answered(self, operation: str) -> None:
        self._failing.discard(operation)


def _require_reply(values: object, count: int) -> Sequence[bytes | None]:
    """The values of a reply to a look-up of `count` keys.

    Raises:
        ValueError: it is no such reply; the store, or what stands before it, lies.
    """
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"no reply to {count} look-ups")
    if not all(value is None or isinstance(value, bytes) for value in values):
        raise ValueError("a reply of other things than bytes")
    return values


def _decode(value: bytes) -> Prediction | None:
    try:
        return _STORED.validate_json(value).prediction
    except ValidationError:
        return None  # foreign or damaged
