"""What a run shows while it goes on: a live table on a terminal, a line now and then elsewhere."""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadgen.recording import Recording, Sample
from loadgen.report import ANSWERED_SERIES, FAILED_SERIES

RECENT_S = 5.0
PLAIN_INTERVAL_S = 5.0
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class View:
    """The state of a run: the last `RECENT_S` seconds, and the hit rate so far."""

    elapsed_s: float
    total_s: float
    warming: bool
    rate_per_s: float
    in_flight: int
    latency_ms: dict[str, tuple[float, ...]]
    failed: dict[str, int]
    hit_rate: float | None
    predicted_hit_rate: float | None


class Recent:
    """The calls that finished lately, for the live view alone."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()

    def add(self, samples: list[Sample], now_s: float) -> None:
        """Add finished calls and forget those that finished long before `now_s`, seconds from the run's start."""
        self._samples.extend(samples)
        while self._samples and _finished_s(self._samples[0]) < now_s - RECENT_S:
            self._samples.popleft()

    def view(self, recording: Recording, elapsed_s: float, in_flight: int, predicted: float | None) -> View:
        """The state to show."""
        total_s = recording.warmup_s + recording.duration_s
        by_series: dict[str, list[float]] = {}
        for sample in self._samples:
            by_series.setdefault(sample.series, []).append(sample.latency_s * 1000)
        return View(
            elapsed_s=min(max(0.0, elapsed_s), total_s),
            total_s=total_s,
            warming=elapsed_s < recording.warmup_s,
            rate_per_s=len(self._samples) / min(RECENT_S, max(elapsed_s, 1.0)),
            in_flight=in_flight,
            latency_ms={
                series: tuple(np.percentile(by_series[series], PERCENTILES).tolist())
                for series in (*ANSWERED_SERIES, "feedback")
                if series in by_series
            },
            failed=dict(Counter({each: count for each, count in recording.calls.items() if each in FAILED_SERIES})),
            hit_rate=recording.hit_rate,
            predicted_hit_rate=predicted,
        )


def _finished_s(sample: Sample) -> float:
    return sample.at_s + sample.latency_s


class Display(Protocol):
    """Where progress goes."""

    def tell(self, line: str) -> None:
        """Say a thing once."""

    def update(self, view: View) -> None:
        """Show how the run stands."""

    def close(self) -> None:
        """The run is over."""


class SilentDisplay:
    """Shows nothing; for programs and tests."""

    def tell(self, line: str) -> None:
        """See `Display`."""

    def update(self, view: View) -> None:
        """See `Display`."""

    def close(self) -> None:
        """See `Display`."""


class PlainDisplay:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._next_s = 0.0

    def tell(self, line: str) -> None:
        """See `Display`."""
        self._write(line)

    def update(self, view: View) -> None:
        """See `Display`."""
        if self._clock() >= self._next_s:
            self._next_s = self._clock() + PLAIN_INTERVAL_S
            self._write(line_of(view))

    def close(self) -> None:
        """See `Display`."""


class LiveDisplay:
    """A table that stays in place, for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def tell(self, line: str) -> None:
        """See `Display`."""
        self._console.print(line, highlight=False, markup=False)

    def update(self, view: View) -> None:
        """See `Display`."""
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(_drawn(view), refresh=True)

    def close(self) -> None:
        """See `Display`."""
        if self._live:
            self._live.stop()
            self._live = None


def display_for(console: Console) -> Display:
    """Live on a terminal, plain elsewhere."""
    if console.is_terminal:
        return LiveDisplay(console)
    return PlainDisplay(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))


def line_of(view: View) -> str:
    """The state on one line."""
    latency = "; ".join(
        f"{series} p50 {p50:.1f} p95 {p95:.1f} p99 {p99:.1f} ms" for series, (p50, p95, p99) in view.latency_ms.items()
    )
    parts = [
        f"{view.elapsed_s:4.0f}/{view.total_s:.0f} s",
        *(["warm-up"] if view.warming else []),
        f"{view.rate_per_s:.0f}/s",
        f"{view.in_flight} in flight",
        *([latency] if latency else []),
        *([_hit_rate(view)] if view.hit_rate is not None else []),
        *([_failed(view)] if view.failed else []),
    ]
    return " | ".join(parts)


def _drawn(view: View) -> Group:
    table = Table("last 5 s", *(f"p{each} ms" for each in PERCENTILES), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for series, values in view.latency_ms.items():
        table.add_row(series, *(f"{value:,.1f}" for value in values))
    head = Text(
        f"{'warm-up' if view.warming else 'measuring'} {view.elapsed_s:.0f} of {view.total_s:.0f} s   "
        f"{view.rate_per_s:,.0f} answers/s   {view.in_flight} in flight"
    )
    bar = ProgressBar(total=view.total_s, completed=view.elapsed_s, width=60)
    tail = [Text(_hit_rate(view))] if view.hit_rate is not None else []
    failures = [Text(_failed(view), style="red")] if view.failed else []
    return Group(head, bar, table, *tail, *failures)


def _hit_rate(view: View) -> str:
    predicted = "" if view.predicted_hit_rate is None else f", {view.predicted_hit_rate:.1%} predicted"
    return f"hit rate {view.hit_rate:.1%}{predicted}"


def _failed(view: View) -> str:
    return "failed: " + ", ".join(f"{series} {count}" for series, count in view.failed.items())
