"""A report as a picture: four panels on one PNG. Needs matplotlib, which nothing else here does.

    latency over time          calls a second over time, failures among them
    latency, cumulative        latency by percentile, the tail stretched

Above, when something happened; below, to whom. Colours are Okabe and Ito's, told apart by colour-blind readers, and no
line is told from another by colour alone.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.distribution import Distribution, Values, column_counts
from loadgen.load import LoadError
from loadgen.report import ANSWERED_SERIES, FAILED_SERIES, SERIES, Report, Window
from loadgen.terminal import COORDINATED_OMISSION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#777777"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stroke:
    """How a line is drawn."""

    color: str
    linestyle: str | tuple[int, tuple[int, ...]]


STROKES = {
    "hit-local": Stroke(SKY, (0, (5, 1))),
    "hit-redis": Stroke(BLUE, "-"),
    "miss": Stroke(VERMILLION, "-"),
    "correction": Stroke(GREEN, (0, (1, 1))),
    "bypass": Stroke(ORANGE, (0, (5, 1, 1, 1))),
    "unknown": Stroke(BLACK, "-"),
    "batch": Stroke(PURPLE, (0, (3, 1))),
    "feedback": Stroke(GREY, (0, (1, 1))),
}
PERCENTILES = ((50, Stroke(SKY, "-")), (95, Stroke(BLUE, (0, (4, 1)))), (99, Stroke(BLACK, (0, (1, 1)))))
FAILURES = {
    "shed": ("v", ORANGE),
    "rejected": ("s", PURPLE),
    "server_error": ("X", VERMILLION),
    "timeout": ("D", BLACK),
    "connection": ("P", GREEN),
}
HEADROOM = 1.35
"""The legend's place, above all that is drawn."""
SAME_TIME_S = 1e-6
TICK_DIGITS = {20: (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8), 10_000: (1, 2, 5), math.inf: (1,)}
"""Which digits get a tick in each power of ten, by how many times the highest value is the lowest."""
TAIL = (0, 50, 90, 95, 99, 99.9, 99.99, 99.999)


def write_plots(report: Report, folder_or_png: Path) -> list[Path]:
    """Draw the report into a `.png`, or into a folder under a name made of its date; returns what was written.

    Raises:
        LoadError: matplotlib is not installed, or the place cannot be written.
    """
    path = _path(report, folder_or_png)
    figure = _figure(report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise LoadError(f"cannot write {path}: {error.strerror}") from error
    return [path]


def _figure(report: Report) -> "Figure":
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise LoadError("plots need matplotlib: pip install 'intentgraph[plots]'") from error
    figure = Figure(figsize=(14, 9.5), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12))
    figure.suptitle(_title(report), fontsize=11, color=BLACK if report.valid else VERMILLION, parse_math=False)
    (over_time, rate), (cumulative, tail) = figure.subplots(2, 2)
    _draw_latency_over_time(over_time, report)
    _draw_rate(rate, report)
    _draw_cumulative(cumulative, report)
    _draw_tail(tail, report)
    return figure


def _path(report: Report, folder_or_png: Path) -> Path:
    if folder_or_png.suffix.lower() == ".png":
        return folder_or_png
    return folder_or_png / f"load-{report.started_at.partition('+')[0].replace(':', '')}.png"


def _title(report: Report) -> str:
    verdict = "valid" if report.valid else f"INVALID: {'; '.join(report.invalid_because)}"
    early = "" if report.ended == "complete" else f"; ended early: {report.ended}"
    run = f"{report.target}, {report.loop} loop, {report.started_at}, commit {report.commit or 'unknown'}"
    waits = f"\n{textwrap.fill(COORDINATED_OMISSION, 150)}" if report.loop == "closed" else ""
    return textwrap.fill(f"{run}; {verdict}{early}", 150) + waits


def _draw_latency_over_time(axes: "Axes", report: Report) -> None:
    axes.set(title="Latency over time", ylabel="latency, ms", yscale="log")
    answered = [Distribution.of(_histograms(window, ANSWERED_SERIES)) for window in report.windows]
    for percent, stroke in PERCENTILES:
        _draw_steps(axes, report, _percentiles(answered, percent), stroke, f"answered, p{percent}")
    for series in FAILED_SERIES:
        failed = [Distribution.of(_histograms(window, (series,))) for window in report.windows]
        _draw_failures(axes, report, _percentiles(failed, 50), series, f"{series}, p50")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** (HEADROOM - 1))
    _logarithmic(axes.yaxis)
    _finish_time(axes, report)


def _draw_rate(axes: "Axes", report: Report) -> None:
    axes.set(title="Calls a second", ylabel="calls/s")
    _draw_steps(axes, report, _rates(report, SERIES), Stroke(BLACK, (0, (1, 1))), "sent")
    _draw_steps(axes, report, _rates(report, (*ANSWERED_SERIES, "feedback")), Stroke(BLUE, "-"), "answered")
    axes.set_ylim(0, HEADROOM * max(_rates(report, SERIES), default=1.0))
    failed = any(series in report.latency for series in FAILED_SERIES)
    _finish_time(axes, report, *([_draw_failed_shares(axes, report)] if failed else []))


def _draw_failed_shares(axes: "Axes", report: Report) -> "Axes":
    """On a scale of their own: beside all calls the few that fail would lie on the floor."""
    shares = axes.twinx()
    sent = np.maximum(_rates(report, SERIES), 1e-9)
    most = 0.0
    for series in FAILED_SERIES:
        share = _rates(report, (series,)) / sent * 100
        _draw_failures(shares, report, np.where(share > 0, share, np.nan), series, f"{series}, %")
        most = max(most, *share)
    shares.set_ylabel("failed, % of the window's calls (marks)")
    shares.set_ylim(0, HEADROOM * (most or 1.0))
    shares.spines["top"].set_visible(False)
    return shares


def _draw_cumulative(axes: "Axes", report: Report) -> None:
    axes.set(
        title="Share of the calls answered within a time",
        xlabel="latency, ms",
        ylabel="share of calls, %",
        xscale="log",
    )
    for series, distribution, stroke in _distributions(report):
        share = np.cumsum(distribution.counts) / distribution.count * 100
        values = np.insert(distribution.highest_ms, 0, distribution.highest_ms[0])
        label = f"{series} ({distribution.count:,})"
        axes.step(values, np.insert(share, 0, 0), where="post", label=label, **_style(stroke))
    axes.set_ylim(0, 102)
    _logarithmic(axes.xaxis)
    _finish(axes)


def _draw_tail(axes: "Axes", report: Report) -> None:
    """Percentiles by calls beyond them, 1 / (1 - p): each further nine takes the same width."""
    axes.set(title="Latency by percentile", xlabel="percentile", ylabel="latency, ms", xscale="log", yscale="log")
    most = 1
    for series, distribution, stroke in _distributions(report):
        beyond = distribution.count / np.maximum(distribution.count - np.cumsum(distribution.counts), 1)
        values = np.insert(distribution.highest_ms, 0, distribution.highest_ms[0])
        axes.step(np.insert(beyond, 0, 1), values, where="pre", label=series, **_style(stroke))
        most = max(most, distribution.count)
    ticks = {1 / (1 - percent / 100): f"{percent:g}" for percent in TAIL}
    shown = [tick for tick in ticks if tick <= most]
    axes.set_xticks(shown, [ticks[tick] for tick in shown])
    axes.set_xticks([], minor=True)
    _logarithmic(axes.yaxis)
    _finish(axes)


def _distributions(report: Report) -> Iterator[tuple[str, Distribution, Stroke]]:
    for series, stroke in STROKES.items():
        if series in report.latency and (distribution := Distribution.of([report.latency[series].histogram])):
            yield series, distribution, stroke


def _histograms(window: Window, names: Sequence[str]) -> list[str]:
    return [window.series[name] for name in names if name in window.series]


def _percentiles(windows: Sequence[Distribution | None], percent: float) -> Values:
    """By window, NaN where it holds no call."""
    return np.array([window.percentile_ms(percent) if window else np.nan for window in windows])


def _rates(report: Report, names: Sequence[str]) -> Values:
    """Calls a second, by window."""
    counts = [column_counts(_histograms(window, names)).sum() / report.length_s(window) for window in report.windows]
    return np.array(counts, dtype=np.float64)


def _draw_steps(axes: "Axes", report: Report, values: Values, stroke: Stroke, label: str) -> None:
    """A level for the length of its window, broken where windows are missing or hold nothing."""
    times_s: list[float] = []
    levels: list[float] = []
    for window, value in zip(report.windows, values.tolist(), strict=True):
        start_s = window.start_s - report.warmup_s
        if times_s and start_s - times_s[-1] > SAME_TIME_S:
            times_s.append(start_s)
            levels.append(math.nan)
        times_s += [start_s, start_s + report.length_s(window)]
        levels += [value, value]
    if np.isfinite(levels).any():
        axes.plot(times_s, levels, label=label, **_style(stroke))


def _draw_failures(axes: "Axes", report: Report, values: Values, series: str, label: str) -> None:
    if np.isfinite(values).any():
        middles_s = [each.start_s - report.warmup_s + report.length_s(each) / 2 for each in report.windows]
        marker, color = FAILURES[series]
        axes.plot(middles_s, values, label=label, linestyle="none", marker=marker, color=color, markersize=7)


def _style(stroke: Stroke) -> dict[str, Any]:
    return {"color": stroke.color, "linestyle": stroke.linestyle, "linewidth": 1.8}


def _logarithmic(axis: "XAxis | YAxis") -> None:
    """Plain figures instead of powers of ten, enough of them where the range is short; for when all is drawn."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = axis.get_view_interval()
    digits = next(digits for times, digits in TICK_DIGITS.items() if high / low < times)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())


def _finish_time(axes: "Axes", report: Report, *twins: "Axes") -> None:
    axes.set(xlabel="intended send time, s of the measured time", xlim=(0, report.measured_s or 1))
    _finish(axes, *twins, loc="upper center", ncols=3)


def _finish(axes: "Axes", *twins: "Axes", **place: Any) -> None:
    """The grid, and one legend for all that is drawn here, on the axes and their twins."""
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [handle for each in (axes, *twins) for handle in each.get_legend_handles_labels()[0]]
    if handles:
        (axes, *twins)[-1].legend(handles=handles, fontsize=9, framealpha=0.85, **place)
    else:
        axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center")
