"""The feedback deployment: an actor that writes the log, counts it and keeps it at its length.

One replica suffices, but nothing depends on there being one: each record is one atomic script in the store.
"""

import asyncio
import logging
from collections.abc import Sequence

from deployments.core.connection import connect
from deployments.core.errors import IntentGraphError
from deployments.core.feedback_log import FeedbackLog, LogStats, Receipt, Submission
from deployments.core.settings import Settings
from deployments.logs import configure_logging

TRIM_PERIOD_S = 3600.0

logger = logging.getLogger(__name__)


class Feedback:
    """Serve shell around `FeedbackLog`; each call carries what gathered at an ingress replica."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Serve awaits it
        configure_logging(settings.log_level)
        self._log = FeedbackLog(
            connect(settings.feedback_url, timeout_s=settings.feedback_timeout_s),
            timeout_s=settings.feedback_timeout_s,
            retention_days=settings.feedback_retention_days,
            unsafe=settings.unsafe_feedback,
        )
        try:
            await self._log.require_durable()  # a store that is away is asked before its first acknowledgement
        except IntentGraphError as error:
            logger.warning("the feedback log is away: %s", error.detail)
        self._trimming = asyncio.create_task(self._trim_for_ever())

    async def _trim_for_ever(self) -> None:
        while True:
            try:
                await self._log.trim(await self._log.now_s())
            except IntentGraphError as error:
                logger.warning("trimming the feedback log failed: %s; trying again in an hour", error.detail)
            await asyncio.sleep(TRIM_PERIOD_S)

    async def append(self, submissions: Sequence[Submission]) -> list[Receipt | IntentGraphError]:
        """Write records; a receipt means that record is on disk."""
        return await self._log.append(submissions)

    async def stats(self) -> LogStats:
        """Counts over the retained log."""
        return await self._log.stats()

    async def ping(self) -> bool:
        """Whether the log's store answers."""
        await self._log.now_s()
        return True
