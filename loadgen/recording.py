"""What the workers saw, gathered: histograms of latency by series and window, and counts of everything.

Two scopes. What is measured leaves the warm-up out. What is counted for the reconciliation with the server holds every
call, for the server knows of no warm-up.
"""

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

from loadgen.distribution import empty_histogram
from loadgen.report import ANSWERED_SERIES, FAILED_SERIES, GROUPS, Latency, Window

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

MAX_WINDOWS = 120
"""Enough for a smooth plot and a bootstrap, few enough for an hour's report to be small."""
MICROSECOND = 1e-6


class Sample(NamedTuple):
    """One finished call. Times are in seconds; `at_s` counts from the run's start."""

    at_s: float
    lag_s: float
    latency_s: float
    series: str
    caches: tuple[str, ...]
    texts: int
    counted: bool
    feedback: bool
    detail: str


class Tally:
    """Counts of texts and calls over the whole run, in the terms of the server's counters."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.refused_texts: Counter[str] = Counter()
        self.refused_calls: Counter[str] = Counter()
        self.feedback: Counter[str] = Counter()
        self.open_texts = 0
        self.open_calls = 0
        self.open_feedback = 0

    def add(self, sample: Sample) -> None:
        """Count a call; one that the service may or may not have counted is left open."""
        if sample.feedback:
            self._add_feedback(sample)
        elif not sample.counted:
            self.open_texts += sample.texts
            self.open_calls += 1
        elif sample.caches:
            self.answered.update(sample.caches)
        else:
            self.refused_texts[sample.series] += sample.texts
            self.refused_calls[sample.series] += 1

    def _add_feedback(self, sample: Sample) -> None:
        if sample.counted:
            self.feedback[sample.series] += 1
        else:
            self.open_feedback += 1


class Recording:
    """A run's measurements, filled sample by sample."""

    def __init__(self, warmup_s: float, duration_s: float) -> None:
        self.warmup_s = warmup_s
        self.duration_s = duration_s
        self._window_s = max(1.0, duration_s / MAX_WINDOWS)
        self._total: defaultdict[str, HdrHistogram] = defaultdict(empty_histogram)  # made once: one costs 160 µs
        self._windows: defaultdict[int, defaultdict[str, HdrHistogram]] = defaultdict(
            lambda: defaultdict(empty_histogram)
        )
        self._lag = empty_histogram()
        self.texts: Counter[str] = Counter()
        self.asked_texts = Counter({"warm-up": 0, "measured": 0})
        self.sent = 0
        self.answered = 0
        self.answered_texts = 0
        self.details: Counter[str] = Counter()
        self.tally = Tally()

    def add(self, sample: Sample) -> None:
        """Take a finished call into account."""
        self.tally.add(sample)
        if sample.detail:
            self.details[sample.detail] += 1
        self._count_answer(sample)
        warming = sample.at_s < self.warmup_s
        if not sample.feedback:
            self.asked_texts["warm-up" if warming else "measured"] += sample.texts
        if warming:
            return
        self.sent += sample.at_s + sample.lag_s < self.warmup_s + self.duration_s
        if sample.series != "cancelled":  # whoever leaves early sees more hits than misses
            self.texts.update(sample.caches)
        microseconds = max(1, round(sample.latency_s / MICROSECOND))
        window = self._windows[int((sample.at_s - self.warmup_s) / self._window_s)]
        for histograms in (self._total, window):
            histograms[sample.series].record_value(microseconds)
        self._lag.record_value(max(1, round(sample.lag_s / MICROSECOND)))

    def _count_answer(self, sample: Sample) -> None:
        """Throughput is what comes back within the measured time, whenever it was sent."""
        answered_s = sample.at_s + sample.latency_s
        is_answer = sample.series in ANSWERED_SERIES or sample.series == "feedback"
        if is_answer and self.warmup_s <= answered_s < self.warmup_s + self.duration_s:
            self.answered += 1
            self.answered_texts += len(sample.caches)

    @property
    def calls(self) -> dict[str, int]:
        """Finished calls by series; `cancelled` are those whose caller was to leave early, answered before or not."""
        return {series: histogram.get_total_count() for series, histogram in sorted(self._total.items())}

    @property
    def latency(self) -> dict[str, Latency]:
        """Latency of each series."""
        return {series: Latency.of(histogram) for series, histogram in sorted(self._total.items())}

    @property
    def send_lag(self) -> Latency | None:
        """How late calls were sent; None before any was."""
        return Latency.of(self._lag) if self._lag.get_total_count() else None

    @property
    def windows(self) -> list[Window]:
        """The measured time in stretches, by intended send time, up to the last that saw a call."""
        return [
            Window(
                start_s=self.warmup_s + number * self._window_s,
                length_s=self._window_s,
                series={
                    series: histogram.encode().decode()
                    for series, histogram in sorted(self._windows.get(number, {}).items())
                },
            )
            for number in range(max(self._windows, default=-1) + 1)
        ]

    @property
    def hit_rate(self) -> float | None:
        """Share of texts answered from a cache or a correction; None where the target does not say."""
        hits = sum(self.texts[state] for state in (*GROUPS["hit"], "correction"))
        looked_up = hits + self.texts["miss"]
        return hits / looked_up if looked_up else None

    @property
    def failed(self) -> int:
        """Calls that failed, shed ones too."""
        return sum(count for series, count in self.calls.items() if series in FAILED_SERIES)
