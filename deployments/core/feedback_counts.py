"""Counts over the feedback log: what its counters add up to. Pure; `feedback_reader` fetches them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Tally:
    """So many records of one day and counter. `day` is days since 1970."""

    day: int
    feedback_type: str
    original_intent: str
    correct_intent: str
    model_version: str
    count: int

    @classmethod
    def parse(cls, field: bytes, count: bytes) -> Tally:
        """Read a field of the counters and its value."""
        day, _, counter = field.decode().partition(":")
        feedback_type, original, correct, version = json.loads(counter)
        return cls(int(day), feedback_type, original, correct, version, int(count))

    @property
    def is_correction(self) -> bool:
        """Whether it counts corrections; confirmations otherwise."""
        return self.feedback_type == "correction"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often people said that an answer was right, and how often that it was wrong."""

    corrections: int
    confirmations: int

    @property
    def total(self) -> int:
        """Both."""
        return self.corrections + self.confirmations

    @property
    def rate(self) -> float | None:
        """The share of confirmations; None of none."""
        return self.confirmations / self.total if self.total else None


@dataclass(frozen=True, slots=True)
class LogStats:
    """Counts over the retained log.

    `pairs` lists corrections as (original intent, correct intent, count), most frequent first; `by_intent` is by the
    original intent; `untrained` counts the records after the training cursor.
    """

    agreement: Agreement
    pairs: list[tuple[str, str, int]]
    by_intent: dict[str, Agreement]
    untrained: int


def agreement(tallies: Iterable[Tally]) -> Agreement:
    """Add tallies up."""
    counts: Counter[bool] = Counter()
    for tally in tallies:
        counts[tally.is_correction] += tally.count
    return Agreement(corrections=counts[True], confirmations=counts[False])


def by(tallies: Iterable[Tally], field: str) -> dict[str, Agreement]:
    """Add up those that are alike in a field, such as `original_intent`; in its order."""
    groups: dict[str, list[Tally]] = {}
    for tally in tallies:
        groups.setdefault(getattr(tally, field), []).append(tally)
    return {name: agreement(groups[name]) for name in sorted(groups)}


def pairs(tallies: Iterable[Tally]) -> dict[tuple[str, str], int]:
    """Count corrections by (original intent, correct intent), most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    for tally in tallies:
        if tally.is_correction:
            counts[tally.original_intent, tally.correct_intent] += tally.count
    return dict(sorted(counts.items(), key=lambda row: (-row[1], row[0])))


def stats(tallies: list[Tally], untrained: int) -> LogStats:
    """Everything that is counted, from the counters and the number after the training cursor."""
    return LogStats(
        agreement=agreement(tallies),
        pairs=[(*pair, count) for pair, count in pairs(tallies).items()],
        by_intent=by(tallies, "original_intent"),
        untrained=untrained,
    )


def differences(counted: Mapping[str, int], recounted: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Counters that do not agree with the log: what they say, and what they should."""
    names = counted.keys() | recounted.keys()
    both = {name: (counted.get(name, 0), recounted.get(name, 0)) for name in sorted(names)}
    return {name: (says, should) for name, (says, should) in both.items() if says != should}
