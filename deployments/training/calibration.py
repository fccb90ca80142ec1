"""Whether a confidence of 0.8 is right 8 times in 10: measuring it, and setting the temperature that makes it so."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
    """Find the temperature with the least weighted log loss (Guo et al. 2017, arXiv:1706.04599).

    The loss has one minimum over the logarithm of the temperature; golden-section search finds it without a step size.

    Args:
        logits: `[rows, classes]`.
        labels: `[rows]`, the right class of each.
        weights: `[rows]`, how much each row counts.
    """
    import math

    from torch.nn.functional import cross_entropy

    def loss(log_temperature: float) -> float:
        scaled = logits.double() / math.exp(log_temperature)
        return float((cross_entropy(scaled, labels, reduction="none") * weights).sum() / weights.sum())

    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:  # noqa: PLR2004
        inner_low, inner_high = high - ratio * (high - low), low + ratio * (high - low)
        if loss(inner_low) < loss(inner_high):
            high = inner_high
        else:
            low = inner_low
    return round(math.exp((low + high) / 2), 4)


def calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins (Guo et al. 2017)."""
    gaps = [0.0] * bins
    for confidence, is_right in zip(confidences, right, strict=True):
        gaps[min(int(confidence * bins), bins - 1)] += confidence - is_right
    return sum(abs(gap) for gap in gaps) / len(confidences)
