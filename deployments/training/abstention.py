"""How sure an answer must be to be given: the threshold below which an artifact answers `out_of_scope`."""

import math
from collections.abc import Sequence
from typing import Final

KEPT: Final = 0.95
"""Share of texts in scope that are still answered where no others tell where to part them."""
DECIMALS: Final = 6


def choose_threshold(known: Sequence[float], unknown: Sequence[float] = ()) -> float:
    """Choose the least confidence that is answered.

    With confidences of texts out of scope (`unknown`), it is where the share of `known` at or above it and the share of
    `unknown` below it have the largest sum (Youden's J). Without, or where no threshold parts them better than chance,
    `KEPT` of `known` are at or above it.
    """
    import numpy as np
    from sklearn.metrics import roc_curve

    chosen = np.quantile(known, 1 - KEPT, method="lower")
    if unknown:
        false_alarms, hits, thresholds = roc_curve([True] * len(known) + [False] * len(unknown), [*known, *unknown])
        gains = hits - false_alarms
        if gains.max() > 0:
            chosen = thresholds[np.argmax(gains)]
    return math.floor(float(chosen) * 10**DECIMALS) / 10**DECIMALS
