"""The `intents` command: `up` and `down` a service on this machine, ask it, train an artifact for it.

It parses, calls and prints; the work is done in `deployments.local` and `deployments.training`. A failure is one line
on standard error that names the remedy, and exit code 1.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path  # noqa: TC003 — typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from deployments import feedback_cli, keys_cli
from deployments.core.errors import StartupError
from deployments.local.files import shipped
from deployments.local.instance import data_folder, service_address, state_file
from deployments.terminal import (
    INTERRUPTED,
    KeyOption,
    UrlOption,
    cells,
    console,
    examples,
    json_line,
    one_line_errors,
    printable,
    shortened,
)
from deployments.training import cli as training

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deployments.local.control import Report
    from deployments.local.plan import Options
    from deployments.local.remote import Warmed

SHOWN_TEXT = 48

app = typer.Typer(
    name="intents",
    help="Classify what prompts ask for: run the service on this machine, ask it, train it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@app.command(
    epilog=examples(
        "intents up",
        "intents up --detach --port 8080",
        "intents keys add app --scope classify && intents up --host 0.0.0.0",
        "REDIS_URL=redis://cache.example:6379/0 FEEDBACK_REDIS_URL=redis://log.example:6379/0 intents up",
    )
)
def up(  # noqa: PLR0913, PLR0917 — one parameter for each option
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background once it serves.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the service.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address it listens on; other than this machine's own needs API keys, or --auth-open.")
    ] = "127.0.0.1",
    no_haproxy: Annotated[
        bool, typer.Option("--no-haproxy", help="Serve's own Python proxy instead: slower, fewer ports.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="Serve configuration; the shipped serve_config.yaml when absent.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the feedback log's data; ~/.local/share/intentgraph when absent.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="File of API keys, one of which every call needs; that of `intents keys`, if there is one."),
    ] = None,
    auth_open: Annotated[
        bool,
        typer.Option("--auth-open", help="Without keys, everyone who reaches the port may call (`auth: open`)."),
    ] = False,
    unsafe_feedback: Annotated[
        bool,
        typer.Option("--unsafe-feedback", help="Take a log's store also if it may lose what it acknowledged."),
    ] = False,
) -> None:
    """Start the stores, Ray and the graph on this machine, and serve until Ctrl-C.

    Both stores are started when REDIS_URL and FEEDBACK_REDIS_URL are not set. With REDIS_URL alone the feedback log
    goes there too. Everything started is stopped at the end, and nothing else.
    """
    with one_line_errors():
        from deployments.local.plan import Options

        options = Options(
            config=(config or shipped("serve_config.yaml")).absolute(),
            data_dir=(data_dir or data_folder()).expanduser().absolute(),
            host=host,
            port=port,
            haproxy=not no_haproxy,
            open_to_all=auth_open,
            keys=keys.absolute() if keys else None,
            unsafe_feedback=unsafe_feedback,
        )
        _up_detached(options) if detach else _up(options)


def _up(options: Options) -> None:
    from deployments.local import supervisor
    from deployments.local.plan import plan
    from deployments.local.progress import Progress

    supervisor.up(plan(options), state_file(), Progress())


def _up_detached(options: Options) -> None:
    from deployments.local import control
    from deployments.local.progress import Progress

    arguments = [
        f"--config={options.config}",
        f"--data-dir={options.data_dir}",
        f"--host={options.host}",
        f"--port={options.port}",
        *([f"--keys={options.keys}"] if options.keys else []),
        *(["--auth-open"] if options.open_to_all else []),
        *(["--unsafe-feedback"] if options.unsafe_feedback else []),
        *([] if options.haproxy else ["--no-haproxy"]),
    ]
    control.start_detached(arguments, state_file(), Progress())


@app.command(epilog=examples("intents down"))
def down() -> None:
    """Stop the running service and whatever a killed one left behind."""
    with one_line_errors():
        from deployments.local import control
        from deployments.local.progress import Progress

        progress = Progress()
        if control.stop(state_file(), progress):
            progress.done("nothing is left running")
        else:
            progress.tell("nothing is running")


@app.command(epilog=examples("intents status", "intents status --json"))
def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show deployments, replicas and stores of the running service; exit code 1 when not all of it is healthy."""
    with one_line_errors():
        from deployments.local import control

        state = state_file().read()
        if state is None or not state.alive:
            raise StartupError("nothing is running; start it with `intents up`")
        report = control.report(state)
        if as_json:
            typer.echo(json.dumps(_report_document(report), indent=2))
        else:
            _show_report(report)
        if not report.healthy:
            raise typer.Exit(1)


def _report_document(report: Report) -> dict[str, Any]:
    return {
        "address": report.state.address,
        "phase": report.state.phase,
        "healthy": report.healthy,
        "applications": [asdict(application) for application in report.applications or ()],
        "stores": report.stores,
        "health": report.health,
    }


def _show_report(report: Report) -> None:
    terminal = console()
    table = Table("deployment", "status", "replicas", "message", box=None, pad_edge=False)
    for application in report.applications or ():
        for deployment in application.deployments:
            replicas = ", ".join(f"{count} {state.lower()}" for state, count in sorted(deployment.replicas.items()))
            counts = f"{replicas or '0'} of {deployment.target}"
            message = "\n".join(cells(*deployment.message.splitlines()))  # a traceback
            table.add_row(*cells(deployment.name, deployment.status, counts), message)
    for name, answers in report.stores.items():
        word = {True: "answers", False: "DOES NOT ANSWER", None: "not ours, not asked"}[answers]
        table.add_row(*cells(f"{name} store", word, "", report.state.stores[name]))
    terminal.print(table)
    if report.applications is None:
        terminal.print(f"Serve does not answer at {report.state.dashboard}")
    if report.health != "ok":
        terminal.print(printable(report.health), markup=False)
    verdict = "healthy" if report.healthy else f"not healthy ({report.state.phase})"
    terminal.print(f"{report.state.address} (pid {report.state.supervisor.pid}): {verdict}")


@app.command(
    epilog=examples(
        "intents classify 'Write a haiku about autumn'",
        "intents classify --json - < prompts.txt",
        "intents classify --url http://intents.example:8000 'Sum this up in two lines'",
    )
)
def classify(
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT…", help="Texts to classify; `-` reads one a line from standard input.")
    ],
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead of a table.")] = False,
) -> None:
    """Ask a running service what texts ask for."""
    with one_line_errors():
        from deployments.local import remote

        address = service_address(url)
        asked = list(_texts(texts))
        if not asked:
            raise StartupError("no text came in; give one, or a line of standard input for `-`")
        answers = asyncio.run(remote.classify(address, asked, api_key=key))
        if as_json:
            for answer in answers:
                typer.echo(json_line(answer))
        else:
            _show_answers(asked, answers)


def _texts(arguments: list[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            yield from _lines_of_stdin()
        else:
            yield argument


def _lines_of_stdin() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise StartupError(f"line {number} of standard input is not UTF-8; convert it") from None
        if text.strip():
            yield text


def _show_answers(texts: list[str], answers: list[dict[str, Any]]) -> None:
    table = Table("text", "intent", "confidence", "complexity", "techniques", box=None, pad_edge=False)
    for text, answer in zip(texts, answers, strict=True):
        shown, techniques = shortened(text, SHOWN_TEXT), ", ".join(answer["suggested_techniques"])
        table.add_row(*cells(shown, answer["intent"], f"{answer['confidence']:.2f}", answer["complexity"], techniques))
    console().print(table)


@app.command(
    epilog=examples(
        "intents purge 'Write a haiku about autumn'",
        "intents purge - < prompts.txt",
        "intents purge --all --url http://intents.example:8000",
    )
)
def purge(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT…", help="Texts to forget; `-` reads one a line from standard input."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Forget every text, under every model version.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Delete kept predictions of a running service; corrections and the feedback log stay."""
    with one_line_errors():
        from deployments.local import remote

        if everything == bool(texts):
            raise StartupError("give either texts or --all")
        address = service_address(url)
        named = list(_texts(texts or []))
        if not everything and not named:
            raise StartupError("no text came in; give one, or a line of standard input for `-`")
        purging = remote.purge_all(address, api_key=key) if everything else remote.purge(address, named, api_key=key)
        deleted = asyncio.run(purging)
        typer.echo(f"{deleted} prediction{'' if deleted == 1 else 's'} deleted")


@app.command(
    epilog=examples(
        "intents warm prompts.jsonl",
        "intents warm --top 10000 trace.jsonl",
        "zcat prompts.txt.gz | intents warm - --url http://intents.example:8000",
    )
)
def warm(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSONL rows with `text`, a trace of `intents load`, or one text a line; `-` reads standard input.",
        ),
    ],
    top: Annotated[
        int | None, typer.Option(min=1, help="Only so many, the most frequent; every distinct one when absent.")
    ] = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Have texts computed and kept before anybody asks for them, the most frequent first; callers are served meanwhile.

    Stopped early, it goes on where it was when started again: what is kept is not computed twice.
    """
    with one_line_errors():
        from deployments.local import remote
        from deployments.local.progress import told_on_stderr
        from deployments.local.text_file import most_frequent

        address = service_address(url)
        texts = most_frequent(file, top)
        with told_on_stderr() as tell:
            warming = remote.warm(
                address, texts, lambda so_far: tell(f"{_warmed(so_far)}, of {len(texts):,}"), api_key=key
            )
            done = asyncio.run(warming)
        typer.echo(_warmed(done))


def _warmed(done: Warmed) -> str:
    texts = f"{done.requested:,} text{'' if done.requested == 1 else 's'}"
    return f"{texts}: {done.computed:,} computed, {done.already_cached:,} cached already"


app.add_typer(feedback_cli.app)
app.add_typer(keys_cli.app)
app.command(epilog=training.TRAIN_EXAMPLES)(training.train)
app.command(epilog=training.EVALUATE_EXAMPLES)(training.evaluate)


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
def load(context: typer.Context) -> None:
    """Send traffic to a service and measure it: open loop, honest latencies, counts held against the server's."""
    from loadgen.cli import app as loadgen
    from loadgen.cli import run_app

    run_app(loadgen, "intents load", context.args)


@app.callback(invoke_without_command=True)
def _version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if show:
        typer.echo(version("intentgraph"))
        raise typer.Exit


if __name__ == "__main__":
    main()
