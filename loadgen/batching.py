"""What dynamic batching gives: `python -m loadgen.batching`.

    throughput       unique texts over HTTP, callers in a closed loop, from one to many: do batches grow with the load
    bare forward     the same encoder, runtime, precision and threads without a service, before and after the level that
                     is held against it: how much of what the machine can do the service hands on
    mixed lengths    the same texts in random order and sorted by length: what padding and small batches cost

The service is started here with one model replica, or is a running one that should have one.
"""

import asyncio
import json
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from loadgen.cli import NOT_BELIEVED, built, clear_errors, examples, run_app
from loadgen.criteria import Outcome
from loadgen.in_order import send_in_order
from loadgen.kept import check_keeping, keep
from loadgen.load import Load, LoadError
from loadgen.local_service import model_threads, shipped_config, started_or
from loadgen.machine import command
from loadgen.model import whole_numbers
from loadgen.model_metrics import Passes, scrape_passes
from loadgen.readme import stamp, table
from loadgen.run import measure
from loadgen.terminal import COORDINATED_OMISSION, milliseconds, percent, print_line, print_table
from loadgen.texts import TextSource
from loadgen.traffic import Traffic

MARK = "batching"
SHORT_TEXTS = "12:1"
MIXED_WORDS = range(5, 401, 5)
BARE_BATCH = 32
BARE_TEXTS = 640
BARE_TIMEOUT_S = 120
ARRIVAL_S = 15
"""Ray reports each 10 s unless it is told otherwise."""
POLL_S = 0.5
PATIENCE_MS = 60_000
"""What the service started here lets a request expect to wait: throughput is asked for, so nothing is refused."""
MIN_SHARE = 0.7
MAX_LOSS = 0.15
MAX_ONE_P50_MS = 8.0
SAME = 0.95
"""A mean batch counts as no smaller than another from this share of it on: past saturation they are alike."""

Tell = Callable[[str], object]


class Plan(BaseModel):
    """How many callers, for how long, and how many texts of mixed length; none leaves that part out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connections: tuple[int, ...] = (1, 8, 32, 128)
    held_against: int = 32
    duration_s: float = Field(8.0, gt=0)
    warmup_s: float = Field(2.0, ge=0)
    threads: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    mixed_texts: int = Field(160, ge=0)
    mixed_rounds: int = Field(2, ge=1)
    mixed_callers: int = Field(32, ge=1)

    def load(self, url: str, connections: int) -> Load:
        """What a level sends: texts that nobody has sent."""
        traffic = {
            "arrivals": "closed",
            "connections": connections,
            "texts": "unique",
            "lengths": SHORT_TEXTS,
            "duration_s": self.duration_s,
            "warmup_s": self.warmup_s,
        }
        return Load.model_validate({"target": url, "traffic": traffic, "workers": min(2, connections)})


class Level(BaseModel):
    """One number of callers. Padding share and queue wait are estimates, over the warm-up too."""

    connections: int
    answered_per_s: float
    p50_ms: float
    p99_ms: float
    error_rate: float
    mean_batch: float | None
    padding_share: float | None
    queue_wait_ms: float | None
    doubts: list[str]


class Bare(BaseModel):
    """The bare forward pass of texts like those sent: texts a second, each time it was measured."""

    runtime: str
    threads: int
    texts_per_s: list[float]

    @property
    def median_per_s(self) -> float:
        """Of the measurements."""
        return statistics.median(self.texts_per_s)


class Mixed(BaseModel):
    """Texts of 5 to 400 words: seconds that all of them took, in random order and sorted by length, each round."""

    texts: int
    random_s: list[float]
    sorted_s: list[float]

    @property
    def loss(self) -> float:
        """The share of tokens a second that random order loses: the tokens are the same, so it is one of time."""
        return 1 - sum(self.sorted_s) / sum(self.random_s)


class Found(BaseModel):
    """Everything that was measured."""

    command: str
    stamp: str
    plan: Plan
    levels: list[Level]
    bare: Bare
    mixed: Mixed | None

    @property
    def share(self) -> float | None:
        """Texts a second through HTTP over those of the bare forward pass."""
        level = next((each for each in self.levels if each.connections == self.plan.held_against), None)
        return level.answered_per_s / self.bare.median_per_s if level else None


def run_plan(plan: Plan, url: str, threads: int, tell: Tell) -> Found:
    """Measure a running service; blocks until it is over.

    Raises:
        LoadError: the service does not answer as it should, or does not tell what computes its forward pass.
        KeyboardInterrupt: as it says.
    """
    runtime = _runtime(first_passes(url))
    bare = Bare(runtime=runtime, threads=threads, texts_per_s=[])
    levels = []
    for connections in plan.connections:
        beside = connections == plan.held_against
        if beside:
            _measure_bare(bare, plan.device, tell)
        levels.append(_level(plan, url, connections))
        tell(" | ".join(f"{name} {cell}" for name, cell in zip(HEAD, _row(levels[-1]), strict=True)))
        if beside:
            _measure_bare(bare, plan.device, tell)
    mixed = _mixed(plan, url, tell) if plan.mixed_texts else None
    return Found(command=command(), stamp=stamp(), plan=plan, levels=levels, bare=bare, mixed=mixed)


def _measure_bare(bare: Bare, device: str, tell: Tell) -> None:
    bare.texts_per_s.append(bare_forward(bare.runtime, bare.threads, device))
    tell(f"bare forward pass, {bare.runtime}, {bare.threads} threads: {bare.texts_per_s[-1]:,.1f} texts/s")


def first_passes(url: str) -> Passes:
    """The service's metrics once they name a runtime: what a replica says as it starts takes a second or more."""
    due_s = time.monotonic() + ARRIVAL_S
    while not (passes := asyncio.run(scrape_passes(url))).runtimes and time.monotonic() < due_s:
        time.sleep(POLL_S)
    return passes


def _runtime(passes: Passes) -> str:
    if len(passes.runtimes) != 1:
        told = ", ".join(sorted(passes.runtimes)) or "nothing"
        raise LoadError(f"the service's metrics name {told} as what computes its forward pass; one runtime is needed")
    return next(iter(passes.runtimes))


def _level(plan: Plan, url: str, connections: int) -> Level:
    before = asyncio.run(scrape_passes(url))
    report = measure(plan.load(url, connections))  # returns when the server's counts have arrived
    if report.ended == "interrupted":
        raise KeyboardInterrupt
    latency = report.summary("all")
    if latency is None:
        raise LoadError(f"nothing was answered at {connections} connections: {'; '.join(report.failures)}")
    passes = asyncio.run(scrape_passes(url)) - before
    doubts = list(report.invalid_because)
    if report.reconciliation and not report.reconciliation.agrees:
        doubts.append(report.reconciliation.note)
    return Level(
        connections=connections,
        answered_per_s=report.answered_per_s,
        p50_ms=latency.p50_ms,
        p99_ms=latency.p99_ms,
        error_rate=report.error_rate,
        mean_batch=passes.mean_batch,
        padding_share=passes.padding_share,
        queue_wait_ms=passes.queue_wait_ms,
        doubts=doubts,
    )


def bare_forward(runtime: str, threads: int, device: str) -> float:
    """Texts a second of the bare forward pass, of texts like those of the levels: `loadgen.model` in its own process.

    Raises:
        LoadError: it fails.
    """
    name, _, precision = runtime.partition(" ")
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.txt"
        texts.write_text("\n".join(_texts(SHORT_TEXTS, BARE_TEXTS)) + "\n", encoding="utf-8")
        try:
            result = subprocess.run(  # noqa: S603 — the command is our own
                [
                    sys.executable, "-m", "loadgen.model", "--json", f"--runtime={name}", f"--precision={precision}",
                    f"--threads={threads}", f"--device={device}", f"--batch={BARE_BATCH}", f"--texts={texts}",
                ],
                capture_output=True, text=True, timeout=BARE_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise LoadError(f"the bare forward pass took over {BARE_TIMEOUT_S:g} s") from None
    if result.returncode:
        raise LoadError(f"the bare forward pass was not measured: {result.stderr.strip()}")
    (done,) = json.loads(result.stdout)["passes"]
    return float(done["texts_per_s"])


def _texts(lengths: str, count: int) -> list[str]:
    traffic = {"texts": "unique", "text_seed": secrets.randbelow(2**31), "lengths": lengths}
    source = TextSource(Traffic.model_validate(traffic))
    return [source.text(number).replace("\n", " ") for number in range(count)]


def _mixed(plan: Plan, url: str, tell: Tell) -> Mixed:
    """Random order and sorted in turn, the order of the two turned round in every other round."""
    lengths = ",".join(f"{words}:{1 / len(MIXED_WORDS)}" for words in MIXED_WORDS)
    by_length = sorted(_texts(lengths, plan.mixed_texts), key=len)
    shuffled = random.Random(1).sample(by_length, len(by_length))  # noqa: S311 — no secret; the same in every run
    mixed = Mixed(texts=len(by_length), random_s=[], sorted_s=[])
    for number in range(plan.mixed_rounds):
        turns = [("random", shuffled, mixed.random_s), ("sorted", by_length, mixed.sorted_s)]
        for name, texts, spent_s in turns if number % 2 == 0 else reversed(turns):
            spent_s.append(send_in_order(url, texts, plan.mixed_callers))
            tell(f"{len(texts)} texts of mixed length, {name}: {len(texts) / spent_s[-1]:.1f}/s")
    return mixed


def outcomes(found: Found) -> Iterator[Outcome]:
    """What dynamic batching must reach, and whether it did."""
    if (share := found.share) is not None:
        yield Outcome(
            share >= MIN_SHARE,
            share,
            f"{found.plan.held_against} connections: {percent(share)} of the bare forward pass ({found.bare.runtime}, "
            f"{found.bare.threads} threads, batches of {BARE_BATCH}: {found.bare.median_per_s:,.0f} texts/s); "
            f"at least {MIN_SHARE:.0%}",
        )
    if len(found.levels) > 1:
        batches = [level.mean_batch or 0.0 for level in found.levels]
        yield Outcome(grows(batches), None, f"the mean batch grows with load: {', '.join(f'{b:.1f}' for b in batches)}")
    if found.levels[0].connections == 1:
        p50_ms = found.levels[0].p50_ms
        yield Outcome(
            p50_ms < MAX_ONE_P50_MS, p50_ms, f"one connection: p50 {p50_ms:.1f} ms; under {MAX_ONE_P50_MS:g} ms"
        )
    if found.mixed:
        loss = found.mixed.loss
        yield Outcome(
            loss < MAX_LOSS,
            loss,
            f"{found.mixed.texts} texts of {MIXED_WORDS[0]} to {MIXED_WORDS[-1]} words, "
            f"{found.plan.mixed_callers} connections: random order loses {percent(loss)} of the tokens/s of sorted; "
            f"under {MAX_LOSS:.0%}",
        )
    failed = max(level.error_rate for level in found.levels)
    yield Outcome(failed == 0, failed, f"{percent(failed)} of the calls failed; none may")


def grows(batches: Sequence[float]) -> bool:
    """Whether each mean batch is no smaller than the one before, and the last larger than the first."""
    return batches[-1] > batches[0] and all(after >= SAME * before for before, after in pairwise(batches))


HEAD = ("connections", "answers/s", "p50, ms", "p99, ms", "mean batch", "padding, about", "queue wait, about, ms")


def _row(level: Level) -> tuple[str, ...]:
    return (
        str(level.connections),
        f"{level.answered_per_s:,.1f}",
        milliseconds(level.p50_ms),
        milliseconds(level.p99_ms),
        *(
            "-" if figure is None else shown(figure)
            for figure, shown in (
                (level.mean_batch, "{:.1f}".format),
                (level.padding_share, percent),
                (level.queue_wait_ms, milliseconds),
            )
        ),
    )


def _doubts(found: Found) -> list[str]:
    return [f"{level.connections} connections: {doubt}" for level in found.levels for doubt in level.doubts]


def render(found: Found, console: Console) -> None:
    """Print the table and what it is held against."""
    print_line(console, COORDINATED_OMISSION, "yellow")
    print_table(console, HEAD, map(_row, found.levels))
    for doubt in _doubts(found):
        print_line(console, f"INVALID: {doubt}", "red")
    for outcome in outcomes(found):
        print_line(console, outcome.line, "green" if outcome.held else "bold red")


def markdown(found: Found) -> str:
    """The same for a README."""
    lines = [f"- {outcome.line}" for outcome in outcomes(found)]
    lines += [f"- **invalid**: {doubt}" for doubt in _doubts(found)]
    heading = f"{found.stamp}; one model replica; service, stores and load generator share it. `{found.command}`"
    return "\n".join([heading, "", table(HEAD, map(_row, found.levels)), "", *lines])


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(
    epilog=examples(
        "python -m loadgen.batching",
        "python -m loadgen.batching --readme README.md",
        "python -m loadgen.batching --target http://127.0.0.1:8000 --threads 1 --connections 1,32 --mixed-texts 0",
    )
)
def main(  # noqa: PLR0913, PLR0917 — one parameter for each option
    target: Annotated[
        str | None, typer.Option("--target", "--url", help="A running service; one is started here when absent.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of its forward pass; as serve_config.yaml gives them when absent.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where its model computes, cpu or cuda: the bare pass does too.")] = "cpu",
    connections: Annotated[str, typer.Option(help="Callers of each level, with commas.")] = "1,8,32,128",
    held_against: Annotated[int, typer.Option(help="The level held against the bare forward pass.")] = 32,
    duration: Annotated[float, typer.Option(help="Seconds measured at each level.")] = 8.0,
    warmup: Annotated[float, typer.Option(help="Seconds before them.")] = 2.0,
    mixed_texts: Annotated[int, typer.Option(help="Texts of mixed length; 0 leaves that part out.")] = 160,
    mixed_rounds: Annotated[int, typer.Option(help="Times they are sent, in each order.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    readme: Annotated[Path | None, typer.Option(help="Also put the table into this file, between its marks.")] = None,
) -> None:
    """Measure what dynamic batching gives, against the bare forward pass; about four minutes."""
    with clear_errors():
        check_keeping(out, readme, MARK)
        plan: Plan = built(
            Plan,
            connections=whole_numbers(connections, "connections"),
            held_against=held_against,
            duration_s=duration,
            warmup_s=warmup,
            threads=threads,
            device=device,
            mixed_texts=mixed_texts,
            mixed_rounds=mixed_rounds,
        )
        with started_or(target, max_queue_ms=PATIENCE_MS) as (url, _):
            found = run_plan(plan, url, threads or model_threads(shipped_config()), _tell)
        keep(found, out, readme, MARK, markdown(found))
        render(found, Console())
    held = all(outcome.held for outcome in outcomes(found)) and not _doubts(found)
    sys.exit(0 if held else NOT_BELIEVED)


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":  # worker processes import this file under another name
    run_app(app, "python -m loadgen.batching")
