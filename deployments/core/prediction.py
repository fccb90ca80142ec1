"""What the model says of a text: the value that crosses handles and is kept in the prediction store."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import FiniteFloat, TypeAdapter


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's answer for one text.

    `scores` maps every intent of the artifact to its probability (they sum to 1); `confidence` is the largest of them,
    also of an `out_of_scope` answer, which is given because it was too small.
    `tokens` counts the text's tokens before truncation. It depends on the text and `model_version` alone.
    """

    intent: str
    confidence: FiniteFloat
    complexity: str
    techniques: tuple[str, ...]
    scores: dict[str, FiniteFloat]
    tokens: int
    truncated: bool
    model_version: str


_PREDICTIONS = TypeAdapter(list[Prediction | None])


def predictions_to_json(predictions: Sequence[Prediction | None]) -> bytes:
    """Predictions as they travel between replicas; numbers keep every digit."""
    return _PREDICTIONS.dump_json(list(predictions))


def predictions_from_json(value: bytes) -> list[Prediction | None]:
    """The reverse of `predictions_to_json`. Raises ValueError."""
    return _PREDICTIONS.validate_json(value)
