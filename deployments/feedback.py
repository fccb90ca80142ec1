"""The feedback deployment: an actor that writes the log, counts it and keeps it at its length.

One replica suffices, but nothing that is acknowledged depends on there being one: each record is one atomic script in
the store. How fast a caller may go does: each replica lets it go that fast.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from deployments.core import metrics
from deployments.core.coalesce import Coalescer
from deployments.core.connection import connect
from deployments.core.errors import IntentGraphError
from deployments.core.feedback_counts import LogStats, Tally
from deployments.core.feedback_log import FeedbackLog, Receipt, Submission, Verdict
from deployments.core.feedback_patterns import Contest
from deployments.core.feedback_reader import FeedbackReader, Page
from deployments.core.log_layout import LOG
from deployments.core.log_store import LogStore
from deployments.core.rate_limit import RateLimit, append_within
from deployments.core.settings import Settings
from deployments.logs import configure_logging
from deployments.runtime import RayMetrics

TRIM_PERIOD_S = 3600.0
TELL_PERIOD_S = 5.0
RETRY_S = 10.0
MAX_COUNT_CALLERS = 10_000
"""Callers who share one count of the log: more than Serve lets through to a replica."""

logger = logging.getLogger(__name__)


class Feedback:
    """Serve shell around the log; each call of `append` carries what gathered at an ingress replica."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Serve awaits it
        configure_logging(settings.log_level)
        timeout_s = settings.feedback_timeout_s
        client = connect(settings.feedback_url, timeout_s=timeout_s, key=LOG)
        self._store = LogStore(
            client,
            timeout_s=timeout_s,
            unsafe=settings.unsafe_feedback,
            replicas_acked=settings.feedback_replicas_acked,
        )
        self._log = FeedbackLog(
            self._store,
            retention_days=settings.feedback_retention_days,
            correction_ttl_s=settings.correction_ttl_s,
        )
        self._reader = FeedbackReader(self._store)
        self._stats: Coalescer[None, LogStats] = Coalescer(
            self._count_for, max_items=MAX_COUNT_CALLERS, max_waiting=MAX_COUNT_CALLERS
        )
        self._limit = RateLimit(rate_per_s=settings.feedback_rate_per_s, burst=settings.feedback_burst)
        try:
            await self._store.require_durable()  # a store that is away is asked before its first acknowledgement
        except IntentGraphError as error:
            logger.warning("the feedback log is away: %s", error.detail)
        self._metrics = RayMetrics()
        self._upkeep = [
            asyncio.create_task(_every(TELL_PERIOD_S, self._tell_pending)),
            asyncio.create_task(_every(TRIM_PERIOD_S, self._keep_in_order)),
        ]
        self._recounted = False

    async def _keep_in_order(self) -> None:
        """Hold the counters against the log, once; hold the log at its length."""
        try:
            if not self._recounted:
                self._metrics.record(metrics.FEEDBACK_MISCOUNTED, len(await self._reader.recount()))
                self._recounted = True
        finally:
            await self._log.trim(await self._store.now_s())

    async def _tell_pending(self) -> None:
        self._metrics.record(metrics.FEEDBACK_PENDING, await self._reader.pending())

    async def append(self, submissions: Sequence[Submission]) -> list[Receipt | IntentGraphError]:
        """Write records; a receipt means that record is on disk. `Overloaded` (429): its caller sends too fast."""
        return await append_within(self._limit, submissions, self._log.append)

    async def stats(self) -> LogStats:
        """Counts over the retained log. However many ask at once, one count is under way; who waits shares the next."""
        (counted,) = await self._stats.submit([None])
        return counted

    async def _count_for(self, asked: Sequence[None]) -> list[LogStats]:
        return [await self._reader.stats()] * len(asked)

    async def page(self, after: str, limit: int, state: str | None) -> Page:
        """Records in the order of the log."""
        return await self._reader.page(after, limit, state)

    async def review(self, feedback_id: str, verdict: Verdict, by: str) -> None:
        """Decide about a correction that waits."""
        await self._log.review(feedback_id, verdict, by=by)

    async def delete(self, feedback_id: str, by: str) -> None:
        """Remove a record."""
        await self._log.delete(feedback_id, by=by)

    async def erase(self, user_id: str, by: str) -> int:
        """Remove a user's records; give how many."""
        return await self._reader.erase(self._log, user_id, by=by)

    async def acknowledge(self, feedback_id: str) -> None:
        """Move the training cursor."""
        await self._reader.acknowledge(feedback_id)

    async def patterns(self, limit: int) -> tuple[list[Tally], list[tuple[Contest, str]], float]:
        """The counters, up to `limit` contested texts, and the log's time in seconds since 1970."""
        return await self._reader.tallies(), await self._reader.contested(limit), await self._store.now_s()

    async def ping(self) -> bool:
        """Whether the log's store answers."""
        await self._store.now_s()
        return True


async def _every(period_s: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do some work again and again, soon when it failed; what goes wrong is logged once until it goes right again."""
    failed = False
    while True:
        try:
            await work()
            failed = False
        except Exception as error:  # whatever it is, upkeep must not end unseen
            if not failed:
                logger.warning("the feedback log could not be looked after", exc_info=error)
            failed = True
        await asyncio.sleep(min(period_s, RETRY_S) if failed else period_s)
