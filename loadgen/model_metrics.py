"""What the service's metrics tell of its forward passes between two moments.

Counters and a histogram's buckets are exact, its `_sum` is not: so passes are counted, and means of other things are
taken from the middles of the buckets and called what they are, estimates.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from loadgen.load import LoadError
from loadgen.server_metrics import REQUESTS

BATCH_SIZE = "intent_model_batch_size"
PADDING_SHARE = "intent_model_padding_share"
QUEUE_WAIT = "intent_model_queue_wait_seconds"
MODEL_INFO = "intent_model_info"
HISTOGRAMS = (BATCH_SIZE, PADDING_SHARE, QUEUE_WAIT)
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations up to each bound (cumulative), the last bound being infinite."""

    cumulative: Mapping[float, float] = field(default_factory=dict)

    def __sub__(self, before: Self) -> Self:
        """What was observed since."""
        return type(self)({bound: count - before.cumulative.get(bound, 0) for bound, count in self.cumulative.items()})

    @property
    def count(self) -> int:
        """All observations; exact."""
        return round(self.cumulative.get(math.inf, 0))

    @property
    def mean(self) -> float | None:
        """About the mean: every observation counts as the middle of its bucket, beyond the last bound as that bound."""
        if not self.count:
            return None
        edges = [(0.0, 0.0), *sorted(self.cumulative.items())]
        total = 0.0
        for (low, below), (high, up_to) in pairwise(edges):
            total += (up_to - below) * (low if math.isinf(high) else (low + high) / 2)
        return total / self.count


@dataclass(frozen=True, slots=True)
class Passes:
    """Forward passes, with the texts they answered."""

    texts: int
    histograms: Mapping[str, Histogram]
    runtimes: frozenset[str] = frozenset()

    def __sub__(self, before: Self) -> Self:
        """What came since."""
        since = {name: self.histograms[name] - before.histograms[name] for name in HISTOGRAMS}
        return type(self)(self.texts - before.texts, since, self.runtimes)

    @property
    def mean_batch(self) -> float | None:
        """Texts a pass; exact."""
        passes = self.histograms[BATCH_SIZE].count
        return self.texts / passes if passes else None

    @property
    def padding_share(self) -> float | None:
        """About the mean share of a pass's tokens that is padding."""
        return self.histograms[PADDING_SHARE].mean

    @property
    def queue_wait_ms(self) -> float | None:
        """About the mean time a text waited for its batch."""
        wait_s = self.histograms[QUEUE_WAIT].mean
        return None if wait_s is None else 1000 * wait_s


async def scrape_passes(url: str) -> Passes:
    """Read the service's metrics.

    Raises:
        LoadError: they cannot be read.
    """
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
            session.get(f"{url}/metrics") as response,
        ):
            response.raise_for_status()
            return parse(await response.text())
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise LoadError(f"{url}/metrics cannot be read: {error or type(error).__name__}") from error


def parse(exposition: str) -> Passes:
    """Read them from Prometheus's text format."""
    texts = 0
    buckets: dict[str, dict[float, float]] = {name: {} for name in HISTOGRAMS}
    runtimes = set()
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == REQUESTS and sample.labels["status"] == "success":
                texts += round(sample.value)
            if sample.name == f"{family.name}_bucket" and family.name in buckets:
                bound = float(sample.labels["le"])
                buckets[family.name][bound] = buckets[family.name].get(bound, 0) + sample.value
            if sample.name == MODEL_INFO and sample.value and "runtime" in sample.labels:
                runtimes.add(sample.labels["runtime"])
    return Passes(texts, {name: Histogram(found) for name, found in buckets.items()}, frozenset(runtimes))
