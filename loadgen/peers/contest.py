"""Runs a contest: one contestant up at a time, the order turned round in every repeat, the same load for all.

    repeat 1   A B C      the machine drifts, neighbours come and go, caches of the processor fill:
    repeat 2   C B A      whoever is first in one repeat is last in the next, and the median of the repeats counts
    repeat 3   A B C

The first repeat begins with this service: its answers are recorded, fill the stores of the peers that give the same,
and are held against theirs before anything is measured.
"""

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from loadgen.display import Display
from loadgen.load import Load, LoadError
from loadgen.machine import commit, machine, versions
from loadgen.peers import answers, environment
from loadgen.peers.contestants import OWN, PATH, Contestant, Stage, Tuning
from loadgen.peers.processes import NICENESS, alone, end_orphans, interrupted_by_any_signal
from loadgen.peers.results import Contest, Figures, Task
from loadgen.report import Report
from loadgen.run import measure
from loadgen.terminal import milliseconds
from loadgen.traffic import Traffic, distinct_texts

MIN_HIT_RATE = 0.99
"""A look-up over its time budget is a miss of this service's, by design: some are part of what is measured."""
MAX_ERROR_RATE = 0.001

T = TypeVar("T")
Tell = Callable[[str], None]
Measure = Callable[[Load], Report]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared, on what, for how long."""

    contestants: tuple[Contestant, ...]
    tasks: tuple[Task, ...]
    tuning: Tuning
    venv: Path
    torch_index: str = environment.CPU_INDEX
    repeats: int = 3
    duration_s: float = 10.0
    warmup_s: float = 3.0
    distinct: int = 1_000
    words: int = 12
    seed: int = 1

    def traffic(self, task: Task) -> Traffic:
        """What a task sends; texts of `unique` are other ones in every measurement."""
        return Traffic.model_validate(
            {
                "seed": self.seed,
                "text_seed": self.seed,
                "arrivals": "closed",
                "connections": task.connections,
                "texts": "zipf" if task.texts == "hits" else "unique",
                "zipf_s": 0.0,  # all equally often: popularity would leave the work to a few texts
                "distinct": self.distinct,
                "lengths": f"{self.words}:1",
                "warmup_s": self.warmup_s,
                "duration_s": self.duration_s,
            }
        )

    def load(self, task: Task, url: str) -> Load:
        """The load of a task on the service at that address."""
        return Load.model_validate(
            {
                "target": url,
                "traffic": self.traffic(task),
                "workers": min(2, task.connections),
                "cache_state": "as-is" if task.texts == "hits" else "fresh",
            }
        )

    def tasks_of(self, contestant: Contestant) -> list[Task]:
        """What it is asked, one connection before many: BentoML remembers how long batches of many waited."""
        return sorted(
            (task for task in self.tasks if task.texts in contestant.asked), key=lambda task: task.connections
        )

    @property
    def needs_venv(self) -> bool:
        """Whether a contestant runs in the peers' environment."""
        return any(each.in_venv for each in self.contestants)

    @property
    def minutes(self) -> float:
        """About how long it takes."""
        measured = sum(len(self.tasks_of(each)) * (self.duration_s + self.warmup_s + 4) for each in self.contestants)
        return self.repeats * (measured + 25 * len(self.contestants)) / 60


def tasks(connections: int) -> tuple[Task, ...]:
    """Every task there is."""
    many = f"{connections} connections"
    return (
        Task(name="hits", what=f"texts whose answers are kept, {many}", texts="hits", connections=connections),
        Task(name="unique", what=f"texts never seen, {many}", texts="unique", connections=connections),
        Task(name="hits-one", what="texts whose answers are kept, one connection", texts="hits", connections=1),
        Task(name="unique-one", what="texts never seen, one connection", texts="unique", connections=1),
    )


def order(items: Sequence[T], repeats: int) -> Iterator[tuple[int, T]]:
    """Each item once a repeat, with the repeat's number from 1: forwards, backwards and so on."""
    for repeat in range(1, repeats + 1):
        yield from ((repeat, item) for item in (items if repeat % 2 else reversed(items)))


def run(plan: Plan, tell: Tell, display: Display | None = None) -> Contest:
    """Run the contest; blocks until it is over. Ctrl-C or a server that fails ends it with what was found so far.

    Raises:
        LoadError: it cannot begin.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    stamp = machine()
    figures: list[Figures] = []
    with alone() as folder, interrupted_by_any_signal():
        end_orphans(tell)
        python = environment.prepare(plan.venv, tell, index=plan.torch_index) if plan.needs_venv else None
        stage = Stage(_emptied(folder / "run"), _emptied(folder / "logs"), python or Path(sys.executable), plan.tuning)
        ended = _run_all(plan, stage, figures, tell, lambda load: measure(load, display))
        shutil.rmtree(stage.folder, ignore_errors=True)
    return Contest(
        started_at=started_at,
        command=shlex.join(["python", "-m", "loadgen.peers", *sys.argv[1:]]),
        machine=stamp,
        versions=versions(),
        peer_versions=environment.versions(plan.venv),
        commit=commit(),
        settings=_settings(plan),
        contestants={each.name: each.what for each in plan.contestants},
        tasks=list(plan.tasks),
        reference=OWN,
        figures=figures,
        ended=ended,
    )


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _run_all(plan: Plan, stage: Stage, figures: list[Figures], tell: Tell, measure_load: Measure) -> str:
    """How it ended: `complete`, `interrupted`, or what failed."""
    at = ""
    try:
        for repeat, contestant in order(plan.contestants, plan.repeats):
            at = f"{contestant.name}, repeat {repeat} of {plan.repeats}"
            tell(f"{at}: {contestant.what}")
            with contestant.running(stage) as url:
                _agree_on_answers(plan, stage, contestant, url + PATH)
                for task in plan.tasks_of(contestant):
                    figures.append(_figures(task, contestant.name, repeat, measure_load(plan.load(task, url))))
                    tell(_line(figures[-1]))
    except KeyboardInterrupt:
        return "interrupted"
    except LoadError as error:
        return f"{at}: {error}"
    return "complete"


def _agree_on_answers(plan: Plan, stage: Stage, contestant: Contestant, url: str) -> None:
    """Record this service's answers, or hold the contestant's against them; either way all are kept afterwards."""
    hits = next((task for task in plan.tasks_of(contestant) if task.texts == "hits"), None)
    if hits is None:
        return
    given = answers.record(url, list(distinct_texts(plan.traffic(hits))))
    if contestant.answers == "recorded":
        stage.answers = given
    else:
        answers.compare(given, stage.answers, byte_for_byte=contestant.answers == "bytes")


def _figures(task: Task, contestant: str, repeat: int, report: Report) -> Figures:
    if report.ended == "interrupted":
        raise KeyboardInterrupt
    latency = report.summary("all")
    if report.ended != "complete" or latency is None:
        raise LoadError(f"{task.name}: {report.ended}, {sum(report.calls.values())} calls ended: {report.failures}")
    return Figures(
        task=task.name,
        contestant=contestant,
        repeat=repeat,
        answers=latency.count,
        answered_per_s=report.answered_per_s,
        p50_ms=latency.p50_ms,
        p95_ms=latency.p95_ms,
        p99_ms=latency.p99_ms,
        error_rate=report.error_rate,
        hit_rate=report.hit_rate,
        doubts=[*report.invalid_because, *_doubts(task, report)],
    )


def _doubts(task: Task, report: Report) -> Iterator[str]:
    if report.error_rate > MAX_ERROR_RATE:
        yield f"{report.error_rate:.2%} of the calls failed: {report.failures}"
    if task.texts == "hits" and (report.hit_rate is None or report.hit_rate < MIN_HIT_RATE):
        told = "unknown" if report.hit_rate is None else f"{report.hit_rate:.1%}"
        yield f"hit rate {told}: too many were not answered from what was kept"


def _line(figures: Figures) -> str:
    return f"  {figures.task}: {figures.answered_per_s:,.1f}/s, p50 {milliseconds(figures.p50_ms)} ms"


def _settings(plan: Plan) -> dict[str, Any]:
    names = ("repeats", "duration_s", "warmup_s", "distinct", "words", "seed")
    return {name: getattr(plan, name) for name in names} | asdict(plan.tuning) | {"niceness": NICENESS}
