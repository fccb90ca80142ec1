"""What the feedback says beyond its sums: what is confused and since when, whose answers get worse, what is contested.

Pure; `feedback_reader` fetches what it is made of.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from deployments.core.feedback_counts import Agreement, Tally, by, pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CONFIDENCE_LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE_LEVEL) / 2)

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often one intent was corrected to another in the last days, in as many before them, and on each of those."""

    original_intent: str
    correct_intent: str
    count: int
    count_before: int
    by_day: dict[int, int]


@dataclass(frozen=True, slots=True)
class Falling:
    """An intent whose agreement in the last days is below that of the days before, and not by chance.

    `interval` holds the difference (now minus before) at a confidence of 95 %; it is below 0 altogether.
    """

    intent: str
    now: Agreement
    before: Agreement
    interval: Interval


def confusions(tallies: Iterable[Tally], *, today: int, days: int) -> list[Confusion]:
    """Pairs that were corrected in the last `days` days, today among them; most frequent first."""
    recent, before = _split(tallies, today, days)
    daily: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for tally in recent:
        if tally.is_correction:
            daily[tally.original_intent, tally.correct_intent][tally.day] += tally.count
    earlier = pairs(tally for tally in before if tally.day > today - 2 * days)
    return [
        Confusion(*pair, count=count, count_before=earlier.get(pair, 0), by_day=dict(sorted(daily[pair].items())))
        for pair, count in pairs(recent).items()
    ]


def falling(tallies: Iterable[Tally], *, today: int, days: int) -> list[Falling]:
    """Intents whose agreement fell in the last `days` days against the retained days before; the steepest first."""
    recent, before = _split(tallies, today, days)
    then = by(before, "original_intent")
    found = [
        Falling(intent, now, then[intent], difference_interval(now, then[intent]))
        for intent, now in by(recent, "original_intent").items()
        if intent in then
    ]
    return sorted((each for each in found if each.interval[1] < 0), key=lambda each: each.interval[1])


def _split(tallies: Iterable[Tally], today: int, days: int) -> tuple[list[Tally], list[Tally]]:
    recent: list[Tally] = []
    before: list[Tally] = []
    for tally in tallies:
        (recent if tally.day > today - days else before).append(tally)
    return recent, before


def wilson_interval(agreed: Agreement) -> Interval:
    """The score interval of a share at a confidence of 95 % (Wilson 1927); all of [0, 1] of nothing."""
    if not agreed.total:
        return 0.0, 1.0
    n, share = agreed.total, agreed.confirmations / agreed.total
    centre = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    low, high = (centre - half) / (1 + _Z**2 / n), (centre + half) / (1 + _Z**2 / n)
    return max(0.0, min(share, low)), min(1.0, max(share, high))  # rounding may put a bound beyond the share itself


def difference_interval(now: Agreement, before: Agreement) -> Interval:
    """The interval of the difference of two shares, now minus before, at a confidence of 95 %.

    Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, 873-890, method 10). Neither may be of nothing.
    """
    p, q = now.confirmations / now.total, before.confirmations / before.total
    (p_low, p_high), (q_low, q_high) = wilson_interval(now), wilson_interval(before)
    difference = p - q
    return difference - math.hypot(p - p_low, q_high - q), difference + math.hypot(p_high - p, q - q_low)


@dataclass(slots=True)
class Contest:
    """What the corrections of one text came to, in the order they came.

    `turns` is how often one named another intent than the one before it; `intents` are those that were named.
    """

    last_feedback_id: str = ""
    last_intent: str = ""
    turns: int = 0
    intents: tuple[str, ...] = ()

    def add(self, feedback_id: str, intent: str) -> None:
        """Take in the next correction."""
        self.turns += bool(self.last_intent) and intent != self.last_intent
        self.last_feedback_id, self.last_intent = feedback_id, intent
        if intent not in self.intents:
            self.intents += (intent,)


def contested(contests: Iterable[Contest], limit: int) -> Sequence[Contest]:
    """Texts that were corrected back and forth, the most turns first."""
    found = [contest for contest in contests if contest.turns]
    return sorted(found, key=lambda contest: (-contest.turns, contest.last_feedback_id))[:limit]
