"""Whether a run was one state: percentiles over a drift describe nothing that was there at any time."""

from collections.abc import Sequence

from loadgen.distribution import merged
from loadgen.report import ANSWERED_SERIES, FAILED_SERIES, Steadiness, Window

THIRDS = 3
MIN_WINDOWS = 6
MIN_CALLS = 30
SHIFT = 1.25
"""A median that moved by a quarter is a drift; less is noise on a shared machine."""
SHIFT_MS = 1.0
ERROR_SHIFT = 0.01


def steadiness(windows: Sequence[Window]) -> Steadiness:
    """Compare the last third of the measured time with the first: medians by series, and the share of failures."""
    if len(windows) < MIN_WINDOWS:
        return Steadiness(steady=False, findings=[f"{len(windows)} windows are too few to tell"])
    third = len(windows) // THIRDS
    first, last = windows[:third], windows[-third:]
    findings = [*_medians(first, last), *_failures(first, last)]
    return Steadiness(steady=not findings, findings=findings)


def _medians(first: Sequence[Window], last: Sequence[Window]) -> list[str]:
    findings = []
    for series in ANSWERED_SERIES:
        before, after = (
            merged([each.series[series] for each in part if series in each.series]) for part in (first, last)
        )
        if min(before.get_total_count(), after.get_total_count()) < MIN_CALLS:
            continue
        before_ms, after_ms = (each.get_value_at_percentile(50) / 1000 for each in (before, after))
        moved = max(before_ms, after_ms) / min(before_ms, after_ms) > SHIFT
        if moved and abs(after_ms - before_ms) > SHIFT_MS:
            findings.append(f"the median of {series} went from {before_ms:.1f} ms to {after_ms:.1f} ms")
    return findings


def _failures(first: Sequence[Window], last: Sequence[Window]) -> list[str]:
    before, after = _failed_share(first), _failed_share(last)
    if abs(after - before) <= ERROR_SHIFT:
        return []
    return [f"failures went from {before:.1%} to {after:.1%}"]


def _failed_share(windows: Sequence[Window]) -> float:
    calls = failed = 0
    for window in windows:
        for series, histogram in window.series.items():
            count = merged([histogram]).get_total_count()
            calls += count
            failed += count if series in FAILED_SERIES else 0
    return failed / calls if calls else 0.0
