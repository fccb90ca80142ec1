"""Made-up reports: what each window saw, in milliseconds by series, and everything else from it."""

from collections import Counter
from collections.abc import Mapping, Sequence

from loadgen.distribution import empty_histogram, merged
from loadgen.report import (
    ANSWERED_SERIES,
    FAILED_SERIES,
    GROUPS,
    Latency,
    Machine,
    Report,
    Steadiness,
    Window,
)

WINDOW_S = 1.0
WARMUP_S = 5.0


def report(windows: Sequence[Mapping[str, Sequence[float]]] = (), **changes: object) -> Report:
    """A report of windows of a second; `changes` replace what follows from them."""
    encoded = [{series: encode(values) for series, values in window.items() if len(values)} for window in windows]
    calls = Counter({series: 0 for window in encoded for series in window})
    for window in windows:
        calls.update({series: len(values) for series, values in window.items()})
    measured_s = len(windows) * WINDOW_S
    answered = sum(calls[series] for series in (*ANSWERED_SERIES, "feedback"))
    failed = sum(calls[series] for series in FAILED_SERIES)
    hits = sum(calls[series] for series in (*GROUPS["hit"], "correction"))
    made = {
        "started_at": "2026-07-30T12:00:00+00:00",
        "command": "python -m loadgen --rate 200",
        "machine": Machine(
            processor="AMD EPYC 9R14", cores=2, memory_gib=7.8, system="Linux 6.1", load_average_before=0.4
        ),
        "versions": {"python": "3.11.9", "ray": "2.60.0"},
        "commit": "67f9a9a7f1",
        "settings": {"target": "http://127.0.0.1:8000", "traffic": {"rate": 200.0, "text_seed": 7}, "workers": 2},
        "target": "http://127.0.0.1:8000",
        "loop": "open",
        "ended": "complete",
        "valid": True,
        "invalid_because": [],
        "warmup_s": WARMUP_S,
        "measured_s": measured_s,
        "asked_per_s": _per_s(calls.total(), measured_s),
        "sent_per_s": _per_s(calls.total(), measured_s),
        "answered_per_s": _per_s(answered, measured_s),
        "texts_per_s": _per_s(answered, measured_s),
        "send_lag": latency([0.2] * 99 + [0.7]) if windows else None,
        "calls": dict(calls),
        "texts": {series: calls[series] for series in (*GROUPS["hit"], "correction", "miss") if calls[series]},
        "hit_rate": hits / (hits + calls["miss"]) if hits + calls["miss"] else None,
        "predicted_hit_rate": None,
        "error_rate": failed / (answered + failed) if answered + failed else 0.0,
        "latency": {
            series: latency_of([window[series] for window in encoded if series in window])
            for series, count in calls.items()
            if count
        },
        "windows": [
            Window(start_s=WARMUP_S + number * WINDOW_S, length_s=WINDOW_S, series=window)
            for number, window in enumerate(encoded)
        ],
        "steadiness": Steadiness(steady=True, findings=[]),
        "failures": {},
        "reconciliation": None,
    }
    return Report(**{**made, **changes})


def latency(values_ms: Sequence[float]) -> Latency:
    """The latency of some calls."""
    return latency_of([encode(values_ms)])


def latency_of(encoded: Sequence[str]) -> Latency:
    """The latency of encoded histograms."""
    return Latency.of(merged(encoded))


def encode(values_ms: Sequence[float]) -> str:
    """Milliseconds as an encoded histogram."""
    histogram = empty_histogram()
    for value in values_ms:
        histogram.record_value(max(1, round(value * 1000)))
    return histogram.encode().decode()


def _per_s(count: int, measured_s: float) -> float:
    return count / measured_s if measured_s else 0.0
