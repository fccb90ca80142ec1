"""Warming: predictions computed and kept before anybody asks for them.

    look up all ──▶ of what is missing, portion by portion: predict ──▶ keep, and wait until the store has it

Nobody waits for a warming, so it gives way to those who do wait. One portion is under way at a time, and a portion is
as many texts as the model lately did in the time that a caller may well wait: less on a slow machine or a busy one. In
between the callers take their turns, and a queue without room is waited out.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice

from deployments.core.errors import IntentGraphError, Overloaded, Unavailable
from deployments.core.outcomes import Outcome
from deployments.core.prediction import Prediction

FIRST_PORTION = 8
"""Texts of the first portion, before it is known how fast the model is: long ones take a CPU half a second."""


class Warming:
    """One warming: how far it is, and how it goes on.

    Args:
        look_up: The kept prediction of each key, None where there is none.
        predict: One outcome a text, in order; may raise as well.
        keep: Keeps predictions; when it returns, the store has them.
        portion_s: The time that a portion should take.
        max_portion: Most texts of a portion.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        *,
        look_up: Callable[[Sequence[str]], Awaitable[Sequence[Prediction | None]]],
        predict: Callable[[Sequence[str]], Awaitable[Sequence[Outcome]]],
        keep: Callable[[Mapping[str, Prediction]], Awaitable[None]],
        portion_s: float,
        max_portion: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._look_up = look_up
        self._predict = predict
        self._keep = keep
        self._portion_s = portion_s
        self._max_portion = max_portion
        self._size = min(FIRST_PORTION, max_portion)
        self._clock = clock
        self._sleep = sleep
        self.already_cached = 0
        self.computed = 0
        self.failed: list[str] = []

    def __str__(self) -> str:
        """How far it is, for whoever has to send it again."""
        return (
            f"{self.already_cached:,} cached already, {self.computed:,} computed and kept; "
            "sent again, it goes on from there"
        )

    async def run(self, texts: Mapping[str, str]) -> None:
        """Have each text's prediction kept under its key; the texts at which the model fails are then in `failed`.

        It may be cancelled: what was kept stays so.

        Raises:
            Unavailable: the model answers no more, or the store does not keep (503).
        """
        found = await self._look_up(list(texts))
        missing = {key: text for (key, text), kept in zip(texts.items(), found, strict=True) if kept is None}
        self.already_cached = len(texts) - len(missing)
        while missing:
            portion = dict(islice(missing.items(), self._size))
            try:
                outcomes = await self._predicted(portion)
            except Overloaded as refusal:
                self._size = max(1, self._size // 2)
                await self._sleep(refusal.retry_after_s)
                continue
            for key in portion:
                del missing[key]
            await self._settle(portion, outcomes)

    async def _predicted(self, portion: Mapping[str, str]) -> Sequence[Outcome]:
        started_s = self._clock()
        outcomes = await self._predict(list(portion.values()))
        for outcome in outcomes:
            if isinstance(outcome, Overloaded):
                raise outcome
        self._learn(len(portion), self._clock() - started_s)
        return outcomes

    def _learn(self, texts: int, took_s: float) -> None:
        """Choose the next portion's size by what the last one took.

        In time left over there is room for one more, however much of the rest a call takes by itself; for twice as
        many at most, since a quick one may have been of short texts.
        """
        fitting = int(texts * self._portion_s / took_s) if took_s > 0 else self._max_portion
        if took_s < self._portion_s:
            self._size = min(max(fitting, texts + 1), 2 * texts, self._max_portion)
        else:
            self._size = max(fitting, 1)

    async def _settle(self, portion: Mapping[str, str], outcomes: Sequence[Outcome]) -> None:
        """Keep what was predicted, then tell what was not."""
        pairs = list(zip(portion, outcomes, strict=True))
        if fresh := {key: outcome for key, outcome in pairs if not isinstance(outcome, IntentGraphError)}:
            await self._keep(fresh)
        self.computed += len(fresh)
        for key, outcome in pairs:
            if isinstance(outcome, Unavailable):
                raise outcome
            if isinstance(outcome, IntentGraphError):
                self.failed.append(portion[key])
