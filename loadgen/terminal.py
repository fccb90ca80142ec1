"""A report on the terminal: the verdict first, then what was run, then the figures. `compare` prints its tables alike.

Read on a screen it wraps at words; in a pipe nothing is wrapped, coloured or cut, so that `grep` and `awk` find it.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from loadgen.report import FAILED_SERIES, GROUPS, SERIES, Counted, Latency, Reconciliation, Report

COORDINATED_OMISSION = (
    "closed loop: callers wait for their answers before they send again, so the calls that a stall holds back are "
    "missing and the latencies are too low (coordinated omission: Tene's HdrHistogram and wrk2)"
)
LATENCY_HEAD = ("latency, ms", "count", "mean", "p50", "p90", "p95", "p99", "p99.9", "max")


def render(report: Report, console: Console) -> None:
    """Print the report."""
    for line, style in _verdict(report):
        print_line(console, line, style)
    console.print()
    for name, fact in _facts(report):
        print_line(console, f"{name:10}{fact}", hang=10)
    rows = list(latency_rows(report))
    if rows:
        console.print()
        print_table(console, LATENCY_HEAD, rows)
    console.print()
    if report.reconciliation:
        _print_reconciliation(console, report.reconciliation)
    else:
        print_line(console, "not held against the server's counts: it shows none", "yellow")


def print_line(console: Console, line: str, style: str = "", hang: int = 0) -> None:
    """Print a line as it is: brackets are no markup, digits get no colour; what wraps is indented by `hang`."""
    if console.is_terminal:
        line = textwrap.fill(line, console.width, subsequent_indent=" " * hang, break_on_hyphens=False)
    console.print(Text(line, style), soft_wrap=True)


def print_table(console: Console, head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Print a table whose first `left` columns hold words and whose others hold figures.

    Not rich's: it cuts cells where a terminal is narrow, and takes a pipe for one of 80 columns.
    """
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        console.print(Text("  ".join(cells), "bold" if not number else ""), soft_wrap=True)


def latency_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """A row for each series that is no failure, then for the failures, and for groups of several series."""
    for series in SERIES:
        if series in report.latency and series not in (*FAILED_SERIES, "cancelled"):
            yield _row(series, report.latency[series])
    for group in ("hit", "failed", "all"):
        merges = sum(series in report.latency for series in GROUPS[group])
        latency = report.summary(group) if merges > 1 or (group == "failed" and merges) else None
        if latency:
            yield _row(group, latency)


def milliseconds(value: float) -> str:
    """Three digits, no more than the histogram keeps: 0.412, 4.21, 42.1, 4,213."""
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0  # noqa: PLR2004 — powers of ten
    return f"{value:,.{decimals}f}"


def percent(share: float) -> str:
    """A share as percent: 0.123 %, 1.23 %, 71.2 %."""
    decimals = 1 if share >= 0.1 or not share else 2 if share >= 0.01 else 3  # noqa: PLR2004 — powers of ten
    return f"{share * 100:.{decimals}f} %"


def machine_line(report: Report) -> str:
    """The load generator's machine."""
    machine = report.machine
    return f"{machine.processor}, {machine.cores} cores, {machine.memory_gib:.1f} GiB, {machine.system}"


def _verdict(report: Report) -> Iterator[tuple[str, str]]:
    if report.valid:
        yield f"VALID, {report.loop} loop", "bold green"
    else:
        yield f"INVALID, {report.loop} loop: do not quote these figures", "bold red"
        yield from ((f"  because {reason}", "red") for reason in report.invalid_because)
    if report.ended != "complete":
        yield f"ENDED EARLY, {report.ended}: measured {report.measured_s:.1f} s, the figures are of these", "bold red"
    if report.loop == "closed":
        yield COORDINATED_OMISSION, "yellow"


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    yield "command", report.command
    yield "target", report.target
    yield "when", f"{report.started_at}, {report.measured_s:.1f} s measured after {report.warmup_s:.1f} s of warm-up"
    yield "machine", f"{machine_line(report)}; load average {report.machine.load_average_before:.2f} before"
    yield "commit", report.commit or "none: not run from a checkout"
    yield "versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield "rates", _rates(report)
    if report.send_lag:
        yield (
            "send lag",
            f"p99 {milliseconds(report.send_lag.p99_ms)} ms, max {milliseconds(report.send_lag.max_ms)} ms",
        )
    yield "calls", _counts(report.calls)
    yield "texts", _counts(report.texts)
    yield "errors", f"{percent(report.error_rate)} of the calls that were not cancelled"
    if report.failures:
        yield "failures", ", ".join(f"{what} ({count:,})" for what, count in report.failures.items())
    if report.hit_rate is not None:
        yield "hit rate", _hit_rate(report.hit_rate, report.predicted_hit_rate)
    yield "steady", "yes" if report.steadiness.steady else f"NO: {'; '.join(report.steadiness.findings)}"


def _rates(report: Report) -> str:
    asked = "" if report.asked_per_s is None else f"asked {report.asked_per_s:,.1f}/s, "
    return (
        f"{asked}sent {report.sent_per_s:,.1f}/s, answered well (goodput) {report.answered_per_s:,.1f}/s; "
        f"{report.texts_per_s:,.1f} texts/s"
    )


def _counts(counts: Mapping[str, int]) -> str:
    if not counts:
        return "none"
    parts = ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts, key=SERIES.index) if counts[name])
    return f"{sum(counts.values()):,}: {parts}"


def _hit_rate(measured: float, predicted: float | None) -> str:
    if predicted is None:
        return f"{percent(measured)} measured, none predicted"
    apart = abs(measured - predicted) * 100
    return f"{percent(measured)} measured, {percent(predicted)} predicted: {apart:.1f} points apart"


def _row(name: str, latency: Latency) -> tuple[str, ...]:
    figures = (
        latency.mean_ms,
        latency.p50_ms,
        latency.p90_ms,
        latency.p95_ms,
        latency.p99_ms,
        latency.p999_ms,
        latency.max_ms,
    )
    return (name, f"{latency.count:,}", *map(milliseconds, figures))


def _print_reconciliation(console: Console, found: Reconciliation) -> None:
    if found.counts:
        head = ("counts, warm-up included", "server", "client", "agree")
        print_table(console, head, map(_counted, found.counts))
    verdict = "server and client agree" if found.agrees else "server and client DISAGREE"
    print_line(console, f"{verdict}{': ' if found.note else ''}{found.note}", "green" if found.agrees else "bold red")


def _counted(count: Counted) -> tuple[str, ...]:
    client = f"{count.low:,}" if count.low == count.high else f"{count.low:,} to {count.high:,}"
    off = count.low - count.server if count.server < count.low else count.server - count.high
    return count.name, f"{count.server:,}", client, "yes" if count.agrees else f"NO, {off:,} off"
