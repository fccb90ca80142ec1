"""What one run found, as a document: written as JSON, read again by `compare`, the plots and the terminal.

Latencies count from the intended send time, in milliseconds; the histograms they come from hold microseconds and travel
with the report (HdrHistogram V2, compressed, base64), so that reports can be merged and compared without their samples.
"""

from pathlib import Path
from typing import Any, Literal, Self

from hdrh.histogram import HdrHistogram
from pydantic import BaseModel, ConfigDict

from loadgen.distribution import Distribution, merged

SCHEMA: Literal[1] = 1
HIT_SERIES = ("hit-local", "hit-redis")
ANSWERED_SERIES = (*HIT_SERIES, "miss", "correction", "bypass", "unknown", "batch")
"""Answered classifications: by `X-Cache` for single texts, `batch` for many at once, `unknown` where the target says
nothing of its cache."""
FAILED_SERIES = ("shed", "rejected", "server_error", "timeout", "connection")
"""429, other 4xx, 5xx, no answer in time, no connection or a broken one."""
SERIES = (*ANSWERED_SERIES, "feedback", *FAILED_SERIES, "cancelled")
GROUPS = {"all": ANSWERED_SERIES, "hit": HIT_SERIES, "failed": FAILED_SERIES}
"""Names that stand for several series merged."""


class Document(BaseModel):
    """A part of the report; frozen, and strict about what it is read from."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Latency(Document):
    """Percentiles of one series, in milliseconds, and the histogram they were read from."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    histogram: str

    @classmethod
    def of(cls, histogram: HdrHistogram) -> Self:
        """Summarise a histogram of microseconds that holds a call at least."""
        distribution = Distribution.of_histogram(histogram)
        assert distribution
        at = distribution.percentile_ms
        return cls(
            count=distribution.count,
            mean_ms=distribution.mean_ms,
            p50_ms=at(50),
            p90_ms=at(90),
            p95_ms=at(95),
            p99_ms=at(99),
            p999_ms=at(99.9),
            max_ms=distribution.max_ms,
            histogram=histogram.encode().decode(),
        )


class Window(Document):
    """A stretch of the measured time: what was to be sent in it, by series, as encoded histograms."""

    start_s: float
    length_s: float
    series: dict[str, str]


class Machine(Document):
    """Where the load generator ran; the service too, when its address is this machine's."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    load_average_before: float


class Steadiness(Document):
    """Whether the measured time was one state and not a drift through several."""

    steady: bool
    findings: list[str]


class Counted(Document):
    """One count of the server beside the client's: `low` answered for certain, `high` with those nobody can tell."""

    name: str
    server: int
    low: int
    high: int

    @property
    def agrees(self) -> bool:
        """Whether the server's count is one the client's observations allow."""
        return self.low <= self.server <= self.high


class Reconciliation(Document):
    """The server's `/metrics` against the client's counts, over the whole run, warm-up included."""

    agrees: bool
    counts: list[Counted]
    note: str


class Report(Document):
    """One run."""

    schema_version: Literal[1] = SCHEMA
    started_at: str
    command: str
    machine: Machine
    versions: dict[str, str]
    commit: str | None
    settings: dict[str, Any]
    target: str
    loop: Literal["open", "closed"]
    ended: Literal["complete", "interrupted", "target died", "worker died"]
    valid: bool
    invalid_because: list[str]
    warmup_s: float
    measured_s: float
    asked_per_s: float | None
    sent_per_s: float
    answered_per_s: float
    texts_per_s: float
    send_lag: Latency | None
    calls: dict[str, int]
    texts: dict[str, int]
    hit_rate: float | None
    predicted_hit_rate: float | None
    error_rate: float
    latency: dict[str, Latency]
    windows: list[Window]
    steadiness: Steadiness
    failures: dict[str, int]
    reconciliation: Reconciliation | None

    def write(self, path: Path) -> None:
        """Write the JSON document, whole or not at all."""
        write_whole(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a report.

        Raises:
            OSError: no such file.
            ValueError: not a report of this schema.
        """
        return cls.model_validate_json(path.read_text(encoding="utf-8"))

    def length_s(self, window: Window) -> float:
        """Measured seconds of a window; the last is shorter where the run ended within it."""
        left_s = self.warmup_s + self.measured_s - window.start_s
        return min(window.length_s, left_s) if left_s > 0 else window.length_s

    def summary(self, name: str) -> Latency | None:
        """The latency of a series or of a group of them; None where nothing of it was seen."""
        seen = [self.latency[series].histogram for series in members(name) if series in self.latency]
        return Latency.of(merged(seen)) if seen else None


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def members(name: str) -> tuple[str, ...]:
    """The series that a name stands for: those of a group, or the series itself."""
    return GROUPS.get(name, (name,))
