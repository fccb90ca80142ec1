"""The cache performance suite: `python -m loadgen.cache`.

    cold → warm → concurrent → mixed

Cold: every text is new to a purged cache. Warm: the same few texts, all kept. Concurrent: warm, as fast as many callers
can ask. Mixed: Zipf's law over many texts, from a purged cache, as users would. Every figure is held against what the
service promises; one that falls short changes the exit code only with `--strict`, a phase that is not to be believed
always.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from loadgen.cli import DEFAULT_URL, INTERRUPTED, NOT_BELIEVED, built, clear_errors, examples, run_app
from loadgen.display import Display, display_for
from loadgen.load import Load, LoadError
from loadgen.report import Latency, Report, write_whole
from loadgen.run import measure
from loadgen.terminal import COORDINATED_OMISSION, LATENCY_HEAD, latency_rows, print_line, print_table
from loadgen.traffic import Traffic

Phase = Literal["cold", "warm", "concurrent", "mixed"]
MAX_ERROR_RATE = 0.001
PHASES: tuple[Phase, ...] = ("cold", "warm", "concurrent", "mixed")


class Plan(BaseModel):
    """How hard and how long each phase asks. Rates are calls a second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = DEFAULT_URL
    lengths: str = "12:0.7,60:0.25,250:0.05"
    cold_rate: float = 10.0
    warm_rate: float = 200.0
    mixed_rate: float = 120.0
    callers: int = 32
    warm_texts: int = 1_000
    mixed_texts: int = 10_000
    zipf_s: float = 1.1
    phase_s: float = 20.0
    mixed_warmup_s: float = 30.0
    mixed_s: float = 60.0
    seed: int = 1

    def load(self, phase: Phase) -> Load:
        """What a phase sends."""
        warm = {"texts": "zipf", "zipf_s": 0.0, "distinct": self.warm_texts}
        common = {"seed": self.seed, "lengths": self.lengths, "duration_s": self.phase_s, "warmup_s": 3.0}
        traffic, state = {
            "cold": ({"texts": "unique", "rate": self.cold_rate}, "cold"),
            "warm": (warm | {"rate": self.warm_rate}, "warm"),
            "concurrent": (warm | {"arrivals": "closed", "connections": self.callers}, "warm"),
            "mixed": (
                {
                    "texts": "zipf",
                    "zipf_s": self.zipf_s,
                    "distinct": self.mixed_texts,
                    "rate": self.mixed_rate,
                    "warmup_s": self.mixed_warmup_s,
                    "duration_s": self.mixed_s,
                },
                "cold",
            ),
        }[phase]
        return Load(target=self.target, traffic=Traffic(**common | traffic), cache_state=state)  # type: ignore[arg-type]


class Suite(BaseModel):
    """The reports of the phases that were run."""

    plan: Plan
    reports: dict[Phase, Report]

    def write(self, path: Path) -> None:
        """Write as JSON."""
        write_whole(path, self.model_dump_json(indent=1) + "\n")

    def latency(self, phase: Phase, series: str) -> Latency | None:
        """Latency of a phase's series; None where the phase was not run, or nothing of the series was seen."""
        return self.reports[phase].summary(series) if phase in self.reports else None

    def hit_p99_ms(self) -> float | None:
        """Of the warm phase, open loop."""
        hits = self.latency("warm", "hit")
        return hits.p99_ms if hits else None

    def miss_p95_ms(self) -> float | None:
        """Of the cold phase, open loop."""
        misses = self.latency("cold", "miss")
        return misses.p95_ms if misses else None

    def speed_up(self) -> float | None:
        """How many hits take as long as one miss: the medians of the cold and the warm phase."""
        misses, hits = self.latency("cold", "miss"), self.latency("warm", "hit")
        return misses.p50_ms / hits.p50_ms if misses and hits else None

    def improvement(self) -> float | None:
        """The share of a miss's time that a hit does not take."""
        speed_up = self.speed_up()
        return 1 - 1 / speed_up if speed_up else None

    def mixed_speed_up(self) -> float | None:
        """The same within the mixed phase, where both share the machine."""
        misses, hits = self.latency("mixed", "miss"), self.latency("mixed", "hit")
        return misses.p50_ms / hits.p50_ms if misses and hits else None

    def hits_per_s(self) -> float | None:
        """Answers a second of the concurrent phase."""
        return self.reports["concurrent"].answered_per_s if "concurrent" in self.reports else None

    def mixed_per_s(self) -> float | None:
        """Answers a second of the mixed phase; nothing counts when more than a thousandth failed."""
        if (mixed := self.reports.get("mixed")) is None:
            return None
        return mixed.answered_per_s if mixed.error_rate <= MAX_ERROR_RATE else 0.0

    def hit_rate(self) -> float | None:
        """Of the mixed phase, its warm-up left out."""
        return self.reports["mixed"].hit_rate if "mixed" in self.reports else None

    def compute_saved(self) -> float | None:
        """The share of the mixed phase's texts that the model did not answer, from the cold start on.

        By the server's own counters; None where it has none.
        """
        mixed = self.reports.get("mixed")
        if mixed is None or mixed.reconciliation is None:
            return None
        counts = {row.name: row.server for row in mixed.reconciliation.counts}
        answered, computed = counts.get("texts answered"), counts.get("by the model")
        return 1 - computed / answered if answered and computed is not None else None


@dataclass(frozen=True, slots=True)
class Promise:
    """A figure and what it is held against: what the service promises, and the floor and aim of a release."""

    name: str
    phases: tuple[Phase, ...]
    figure: Callable[[Suite], float | None]
    shown: str
    promise: float
    floor: float | None = None
    aim: float | None = None
    at_most: bool = False

    def kept(self, measured: float) -> bool:
        """Whether the figure keeps the promise."""
        return self._holds(measured, self.promise)

    def reached(self, measured: float) -> str:
        """The furthest bound of all; SHORT when not even the promise is kept."""
        if not self.kept(measured):
            return "SHORT"
        bounds = (("aim", self.aim), ("floor", self.floor))
        return next((name for name, bound in bounds if bound and self._holds(measured, bound)), "promise")

    def _holds(self, measured: float, bound: float) -> bool:
        return measured <= bound if self.at_most else measured >= bound


PROMISES = (
    Promise("hits, p99", ("warm",), Suite.hit_p99_ms, "{:.3g} ms", 10, 10, 5, at_most=True),
    Promise("misses, p95", ("cold",), Suite.miss_p95_ms, "{:.3g} ms", 200, 100, 25, at_most=True),
    Promise("speed-up, hit over miss", ("cold", "warm"), Suite.speed_up, "{:.1f}x", 5, None, 10),
    Promise("shorter by", ("cold", "warm"), Suite.improvement, "{:.1%}", 0.8, None, 0.9),
    Promise("hits, concurrent (closed loop)", ("concurrent",), Suite.hits_per_s, "{:.0f}/s", 500),
    Promise("mix, sustained", ("mixed",), Suite.mixed_per_s, "{:.0f}/s", 100),
    Promise("mix, hit rate", ("mixed",), Suite.hit_rate, "{:.1%}", 0.6, 0.6, 0.8),
    Promise("mix, compute saved", ("mixed",), Suite.compute_saved, "{:.1%}", 0.7, 0.6, 0.75),
    Promise("mix, speed-up", ("mixed",), Suite.mixed_speed_up, "{:.1f}x", 5, 5, 10),
)


HEAD = ("figure", "measured", "promise", "floor", "aim", "reached")


def run_suite(plan: Plan, phases: Sequence[Phase], display: Display) -> Suite:
    """Run the phases in their order; an interrupted one is the last.

    Raises:
        LoadError: nobody answers at the target, or it cannot purge its cache, before anything was measured.
    """
    reports: dict[Phase, Report] = {}
    for phase in PHASES:
        if phase not in phases:
            continue
        display.tell(f"{phase}: {described(plan.load(phase))}")
        try:
            reports[phase] = measure(plan.load(phase), display)
        except (LoadError, KeyboardInterrupt) as error:
            if not reports:
                raise
            display.tell(f"{phase} did not begin: {error or 'interrupted'}; the phases before it are kept")
            break
        if reports[phase].ended != "complete":
            break
    return Suite(plan=plan, reports=reports)


def described(load: Load) -> str:
    """A load in a few words."""
    traffic = load.traffic
    how = f"{traffic.connections} callers" if traffic.arrivals == "closed" else f"{traffic.rate:g} calls/s"
    what = {"unique": "unique texts", "same": "one text", "zipf": f"{traffic.distinct:,} texts, s = {traffic.zipf_s:g}"}
    return f"{how}, {what[traffic.texts]}, {load.start} cache, {traffic.duration_s:g} s"


def render(suite: Suite, console: Console) -> None:
    """Show the phases and how each figure stands to its targets."""
    for phase, report in suite.reports.items():
        agrees = report.reconciliation and report.reconciliation.agrees
        counts = "counts agree with the server's" if agrees else "counts do NOT agree with the server's"
        print_line(console, f"{phase}: {described(suite.plan.load(phase))}; {counts}", "bold")
        for doubt in (*report.invalid_because, *report.steadiness.findings):
            print_line(console, f"  {'unsteady' if report.valid else 'INVALID'}: {doubt}", "red")
        if report.loop == "closed":
            print_line(console, COORDINATED_OMISSION, "yellow")
        print_table(console, LATENCY_HEAD, latency_rows(report))
        console.print()
    print_table(console, HEAD, list(rows(suite)))


def rows(suite: Suite) -> Iterator[tuple[str, ...]]:
    """Each figure and what it is held against, under `HEAD`."""
    for promise in PROMISES:
        measured = promise.figure(suite)
        bounds = (promise.promise, promise.floor, promise.aim)
        sign = "<= " if promise.at_most else ">= "
        yield (
            promise.name,
            "-" if measured is None else promise.shown.format(measured),
            *("-" if bound is None else sign + promise.shown.format(bound) for bound in bounds),
            "not measured" if measured is None else f"{promise.reached(measured)}{_mark(suite, promise)}",
        )


def _mark(suite: Suite, promise: Promise) -> str:
    """What speaks against a figure: its runs were invalid, or drifted."""
    reports = [suite.reports[phase] for phase in promise.phases]
    marks = [
        *(["invalid"] if not all(report.valid for report in reports) else []),
        *(["unsteady"] if not all(report.steadiness.steady for report in reports) else []),
    ]
    return f" ({', '.join(marks)})" if marks else ""


def kept(suite: Suite) -> bool:
    """Whether every figure of the phases that were run keeps its promise."""
    asked = [promise for promise in PROMISES if suite.reports.keys() >= set(promise.phases)]
    figures = [(promise, promise.figure(suite)) for promise in asked]
    return all(figure is not None and promise.kept(figure) for promise, figure in figures)


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(
    epilog=examples(
        "python -m loadgen.cache",
        "python -m loadgen.cache --phase cold --phase warm --cold-rate 50 --lengths 12:1",
        "python -m loadgen.cache --strict --out suite.json",
    )
)
def main(  # noqa: PLR0913, PLR0917 — one parameter for each option
    target: Annotated[
        str, typer.Option("--target", "--url", help="Address of the service; its cache is purged.")
    ] = DEFAULT_URL,
    phase: Annotated[list[str] | None, typer.Option(help="cold, warm, concurrent or mixed; all when absent.")] = None,
    lengths: Annotated[str, typer.Option(help="Mix of texts, words:share.")] = Plan().lengths,
    cold_rate: Annotated[float, typer.Option(help="Calls a second of the cold phase.")] = Plan().cold_rate,
    warm_rate: Annotated[float, typer.Option(help="Calls a second of the warm phase.")] = Plan().warm_rate,
    mixed_rate: Annotated[float, typer.Option(help="Calls a second of the mixed phase.")] = Plan().mixed_rate,
    phase_s: Annotated[float, typer.Option(help="Seconds measured in all but the mixed phase.")] = Plan().phase_s,
    mixed_s: Annotated[float, typer.Option(help="Seconds measured in the mixed phase.")] = Plan().mixed_s,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when a promise is not kept.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write all reports as JSON.")] = None,
) -> None:
    """Measure what the cache is worth, against what the service promises."""
    with clear_errors():
        if unknown := set(phase or ()) - set(PHASES):
            raise ValueError(f"no phase {', '.join(sorted(unknown))}; there are {', '.join(PHASES)}")
        plan = built(
            Plan,
            target=target,
            lengths=lengths,
            cold_rate=cold_rate,
            warm_rate=warm_rate,
            mixed_rate=mixed_rate,
            phase_s=phase_s,
            mixed_s=mixed_s,
        )
        phases = [each for each in PHASES if not phase or each in phase]
        suite = run_suite(plan, phases, display_for(Console(stderr=True)))
        if out:
            suite.write(out)
    render(suite, Console())
    sys.exit(_exit_code(suite, strict))


def _exit_code(suite: Suite, strict: bool) -> int:
    if any(report.ended == "interrupted" for report in suite.reports.values()):
        return INTERRUPTED
    if any(report.ended != "complete" or not report.valid for report in suite.reports.values()):
        return NOT_BELIEVED
    return NOT_BELIEVED if strict and not kept(suite) else 0


if __name__ == "__main__":  # worker processes import this file under another name
    run_app(app, "python -m loadgen.cache")
