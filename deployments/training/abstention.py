"""How sure an answer must be to be given: the threshold below which an artifact answers `out_of_scope`."""

from collections.abc import Sequence
from typing import Final

KEPT: Final = 0.95
"""Share of texts in scope that are still answered where there are no others to choose the threshold by."""


def choose_threshold(known: Sequence[float], unknown: Sequence[float] = ()) -> float:
    """Choose the least confidence that is answered.

    With confidences of texts out of scope (`unknown`), it is where the share of `known` at or above it and the share of
    `unknown` below it have the largest sum (Youden's J); without, `KEPT` of `known` are at or above it.
    """
    import numpy as np
    from sklearn.metrics import roc_curve

    if not unknown:
        return round(float(np.quantile(known, 1 - KEPT)), 4)
    false_alarms, hits, thresholds = roc_curve([True] * len(known) + [False] * len(unknown), [*known, *unknown])
    return min(1.0, round(float(thresholds[np.argmax(hits - false_alarms)]), 4))
