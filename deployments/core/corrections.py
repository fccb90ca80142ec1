"""Corrections in memory, folded from the feedback log.

    the log ── Follower ── LogEntry ──▶ Overlay ── Correction ──▶ the answer

Every replica that answers follows the log, so a correction needs no second write: it cannot be evicted, overwritten by
a late model answer or left behind on one replica. While the log's store is away the overlay goes on from memory.

All times here are the store's, since the ids of its entries are: a `Follower` reads the store's clock when it connects
and every minute, and counts on from there with this machine's monotonic one, so that neither a wrong local clock nor a
step of it moves an expiry. The minute is for machines that sleep, while which that one stands still.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import OrderedDict
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deployments.core.log_layout import DAY_S, LOG, LogEntry, seconds
from deployments.core.metrics import CORRECTIONS_HELD, LOG_LAG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from redis.asyncio import Redis

    from deployments.core.metrics import Metrics

_PAGE = 500
_READ_PAUSE_S = 0.02
"""So long entries gather after a read: under load a round trip for each would cost more than the entry itself."""
_CLOCK_PERIOD_S = 60.0
_MAX_BACKOFF_S = 1.0
_FIRST_BACKOFF_S = 0.05
_CLOSE_PAUSE_S = 0.05

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Correction:
    """What a person said of a text. None for complexity or techniques: they were not corrected."""

    feedback_id: str
    intent: str
    complexity: str | None
    techniques: tuple[str, ...] | None
    accepted_at_s: float


class Overlay:
    """Text key → the correction in force: the newest that was not undone, for `ttl_s` from its acceptance.

    At most `max_corrections`; beyond them the oldest leave, and do not come back when a newer one is undone.
    Entries are folded in the order of the log.
    """

    def __init__(self, *, ttl_s: float, max_corrections: int) -> None:
        self._ttl_s = ttl_s
        self._max_corrections = max_corrections
        self._texts: OrderedDict[str, str] = OrderedDict()  # feedback id → text key, oldest acceptance first
        self._corrections: dict[str, dict[str, Correction]] = {}  # text key → feedback id → correction, oldest first

    def fold(self, entry: LogEntry) -> bool:
        """Take in the next entry; tell whether it changes the answer for its text.

        Raises ValueError, KeyError or TypeError for a correction that cannot be read.
        """
        if entry.kind == "deletion":
            return self._remove(entry.of)
        if not entry.applies:
            return False
        correction = _correction(entry)
        self._remove(correction.feedback_id)
        self._corrections.setdefault(entry.text_key, {})[correction.feedback_id] = correction
        self._texts[correction.feedback_id] = entry.text_key
        if len(self._texts) > self._max_corrections:
            self._remove(next(iter(self._texts)))
        return True

    def _remove(self, feedback_id: str) -> bool:
        """Let go of a correction, if it is held; tell whether it was the one in force."""
        text_key = self._texts.pop(feedback_id, None)
        if text_key is None:
            return False
        held = self._corrections[text_key]
        was_newest = next(reversed(held)) == feedback_id
        del held[feedback_id]
        if not held:
            del self._corrections[text_key]
        return was_newest

    def get(self, text_key: str, now_s: float) -> Correction | None:
        """Give the correction in force at `now_s`, if any."""
        held = self._corrections.get(text_key)
        newest = next(reversed(held.values())) if held else None
        return newest if newest and self._lives(newest, now_s) else None

    def expire(self, now_s: float) -> None:
        """Let go of what is past its life."""
        while self._texts:
            oldest = next(iter(self._texts))
            if self._lives(self._corrections[self._texts[oldest]][oldest], now_s):
                return
            self._remove(oldest)

    def __len__(self) -> int:
        return len(self._texts)

    def _lives(self, correction: Correction, now_s: float) -> bool:
        return now_s < correction.accepted_at_s + self._ttl_s


class Follower:
    """Keeps an overlay in step with the log, for as long as it runs, whatever the store does.

    Each connection begins by reading the log's last `ttl_s` into a fresh overlay, which then replaces the old one:
    after a restart, a failover or a restore the overlay is what the store now says. While the store is away the old
    one stays.

    Args:
        connect: makes a client of the log's store that answers in bytes; each is used for one connection, then closed.
        timeout_s: bound of each round trip, and so of how long a dead server goes unnoticed; the client's socket
            timeout must not be shorter. A blocking read waits half of it at the server, which may answer 0.1 s late:
            below 0.4 s a quiet log would look like a dead server.
        ttl_s: a correction's life from its acceptance.
        max_corrections: most corrections held.
        metrics: records the lag of entries and the corrections held.
        clock: this machine's monotonic clock, seconds.
        jitter: gives numbers in [0, 1), so that replicas do not reconnect in step.
    """

    def __init__(
        self,
        connect: Callable[[], Redis],
        *,
        metrics: Metrics,
        timeout_s: float = 1.0,
        ttl_s: float = DAY_S,
        max_corrections: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._connect = connect
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._max_corrections = max_corrections
        self._clock = clock
        self._jitter = jitter
        self._clock_offset_s = 0.0
        self._clock_read_at_s = 0.0
        self._overlay = self._empty_overlay()
        self._task: asyncio.Task[None] | None = None
        self.connected = False
        self.loaded = asyncio.Event()

    async def start(self, timeout_s: float) -> None:
        """Begin to follow; wait for the first load, at most `timeout_s`, then go on without corrections."""
        self._task = asyncio.create_task(self._run(), name="follow-feedback-log")
        try:
            async with asyncio.timeout(timeout_s):
                await self.loaded.wait()
        except TimeoutError:
            _logger.warning("the feedback log did not load within %.1f s; starting without corrections", timeout_s)

    async def close(self) -> None:
        """Stop following; the overlay stays."""
        while self._task and not self._task.done():
            # Again and again: Python 3.11's `asyncio.wait_for`, with which the client sends, can swallow a cancellation
            # (https://github.com/python/cpython/issues/86296).
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CLOSE_PAUSE_S)

    def get(self, text_key: str) -> Correction | None:
        """Give the correction in force for a text, from memory."""
        return self._overlay.get(text_key, self._now_s())

    @property
    def held(self) -> int:
        """How many corrections are in memory."""
        return len(self._overlay)

    async def _run(self) -> None:
        from redis.exceptions import RedisError

        failures = 0
        while True:
            try:
                await self._follow()
            except (RedisError, OSError) as error:  # TimeoutError is an OSError
                if self.connected or not failures:  # once, not at every attempt
                    _logger.warning("cannot follow the feedback log (%s: %s); retrying", type(error).__name__, error)
                failures = 0 if self.connected else failures + 1
            except Exception:  # a defect must not end the following: corrections would go stale unseen
                _logger.exception("following the feedback log failed; retrying")
                failures += 1
            self.connected = False
            await asyncio.sleep(_backoff_s(failures, self._jitter()))

    async def _follow(self) -> None:
        """Follow the log over one connection; ends only with an error."""
        async with self._connection() as store:
            await self._read_clock(store)
            last_id = await self._load(store)
            self.connected = True
            self.loaded.set()
            _logger.info("following the feedback log with %d corrections", len(self._overlay))
            while True:
                if self._clock() - self._clock_read_at_s >= _CLOCK_PERIOD_S:
                    await self._read_clock(store)
                self._overlay.expire(self._now_s())
                self._metrics.record(CORRECTIONS_HELD, len(self._overlay))
                last_id = await self._take_next(store, last_id)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Redis]:
        """One connection without pool or retry behind it.

        Losing it must be an error: a silent reconnection could go on from an old id on a server with another history.
        """
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        async with aclosing(self._connect()) as client:
            client.set_retry(Retry(NoBackoff(), 0))
            async with aclosing(client.client()) as session:
                yield session

    async def _read_clock(self, store: Redis) -> None:
        async with asyncio.timeout(self._timeout_s):
            before_s = self._clock()
            store_s = seconds(await store.time())
        self._clock_read_at_s = self._clock()
        self._clock_offset_s = store_s - (before_s + self._clock_read_at_s) / 2

    def _now_s(self) -> float:
        return self._clock() + self._clock_offset_s

    async def _load(self, store: Redis) -> str:
        """Fold the log's last `ttl_s` into a fresh overlay and put it in place; give the id to go on from."""
        overlay = self._empty_overlay()
        last_id = f"{max(0, int((self._now_s() - self._ttl_s) * 1000))}-0"
        while page := await self._read(store, last_id):
            for entry_id, fields in page:
                _fold(overlay, entry_id, fields)
            last_id = page[-1][0].decode()
        overlay.expire(self._now_s())
        self._overlay = overlay
        return last_id

    async def _take_next(self, store: Redis, last_id: str) -> str:
        """Wait a while for entries after `last_id`, fold them and let more gather; give the id to go on from."""
        entries = await self._read(store, last_id, block_ms=max(1, int(self._timeout_s * 500)))
        for entry_id, fields in entries:
            last_id = entry_id.decode()
            if entry := _fold(self._overlay, entry_id, fields):
                self._metrics.record(LOG_LAG, max(0.0, self._now_s() - entry.accepted_at_s))
        if entries:
            await asyncio.sleep(_READ_PAUSE_S)
        return last_id

    async def _read(
        self, store: Redis, last_id: str, *, block_ms: int | None = None
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        async with asyncio.timeout(self._timeout_s):
            reply: Any = await store.xread({LOG: last_id}, count=_PAGE, block=block_ms)
        if not reply:
            return []
        entries = reply[LOG.encode()][0] if isinstance(reply, dict) else reply[0][1]  # RESP3, RESP2
        return list(entries)

    def _empty_overlay(self) -> Overlay:
        return Overlay(ttl_s=self._ttl_s, max_corrections=self._max_corrections)


def _fold(overlay: Overlay, entry_id: bytes, fields: dict[bytes, bytes]) -> LogEntry | None:
    """Fold one raw entry; give it if it changes an answer. An unreadable one must not hide those after it."""
    try:
        entry = LogEntry.parse(entry_id, fields)
        return entry if overlay.fold(entry) else None
    except (KeyError, TypeError, ValueError) as error:  # its words could carry the text
        _logger.warning("left out entry %r of the feedback log: unreadable (%s)", entry_id, type(error).__name__)
        return None


def _correction(entry: LogEntry) -> Correction:
    corrected: dict[str, Any] = json.loads(entry.correction)
    intent = corrected["intent"]
    techniques = corrected.get("techniques")
    return Correction(
        feedback_id=entry.feedback_id,
        intent=intent,
        complexity=corrected.get("complexity"),
        techniques=None if techniques is None else tuple(techniques),
        accepted_at_s=entry.accepted_at_s,
    )


def _backoff_s(failures: int, jitter: float) -> float:
    """Double the delay up to its cap; half of it is jitter."""
    delay_s = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * float(2 ** min(failures, 10)))
    return delay_s * (0.5 + jitter / 2)
