"""What may be learned from feedback, and that training takes it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.core.feedback_export import TrainingRows, reason_against
from deployments.training.rows import read_rows


def record(number: int = 1, text: str = "a", intent: str = "translation", **other: Any) -> dict[str, Any]:
    """A trusted correction that holds, as `GET /feedback` has it."""
    return {
        "feedback_id": f"{number}-0",
        "state": "applied",
        "trusted": True,
        "feedback_type": "correction",
        "text": text,
        "original_intent": "reasoning",
        "correct_intent": intent,
        "correct_complexity": None,
    } | other


def confirmation(number: int, text: str = "a", intent: str = "translation", **other: Any) -> dict[str, Any]:
    return record(number, text, intent, state="recorded", feedback_type="confirmation", **other)


def exported(*records: dict[str, Any]) -> TrainingRows:
    chosen = TrainingRows()
    for each in records:
        chosen.add(each)
    return chosen


@pytest.mark.parametrize(
    ("state", "trusted", "reason"),
    [
        ("applied", True, None),
        ("applied", False, "by callers who may not correct"),
        ("pending", True, "pending"),
        ("pending", False, "pending"),
        ("approved", False, None),
        ("rejected", True, "rejected"),
        ("recorded", True, None),
        ("recorded", False, "by callers who may not correct"),
    ],
)
def test_only_what_is_trusted_or_approved_is_learned_from(state: str, trusted: bool, reason: str | None):
    """And why the rest is not."""
    each = record(state=state, trusted=trusted)

    assert reason_against(each) == reason
    assert (exported(each).rows == [], dict(exported(each).left_out)) == (
        reason is not None,
        {reason: 1} if reason else {},
    )


def test_a_row_has_what_the_correction_says():
    """Complexity only where it says one."""
    chosen = exported(record(1), record(2, "b", correct_complexity="simple"), confirmation(3, "c", "reasoning"))

    assert chosen.rows == [
        {"text": "a", "intent": "translation"},
        {"text": "b", "intent": "translation", "complexity": "simple"},
        {"text": "c", "intent": "reasoning"},
    ]
    assert chosen.last_id == "3-0"


def test_the_newest_of_several_for_a_text_holds():
    """A text is what training takes for one; what may not be learned from hides nothing."""
    chosen = exported(
        record(1, "Sum it up", "reasoning"),
        record(2, "  sum IT\tup", "summarization"),
        record(3, "sum it up", "translation", state="rejected"),
        record(4, "Sum it up", "coding", trusted=False),
    )

    assert chosen.rows == [{"text": "  sum IT\tup", "intent": "summarization"}]
    assert chosen.left_out == {
        "superseded by a newer one of the same text": 1,
        "rejected": 1,
        "by callers who may not correct": 1,
    }


def test_a_confirmation_of_what_holds_keeps_its_complexity_and_another_takes_its_place():
    """It changes nothing, unless it names another intent."""
    corrected = record(1, correct_complexity="complex")

    assert exported(corrected, confirmation(2)).rows == [
        {"text": "a", "intent": "translation", "complexity": "complex"}
    ]
    assert exported(corrected, confirmation(2, intent="reasoning")).rows == [{"text": "a", "intent": "reasoning"}]


texts = st.sampled_from(["a", "A ", "b", "b\n", "ß\u2028", "\u00a0x"])
records = st.builds(
    record,
    number=st.just(1),
    text=texts,
    intent=st.sampled_from(["translation", "reasoning"]),
    state=st.sampled_from(["applied", "pending", "approved", "rejected", "recorded"]),
    feedback_type=st.sampled_from(["correction", "confirmation"]),
    correct_complexity=st.sampled_from([None, "simple", "complex"]),
    trusted=st.booleans(),
)


@given(st.lists(records, max_size=12))
def test_training_takes_every_export(tmp_path_factory: pytest.TempPathFactory, given_records: list[dict[str, Any]]):
    """No text with two labels, nothing blank; each record is a row or left out."""
    chosen = exported(*given_records)
    file = tmp_path_factory.getbasetemp() / "feedback.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen.rows))
    rows = read_rows([file]) if chosen.rows else []

    assert len(rows) == len(chosen) == len(given_records) - chosen.left_out.total()
