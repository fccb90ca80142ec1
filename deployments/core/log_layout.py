"""How the feedback log lies in its store: its keys, its entries, its ids.

Keys, all in the hash slot of `{ig:log}`, so that one script may write them on Redis Cluster:

| key                      | type       | holds                                                                        |
|--------------------------|------------|------------------------------------------------------------------------------|
| `{ig:log}`               | stream     | entries, see below; an id is the feedback id and a cursor                    |
| `{ig:log}:records:<day>` | hash       | feedback id → the record as submitted, JSON                                  |
| `{ig:log}:reviews:<day>` | hash       | feedback id → `approved <id of that entry>` or `rejected`          |
| `{ig:log}:pending`       | sorted set | the corrections that wait for approval, as `sortable` ids                    |
| `{ig:log}:counts`        | hash       | `<day>:<counter>` → records                                                  |
| `{ig:log}:key:<sha256>`  | string     | `<id> <state> <digest>` of that caller and idempotency key; or `gone`        |
| `{ig:log}:cursor`        | string     | id of the last entry that was trained on; absent: none was                   |
| `{ig:log}:replicated`    | string     | nothing; written to see that replicas have received what came before it      |

`day` is days since 1970 of the record's id, which is the store's clock: what belongs to a record leaves with it.
Text and user are in `records` alone: a stream keeps the bytes of what is deleted from it, a hash does not.

| kind of an entry | its fields                                       | means                              |
|------------------|--------------------------------------------------|------------------------------------|
| `feedback`       | state text_key correction trusted by key counter | a record was accepted              |
| `approval`       | of by text_key correction                        | a correction that waited holds now |
| `rejection`      | of by                                            | one never will                     |
| `deletion`       | of by key submitted_by approved_by               | a record was removed, this is left |

`state` is `applied` or `pending` for a correction, `recorded` for a confirmation; `correction` is JSON of what it
corrects (`intent`, `complexity`?, `techniques`?); `counter` is the JSON list of feedback type, original intent, correct
intent and model version; `by` names the caller, `of` the record. Readers ignore other kinds, so that a newer writer
never stops an older reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

LOG = "{ig:log}"
COUNTS = f"{LOG}:counts"
CURSOR = f"{LOG}:cursor"
PENDING = f"{LOG}:pending"
REPLICATED = f"{LOG}:replicated"
DAY_S = 86_400
FIRST_ID = "0-0"
FeedbackState = Literal["applied", "pending", "approved", "rejected", "recorded"]
"""Of a record as it is now."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry as read back; a field its kind has not is empty."""

    entry_id: str
    kind: str
    of: str = ""
    state: str = ""
    text_key: str = ""
    correction: str = ""
    trusted: bool = False
    by: str = ""
    key: str = ""
    counter: str = ""

    @classmethod
    def parse(cls, entry_id: bytes, fields: Mapping[bytes, bytes]) -> LogEntry:
        """Read an entry of any kind. Raises ValueError for bytes that are not UTF-8."""
        given = {name: fields.get(name.encode(), b"").decode() for name in _TEXT_FIELDS}
        return cls(entry_id=entry_id.decode(), trusted=fields.get(b"trusted") == b"1", **given)

    @property
    def feedback_id(self) -> str:
        """The record it speaks of."""
        return self.of or self.entry_id

    @property
    def accepted_at_s(self) -> float:
        """When the store took it, in seconds since 1970 on the store's clock."""
        return milliseconds(self.entry_id) / 1000

    @property
    def applies(self) -> bool:
        """Whether from it on a correction holds."""
        return self.kind == "approval" or (self.kind == "feedback" and self.state == "applied")


_TEXT_FIELDS = ("kind", "of", "state", "text_key", "correction", "by", "key", "counter")


def records_key(day: int) -> str:
    """The hash with the records of a day."""
    return f"{LOG}:records:{day}"


def reviews_key(day: int) -> str:
    """The hash with what was decided of the records of a day."""
    return f"{LOG}:reviews:{day}"


def milliseconds(entry_id: str) -> int:
    """The time in an id: since 1970, the store's."""
    return int(entry_id.partition("-")[0])


def day_of(entry_id: str) -> int:
    """The day of an id."""
    return milliseconds(entry_id) // (DAY_S * 1000)


def is_id(value: str) -> bool:
    """Whether it has the form of an id: `<milliseconds>-<number>`, both within 64 bits."""
    time, dash, number = value.partition("-")
    return bool(dash) and all(part.isascii() and part.isdigit() and len(part) <= _MAX_DIGITS for part in (time, number))


_MAX_DIGITS = 18  # of 64 bits, whatever the digits


def canonical(entry_id: str) -> str:
    """An id as the store writes it, without leading zeros: hashes know it in no other form."""
    return from_sortable(sortable(entry_id))


def sortable(entry_id: str) -> str:
    """An id in digits enough that the order of the letters is the order of the log."""
    time, _, number = entry_id.partition("-")
    return f"{int(time):018d}-{int(number):018d}"


def from_sortable(value: str) -> str:
    """The id of a `sortable` one."""
    time, _, number = value.partition("-")
    return f"{int(time)}-{int(number)}"


def seconds(time: tuple[int, int]) -> float:
    """Join the two halves of the store's TIME: seconds and microseconds."""
    return time[0] + time[1] / 1_000_000
