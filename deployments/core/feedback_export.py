"""What may be learned from feedback: the rows that `intents train` takes, chosen from the records of the log.

A correction that a trusted caller made, or that somebody approved, teaches the corrected labels; a confirmation by a
trusted caller teaches the intent it confirms. Nothing else teaches: who may not correct answers may not train the
model that gives them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from deployments.core.artifact import NORMALISATION
from deployments.core.text import normalise

if TYPE_CHECKING:
    from collections.abc import Mapping

SUPERSEDED = "superseded by a newer one of the same text"


def reason_against(record: Mapping[str, Any]) -> str | None:
    """Why a record as `GET /feedback` has it must not be learned from; None if it may."""
    state = str(record["state"])
    if state in {"pending", "rejected"}:
        return state
    return None if state == "approved" or record.get("trusted") else "by callers who may not correct"


class TrainingRows:
    """Rows for `intents train`, one a text, gathered from records in the order of the log.

    A text is what training takes for one: white space and ASCII case make no other. With several records for one the
    newest holds, but a confirmation of what holds already changes nothing. An approved correction stands at its own
    place in the log, not at its approval's.
    """

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, str]] = {}
        self.left_out: Counter[str] = Counter()
        self.last_id: str | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in the next record."""
        self.last_id = record["feedback_id"]
        if reason := reason_against(record):
            self.left_out[reason] += 1
            return
        text = normalise(record["text"], NORMALISATION)
        before = self._rows.get(text)
        if before:
            self.left_out[SUPERSEDED] += 1
        confirms = record["feedback_type"] == "confirmation"
        kept = before if before and confirms and before["intent"] == record["correct_intent"] else None
        self._rows[text] = kept or _row(record)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list[dict[str, str]]:
        """With `text`, `intent` and perhaps `complexity`."""
        return list(self._rows.values())


def _row(record: Mapping[str, Any]) -> dict[str, str]:
    row = {"text": record["text"], "intent": record["correct_intent"]}
    return row | ({"complexity": record["correct_complexity"]} if record.get("correct_complexity") else {})
