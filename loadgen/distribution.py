"""Latencies as histograms, and as the arrays behind them: what summaries, comparison, plots and criteria compute on.

Percentiles, mean and highest value are those that HdrHistogram itself gives, read a hundred times as fast.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


def empty_histogram() -> HdrHistogram:
    """1 µs to 10 minutes at three significant digits: an error of at most 0.1 %."""
    return HdrHistogram(1, 600_000_000, 3)


def merged(encoded: Iterable[str]) -> HdrHistogram:
    """The sum of encoded histograms; empty for none."""
    total = empty_histogram()
    for each in encoded:
        total.decode_and_add(each)
    return total


def column_counts(encoded: Iterable[str]) -> Counts:
    """Calls in each column of the sum of encoded histograms; shape (columns,), zeros for none."""
    return _columns_of(merged(encoded))


def _columns_of(histogram: HdrHistogram) -> Counts:
    return np.frombuffer(histogram.counts, dtype=np.uint64).astype(np.int64)


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
        return cls.of_histogram(merged(encoded))

    @classmethod
    def of_histogram(cls, histogram: HdrHistogram) -> Self | None:
        """A histogram of microseconds; None where it holds no call."""
        counts = _columns_of(histogram)
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
