"""A series' latencies as arrays, read from its encoded histograms: what comparison, plots and criteria compute on.

Percentiles, mean and highest value are those the histogram itself gives, read a hundred times as fast.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from loadgen.report import GROUPS, empty_histogram, merged

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


def members(name: str) -> tuple[str, ...]:
    """The series that a name stands for: those of a group, or the series itself."""
    return GROUPS.get(name, (name,))


def column_counts(encoded: Iterable[str]) -> Counts:
    """Calls in each column of the sum of encoded histograms; shape (columns,), zeros for none."""
    counts = np.frombuffer(merged(list(encoded)).counts, dtype=np.uint64)
    return counts.astype(np.int64)


def percentile_rank(total: Counts, percent: float) -> Counts:
    """Which of `total` sorted values is the percentile, from 1: HdrHistogram's rounding."""
    return np.maximum((percent * total / 100 + 0.5).astype(np.int64), 1)


def _columns() -> tuple[Values, Values]:
    """The highest value of each column and its middle, in milliseconds: how HdrHistogram lays its columns out.

    The first `2n` columns are a microsecond wide, the next `n` two, the next `n` four, and so on.
    """
    shape = empty_histogram()
    index = np.arange(shape.counts_len)
    half = shape.sub_bucket_half_count
    bucket = np.maximum(index // half - 1, 0)
    width = 2**bucket
    lowest = (index - bucket * half) * width
    return (lowest + width - 1) / 1000, (lowest + width // 2) / 1000


HIGHEST_MS, MIDDLE_MS = _columns()


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """The occupied columns of a histogram, ascending; at least one call."""

    highest_ms: Values
    middle_ms: Values
    counts: Counts

    @classmethod
    def of(cls, encoded: Iterable[str]) -> Self | None:
        """The sum of encoded histograms; None where it holds no call."""
        counts = column_counts(encoded)
        occupied = np.flatnonzero(counts)
        if not occupied.size:
            return None
        return cls(HIGHEST_MS[occupied], MIDDLE_MS[occupied], counts[occupied])

    @property
    def count(self) -> int:
        """Calls."""
        return int(self.counts.sum())

    @property
    def mean_ms(self) -> float:
        """Mean of the columns' middles."""
        return float(self.counts @ self.middle_ms) / self.count

    @property
    def max_ms(self) -> float:
        """The highest value, to the resolution of its column."""
        return float(self.highest_ms[-1])

    def percentile_ms(self, percent: float) -> float:
        """The value that `percent` of the calls do not exceed, to the resolution of its column."""
        cumulative = np.cumsum(self.counts)
        rank = percentile_rank(cumulative[-1], percent)
        return float(self.highest_ms[np.searchsorted(cumulative, rank)])
