"""Whether one run was faster than another, and how sure that is: `bootstrap` tells how each figure varies.

An interval knows the noise within these two runs, not that between one start of a service and the next.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.console import Console

from loadgen.bootstrap import MIN_BLOCKS, Estimate, Resampled, tails
from loadgen.report import ANSWERED_SERIES, FAILED_SERIES, GROUPS, SERIES, Report
from loadgen.terminal import machine_line, milliseconds, percent, print_line, print_table

PERCENTILES = (50, 90, 95, 99)
ANSWERED = (*ANSWERED_SERIES, "feedback")
FROM_CACHE = (*GROUPS["hit"], "correction")

Verdict = Literal["faster", "slower", "higher", "lower", "no difference shown", "unknown"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both runs.

    `change` is B/A, or B minus A where the figure is a share; `interval` is the change's. Where the runs hold too
    little to say, there is no interval, the verdict is `unknown`, and `why` tells. Latencies are in milliseconds.
    """

    name: str
    statistic: str
    a: float
    b: float
    change: float
    interval: tuple[float, float] | None
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run B against run A."""

    a: Report
    b: Report
    latencies: list[Difference]
    rates: list[Difference]
    warnings: list[str]
    confidence: float
    resamples: int


def compare(a: Report, b: Report, *, resamples: int = 2000, seed: int = 1, confidence: float = 0.95) -> Comparison:
    """Compare every series that both runs saw, and their rates. The same seed gives the same intervals."""
    random = np.random.default_rng(seed)
    pair = _Pair(Resampled(a, random, resamples), Resampled(b, random, resamples), confidence)
    return Comparison(
        a=a,
        b=b,
        latencies=[difference for name in _names(a, b) for difference in pair.latencies(name)],
        rates=list(pair.rates()),
        warnings=list(_warnings(a, b)),
        confidence=confidence,
        resamples=resamples,
    )


def render(comparison: Comparison, console: Console) -> None:
    """Print the comparison: doubts first, then the figures."""
    for name, report in (("A", comparison.a), ("B", comparison.b)):
        print_line(console, f"{name}  {_line(report)}", "" if report.valid else "bold red", hang=3)
    for warning in comparison.warnings:
        print_line(console, f"WARNING: {warning}", "yellow", hang=9)
    console.print()
    level = f"{comparison.confidence:.0%} interval"
    if comparison.latencies:
        print_table(
            console, ("latency, ms", "", "A", "B", "B/A", level, "B is"), map(_ratio_row, comparison.latencies), 2
        )
        console.print()
    print_table(console, ("", "A", "B", "change", level, "B is"), map(_rate_row, comparison.rates))
    console.print()
    print_line(console, _footnote(comparison))


class _Pair:
    """Both runs, resampled."""

    def __init__(self, a: Resampled, b: Resampled, confidence: float) -> None:
        self._runs = (a, b)
        self._tails = tails(confidence, min(a.blocks, b.blocks))

    def latencies(self, name: str) -> Iterator[Difference]:
        """The percentiles and the mean of one series."""
        for each in PERCENTILES:
            yield self._ratio(name, f"p{each}", [run.percentile(name, each) for run in self._runs])
        yield self._ratio(name, "mean", [run.mean(name) for run in self._runs])

    def rates(self) -> Iterator[Difference]:
        """What the runs brought forth, apart from latency; a rate that a run does not have is left out."""
        a, b = (run.report for run in self._runs)
        if a.answered_per_s and b.answered_per_s:
            yield self._ratio("answered/s", "", [run.rate(run.report.answered_per_s, ANSWERED) for run in self._runs])
        finished = (*ANSWERED, *FAILED_SERIES)
        shares = [run.share(run.report.error_rate, FAILED_SERIES, finished) for run in self._runs]
        yield self._points("error rate", shares)
        if a.hit_rate is not None and b.hit_rate is not None:
            looked_up = (*FROM_CACHE, "miss")
            shares = [run.share(run.report.hit_rate or 0.0, FROM_CACHE, looked_up) for run in self._runs]
            yield self._points("hit rate", shares)

    def _ratio(self, name: str, statistic: str, pair: Sequence[Estimate]) -> Difference:
        a, b = pair
        interval = self._interval(pair, np.divide)
        words: tuple[Verdict, Verdict] = ("faster", "slower") if statistic else ("lower", "higher")
        verdict = _verdict(interval, 1.0, words)
        return Difference(name, statistic, a.value, b.value, b.value / a.value, interval, verdict, a.doubt or b.doubt)

    def _points(self, name: str, pair: Sequence[Estimate]) -> Difference:
        a, b = pair
        interval = self._interval(pair, np.subtract)
        verdict = _verdict(interval, 0.0, ("lower", "higher"))
        return Difference(name, "", a.value, b.value, b.value - a.value, interval, verdict, a.doubt or b.doubt)

    def _interval(self, pair: Sequence[Estimate], change: np.ufunc) -> tuple[float, float] | None:
        a, b = pair
        if a.doubt or b.doubt:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            changes = change(b.resampled, a.resampled)
        low, high = np.quantile(changes[np.isfinite(changes)], self._tails)
        return float(low), float(high)


def _verdict(interval: tuple[float, float] | None, same: float, words: tuple[Verdict, Verdict]) -> Verdict:
    """`words` for a change below and above what `same` stands for."""
    if interval is None:
        return "unknown"
    low, high = interval
    below, above = words
    return below if high < same else above if low > same else "no difference shown"


def _names(a: Report, b: Report) -> list[str]:
    """What both runs saw: series, and the groups that merge several. How fast a call failed is no merit."""
    in_both = set(a.latency) & set(b.latency) - {*FAILED_SERIES, "cancelled"}
    series = [name for name in SERIES if name in in_both]
    return series + [group for group in ("hit", "all") if _merges(group, a, b)]


def _merges(group: str, a: Report, b: Report) -> bool:
    seen = [set(GROUPS[group]) & set(report.latency) for report in (a, b)]
    return all(seen) and len(seen[0] | seen[1]) > 1


def _warnings(a: Report, b: Report) -> Iterator[str]:
    for name, report in (("A", a), ("B", b)):
        if not report.valid:
            yield f"{name} is invalid: {'; '.join(report.invalid_because)}"
        if report.ended != "complete":
            yield f"{name} ended early ({report.ended}) after {report.measured_s:.1f} s"
        if not report.steadiness.steady:
            yield f"{name} was not steady, its intervals are too narrow: {'; '.join(report.steadiness.findings)}"
        if len(report.windows) < MIN_BLOCKS:
            yield f"{name} has {len(report.windows)} windows; {MIN_BLOCKS} are needed for intervals: run it longer"
    if a.loop != b.loop:
        yield f"A is an {a.loop} loop, B is {b.loop}: their latencies are not of one kind"
    yield from _differences("settings differ", _flat(_comparable(a)), _flat(_comparable(b)))
    yield from _differences("machines differ", _machine(a), _machine(b))
    yield from _differences("versions differ", a.versions, b.versions)
    for name, only in (("A", set(a.latency) - set(b.latency)), ("B", set(b.latency) - set(a.latency))):
        if only:
            yield f"seen in {name} alone: {', '.join(series for series in SERIES if series in only)}"


def _differences(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    different = [f"{key} {a.get(key)} → {b.get(key)}" for key in {**a, **b} if a.get(key) != b.get(key)]
    if different:
        yield f"{what}: {', '.join(different)}"


def _comparable(report: Report) -> dict[str, Any]:
    """Settings without the target, which the first lines show, and without the seed of texts drawn to be fresh."""
    settings = {key: value for key, value in report.settings.items() if key != "target"}
    if settings.get("cache_state") in (None, "fresh") and isinstance(settings.get("traffic"), dict):
        settings["traffic"] = {key: value for key, value in settings["traffic"].items() if key != "text_seed"}
    return settings


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _machine(report: Report) -> dict[str, Any]:
    return report.machine.model_dump(exclude={"load_average_before"})


def _line(report: Report) -> str:
    verdict = "valid" if report.valid else "INVALID"
    return (
        f"{verdict}, {report.started_at}, {report.target}, commit {report.commit or 'unknown'}; {machine_line(report)}"
    )


def _ratio_row(difference: Difference) -> tuple[str, ...]:
    figures = (milliseconds(difference.a), milliseconds(difference.b), f"{difference.change:.3f}")
    return (difference.name, difference.statistic, *figures, _bounds(difference, "{:.3f}"), _is(difference))


def _rate_row(difference: Difference) -> tuple[str, ...]:
    if difference.name == "answered/s":
        figures = (f"{difference.a:,.1f}", f"{difference.b:,.1f}", f"×{difference.change:.3f}")
        return (difference.name, *figures, _bounds(difference, "×{:.3f}"), _is(difference))
    figures = (percent(difference.a), percent(difference.b), f"{difference.change * 100:+.2f} points")
    return (difference.name, *figures, _bounds(difference, "{:+.2f}", 100), _is(difference))


def _bounds(difference: Difference, form: str, scale: float = 1) -> str:
    if difference.interval is None:
        return "none"
    low, high = (form.format(bound * scale) for bound in difference.interval)
    return f"{low} to {high}"


def _is(difference: Difference) -> str:
    return f"{difference.verdict}{': ' if difference.why else ''}{difference.why}"


def _footnote(comparison: Comparison) -> str:
    made = sum(each.interval is not None for each in [*comparison.latencies, *comparison.rates])
    by_chance = made * (1 - comparison.confidence)
    return (
        "B/A below 1: B is faster. "
        f"Intervals from {comparison.resamples:,} resamples of blocks of windows (block bootstrap); "
        f"by chance alone about {by_chance:.1f} of {made} would show a difference where none is. "
        "Starting the service anew may change more than they show."
    )
