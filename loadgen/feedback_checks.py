"""Whether the service kept its promises to feedback, asked over HTTP: the log, its counters, the corrections served.

Ask while nobody has a record on its way (`Callers.held`). What was wrong once stays wrong in the `Findings`.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from pydantic import BaseModel

from loadgen.feedback_callers import API
from loadgen.feedback_ledger import Counts, Ledger, Listing, Record
from loadgen.http_calls import OK, call
from loadgen.load import LoadError

PAGE = 1000
BATCH = 50
NEW, EARLIER = 200, 50
"""Corrections that a check asks for at most: of those since the last one, and of all before; drawn each time."""
PAUSE_S = 0.2
RECOUNTS = 3


class Findings(BaseModel):
    """What was found so far: records of the last whole reading, ids lost, texts doubled, recounts that differed."""

    found: int = 0
    lost: set[str] = set()
    doubled: set[str] = set()
    recounts: int = 0
    miscounted: int = 0
    corrections: int = 0
    unserved: list[str] = []


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a correction may take to show, and how long a try may be under way that nobody waits for any more.

    Such a one may be written between the reading of the log and of its counters.
    """

    shown_s: float = 5.0
    settle_s: float = 1.0


PATIENCE = Patience()


class Checks:
    """Holds the service against what callers were told; the log is read on from where the last check ended."""

    def __init__(self, url: str, ledger: Ledger, rng: Random, patience: Patience = PATIENCE) -> None:
        self.findings = Findings()
        self._patience = patience
        self._url = url
        self._ledger = ledger
        self._rng = rng
        self._listing = Listing()
        self._checked = 0

    def check_new(self, replicas: Sequence[str]) -> None:
        """Check what was acknowledged since the last check, and the counters of everything."""
        new = dict(itertools.islice(self._ledger.acknowledged.items(), self._checked, None))
        self._recount()
        self.findings.lost |= self._listing.lacks(new)
        self._check_served(replicas, new.values())
        self._checked += len(new)

    def check_all(self, replicas: Sequence[str]) -> None:
        """Read the whole log and check everything that was ever acknowledged."""
        self._listing = Listing()
        self.check_new(replicas)
        lost = self._listing.lacks(self._ledger.acknowledged)
        self.findings.lost |= lost
        self.findings.found = len(self._ledger.acknowledged) - len(lost)

    def _recount(self) -> None:
        """Read on and compare the counters."""
        self.findings.recounts += 1
        pauses_s = [0.0, *[self._patience.settle_s] * RECOUNTS]
        self.findings.miscounted += not any(self._counters_agree(pause_s) for pause_s in pauses_s)
        self.findings.doubled |= self._listing.repeats(self._ledger.texts)

    def _counters_agree(self, pause_s: float) -> bool:
        time.sleep(pause_s)
        self._listing.add(items(self._url, self._listing.last_id))
        return Counts.told(fetched(f"{self._url}{API}/feedback/stats")) == self._listing.counts

    def _check_served(self, replicas: Sequence[str], new: Iterable[Record]) -> None:
        """Ask every replica itself for corrections among the new records and among the earlier ones."""
        earlier = itertools.islice(self._ledger.acknowledged.values(), self._checked)
        asked = [*self._drawn(new, NEW), *self._drawn(earlier, EARLIER)]
        self.findings.corrections += len(asked)
        for replica in replicas:
            left = unserved_within(replica, asked, self._patience.shown_s)
            self.findings.unserved += [f"{replica}: {record.text}" for record in left]

    def _drawn(self, records: Iterable[Record], count: int) -> list[Record]:
        corrections = [record for record in records if record.corrects]
        return self._rng.sample(corrections, min(count, len(corrections)))


def unserved_within(replica: str, corrections: Sequence[Record], shown_s: float) -> Sequence[Record]:
    """Which corrections a replica does not answer with, though it was asked until then."""
    end_s = time.monotonic() + shown_s
    while (left := unserved(replica, corrections)) and time.monotonic() < end_s:
        time.sleep(PAUSE_S)
        corrections = left
    return left


def unserved(replica: str, corrections: Sequence[Record]) -> list[Record]:
    """Which corrections a replica does not answer with now."""
    batches = [corrections[start : start + BATCH] for start in range(0, len(corrections), BATCH)]
    return [record for batch in batches for record in _unserved_of(replica, batch)]


def _unserved_of(replica: str, batch: Sequence[Record]) -> Sequence[Record]:
    try:
        answer = call(f"{replica}{API}/classify/batch", {"texts": [record.text for record in batch]})
    except OSError:
        return batch
    if answer.status != OK:
        return batch
    states = [each.strip() for each in answer.headers.get("X-Cache", "").split(",")]
    results = answer.json()["results"]
    return [
        record
        for record, state, result in zip(batch, states, results, strict=True)
        if (state, result["intent"]) != ("correction", record.body["correct_intent"])
    ]


def fetched(url: str) -> Any:
    """What a GET gives.

    Raises:
        LoadError: it gives none, though the service is well.
    """
    try:
        answer = call(url)
    except OSError as error:
        raise LoadError(f"{url} does not answer: {error}") from error
    if answer.status != OK:
        raise LoadError(f"{url} answers {answer.status}: {answer.body[:200].decode(errors='replace')}")
    return answer.json()


def items(url: str, after: str | None) -> Iterator[dict[str, Any]]:
    """What the log lists after an id, from its beginning for None: id and fields of each record, in its order.

    Raises:
        LoadError: it does not list them.
    """
    while True:
        page = fetched(f"{url}{API}/feedback?limit={PAGE}" + (f"&after={after}" if after else ""))
        yield from page["items"]
        after = page["next"]
        if after is None:
            return
