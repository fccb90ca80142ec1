"""What twice too much does to the service: `python -m loadgen.overload`.

    find the rate  →  80 % of it  →  200 % for a minute  →  80 % again        one open loop of unique texts, no pause

Overload must be refused (429), early enough that whoever is accepted waits little longer than before; it must fail
nothing else, leave no memory behind, and be over when it is over. The service is started here with one model replica,
or is a running one.
"""

import json
import math
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import psutil
import typer
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.console import Console

from loadgen.cli import NOT_BELIEVED, built, clear_errors, examples, run_app
from loadgen.criteria import Outcome
from loadgen.display import Display, SilentDisplay, View, display_for
from loadgen.distribution import Distribution
from loadgen.kept import check_keeping, keep
from loadgen.load import Load, LoadError
from loadgen.local_service import LocalService, started_or
from loadgen.machine import command
from loadgen.readme import stamp, table
from loadgen.recording import MAX_WINDOWS
from loadgen.report import ANSWERED_SERIES, FAILED_SERIES, Report, Window
from loadgen.run import measure
from loadgen.slo import Measure, Objective, search
from loadgen.terminal import milliseconds, percent, print_line, print_table
from loadgen.texts import TextSource
from loadgen.traffic import Traffic

MARK = "overload"
SHORT_TEXTS = "12:1"
MAX_TIMES_P99 = 3.0
MAX_RECOVERY_S = 5.0
MAX_GROWTH = 0.1
"""Of the resident memory: what queues hold and allocators keep, on top of some GiB."""
CALM_WINDOWS = 2
"""So many normal windows in a row are a recovery; one may be luck."""
SATURATING_CALLERS = 64
SATURATING_S = 6.0
TRIAL_S = 8.0
MIB = 2**20

PhaseName = Literal["before", "overload", "after"]
PHASES: tuple[PhaseName, ...] = ("before", "overload", "after")
Tell = Callable[[str], object]


class Plan(BaseModel):
    """How long and how much; rates as shares of the sustainable one. `p99_ms` is what sustainable means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float | None = Field(None, gt=0)
    p99_ms: float = Field(500.0, gt=0)
    calm_share: float = Field(0.8, gt=0, lt=1)
    factor: float = Field(2.0, gt=1)
    calm_s: int = Field(25, ge=2)
    overload_s: int = Field(60, ge=2)
    warmup_s: int = Field(3, ge=0)
    max_lag_ms: float = Field(25.0, gt=0)

    @model_validator(mode="after")
    def _in_seconds(self) -> Self:
        if (total_s := sum(self.lengths_s)) > MAX_WINDOWS:
            raise ValueError(f"the phases take {total_s} s; over {MAX_WINDOWS} s a run is not kept second by second")
        return self

    @property
    def lengths_s(self) -> tuple[int, int, int]:
        """Of the three phases."""
        return self.calm_s, self.overload_s, self.calm_s

    def send_times(self, rate: float, seed: int) -> NDArray[np.float64]:
        """Poisson arrivals: those of unit rate through the inverse of the cumulative rate (`loadgen.schedule`)."""
        rates = rate * np.array([self.calm_share, self.calm_share, self.factor, self.calm_share])
        ends_s = np.cumsum([self.warmup_s, *self.lengths_s])
        cumulative = np.cumsum(rates * np.diff(ends_s, prepend=0))
        gaps = np.random.default_rng(seed).exponential(size=math.ceil(cumulative[-1] + 5 * math.sqrt(cumulative[-1])))
        arrivals = np.cumsum(gaps)
        kept = arrivals[arrivals < cumulative[-1]]
        times: NDArray[np.float64] = np.interp(kept, [0, *cumulative], [0, *ends_s])
        return times


class Phase(BaseModel):
    """One stretch. Latencies are those of the accepted; `failed` counts by kind, 429 (`shed`) among them."""

    name: PhaseName
    asked_per_s: float
    answered_per_s: float
    p50_ms: float
    p99_ms: float
    failed: dict[str, int]
    shed_share: float


class Memory(BaseModel):
    """Resident bytes of all the service's processes where the overload begins and ends, and who grew most."""

    begin_bytes: int
    end_bytes: int
    most: str

    @property
    def growth(self) -> float:
        """As a share of what there was."""
        return self.end_bytes / self.begin_bytes - 1


class Found(BaseModel):
    """Everything that was measured. `recovery_s` is None when it was never as before."""

    command: str
    stamp: str
    plan: Plan
    rate: float
    phases: dict[PhaseName, Phase]
    normal_ms: float
    recovery_s: float | None
    memory: Memory | None
    send_lag_p99_ms: float | None
    doubts: list[str]


def run_plan(plan: Plan, url: str, service: LocalService | None, tell: Tell, display: Display) -> Found:
    """Find the rate, unless it is given, and run the three phases; blocks until it is over.

    Raises:
        LoadError: nobody answers, or no rate holds.
        KeyboardInterrupt: as it says.
    """
    rate = plan.rate or sustainable(plan, url, tell)
    tell(f"sustainable: {rate:.1f}/s; now {plan.calm_share:.0%}, {plan.factor:.0%} and {plan.calm_share:.0%} of it")
    watch = MemoryWatch(display, service, [plan.warmup_s + plan.calm_s, plan.warmup_s + plan.calm_s + plan.overload_s])
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "overload.jsonl"
        write_trace(trace, plan.send_times(rate, seed=1))
        report = measure(_load(plan, url, trace), watch)
    if report.ended == "interrupted":
        raise KeyboardInterrupt
    return found(plan, rate, report, watch.memory)


def sustainable(plan: Plan, url: str, tell: Tell, measure: Measure = measure) -> float:
    """The highest rate that keeps the p99 with no failure, from half of what a closed loop reaches to twice that.

    The median of three searches: a machine that is slow for some seconds ends one of them at far too low a rate.
    Callers in a closed loop come back at once when they are refused, which takes from what is answered: an open loop
    may reach more.

    Raises:
        LoadError: not even half of it holds.
    """
    closed = {"arrivals": "closed", "connections": SATURATING_CALLERS, "texts": "unique", "lengths": SHORT_TEXTS}
    load = Load.model_validate({"target": url, "traffic": closed | {"warmup_s": 2, "duration_s": SATURATING_S}})
    report = measure(load)
    if report.ended == "interrupted":
        raise KeyboardInterrupt
    most = report.answered_per_s
    if not most:
        raise LoadError("nothing was answered")
    tell(f"{SATURATING_CALLERS} callers in a closed loop: {most:.1f}/s")
    objective = Objective(p99_ms=plan.p99_ms, error_rate=0.001, low=0.5 * most, high=2 * most, precision=0.1, repeats=3)
    trial = {"texts": "unique", "lengths": SHORT_TEXTS, "warmup_s": 2, "duration_s": TRIAL_S}
    load = Load.model_validate({"target": url, "traffic": trial, "max_lag_ms": plan.max_lag_ms})
    best = search(load, objective, tell, measure)
    if best.ended == "interrupted":
        raise KeyboardInterrupt
    if best.rate_per_s is None:
        first = best.highest_per_s.index(None) + 1
        why = next(trial.why_not for trial in reversed(best.trials) if trial.search == first)
        raise LoadError(f"not even {objective.low:.1f}/s is sustainable ({why}); raise --p99-ms, or give --rate")
    return best.rate_per_s


def write_trace(path: Path, times_s: Sequence[float] | NDArray[np.float64]) -> None:
    """A trace of unique texts that nobody has sent, at these times; times count from the first, so one goes at 0."""
    traffic = {"texts": "unique", "text_seed": secrets.randbelow(2**31), "lengths": SHORT_TEXTS}
    source = TextSource(Traffic.model_validate(traffic))
    rows = ({"time_s": float(at_s), "text": source.text(number)} for number, at_s in enumerate([0.0, *times_s]))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _load(plan: Plan, url: str, trace: Path) -> Load:
    traffic = {
        "arrivals": "trace",
        "trace": trace,
        "warmup_s": plan.warmup_s,
        "duration_s": sum(plan.lengths_s),
        "lengths": SHORT_TEXTS,
    }
    return Load.model_validate({"target": url, "traffic": traffic, "max_lag_ms": plan.max_lag_ms})


class Resident(NamedTuple):
    """A process's command and its resident memory."""

    name: str
    size_bytes: int


class MemoryWatch(SilentDisplay):
    """Passes on what a display is told, and reads the service's memory when the run is so far."""

    def __init__(self, display: Display, service: LocalService | None, at_s: Sequence[float]) -> None:
        self._display = display
        self._service = service
        self._due_s = list(at_s) if service else []
        self._read: list[dict[int, Resident]] = []

    def tell(self, line: str) -> None:
        """See `Display`."""
        self._display.tell(line)

    def update(self, view: View) -> None:
        """See `Display`."""
        self._display.update(view)
        if self._service and self._due_s and view.elapsed_s >= self._due_s[0]:
            self._due_s.pop(0)
            self._read.append(dict(_resident(self._service)))

    def close(self) -> None:
        """See `Display`."""
        self._display.close()

    @property
    def memory(self) -> Memory | None:
        """What was read; None where the service is not this machine's to look into, or the run ended before."""
        return memory(*self._read) if len(self._read) > 1 else None


def _resident(service: LocalService) -> Iterator[tuple[int, Resident]]:
    for process in service.processes():
        try:
            name = (process.cmdline() or [process.name()])[0]
            yield process.pid, Resident(name, process.memory_info().rss)
        except psutil.NoSuchProcess:
            continue


def memory(begin: Mapping[int, Resident], end: Mapping[int, Resident]) -> Memory:
    """Compare two readings, each by process id: Ray's processes change their names as they work."""
    grown = {pid: read.size_bytes - (begin[pid].size_bytes if pid in begin else 0) for pid, read in end.items()}
    pid, most = max(grown.items(), key=lambda each: each[1])
    return Memory(
        begin_bytes=sum(read.size_bytes for read in begin.values()),
        end_bytes=sum(read.size_bytes for read in end.values()),
        most=f"{Path(end[pid].name).name} {most / MIB:+.0f} MiB",
    )


def found(plan: Plan, rate: float, report: Report, memory: Memory | None) -> Found:
    """Read the phases out of a run's windows."""
    before, overload, after = _split(plan, report)
    normal_ms = max((p99 for window in before if (p99 := _p99_ms([window])) is not None), default=0.0)
    return Found(
        command=command(),
        stamp=stamp(),
        plan=plan,
        rate=rate,
        phases={
            name: _phase(name, share * rate, windows)
            for name, share, windows in zip(
                PHASES, (plan.calm_share, plan.factor, plan.calm_share), (before, overload, after), strict=True
            )
        },
        normal_ms=normal_ms,
        recovery_s=recovery_s(after, normal_ms),
        memory=memory,
        send_lag_p99_ms=report.send_lag.p99_ms if report.send_lag else None,
        doubts=list(report.invalid_because),
    )


def _split(plan: Plan, report: Report) -> list[list[Window]]:
    """The windows of each phase, by where they begin.

    Raises:
        LoadError: the run ended before the last phase.
    """
    ends_s = plan.warmup_s + np.cumsum(plan.lengths_s)
    split: list[list[Window]] = [[], [], []]
    for window in report.windows:
        split[min(int(np.searchsorted(ends_s, window.start_s, side="right")), 2)].append(window)
    if not all(split):
        raise LoadError(f"the run ended early: {report.ended}; {'; '.join(report.invalid_because)}")
    return split


def _phase(name: PhaseName, asked_per_s: float, windows: Sequence[Window]) -> Phase:
    accepted = _accepted(windows)
    if accepted is None:
        raise LoadError(f"nothing was answered {name}")
    failed = Counter[str]()
    for window in windows:
        for series in FAILED_SERIES:
            if series in window.series and (distribution := Distribution.of([window.series[series]])):
                failed[series] += distribution.count
    return Phase(
        name=name,
        asked_per_s=asked_per_s,
        answered_per_s=accepted.count / sum(window.length_s for window in windows),
        p50_ms=accepted.percentile_ms(50),
        p99_ms=accepted.percentile_ms(99),
        failed=dict(failed),
        shed_share=failed["shed"] / (accepted.count + failed.total()),
    )


def _accepted(windows: Sequence[Window]) -> Distribution | None:
    return Distribution.of(
        window.series[series] for window in windows for series in ANSWERED_SERIES if series in window.series
    )


def _p99_ms(windows: Sequence[Window]) -> float | None:
    accepted = _accepted(windows)
    return accepted.percentile_ms(99) if accepted else None


def recovery_s(after: Sequence[Window], normal_ms: float) -> float | None:
    """Seconds from the overload's end to the first of two normal windows in a row: no failure, p99 as before."""
    calm = [
        not any(series in window.series for series in FAILED_SERIES)
        and (p99 := _p99_ms([window])) is not None
        and p99 <= normal_ms
        for window in after
    ]
    for number in range(len(after) - CALM_WINDOWS + 1):
        if all(calm[number : number + CALM_WINDOWS]):
            return after[number].start_s - after[0].start_s
    return None


def outcomes(found: Found) -> Iterator[Outcome]:
    """What an overload may do, and whether it did no more."""
    before, overload = found.phases["before"], found.phases["overload"]
    times = overload.p99_ms / before.p99_ms
    yield Outcome(
        times < MAX_TIMES_P99,
        times,
        f"accepted at {found.plan.factor:g}x the sustainable rate: p99 {milliseconds(overload.p99_ms)} ms, {times:.1f} "
        f"times the {milliseconds(before.p99_ms)} ms at {found.plan.calm_share:.0%}; under {MAX_TIMES_P99:g} times",
    )
    others = Counter[str]()
    for phase in found.phases.values():
        others.update({series: count for series, count in phase.failed.items() if series != "shed"})
    told = ", ".join(f"{series} {count:,}" for series, count in others.items()) or "no other failure"
    yield Outcome(
        not others.total(), others.total(), f"the rest is refused with 429 ({percent(overload.shed_share)}): {told}"
    )
    if found.memory:
        held = found.memory
        yield Outcome(
            held.growth <= MAX_GROWTH,
            held.growth,
            f"memory {held.begin_bytes / MIB:,.0f} MiB where the overload begins, {held.end_bytes / MIB:,.0f} MiB at "
            f"its end ({held.growth:+.1%}; most: {held.most}); at most {MAX_GROWTH:+.0%}",
        )
    back = "never" if found.recovery_s is None else f"after {found.recovery_s:.0f} s"
    yield Outcome(
        found.recovery_s is not None and found.recovery_s <= MAX_RECOVERY_S,
        found.recovery_s,
        f"back to normal (p99 over a second at most {milliseconds(found.normal_ms)} ms, nothing refused) {back}; "
        f"within {MAX_RECOVERY_S:g} s",
    )


HEAD = ("phase", "asked/s", "accepted/s", "p50, ms", "p99, ms", "429")


def _row(phase: Phase) -> tuple[str, ...]:
    return (
        phase.name,
        f"{phase.asked_per_s:,.1f}",
        f"{phase.answered_per_s:,.1f}",
        milliseconds(phase.p50_ms),
        milliseconds(phase.p99_ms),
        percent(phase.shed_share),
    )


def render(found: Found, console: Console) -> None:
    """Print the phases and what they are held against."""
    if found.send_lag_p99_ms is not None:
        print_line(console, f"send lag p99 {milliseconds(found.send_lag_p99_ms)} ms, part of every latency")
    print_table(console, HEAD, map(_row, found.phases.values()))
    for doubt in found.doubts:
        print_line(console, f"INVALID: {doubt}", "red")
    for outcome in outcomes(found):
        print_line(console, outcome.line, "green" if outcome.held else "bold red")


def markdown(found: Found) -> str:
    """The same for a README."""
    lines = [f"- {outcome.line}" for outcome in outcomes(found)]
    lines += [f"- **invalid**: {doubt}" for doubt in found.doubts]
    heading = (
        f"{found.stamp}; one model replica; service, stores and load generator share it; sustainable "
        f"{found.rate:,.1f}/s (p99 up to {found.plan.p99_ms:g} ms). `{found.command}`"
    )
    return "\n".join([heading, "", table(HEAD, map(_row, found.phases.values())), "", *lines])


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(
    epilog=examples(
        "python -m loadgen.overload",
        "python -m loadgen.overload --readme README.md",
        "python -m loadgen.overload --target http://127.0.0.1:8000 --rate 120 --duration 10 --calm 5",
    )
)
def main(  # noqa: PLR0913, PLR0917 — one parameter for each option
    target: Annotated[
        str | None, typer.Option("--target", "--url", help="A running service; one is started here when absent.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="The sustainable rate; found first when absent.")] = None,
    p99_ms: Annotated[float, typer.Option(help="The p99 up to which a rate is sustainable.")] = 500.0,
    factor: Annotated[float, typer.Option(help="Overload, in sustainable rates.")] = 2.0,
    duration: Annotated[int, typer.Option(help="Seconds of overload.")] = 60,
    calm: Annotated[int, typer.Option(help="Seconds at 80 % before it, and after it.")] = 25,
    max_lag_ms: Annotated[float, typer.Option(help="A run is invalid when the p99 of its send lag is over it.")] = 25.0,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    readme: Annotated[Path | None, typer.Option(help="Also put the table into this file, between its marks.")] = None,
) -> None:
    """Send twice what the service can take, for a minute, and see what that does to the rest; about eight minutes."""
    with clear_errors():
        check_keeping(out, readme, MARK)
        plan: Plan = built(
            Plan,
            rate=rate,
            p99_ms=p99_ms,
            factor=factor,
            overload_s=duration,
            calm_s=calm,
            max_lag_ms=max_lag_ms,
        )
        with started_or(target) as (url, service):
            result = run_plan(plan, url, service, _tell, display_for(Console(stderr=True)))
        keep(result, out, readme, MARK, markdown(result))
        render(result, Console())
    held = all(outcome.held for outcome in outcomes(result)) and not result.doubts
    sys.exit(0 if held else NOT_BELIEVED)


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":  # worker processes import this file under another name
    run_app(app, "python -m loadgen.overload")
