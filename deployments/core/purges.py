"""Hearing of purges: each ingress replica subscribes to the prediction store, where whoever purges says so.

A purge of anything empties the local tier, which the prediction store fills again within a moment, and lets go of what
waits to be written there. While there is no subscription the tier stays closed, for a purge could pass unheard.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from deployments.core.local_tier import LocalTier

CHANNEL = "ig:purges"
PURGED = b""
PURGING_ON = b"on"
"""The same purge goes on: it may take seconds, and what comes meanwhile may be written."""
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0

logger = logging.getLogger(__name__)


class PurgeFollower:
    """Keeps a local tier open while it hears of purges; at each empties it and lets go of what waits to be written.

    Args:
        subscribe: Subscribes to `CHANNEL`; the messages end only with an error, also when the store falls silent.
        tier: The tier of this process.
        forget_unwritten: Lets go of this process's predictions that wait to be written.
        jitter: Gives numbers in [0, 1), so that replicas do not reconnect in step.
    """

    def __init__(
        self,
        subscribe: Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]],
        tier: LocalTier,
        forget_unwritten: Callable[[], None],
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._subscribe = subscribe
        self._tier = tier
        self._forget_unwritten = forget_unwritten
        self._jitter = jitter
        self._task: asyncio.Task[None] | None = None
        self._pause_s = FIRST_PAUSE_S

    def start(self) -> None:
        """Begin to follow, in the background."""
        self._task = asyncio.create_task(self._run(), name="follow-purges")

    async def close(self) -> None:
        """Stop following; the tier closes."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 — whatever ends a subscription, the answer is another one
                if self._pause_s == FIRST_PAUSE_S:  # once, not at every attempt
                    # The type alone: a client's message may carry the URL, and the URL a password.
                    logger.warning("cannot hear of purges (%s): the local tier is closed", type(error).__name__)
            await asyncio.sleep(self._pause_s * (0.5 + self._jitter() / 2))
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)

    async def _follow(self) -> None:
        try:
            async with self._subscribe() as purges:
                self._tier.open()
                self._forget_unwritten()  # a purge may have passed unheard
                self._pause_s = FIRST_PAUSE_S
                async for message in purges:
                    self._tier.clear()
                    if message != PURGING_ON:
                        self._forget_unwritten()
        finally:
            self._tier.close()
