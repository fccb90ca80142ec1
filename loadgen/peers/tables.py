"""A contest on the terminal, and as Markdown for a README."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from loadgen.peers.results import Contest, Spread, Standing, Task
from loadgen.terminal import milliseconds, print_line, print_table

HEAD = ("answers/s", "p50, ms", "p99, ms")
NOTES = (
    "Closed loop: callers wait for their answers, so latencies hide what a stall holds back.",
    "The peers' model has one head, drawn at random, and answers less: costs of answers are compared, not their worth.",
    "Servers run at niceness 15, Ray's own for its workers; stores, Ray's other processes and the load generator at 0.",
)


def render(contest: Contest, console: Console) -> None:
    """Print the contest."""
    if contest.ended != "complete":
        print_line(console, f"ENDED EARLY, {contest.ended}", "bold red")
    for name, fact in _facts(contest):
        print_line(console, f"{name:10}{fact}", hang=10)
    for task in contest.tasks:
        if standings := list(contest.standings(task)):
            console.print()
            print_line(console, f"{task.name}: {task.what}", "bold")
            print_table(console, ("", *HEAD, _ratio_head(contest, task)), [_row(each) for each in standings])
    console.print()
    for note in (*NOTES, *_doubts(contest)):
        print_line(console, note)


def markdown(contest: Contest) -> str:
    """The same as Markdown: what was run, then a table for each task."""
    lines = [f"- {name}: {_code(name, fact)}" for name, fact in _facts(contest)]
    if contest.ended != "complete":
        lines.append(f"- **ended early**: {contest.ended}")
    for task in contest.tasks:
        if standings := list(contest.standings(task)):
            lines += ["", f"**{task.name}**: {task.what}", "", *_table(contest, task, standings)]
    return "\n".join([*lines, "", *(f"- {note}" for note in (*NOTES, *_doubts(contest))), ""])


def _table(contest: Contest, task: Task, standings: list[Standing]) -> Iterator[str]:
    yield f"| | {' | '.join(HEAD)} | {_ratio_head(contest, task)} |"
    yield "|---|--:|--:|--:|--:|"
    for each in standings:
        name, *figures = _row(each)
        yield f"| {name} ({contest.contestants[name]}) | {' | '.join(figures)} |"


def _ratio_head(contest: Contest, task: Task) -> str:
    figure = "answers/s" if task.decided_by == "answered_per_s" else "p50"
    return f"ratio of {figure}, over 1: {contest.reference} is better"


def _row(standing: Standing) -> tuple[str, ...]:
    return (
        standing.contestant,
        _spread(standing.answered_per_s, rate),
        _spread(standing.p50_ms, milliseconds),
        _spread(standing.p99_ms, milliseconds),
        "-" if standing.ratio is None else _spread(standing.ratio, times),
    )


def _spread(spread: Spread, shown: Any) -> str:
    whole = shown(spread.median)
    return whole if spread.low == spread.high else f"{whole} ({shown(spread.low)} to {shown(spread.high)})"


def rate(value: float) -> str:
    """A rate with no more digits than repeat: 4,213, 94.1, 8.25."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2  # noqa: PLR2004 — powers of ten
    return f"{value:,.{decimals}f}"


def times(value: float) -> str:
    """A ratio: 0.87×, 1.52×, 12.3×, 417×."""
    return f"{rate(value)}×"


def _facts(contest: Contest) -> Iterator[tuple[str, str]]:
    machine = contest.machine
    yield "command", contest.command
    yield "when", contest.started_at
    size = f"{machine.cores} cores, {machine.memory_gib:.1f} GiB"
    yield "machine", f"{machine.processor}, {size}, {machine.system}; load {machine.load_average_before:.2f} before"
    yield "commit", contest.commit or "none: not run from a checkout"
    yield "versions", _listed(contest.versions)
    if contest.peer_versions:
        yield "peers'", _listed(contest.peer_versions)
    yield "settings", _listed(contest.settings)


def _listed(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {fact}" for name, fact in facts.items())


def _code(name: str, fact: str) -> str:
    return f"`{fact}`" if name == "command" else fact


def _doubts(contest: Contest) -> Iterator[str]:
    for task in contest.tasks:
        for standing in contest.standings(task):
            for doubt in standing.doubts:
                yield f"{standing.contestant}, {task.name}: {doubt}"
