"""From a prediction, and perhaps a correction, to the answer a caller sees.

A corrected answer is the model's with the person's word laid over it: the correction decides the intent, and complexity
and techniques where it names them; the rest follows from the model and the artifact's technique table.
"""

import json
from typing import Any

from deployments.core.artifact import Artifact
from deployments.core.corrections import Correction
from deployments.core.prediction import Prediction


def classify(
    prediction: Prediction, correction: Correction | None, artifact: Artifact, *, scores: bool = False
) -> dict[str, Any]:
    """The classification as plain JSON values, in the contract's order of fields."""
    if correction:
        return _corrected(prediction, correction, artifact)
    answer = {
        "intent": prediction.intent,
        "confidence": prediction.confidence,
        "complexity": prediction.complexity,
        "suggested_techniques": list(prediction.techniques),
        "metadata": _metadata(prediction, "model"),
    }
    if scores:
        answer["scores"] = prediction.scores
    return answer


def fits(correction: Correction, artifact: Artifact) -> bool:
    """Whether the artifact has the labels a correction speaks of; one from before a change of labels may not."""
    return (
        correction.intent in artifact.answer_names
        and (correction.complexity is None or correction.complexity in artifact.complexity_levels)
        and set(correction.techniques or ()) <= set(artifact.technique_names)
    )


def _corrected(prediction: Prediction, correction: Correction, artifact: Artifact) -> dict[str, Any]:
    complexity = correction.complexity or prediction.complexity
    techniques = correction.techniques
    if techniques is None:
        techniques = artifact.techniques_for(correction.intent, complexity)
    return {
        "intent": correction.intent,
        "confidence": 1.0,
        "complexity": complexity,
        "suggested_techniques": list(techniques),
        "metadata": _metadata(prediction, "correction"),
    }


def _metadata(prediction: Prediction, source: str) -> dict[str, Any]:
    return {
        "model_version": prediction.model_version,
        "source": source,
        "tokens": prediction.tokens,
        "truncated": prediction.truncated,
    }


def to_json(value: object) -> bytes:
    """The one JSON writing of the service, so that a hit's body equals the miss's byte for byte."""
    return _encoder.encode(value).encode()


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
