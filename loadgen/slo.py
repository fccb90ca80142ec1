"""The highest rate that keeps a service level objective, found by bisection, several times over."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.console import Console
from rich.table import Table

from loadgen.load import Load
from loadgen.report import Report, write_whole
from loadgen.run import measure

Measure = Callable[[Load], Report]


class Objective(BaseModel):
    """What must hold, and between which rates to look."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p99_ms: float = Field(gt=0)
    error_rate: float = Field(0.001, ge=0, le=1)
    low: float = Field(10.0, gt=0)
    high: float = Field(1000.0, gt=0)
    precision: float = Field(0.05, gt=0, lt=1)
    repeats: int = Field(3, ge=1, le=20)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}: give a low below the high")
        return self


class Trial(BaseModel):
    """One rate tried. `goodput_per_s`: answers a second, of a run that kept the objective or not."""

    search: int
    rate_per_s: float
    kept: bool
    on_time: bool
    why_not: str
    p99_ms: float | None
    error_rate: float
    goodput_per_s: float
    hit_rate: float | None


class Found(BaseModel):
    """The median of the searches' highest rates; None when even the lowest rate did not hold in most of them."""

    objective: Objective
    ended: Literal["complete", "interrupted"]
    rate_per_s: float | None
    goodput_per_s: float | None
    highest_per_s: list[float | None]
    trials: list[Trial]
    settings: dict[str, object]

    def write(self, path: Path) -> None:
        """Write as JSON."""
        write_whole(path, self.model_dump_json(indent=1) + "\n")


def search(load: Load, objective: Objective, tell: Callable[[str], object], measure: Measure = measure) -> Found:
    """Bisect between the objective's rates, `repeats` times with other arrivals.

    Every search begins with the cache in its state (fresh, purged, warm), which then warms from trial to trial; unique
    texts are new in each. A run that the load generator could not send on time is tried once more, and then counts as
    not kept: nobody knows what the service would have done. Ctrl-C ends the search with what was found.
    """
    trials: list[Trial] = []
    ended: Literal["complete", "interrupted"] = "complete"
    try:
        for number in range(1, objective.repeats + 1):
            _bisect(objective, partial(_keeps, _Search(load, objective, number, trials, tell, measure)))
    except KeyboardInterrupt:
        ended = "interrupted"
    best = [_best_of(trials, number) for number in range(1, objective.repeats + 1)]
    median = statistics.median_low(sorted(trial.rate_per_s if trial else 0.0 for trial in best))
    return Found(
        objective=objective,
        ended=ended,
        rate_per_s=median or None,
        goodput_per_s=statistics.median(trial.goodput_per_s for trial in best if trial) if median else None,
        highest_per_s=[trial.rate_per_s if trial else None for trial in best],
        trials=trials,
        settings=load.model_dump(mode="json"),
    )


@dataclass(slots=True)
class _Search:
    """One bisection: its load is brought to its cache state by the first trial, and left as it is from then on."""

    load: Load
    objective: Objective
    number: int
    trials: list[Trial]
    tell: Callable[[str], object]
    measure: Measure
    begun: bool = False

    def load_at(self, rate: float) -> Load:
        """The load of the next trial."""
        if not self.begun and self.load.traffic.texts != "unique":
            self.load = self.load.freshened()
        state = "as-is" if self._is_prepared() else self.load.start
        self.begun = True
        traffic = self.load.traffic.model_copy(update={"rate": rate, "seed": self.load.traffic.seed + len(self.trials)})
        return self.load.model_copy(update={"traffic": traffic, "cache_state": state})

    def _is_prepared(self) -> bool:
        if self.load.traffic.texts == "unique":
            return False
        return self.begun or self.load.start == "fresh"


def _keeps(search: _Search, rate: float) -> bool:
    for _ in range(2):
        trial = _try(search.load_at(rate), search.objective, search.number, search.measure)
        search.trials.append(trial)
        search.tell(_line(trial))
        if trial.on_time:
            break
    return trial.kept


def _best_of(trials: list[Trial], search: int) -> Trial | None:
    kept = [trial for trial in trials if trial.search == search and trial.kept]
    return max(kept, key=lambda trial: trial.rate_per_s, default=None)


def _bisect(objective: Objective, keeps: Callable[[float], bool]) -> None:
    """Close in on the highest rate that keeps the objective; geometric halving, as rates span decades."""
    low, high = objective.low, objective.high
    if not keeps(low) or keeps(high):
        return
    while high / low > 1 + objective.precision:
        middle = (low * high) ** 0.5
        if keeps(middle):
            low = middle
        else:
            high = middle


def _try(load: Load, objective: Objective, number: int, measure: Measure) -> Trial:
    report = measure(load)
    if report.ended == "interrupted":
        raise KeyboardInterrupt
    summary = report.summary("all")
    why_not = "; ".join(_broken(report, objective))
    return Trial(
        search=number,
        rate_per_s=load.traffic.rate,
        kept=not why_not,
        on_time=report.valid,
        why_not=why_not,
        p99_ms=summary.p99_ms if summary else None,
        error_rate=report.error_rate,
        goodput_per_s=report.answered_per_s,
        hit_rate=report.hit_rate,
    )


def _broken(report: Report, objective: Objective) -> list[str]:
    summary = report.summary("all")
    broken = list(report.invalid_because)
    if report.ended != "complete":
        broken.append(report.ended)
    if summary is None or summary.p99_ms > objective.p99_ms:
        broken.append(f"p99 {summary.p99_ms:.1f} ms" if summary else "nothing was answered")
    if report.error_rate > objective.error_rate:
        broken.append(f"{report.error_rate:.2%} failed")
    return broken


def _line(trial: Trial) -> str:
    verdict = "kept" if trial.kept else f"not kept: {trial.why_not}"
    p99 = "" if trial.p99_ms is None else f"p99 {trial.p99_ms:.1f} ms, "
    return (
        f"search {trial.search}: {trial.rate_per_s:7.1f}/s  {p99}{trial.error_rate:.2%} failed, "
        f"{trial.goodput_per_s:.1f} answered/s  {verdict}"
    )


def render(found: Found, console: Console) -> None:
    """Show what was found on a terminal."""
    objective = found.objective
    table = Table("search", "highest rate /s", box=None, pad_edge=False)
    for number, rate in enumerate(found.highest_per_s, 1):
        table.add_row(str(number), "none held" if rate is None else f"{rate:.1f}")
    console.print(table)
    if found.ended != "complete":
        console.print("ENDED EARLY, interrupted: of the trials until then")
    if any(not trial.on_time for trial in found.trials):
        console.print("some trials were not sent on time: the load generator may be what bounds the rate")
    asked = f"p99 ≤ {objective.p99_ms:g} ms and failures ≤ {objective.error_rate:.2%}"
    if found.rate_per_s is None:
        console.print(f"{asked}: does not hold even at {objective.low:g}/s")
    else:
        console.print(f"{asked}: {found.rate_per_s:.1f}/s, goodput {found.goodput_per_s:.1f}/s (median of searches)")
