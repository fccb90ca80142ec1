"""The command line of the contest: `python -m loadgen.peers`. It parses, calls and prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from loadgen.cli import INTERRUPTED, NOT_BELIEVED, clear_errors, examples
from loadgen.peers import contest as contests
from loadgen.peers import environment
from loadgen.peers.contestants import OWN, Tuning, contestants
from loadgen.traffic import refusal

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from loadgen.peers.contestants import Contestant
    from loadgen.peers.results import Contest, Task

DEFAULT = Tuning()
NAMES = ", ".join(contestants({}))
TASKS = ", ".join(task.name for task in contests.tasks(32))

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(
    epilog=examples(
        "python -m loadgen.peers",
        "python -m loadgen.peers --only fastapi,fastapi-lru --tasks hits,hits-one --repeats 5 --out peers.json",
        "python -m loadgen.peers --only litserve,bentoml --tasks unique --markdown peers.md",
        "python -m loadgen.peers --variant no-local=no_local.yaml --only fastapi --task hits",
        "python -m loadgen.peers --prepare",
    )
)
def main(  # noqa: PLR0913, PLR0917 — one parameter for each option
    only: Annotated[
        list[str] | None, typer.Option(help=f"Contestants beside this service, with commas or again. All of: {NAMES}.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", "--tasks", help=f"What is asked, likewise. All of: {TASKS}.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times each is started and asked; the median counts.")] = 3,
    duration: Annotated[float, typer.Option(min=0.5, help="Seconds measured, each time.")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before them.")] = 3.0,
    connections: Annotated[int, typer.Option(min=2, help="Callers of `hits` and `unique`.")] = 32,
    texts: Annotated[int, typer.Option(min=1, help="Different texts of the hits.")] = 1_000,
    words: Annotated[int, typer.Option(min=1, help="Words of a text.")] = 12,
    variant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="This service again, with another Serve configuration."),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of a forward pass: those of this service's model replica.")
    ] = DEFAULT.threads,
    litserve_workers: Annotated[
        int, typer.Option(min=1, help="Its processes with a model.")
    ] = DEFAULT.litserve_workers,
    litserve_batch_timeout_ms: Annotated[
        float, typer.Option(min=0, help="How long it waits for a batch to fill.")
    ] = DEFAULT.litserve_batch_timeout_ms,
    bentoml_workers: Annotated[int, typer.Option(min=1, help="Its processes with a model.")] = DEFAULT.bentoml_workers,
    bentoml_max_latency_ms: Annotated[
        int, typer.Option(min=1, help="The latency over which it refuses.")
    ] = DEFAULT.bentoml_max_latency_ms,
    venv: Annotated[
        Path | None, typer.Option(help="The peers' environment; ~/.cache/intentgraph/peers-… when absent.")
    ] = None,
    torch_index: Annotated[
        str, typer.Option(help="Index with torch's CPU build, used when it answers.")
    ] = environment.CPU_INDEX,
    prepare: Annotated[bool, typer.Option("--prepare", help="Make the peers' environment and stop.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
) -> None:
    """Compare this service with what one would use instead: same work, same machine, one run, alternating repeats.

    Every server is started and stopped here, one at a time. Close what else works on this machine meanwhile.
    """
    told = Console(stderr=True)
    with clear_errors():
        folder = (venv or environment.default_folder()).expanduser().absolute()
        if prepare:
            environment.prepare(folder, lambda line: _tell(told, line), index=torch_index)
            sys.stdout.write(f"{folder}\n")
            return
        plan = contests.Plan(
            contestants=_chosen_contestants(_names(only), variant or ()),
            tasks=_chosen_tasks(_names(task), connections),
            tuning=Tuning(
                threads=threads,
                litserve_workers=litserve_workers,
                litserve_batch_timeout_ms=litserve_batch_timeout_ms,
                bentoml_workers=bentoml_workers,
                bentoml_max_latency_ms=bentoml_max_latency_ms,
            ),
            venv=folder,
            torch_index=torch_index,
            repeats=repeats,
            duration_s=duration,
            warmup_s=warmup,
            distinct=texts,
            words=words,
        )
        _check(plan, out, markdown)
        contest = _run(plan, told)
        _keep(contest, out, markdown)
    sys.exit(_exit_code(contest))


def _check(plan: contests.Plan, *written: Path | None) -> None:
    """Refuse before anything starts what would fail in the end."""
    try:
        for each in plan.tasks:
            plan.load(each, "http://127.0.0.1")
    except ValidationError as refused:
        raise ValueError(refusal(refused)) from None
    for path in filter(None, written):
        if not path.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} to write {path.name} in; make it")


def _run(plan: contests.Plan, told: Console) -> Contest:
    from loadgen.display import display_for
    from loadgen.peers.tables import render

    _tell(told, f"{len(plan.contestants)} services, {plan.repeats} repeats: about {plan.minutes:.0f} min")
    display = display_for(told) if told.is_terminal else None
    contest = contests.run(plan, lambda line: _tell(told, line), display)
    render(contest, Console())
    return contest


def _keep(contest: Contest, out: Path | None, markdown: Path | None) -> None:
    from loadgen.peers import tables

    if out:
        contest.write(out)
    if markdown:
        markdown.write_text(tables.markdown(contest), encoding="utf-8")
    for path in filter(None, (out, markdown)):
        sys.stdout.write(f"written: {path}\n")


def _exit_code(contest: Contest) -> int:
    if contest.ended == "interrupted":
        return INTERRUPTED
    return 0 if contest.complete else NOT_BELIEVED


def _names(given: Sequence[str] | None) -> list[str]:
    return [name for each in given or () for name in each.split(",")]


def _chosen_contestants(only: Sequence[str], variants: Sequence[str]) -> tuple[Contestant, ...]:
    """This service first, always: it is what the ratios are to, and whose answers are recorded.

    Raises:
        ValueError: a name that is none, or a variant without its file.
    """
    configs = dict(_variant(each) for each in variants)
    known = contestants(configs)
    _refuse_unknown("contestant", only, known)
    kept = {OWN, *only, *(f"{OWN}-{name}" for name in configs)} if only else set(known)
    return tuple(each for name, each in known.items() if name in kept)


def _chosen_tasks(names: Sequence[str], connections: int) -> tuple[Task, ...]:
    known = {task.name: task for task in contests.tasks(connections)}
    _refuse_unknown("task", names, known)
    return tuple(task for name, task in known.items() if not names or name in names)


def _variant(text: str) -> tuple[str, Path]:
    name, _, file = text.partition("=")
    if not (name and file and Path(file).is_file()):
        raise ValueError(f"--variant {text}: give NAME=FILE, with the file of a Serve configuration")
    return name, Path(file)


def _refuse_unknown(kind: str, given: Sequence[str], known: Collection[str]) -> None:
    if unknown := [each for each in given if each not in known]:
        raise ValueError(f"no {kind} {', '.join(unknown)}; there are {', '.join(known)}")


def _tell(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
