"""The command line of the load generator: `python -m loadgen`, or `intents load`.

It parses, calls and prints. Exit codes: 0 all as asked; 1 a figure not to be believed, an assertion that does not hold,
or a target that died; 2 wrong usage or nobody at the target; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from typer.core import TyperGroup

from loadgen.load import Load, LoadError
from loadgen.traffic import Traffic, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import BaseModel

    from loadgen.report import Report

NOT_BELIEVED, MISUSED, INTERRUPTED = 1, 2, 130
DEFAULT_URL = "http://127.0.0.1:8000"


class _RunUnlessNamed(TyperGroup):
    """`loadgen --rate 50` is `loadgen run --rate 50`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name before its options when it is left out."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def examples(*commands: str) -> str:
    """An epilogue for `--help`."""
    return "\n\n".join(("Examples:", *(f"  $ {command}" for command in commands)))


app = typer.Typer(
    name="loadgen",
    cls=_RunUnlessNamed,
    help="Send traffic to a service and measure it honestly: open loop, latency from the intended send time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of `python -m loadgen`."""
    run_app(app, "python -m loadgen")


def run_app(application: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command line, the process's own arguments when none are given."""
    application(arguments, prog_name=name)


def fail(message: str, code: int = MISUSED) -> None:
    """Say why and end."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)


Target = Annotated[
    str,
    typer.Option("--target", "--url", help="http://HOST:PORT, or handle:APPLICATION of the cluster at RAY_ADDRESS."),
]
Rate = Annotated[float, typer.Option("--rate", "--rps", help="Requests a second; the highest where it changes.")]
Workers = Annotated[int, typer.Option(help="Processes that send.")]
Arrivals = Annotated[
    str,
    typer.Option(help="poisson, constant, step, ramp, diurnal, pulse, trace; closed (hides waits; labelled so)."),
]
Connections = Annotated[int, typer.Option(help="Callers of the closed loop.")]
Texts = Annotated[str, typer.Option(help="Popularity of texts: zipf, unique or same.")]
Zipf = Annotated[float, typer.Option(help="Exponent of Zipf's law; 0: all texts equally often.")]
Distinct = Annotated[int, typer.Option(help="How many texts there are.")]
Lengths = Annotated[str, typer.Option(help="Mix of generated texts, words:share.")]
Corpus = Annotated[Path | None, typer.Option(help="Texts from a file instead: JSONL with `text`, or plain lines.")]
Batch = Annotated[float, typer.Option(help="Share of calls that are batches.")]
CacheStates = Annotated[
    str | None,
    typer.Option(
        help="Before the run. fresh: texts nobody has sent (default); cold: purge; warm: send all once; as-is."
    ),
]
Seed = Annotated[int, typer.Option(help="Of arrivals and draws.")]
Timeout = Annotated[float, typer.Option(help="Seconds an answer may take.")]
MaxLag = Annotated[float, typer.Option(help="A run is invalid when the p99 of its send lag is over it.")]
Out = Annotated[Path | None, typer.Option(help="Write the report as JSON.")]


@app.command(
    epilog=examples(
        "python -m loadgen --rate 50 --duration 30",
        "python -m loadgen --rps 200 --texts zipf --zipf 1.1 --distinct 10000 --cache-state cold --out run.json",
        "python -m loadgen --rate 100 --cache-state warm --assert 'hit.p99<10ms' --assert 'error_rate<0.001'",
        "python -m loadgen --arrivals ramp --from-rate 10 --rate 300 --duration 120 --plots plots/",
        "python -m loadgen --arrivals trace --trace monday.jsonl --trace-speed 2",
        "python -m loadgen --arrivals closed --connections 32 --cache-state warm --distinct 1000",
        "python -m loadgen --target handle:intents --rate 50",
    )
)
def run(  # noqa: PLR0913, PLR0917 — one parameter for each option
    target: Target = DEFAULT_URL,
    api_path: Annotated[str, typer.Option(help="Where the calls stand below the address.")] = "/api/v1/intents",
    rate: Rate = 50.0,
    duration: Annotated[
        float | None, typer.Option(help="Seconds measured; 30, or the whole trace, when absent.")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Seconds before them that are left out; 5, or 0 of a trace, when absent.")
    ] = None,
    arrivals: Arrivals = "poisson",
    from_rate: Annotated[
        float | None, typer.Option(help="The lowest rate of step, ramp, diurnal, pulse; a tenth of --rate when absent.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Stairs of step.")] = 5,
    period: Annotated[float | None, typer.Option(help="Seconds of a diurnal day; the whole run when absent.")] = None,
    trace: Annotated[Path | None, typer.Option(help='JSONL rows {"time_s": 0.25, "text": "…"}, or "texts".')] = None,
    trace_speed: Annotated[float, typer.Option(help="Times faster than it was.")] = 1.0,
    connections: Connections = 32,
    texts: Texts = "zipf",
    zipf: Zipf = 1.1,
    distinct: Distinct = 10_000,
    lengths: Lengths = "12:0.7,60:0.25,250:0.05",
    corpus: Corpus = None,
    variants: Annotated[float, typer.Option(help="Share of texts in other case or white space.")] = 0.0,
    batch: Batch = 0.0,
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.")] = 10,
    feedback: Annotated[float, typer.Option(help="Share of calls that are feedback; it is really recorded.")] = 0.0,
    corrections: Annotated[float, typer.Option(help="Share of feedback that corrects; the rest confirms.")] = 0.0,
    cancel: Annotated[float, typer.Option(help="Share of classifications whose caller leaves early.")] = 0.0,
    cancel_after: Annotated[float, typer.Option(help="Seconds until it leaves.")] = 0.005,
    cache_state: CacheStates = None,
    seed: Seed = 1,
    workers: Workers = 2,
    timeout: Timeout = 30.0,
    max_lag_ms: MaxLag = 1.0,
    metrics_url: Annotated[
        str | None, typer.Option(help="The server's counters; /metrics of an HTTP target when absent.")
    ] = None,
    settle: Annotated[float, typer.Option(help="Seconds at rest after which the server's counts have arrived.")] = 2.5,
    counts_must_agree: Annotated[
        bool, typer.Option("--counts-must-agree", help="Exit with 1 unless the server counted what was sent.")
    ] = False,
    out: Out = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for plots (PNG).")] = None,
    assertions: Annotated[
        list[str] | None, typer.Option("--assert", help="What must hold, such as 'hit.p99<10ms'; may be repeated.")
    ] = None,
) -> None:
    """Send traffic and report; a partial report is kept when it ends early."""
    from loadgen import criteria
    from loadgen.display import display_for
    from loadgen.run import measure
    from loadgen.schedule import trace_length_s
    from loadgen.terminal import render

    with clear_errors():
        wanted = [criteria.parse(each) for each in assertions or ()]
        check_places(out, plots)
        if trace and duration is None:
            duration = trace_length_s(trace, trace_speed)
        traffic = built(
            Traffic,
            seed=seed,
            arrivals=arrivals,
            rate=rate,
            from_rate=from_rate,
            steps=steps,
            period_s=period,
            connections=connections,
            trace=trace,
            trace_speed=trace_speed,
            warmup_s=warmup if warmup is not None else 0.0 if trace else 5.0,
            duration_s=30.0 if duration is None else duration,
            texts=texts,
            zipf_s=zipf,
            distinct=distinct,
            corpus=corpus,
            lengths=lengths,
            variants=variants,
            batch=batch,
            batch_size=batch_size,
            feedback=feedback,
            corrections=corrections,
            cancel=cancel,
            cancel_after_s=cancel_after,
        )
        load = built(
            Load,
            target=target,
            api_path=api_path,
            traffic=traffic,
            workers=workers,
            timeout_s=timeout,
            max_lag_ms=max_lag_ms,
            cache_state=cache_state,
            metrics_url=metrics_url,
            settle_s=settle,
        )
        report = measure(load, display_for(Console(stderr=True)))
        if out:
            report.write(out)  # before anything is printed: a closed pipe must not cost it
        render(report, Console())
        held = [criterion.check(report) for criterion in wanted]
        for outcome in held:
            sys.stdout.write(f"{outcome.line}\n")
        if out:
            sys.stdout.write(f"report in {out}\n")
        if plots:
            _draw(report, plots)
    agrees = report.reconciliation is not None and report.reconciliation.agrees
    sys.exit(_exit_code(report, all(outcome.held for outcome in held) and (agrees or not counts_must_agree)))


@app.command(epilog=examples("python -m loadgen compare before.json after.json"))
def compare(before: Path, after: Path) -> None:
    """Hold two reports against each other, with confidence intervals."""
    from loadgen import compare as comparison
    from loadgen.report import Report

    with clear_errors():
        comparison.render(comparison.compare(Report.read(before), Report.read(after)), Console())


@app.command(
    epilog=examples(
        "python -m loadgen slo --p99-ms 50 --texts unique --lengths 12:1 --high 200",
        "python -m loadgen slo --p99-ms 10 --cache-state warm --distinct 1000 --zipf 0 --low 50 --high 3000",
    )
)
def slo(  # noqa: PLR0913, PLR0917 — one parameter for each option
    target: Target = DEFAULT_URL,
    p99_ms: Annotated[float, typer.Option(help="The highest p99 allowed, over all answered classifications.")] = 100.0,
    errors: Annotated[float, typer.Option(help="The highest share of failures allowed, 429 among them.")] = 0.001,
    low: Annotated[float, typer.Option(help="A rate that surely holds.")] = 10.0,
    high: Annotated[float, typer.Option(help="A rate that surely does not.")] = 1000.0,
    precision: Annotated[float, typer.Option(help="Stop when the bounds are this close, as a share.")] = 0.05,
    repeats: Annotated[int, typer.Option(help="Searches, each with other arrivals; the median counts.")] = 3,
    duration: Annotated[float, typer.Option(help="Seconds measured at each rate.")] = 10.0,
    warmup: Annotated[float, typer.Option(help="Seconds before them.")] = 2.0,
    texts: Texts = "zipf",
    zipf: Zipf = 1.1,
    distinct: Distinct = 10_000,
    lengths: Lengths = "12:0.7,60:0.25,250:0.05",
    corpus: Corpus = None,
    batch: Batch = 0.0,
    cache_state: CacheStates = None,
    seed: Seed = 1,
    workers: Workers = 2,
    timeout: Timeout = 10.0,
    max_lag_ms: MaxLag = 1.0,
    out: Annotated[Path | None, typer.Option(help="Write all that was tried as JSON.")] = None,
) -> None:
    """Find the highest rate that keeps a service level objective, by bisection."""
    from loadgen.slo import Objective, render, search

    with clear_errors():
        traffic = built(
            Traffic,
            seed=seed,
            rate=high,
            warmup_s=warmup,
            duration_s=duration,
            texts=texts,
            zipf_s=zipf,
            distinct=distinct,
            lengths=lengths,
            corpus=corpus,
            batch=batch,
        )
        load = built(
            Load,
            target=target,
            traffic=traffic,
            workers=workers,
            timeout_s=timeout,
            max_lag_ms=max_lag_ms,
            cache_state=cache_state,
        )
        objective = built(
            Objective, p99_ms=p99_ms, error_rate=errors, low=low, high=high, precision=precision, repeats=repeats
        )
        found = search(load, objective, lambda line: sys.stderr.write(f"{line}\n"))
        if out:
            found.write(out)
        render(found, Console())
    if found.ended == "interrupted":
        sys.exit(INTERRUPTED)
    sys.exit(0 if found.rate_per_s is not None else NOT_BELIEVED)


def built(model: type[BaseModel], **values: Any) -> Any:
    """Validate settings; each error names the option it came from.

    Raises:
        ValueError: with all errors on one line.
    """
    try:
        return model(**values)
    except ValidationError as refused:
        raise ValueError(refusal(refused)) from None


@contextmanager
def clear_errors() -> Iterator[None]:
    """End with a clear line on what is wrong with the usage, the files or the target."""
    try:
        yield
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except (LoadError, ValueError, OSError) as error:
        fail(str(error))


def check_places(out: Path | None, plots: Path | None = None) -> None:
    """Refuse before the run what would lose its report after it."""
    if out and not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.absolute().parent}")
    if plots and find_spec("matplotlib") is None:
        raise ValueError("--plots needs matplotlib; install it with `pip install 'intentgraph[plots]'`")


def _draw(report: Report, plots: Path) -> None:
    from loadgen.plots import write_plots

    for path in write_plots(report, plots):
        sys.stdout.write(f"plot in {path}\n")


def _exit_code(report: Report, held: bool) -> int:
    """What a script is told of a finished run."""
    if report.ended == "interrupted":
        return INTERRUPTED
    return 0 if report.ended == "complete" and report.valid and held else NOT_BELIEVED
