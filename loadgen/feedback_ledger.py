"""What callers were told of their feedback, and whether the log says the same. No HTTP, no clock, no faults.

`Ledger` has the records sent and the id each was acknowledged with, `Listing` the log as it was read, and `Counts` what
the service counted, or what a recount of the listing gives.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Self

KEPT_ODDITIES = 20
"""What nobody may be told is kept in full so many times; the count goes on."""


@dataclass(frozen=True, slots=True)
class Record:
    """A feedback record, sent each time under the same key; no other one has its text."""

    key: str
    body: Mapping[str, Any]

    @property
    def text(self) -> str:
        """What it speaks of."""
        return str(self.body["text"])

    @property
    def corrects(self) -> bool:
        """Whether it changes what the service answers."""
        return bool(self.body["feedback_type"] == "correction")


def make_record(seed: int, number: int, text: str, intents: Sequence[str]) -> Record:
    """The record of a number: the same for the same seed. One in two corrects, between any two intents."""
    rng = random.Random(f"{seed} {number}")  # noqa: S311 — no secret; the same for every run of a seed
    original, other = rng.sample(intents, 2)
    corrects = rng.random() < 0.5  # noqa: PLR2004 — half of them
    body = {
        "text": text,
        "original_intent": original,
        "correct_intent": other if corrects else original,
        "original_confidence": 0.5,
        "feedback_type": "correction" if corrects else "confirmation",
    }
    return Record(f"{seed}-{number}", body)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A 201, or a 200 that names the record as one written before."""

    feedback_id: str
    duplicate: bool


class Ledger:
    """Kept by several callers at once."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, Record] = {}
        """By feedback id, in the order of their acknowledgement."""
        self.unconfirmed: list[Record] = []
        self.texts: set[str] = set()
        """Of every record ever sent."""
        self.retried = self.duplicates = self.sent_again = self.odd = 0
        self.oddities: list[str] = []
        self._failures: Counter[str] = Counter()
        self._ids: list[str] = []
        self._lock = Lock()

    def sending(self, record: Record) -> None:
        """Note a record before its first try."""
        self.texts.add(record.text)

    def failed(self, why: str) -> None:
        """Note a try that was not acknowledged."""
        with self._lock:
            self._failures[why] += 1

    def failures(self) -> Counter[str]:
        """Tries that were not acknowledged so far, by why."""
        with self._lock:
            return self._failures.copy()

    def take(self, record: Record, answer: Acknowledged, tries: int) -> None:
        """Note the acknowledgement of a record, after so many tries.

        Even the first may be answered as a duplicate: the service tries again by itself when a replica of it dies.
        """
        with self._lock:
            self.retried += tries > 1
            self.duplicates += answer.duplicate
            if answer.feedback_id in self.acknowledged:
                self._odd(f"{record.key} and {self.acknowledged[answer.feedback_id].key} share {answer.feedback_id}")
                return
            self.acknowledged[answer.feedback_id] = record
            self._ids.append(answer.feedback_id)

    def take_again(self, feedback_id: str, answer: Acknowledged) -> None:
        """Note what an acknowledged record was answered when it was sent once more."""
        with self._lock:
            self.sent_again += 1
            self.duplicates += answer.duplicate
            if answer != Acknowledged(feedback_id, duplicate=True):
                self._odd(f"{feedback_id} sent again is {answer}")

    def refused(self, record: Record, why: str) -> None:
        """Note an answer that no retry changes: nobody's record may get one."""
        with self._lock:
            self._odd(f"{record.key}: {why}")

    def give_up(self, record: Record) -> None:
        """Note a record that may or may not have been written."""
        with self._lock:
            self.unconfirmed.append(record)

    def any_acknowledged(self, rng: random.Random) -> tuple[str, Record] | None:
        """One of the acknowledged records with its id; None while there is none."""
        if not self._ids:
            return None
        feedback_id = rng.choice(self._ids)
        return feedback_id, self.acknowledged[feedback_id]

    def _odd(self, what: str) -> None:
        self.odd += 1
        if len(self.oddities) < KEPT_ODDITIES:
            self.oddities.append(what)


@dataclass(slots=True)
class Counts:
    """Counters over a log, equal where nothing but zeros differs.

    Pairs are of corrections: original intent, correct intent.
    """

    types: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    by_intent: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By original intent and type."""
    total: int = 0

    @classmethod
    def told(cls, stats: Mapping[str, Any]) -> Self:
        """What `GET /feedback/stats` says."""
        counts = cls(total=stats["total"])
        for kind, count in stats["feedback_types"].items():
            counts.types[kind.removesuffix("s")] = count
        for pair in stats["corrections"]:
            counts.pairs[pair["original_intent"], pair["correct_intent"]] = pair["count"]
        for intent, types in stats["by_intent"].items():
            for kind, count in types.items():
                counts.by_intent[intent, kind.removesuffix("s")] = count
        return counts

    def add(self, item: Mapping[str, Any]) -> None:
        """Count a record of the log."""
        kind, original = item["feedback_type"], item["original_intent"]
        self.total += 1
        self.types[kind] += 1
        self.by_intent[original, kind] += 1
        if kind == "correction":
            self.pairs[original, item["correct_intent"]] += 1


class Listing:
    """The log as far as it was read."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.last_id: str | None = None
        self._items: dict[str, Mapping[str, Any]] = {}
        self._texts: Counter[str] = Counter()
        self._repeated: set[str] = set()

    def add(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Read on, in the log's order."""
        for item in items:
            self.counts.add(item)
            self._texts[item["text"]] += 1
            if self._texts[item["text"]] > 1 or item["feedback_id"] in self._items:
                self._repeated.add(item["text"])
            self.last_id = item["feedback_id"]
            self._items[item["feedback_id"]] = item

    def lacks(self, acknowledged: Mapping[str, Record]) -> set[str]:
        """Which acknowledged ids it does not list, or not with what was sent."""
        return {feedback_id for feedback_id, record in acknowledged.items() if not self._has(feedback_id, record)}

    def _has(self, feedback_id: str, record: Record) -> bool:
        item = self._items.get(feedback_id)
        return item is not None and record.body.items() <= item.items()

    def repeats(self, texts: set[str]) -> set[str]:
        """Which of these texts it lists more than once."""
        return self._repeated & texts
