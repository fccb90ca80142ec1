"""Whether a confidence of 0.8 is right 8 times in 10: measuring it, and setting the temperature that makes it so."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.5, 20.0
"""A few validation rows that are all right would ask for certainty: answers are sharpened twice at most."""


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
    """Find the temperature with the least `log_loss` (Guo et al. 2017, arXiv:1706.04599).

    The loss has one minimum over the logarithm of the temperature; a bounded scalar search finds it.
    """
    import math

    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_temperature: log_loss(logits, labels, weights, math.exp(log_temperature)),
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return round(math.exp(found.x), 4)


def log_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, temperature: float) -> float:
    """Give the weighted mean of -log p(right class) at a temperature.

    Args:
        logits: `[rows, classes]`.
        labels: `[rows]`, the right class of each.
        weights: `[rows]`, how much each row counts.
        temperature: What the logits are divided by.
    """
    from torch.nn.functional import cross_entropy

    losses = cross_entropy(logits.double() / temperature, labels, reduction="none")
    return float((losses * weights).sum() / weights.sum())


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of like confidence: how many, how sure they were on average, and how often right."""

    rows: int
    confidence: float
    accuracy: float


def reliability(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """Group answers by confidence into equal-width bins (a reliability diagram), leaving empty ones out."""
    groups: defaultdict[int, list[tuple[float, bool]]] = defaultdict(list)
    for confidence, is_right in zip(confidences, right, strict=True):
        groups[min(int(confidence * bins), bins - 1)].append((confidence, is_right))
    return [
        Bin(
            len(group),
            round(fmean(confidence for confidence, _ in group), 4),
            round(fmean(is_right for _, is_right in group), 4),
        )
        for _, group in sorted(groups.items())
    ]


def calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins (Guo et al. 2017)."""
    found = reliability(confidences, right, bins)
    return sum(each.rows * abs(each.confidence - each.accuracy) for each in found) / len(confidences)
