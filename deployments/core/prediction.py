"""What the model says of a text: the value that crosses handles and is kept in the prediction store."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's answer for one text.

    `scores` maps every intent of the artifact to its probability (they sum to 1); `confidence` is the largest of them,
    also of an `out_of_scope` answer, which is given because it was too small.
    `tokens` counts the text's tokens before truncation. It depends on the text and `model_version` alone.
    """

    intent: str
    confidence: float
    complexity: str
    techniques: tuple[str, ...]
    scores: dict[str, float]
    tokens: int
    truncated: bool
    model_version: str
