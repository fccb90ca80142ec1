"""A circuit breaker: a part that does not answer is not waited for, call after call.

    closed ── `failures` in a row ──▶ open ── a probe answers ──▶ closed
                                      │  ▲
                                      └──┘ it does not: wait a little longer

While it is open, probes of its own ask whether the part is back, first soon, then more and more seldom; so no caller's
request is the one that tries. Method: Nygard, Release It!, with the half-open state held by the prober.
"""

import asyncio
import contextvars
import logging
import random
from collections.abc import Awaitable, Callable

from deployments.core import metrics

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 1.0
"""Hits resume within this and one probe of the part's return."""

logger = logging.getLogger(__name__)


class CircuitBreaker:
    """Tells whether a part may be asked; it is told how asking went.

    Args:
        part: What is asked, for the log and the metric.
        probe: Asks for a sign of life, bounded in time; whether there was one.
        failures: Failures in a row that open it.
        recorder: Tells whether it is open.
        sleep: Waits so many seconds.
        jitter: Gives numbers in [0, 1), so that replicas do not probe in step.
    """

    def __init__(
        self,
        part: str,
        probe: Callable[[], Awaitable[bool]],
        *,
        failures: int,
        recorder: metrics.Metrics,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._part = part
        self._probe = probe
        self._max_failures = failures
        self._metrics = recorder
        self._sleep = sleep
        self._jitter = jitter
        self._failures = 0
        self._probing: asyncio.Task[None] | None = None
        self._metrics.record(metrics.BREAKER_OPEN, 0, part=part)

    @property
    def is_open(self) -> bool:
        """Whether the part is not to be asked."""
        return self._probing is not None

    def succeeded(self) -> None:
        """Hear that the part answered; while it is open, only a probe decides."""
        self._failures = 0

    def failed(self, why: str) -> None:
        """Hear that the part did not answer, and why (for the log: no text, no URL)."""
        self._failures += 1
        if self._failures >= self._max_failures and not self.is_open:
            logger.warning("the %s does not answer (%s); it is not asked until it does", self._part, why)
            self._metrics.record(metrics.BREAKER_OPEN, 1, part=self._part)
            # In nobody's context: Serve cancels what an ended request left.
            self._probing = asyncio.create_task(self._probe_until_it_answers(), context=contextvars.Context())

    async def _probe_until_it_answers(self) -> None:
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                await self._sleep(pause_s * (0.5 + self._jitter() / 2))
                if await self._probe():
                    break
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
        finally:
            self._failures = 0
            self._probing = None
        logger.warning("the %s answers again", self._part)
        self._metrics.record(metrics.BREAKER_OPEN, 0, part=self._part)
